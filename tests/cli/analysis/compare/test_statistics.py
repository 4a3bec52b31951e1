"""Means, intervals and differences against scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowblend_cli.analysis.compare.statistics import difference, summarise, t95

VALUES = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 6))
SAMPLES = st.lists(VALUES, min_size=2, max_size=12)


@pytest.mark.parametrize("freedom", [*range(1, 60), 100, 1000])
def test_the_quantile_is_that_of_the_t_distribution(freedom: int) -> None:
    assert t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-4)


@given(SAMPLES)
def test_an_interval_is_that_of_a_t_test(values: list[float]) -> None:
    told = summarise(values)

    assert told is not None
    assert told.low is not None
    assert told.high is not None
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert told.high - told.mean == pytest.approx(half, rel=1e-4, abs=1e-9)
    assert told.least <= told.median <= told.most
    assert told.low <= told.mean <= told.high


def test_one_value_has_no_spread() -> None:
    told = summarise([3.0])

    assert told is not None
    assert (told.n, told.mean, told.sd, told.low, told.half) == (1, 3.0, None, None, None)
    assert summarise([]) is None


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12))
def test_pairs_are_compared_as_pairs(pairs: list[tuple[float, float]]) -> None:
    left = {index: a for index, (a, _) in enumerate(pairs)}
    right = {index: b for index, (_, b) in enumerate(pairs)}

    told = difference(left, right)

    assert told is not None
    assert told.is_paired
    apart = [a - b for a, b in pairs]
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(apart)
    assert told.mean == pytest.approx(math.fsum(apart) / len(apart), abs=1e-9)
    assert told.half == pytest.approx(half, rel=1e-4, abs=1e-9)


def test_values_without_pairs_are_compared_as_welch_does() -> None:
    a, b = [1.0, 2.0, 4.0, 8.0], [3.0, 3.5, 9.0]

    told = difference(dict(enumerate(a)), {f"other{i}": value for i, value in enumerate(b)})

    # The degrees of freedom are cut to a whole number, which widens the interval a little.
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert told is not None
    assert told.low is not None
    assert told.high is not None
    assert not told.is_paired
    assert told.low <= interval.low
    assert told.high >= interval.high
    assert told.high - told.low == pytest.approx(interval.high - interval.low, rel=0.15)


@given(SAMPLES, SAMPLES)
def test_a_difference_turns_around_with_its_sides(a: list[float], b: list[float]) -> None:
    left, right = dict(enumerate(a)), dict(enumerate(b))

    there, back = difference(left, right), difference(right, left)

    assert there is not None
    assert back is not None
    assert there.mean == pytest.approx(-back.mean, abs=1e-9)
    assert there.is_within(0.5) == back.is_within(0.5)


def test_single_values_differ_by_a_number_without_an_interval() -> None:
    told = difference({"pair": 0.8}, {"pair": 0.5})

    assert told is not None
    assert (told.n, told.low, told.half) == (1, None, None)
    assert told.mean == pytest.approx(0.3)
    assert not told.is_within(0.01)
    assert told.is_within(0.4)
    assert difference({}, {"pair": 1.0}) is None
