"""Means, 95 % intervals and differences of scores, for reports and reviews. Pure Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

# Two-sided 95 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
_T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z95 = 1.959964
_K = TypeVar("_K", bound=Hashable)


def t95(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t distribution.

    Args:
        freedom: Degrees of freedom, at least 1; between whole numbers, the smaller one counts.

    Returns:
        The quantile, exact to four digits.

    Reference:
        Above 30 the expansion by Cornish and Fisher; Abramowitz and Stegun, 26.7.5.
    """
    whole = int(freedom)
    if whole <= len(_T95):
        return _T95[max(whole, 1) - 1]
    z = _Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


@dataclass(frozen=True)
class SampleSummary:
    """Some values in short.

    Args:
        n: How many.
        mean: Their mean.
        median: Their median.
        least: The smallest.
        most: The largest.
        sd: Standard deviation of the sample; None for a single value.
        low: Lower end of the mean's 95 % interval; None likewise.
        high: Upper end.
    """

    n: int
    mean: float
    median: float
    least: float
    most: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the interval's width: what stands after the plus-minus sign."""
        return None if self.low is None else self.mean - self.low


def summarise(values: Sequence[float]) -> SampleSummary | None:
    """Summarise values; None for none. The interval takes them for independent draws."""
    if not values:
        return None
    mean = statistics.fmean(values)
    ends = (statistics.median(values), min(values), max(values))
    if len(values) == 1:
        return SampleSummary(1, mean, *ends)
    sd = statistics.stdev(values)
    half = t95(len(values) - 1) * sd / math.sqrt(len(values))
    return SampleSummary(len(values), mean, *ends, sd, mean - half, mean + half)


@dataclass(frozen=True)
class Difference:
    """By how much one variant's mean is above another's.

    Args:
        mean: The difference of the means.
        n: Pairs, or values of the smaller side where they aren't paired.
        is_paired: Whether clips of one scene, prompt and seed were compared with each other.
        low: Lower end of the difference's 95 % interval; None where one value says no spread.
        high: Upper end.
    """

    mean: float
    n: int
    is_paired: bool
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None else self.mean - self.low

    def is_within(self, tolerance: float) -> bool:
        """Whether the means can't be told apart, or the difference is too small to matter."""
        if abs(self.mean) <= tolerance:
            return True
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def difference(a: Mapping[_K, float], b: Mapping[_K, float]) -> Difference | None:
    """Compare two variants' values, by pairs where there are pairs.

    Args:
        a: Values by what makes a pair: scene, prompt and seeds.
        b: Those of the other variant.

    Returns:
        The difference ``a - b``; None where a side is empty. The interval is that of the paired
        differences, or Welch's where fewer than two pairs exist.

    Reference:
        B. L. Welch, Biometrika 34 (1947), for means of unequal variances.
    """
    if not a or not b:
        return None
    pairs = [a[key] - b[key] for key in a if key in b]
    if len(pairs) >= 2 or (pairs and len(a) == len(b) == 1):
        summary = summarise(pairs)
        assert summary is not None
        return Difference(summary.mean, summary.n, True, summary.low, summary.high)
    left, right = summarise(list(a.values())), summarise(list(b.values()))
    assert left is not None
    assert right is not None
    mean, n = left.mean - right.mean, min(left.n, right.n)
    if left.sd is None or right.sd is None:
        return Difference(mean, n, False)
    parts = (left.sd**2 / left.n, right.sd**2 / right.n)
    total = sum(parts)
    if total == 0:
        return Difference(mean, n, False, mean, mean)
    freedom = total**2 / (parts[0] ** 2 / (left.n - 1) + parts[1] ** 2 / (right.n - 1))
    half = t95(freedom) * math.sqrt(total)
    return Difference(mean, n, False, mean - half, mean + half)
