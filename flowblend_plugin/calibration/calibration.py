"""Calibration: the measurements of a pair of denoisers by noise level, for ``criteria``.

Pure Python. Everything is kept by sigma and as densities over sigma, so that a calibration made at
one number of steps and one shift can be read at others.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowblend_plugin.errors import CalibrationError

VERSION = 1
_KIND = "flowblend calibration"
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CalibratedStep:
    """The velocity log's measures of one step, over all prompts.

    Args:
        step: Index of the step.
        sigma: Its noise level, 1 to 0.
        mean: Name of each measure (see ``divergence.StepDivergence``) to its mean.
        spread: Name of each measure to its standard deviation over prompts.
    """

    step: int
    sigma: float
    mean: Mapping[str, float]
    spread: Mapping[str, float]


@dataclass(frozen=True)
class Calibration:
    """The measurements of one pair under one set of conditions.

    Args:
        conditions: What the measurements hold for: pipeline, small denoiser, size, guidance,
            solver and so on, as plain values.
        prompts: Number of prompts in the velocity log.
        steps: The log's measures, in order of the steps.
        cost_ratio: Full FLOPs of a small forward relative to a large one, above 0 to 1.
        positions: Steps whose effect on the final latents was measured, ascending.
        interactions: Inner products of these effects, relative to the latents' squared norm,
            averaged over prompts.
        sensitivity_prompts: Number of prompts behind ``interactions``.
        final_rms: Root mean square of the final latents.

    Raises:
        CalibrationError: The numbers don't belong together.
    """

    conditions: Mapping[str, Any]
    prompts: int
    steps: tuple[CalibratedStep, ...]
    cost_ratio: float
    positions: tuple[int, ...]
    interactions: Matrix
    sensitivity_prompts: int
    final_rms: float

    def __post_init__(self) -> None:
        count, rows = len(self.positions), self.interactions
        ordered = sorted(set(self.positions))
        numbers = [
            *itertools.chain.from_iterable(rows),
            *(v for s in self.steps for v in (s.sigma, *s.mean.values(), *s.spread.values())),
            self.final_rms,
        ]
        problems = {
            "it has no steps": not self.steps,
            "it has no sensitivities": count == 0,
            "its positions are no ascending steps of it": list(self.positions) != ordered
            or not all(0 <= p < len(self.steps) for p in ordered),
            "its interactions are no square of its positions": len(rows) != count
            or any(len(row) != count for row in rows),
            "its cost_ratio isn't above 0 and at most 1": not 0 < self.cost_ratio <= 1,
            "its final_rms isn't above 0": not self.final_rms > 0,
            "numbers in it are infinite or none": not all(map(math.isfinite, numbers)),
        }
        for problem, found in problems.items():
            if found:
                raise CalibrationError(f"this calibration can't be used: {problem}; probe again")
        for needed in ("guided_relative_l2", "velocity_norm"):
            if any(needed not in step.mean for step in self.steps):
                raise CalibrationError(f"this calibration lacks {needed} at some step; probe again")
        _check_levels(self.levels)

    @property
    def levels(self) -> tuple[float, ...]:
        """Noise level of each step that it was made at."""
        return tuple(step.sigma for step in self.steps)

    def gains(self) -> list[float | None]:
        """Compare the size of an error at the end of the trajectory with that at its own step.

        Returns:
            A number for each of ``positions``; None where the two denoisers agree.
        """
        widths = _widths(self.levels)
        gains: list[float | None] = []
        for k, i in enumerate(self.positions):
            mean = self.steps[i].mean
            there = widths[i] * mean["guided_relative_l2"] * mean["velocity_norm"] / self.final_rms
            gains.append(math.sqrt(max(0.0, self.interactions[k][k])) / there if there else None)
        return gains

    def at(self, levels: Sequence[float]) -> ErrorModel:
        """Read the calibration at the noise levels of another trajectory.

        Args:
            levels: Noise level of each step, descending; the trajectory ends at 0.

        Raises:
            CalibrationError: The levels don't descend from 1 to 0.
        """
        _check_levels(levels)
        own = self.levels
        own_widths = _widths(own)
        widths = _widths(levels)
        knots = [own[i] for i in self.positions]
        knot_widths = [own_widths[i] for i in self.positions]
        density = [
            [
                value / (wi * wj) if wi and wj else 0.0
                for value, wj in zip(row, knot_widths, strict=True)
            ]
            for row, wi in zip(self.interactions, knot_widths, strict=True)
        ]
        shares = [_shares(level, knots) for level in levels]
        gram = [
            [
                sum(density[i][j] * si * sj for i, si in a for j, sj in b) * widths[m] * widths[n]
                for n, b in enumerate(shares)
            ]
            for m, a in enumerate(shares)
        ]
        measures = {
            name: [_read(level, own, [step.mean.get(name) for step in self.steps])
                   for level in levels]
            for name in ("guided_relative_l2", "velocity_norm", "acceleration", "curvature")
        }  # fmt: skip
        gains = self.gains()
        return ErrorModel(
            levels=tuple(levels),
            widths=tuple(widths),
            gram=tuple(tuple(row) for row in gram),
            divergence=tuple(measures["guided_relative_l2"]),
            acceleration=tuple(v / self.final_rms for v in measures["acceleration"]),
            curvature=tuple(v / self.final_rms for v in measures["curvature"]),
            gain=tuple(_read(level, knots, gains) for level in levels),
            cost_ratio=self.cost_ratio,
            tells_extrapolation=any(g is not None for g in gains)
            and any("curvature" in step.mean for step in self.steps),
        )

    def to_document(self) -> dict[str, Any]:
        """The calibration as plain JSON values; ``from_document`` reads it back equal."""
        return {
            "v": VERSION,
            "kind": _KIND,
            "conditions": dict(self.conditions),
            "prompts": self.prompts,
            "sensitivity_prompts": self.sensitivity_prompts,
            "cost_ratio": self.cost_ratio,
            "final_rms": self.final_rms,
            "steps": [
                {"step": s.step, "sigma": s.sigma, **s.mean, "spread": dict(s.spread)}
                for s in self.steps
            ],
            "positions": list(self.positions),
            "interactions": [list(row) for row in self.interactions],
        }

    @classmethod
    def from_document(cls, document: Any) -> Calibration:
        """Read ``to_document``'s values.

        Raises:
            CalibrationError: They are no calibration, or one of another version.
        """
        if not isinstance(document, Mapping) or document.get("kind") != _KIND:
            raise CalibrationError("this is no calibration: make one with flowblend probe")
        if document.get("v") != VERSION:
            raise CalibrationError(
                f"this calibration has version {document.get('v')!r}, and version {VERSION} is "
                "read here: probe again"
            )
        try:
            return cls(
                conditions=dict(document["conditions"]),
                prompts=int(document["prompts"]),
                steps=tuple(_step(step) for step in document["steps"]),
                cost_ratio=float(document["cost_ratio"]),
                positions=tuple(int(p) for p in document["positions"]),
                interactions=tuple(
                    tuple(float(v) for v in row) for row in document["interactions"]
                ),
                sensitivity_prompts=int(document["sensitivity_prompts"]),
                final_rms=float(document["final_rms"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise CalibrationError(f"this calibration is damaged ({error}): probe again") from error


@dataclass(frozen=True)
class ErrorModel:
    """A calibration read at the steps of one trajectory; every tuple has one entry a step.

    Args:
        levels: Noise levels.
        widths: How far each step goes in sigma.
        gram: What two steps by the small denoiser do to the final latents together: the sum of
            ``gram[i][j]`` over all i and j in a set is the predicted squared error of that set,
            relative to the squared norm of the latents.
        divergence: Relative L2 between the two denoisers after guidance.
        acceleration: First derivative of the large velocity by sigma, relative to the latents.
        curvature: Second derivative, likewise.
        gain: How much an error made at a step has grown when the trajectory ends.
        cost_ratio: Cost of a small step relative to a large one.
        tells_extrapolation: Whether curvature and gain were measured at all.
    """

    levels: tuple[float, ...]
    widths: tuple[float, ...]
    gram: Matrix
    divergence: tuple[float, ...]
    acceleration: tuple[float, ...]
    curvature: tuple[float, ...]
    gain: tuple[float, ...]
    cost_ratio: float
    tells_extrapolation: bool = True
    _corner: list[list[float]] = field(init=False, repr=False, compare=False)
    _bends: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Sums over rectangles from the corner, so that any rectangle is four look-ups.
        corner = [[0.0] * (len(self) + 1)]
        for row in self.gram:
            running = [0.0, *itertools.accumulate(row)]
            corner.append([a + b for a, b in zip(corner[-1], running, strict=True)])
        object.__setattr__(self, "_corner", corner)
        object.__setattr__(self, "_bends", [0.0, *itertools.accumulate(self.curvature)])

    def __len__(self) -> int:
        return len(self.levels)

    def between(self, a: tuple[int, int], b: tuple[int, int]) -> float:
        """Sum of ``gram`` over the steps of span a and of span b; a span is [first, end)."""
        c = self._corner
        return c[a[1]][b[1]] - c[a[0]][b[1]] - c[a[1]][b[0]] + c[a[0]][b[0]]

    def small_error(self, steps: Sequence[int]) -> float:
        """Predicted squared relative error where the small denoiser runs these steps."""
        return max(0.0, sum(self.gram[i][j] for i in steps for j in steps))

    def extrapolation_error(self, computed: Sequence[int]) -> float:
        """Predicted squared relative error where only these steps are computed by the large one.

        A line through the velocities at a and b misses the one at t by half of the curvature
        times ``(t - a)(t - b)``; holding b's misses it by the acceleration times ``t - b``. What
        neighbouring steps miss points the same way, so that its sizes add up; what one stretch and
        another miss doesn't, so that their squares do.

        Args:
            computed: Indices of the computed steps, ascending; the first step is one of them.
        """
        befores, ends = [None, *computed], [*computed[1:], len(self)]
        return sum(map(self.stretch_error, befores, computed, ends))

    def stretch_error(self, before: int | None, at: int, end: int) -> float:
        """Predicted squared relative error of extrapolating from ``at + 1`` to ``end - 1``.

        Args:
            before: The computed step before ``at``, if there is one.
            at: The last computed step.
            end: The next one, or the number of steps.
        """
        stretch = sum(
            self._missed(step, before, at) * self.widths[step] * self.gain[step]
            for step in range(at + 1, end)
        )
        return stretch * stretch

    def _missed(self, step: int, before: int | None, at: int) -> float:
        distance = abs(self.levels[step] - self.levels[at])
        if before is None:
            return self.acceleration[step] * distance
        mean = (self._bends[step + 1] - self._bends[before]) / (step + 1 - before)
        return mean * distance * abs(self.levels[step] - self.levels[before]) / 2

    def share(self, denoisers: Sequence[str]) -> float:
        """Cost of a schedule relative to all large."""
        costs = {"large": 1.0, "small": self.cost_ratio}
        return sum(costs.get(role, 0.0) for role in denoisers) / len(denoisers)


def most_large_steps(steps: int, cost_ratio: float, budget: float) -> int:
    """Count the steps that may be large in a budget; below 0 where all small costs too much."""
    if cost_ratio == 1:
        return steps
    return min(steps, math.floor((budget - cost_ratio) / (1 - cost_ratio) * steps + 1e-9))


def _step(document: Mapping[str, Any]) -> CalibratedStep:
    values = dict(document)
    step, sigma = int(values.pop("step")), float(values.pop("sigma"))
    spread = {name: float(v) for name, v in values.pop("spread", {}).items()}
    return CalibratedStep(step, sigma, {name: float(v) for name, v in values.items()}, spread)


def _check_levels(levels: Sequence[float]) -> None:
    descends = all(a >= b for a, b in itertools.pairwise(levels))
    if not levels or not descends or not (levels[-1] >= 0 and levels[0] <= 1):
        raise CalibrationError(
            f"noise levels must descend from 1 to 0, one a step, got {list(levels)}"
        )


def _widths(levels: Sequence[float]) -> list[float]:
    return [a - b for a, b in itertools.pairwise([*levels, 0.0])]


def _shares(level: float, knots: Sequence[float]) -> list[tuple[int, float]]:
    """Find the knots around a level, and how near it is to each; flat beyond the ends."""
    rising = [-knot for knot in knots]
    right = bisect_left(rising, -level)
    if right == 0:
        return [(0, 1.0)]
    if right == len(knots):
        return [(len(knots) - 1, 1.0)]
    a, b = knots[right - 1], knots[right]
    near = (a - level) / (a - b)
    return [(right - 1, 1 - near), (right, near)]


def _read(level: float, knots: Sequence[float], values: Sequence[float | None]) -> float:
    """Interpolate, leaving out the knots that have no value; 0 where none has one."""
    known = [(k, v) for k, v in zip(knots, values, strict=True) if v is not None]
    if not known:
        return 0.0
    shares = _shares(level, [k for k, _ in known])
    return sum(known[i][1] * share for i, share in shares)
