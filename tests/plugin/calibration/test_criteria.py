"""Each criterion on fields whose right answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugin import BudgetError, StageError
from flowblend_plugin.calibration.calibration import CalibratedStep, Calibration, ErrorModel
from flowblend_plugin.calibration.criteria import (
    CRITERIA,
    Scores,
    choose,
    complexity_balanced,
    contiguous,
    divergence_threshold,
    extrapolated,
    free,
    large_steps,
    similarity_and_detail,
)
from flowblend_plugin.stages import StageSchedule, letters

RATIO = 0.25


def model_of(count: int, **parts: Any) -> ErrorModel:
    zeros = (0.0,) * count
    fields: dict[str, Any] = {
        "levels": tuple(1 - step / count for step in range(count)),
        "widths": (1 / count,) * count,
        "gram": (zeros,) * count,
        "divergence": zeros,
        "acceleration": zeros,
        "curvature": zeros,
        "gain": (1.0,) * count,
        "cost_ratio": RATIO,
    }
    return ErrorModel(**(fields | parts))


def diagonal(values: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(value if i == j else 0.0 for j in range(len(values)))
        for i, value in enumerate(values)
    )


def squared(vectors: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """A gram matrix, as inner products make one."""
    return tuple(
        tuple(sum(x * y for x, y in zip(a, b, strict=True)) for b in vectors) for a in vectors
    )


@st.composite
def models(draw: st.DrawFn, most: int = 7) -> ErrorModel:
    count = draw(st.integers(1, most))
    number = st.integers(-9, 9).map(float)
    vectors = draw(st.lists(st.tuples(number, number), min_size=count, max_size=count))
    per_step = st.lists(st.integers(0, 9).map(float), min_size=count, max_size=count).map(tuple)
    return model_of(
        count,
        gram=squared(vectors),
        divergence=draw(per_step),
        acceleration=draw(per_step),
        curvature=draw(per_step),
        cost_ratio=draw(st.sampled_from([0.1, 0.25, 0.5, 1.0])),
    )


budgets = st.floats(0.01, 1.0)


def error_of(model: ErrorModel, denoisers: Sequence[str]) -> float:
    return model.small_error([i for i, role in enumerate(denoisers) if role == "small"])


# What all have in common.


@pytest.mark.parametrize("criterion", [*CRITERIA, "best"])
@given(model=models(12), budget=budgets)
def test_a_budget_is_never_exceeded(criterion: str, model: ErrorModel, budget: float) -> None:
    try:
        choice = choose(model, budget, criterion)
    except StageError:
        least = 1 / len(model) if criterion == "extrapolated" else model.cost_ratio
        assert budget < least + 1e-6
        return
    assert len(choice.denoisers) == len(model)
    assert choice.share == pytest.approx(model.share(choice.denoisers))
    assert choice.share <= budget + 1e-8


@pytest.mark.parametrize("criterion", [*CRITERIA, "best"])
@given(model=models())
def test_the_whole_budget_is_all_large(criterion: str, model: ErrorModel) -> None:
    choice = choose(model, 1.0, criterion)

    assert set(choice.denoisers) == {"large"}
    assert choice.predicted_error == 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_choice_names_its_criterion_and_its_evidence(criterion: str) -> None:
    choice = choose(model_of(10), 0.6, criterion)

    assert choice.criterion == criterion
    assert choice.evidence["budget"] == 0.6
    assert len(choice.denoisers) == 10


def test_a_choice_without_extrapolated_steps_is_a_schedule_of_the_same_steps() -> None:
    model = model_of(50, gram=diagonal([float((7 * k) % 50) for k in range(50)]))
    choice = free(model, 0.5)

    assert choice.schedule.denoisers(50) == choice.denoisers


@pytest.mark.parametrize("budget", [0.0, 0.2, 1.01, float("nan")])
def test_budgets_that_can_not_be_kept_are_refused_with_the_least(budget: float) -> None:
    for criterion in ("contiguous", "free", "divergence", "complexity"):
        with pytest.raises(StageError, match=r"from 0\.25 \(all small\) to 1"):
            choose(model_of(10), budget, criterion)


@pytest.mark.parametrize("budget", [0.0, 0.09, 1.2])
def test_extrapolation_needs_a_step_to_start_from(budget: float) -> None:
    with pytest.raises(StageError, match=r"from 0\.1 \(one step of 10\)"):
        extrapolated(model_of(10), budget)


def test_an_unknown_criterion_is_refused_with_those_known() -> None:
    with pytest.raises(StageError, match="use 'best' or one of extrapolated, free"):
        choose(model_of(10), 0.5, "psychic")


def test_steps_are_rounded_down_to_the_budget() -> None:
    assert [large_steps(model_of(10), b) for b in (0.25, 0.32, 0.325, 0.4, 1.0)] == [0, 0, 1, 2, 10]


# contiguous.


def brute_force(model: ErrorModel, count: int, max_stages: int) -> float:
    """The least error of all schedules with so many small steps and stages at most."""
    steps = range(len(model))
    errors = []
    for small in itertools.combinations(steps, count):
        roles = ["small" if step in small else "large" for step in steps]
        if len(list(itertools.groupby(roles))) <= max_stages:
            errors.append(error_of(model, roles))
    return min(errors)


@given(models(7), st.floats(0.1, 1.0), st.integers(2, 5))
def test_contiguous_is_the_best_of_all_layouts(
    model: ErrorModel, budget: float, max_stages: int
) -> None:
    if budget < model.cost_ratio:
        return
    choice = contiguous(model, budget, max_stages)
    count = choice.denoisers.count("small")

    assert count == len(model) - large_steps(model, budget)
    assert len(choice.schedule.stages) <= max_stages
    assert choice.predicted_error == pytest.approx(brute_force(model, count, max_stages), abs=1e-9)


def test_five_stages_may_begin_and_end_small() -> None:
    dear = [1.0, 9.0, 1.0, 9.0, 1.0]
    choice = contiguous(model_of(5, gram=diagonal(dear)), 0.55, max_stages=5)

    assert letters(choice.denoisers) == "SLSLS"


def test_one_stage_is_all_of_one() -> None:
    assert letters(contiguous(model_of(4), 0.6, max_stages=1).denoisers) == "SSSS"
    assert letters(contiguous(model_of(4), 1.0, max_stages=1).denoisers) == "LLLL"


@pytest.mark.parametrize("stages", [0, 6])
def test_a_number_of_stages_out_of_range_is_refused(stages: int) -> None:
    with pytest.raises(StageError, match="from 1 to 5"):
        contiguous(model_of(4), 0.6, stages)


def test_the_small_stage_goes_where_a_small_step_matters_least() -> None:
    harm = [9.0, 8.0, 3.0, 1.0, 1.0, 1.0, 1.0, 3.0, 8.0, 9.0]

    assert letters(contiguous(model_of(10, gram=diagonal(harm)), 0.7).denoisers) == "LLLSSSSLLL"


# free.


@given(st.lists(st.integers(1, 99), min_size=2, max_size=12, unique=True), budgets)
def test_free_takes_the_cheapest_steps_where_errors_do_not_meet(
    harm: list[int], budget: float
) -> None:
    if budget < RATIO:
        return
    model = model_of(len(harm), gram=diagonal([float(h) for h in harm]))
    choice = free(model, budget)
    count = choice.denoisers.count("small")

    assert choice.predicted_error == pytest.approx(sum(sorted(harm)[:count]))


def test_free_keeps_away_from_neighbours_whose_errors_add_up() -> None:
    gram = tuple(tuple({0: 1.0, 1: 0.9}.get(abs(i - j), 0.0) for j in range(9)) for i in range(9))
    choice = free(model_of(9, gram=gram), 1 - 5 / 9 * 0.75)

    assert letters(choice.denoisers) == "SLSLSLSLS"


def test_free_pairs_steps_whose_errors_cancel() -> None:
    # The least harmful step alone is 2; that 0 and 1 cancel each other, only a swap finds.
    gram = squared([(3.0, 0.0), (-3.0, 0.0), (0.0, 2.0), (9.0, 9.0)])
    choice = free(model_of(4, gram=gram), 0.25 + 0.75 * 0.5)

    assert letters(choice.denoisers) == "SSLL"
    assert choice.predicted_error == 0


@given(models(7), budgets)
def test_free_is_never_worse_than_any_single_swap(model: ErrorModel, budget: float) -> None:
    if budget < model.cost_ratio:
        return
    choice = free(model, budget)
    assert choice.predicted_error is not None
    small = {i for i, role in enumerate(choice.denoisers) if role == "small"}
    for out in small:
        for into in set(range(len(model))) - small:
            swapped = model.small_error(sorted(small - {out} | {into}))
            assert choice.predicted_error <= swapped + 1e-6


# extrapolated.


def test_straight_stretches_are_extrapolated() -> None:
    curvature = [50.0] * 4 + [0.0] * 12 + [50.0] * 4
    acceleration = (9.0,) * 20  # nothing is extrapolated from a single step for free
    choice = extrapolated(model_of(20, curvature=curvature, acceleration=acceleration), 0.6)

    dropped = {i for i, role in enumerate(choice.denoisers) if role == "extrapolated"}
    assert len(dropped) == 8
    assert dropped <= set(range(4, 16))
    assert choice.predicted_error == 0


def test_the_first_step_is_always_computed() -> None:
    model = model_of(6, curvature=(0.0,) * 6, acceleration=(0.0,) * 6)

    assert letters(extrapolated(model, 1 / 6).denoisers)[0] == "L"
    assert extrapolated(model, 1 / 6).denoisers.count("large") == 1


def test_steps_whose_errors_grow_are_computed() -> None:
    gain = [9.0] * 5 + [1.0] * 5
    bent: dict[str, Any] = {"curvature": (1.0,) * 10, "acceleration": (1.0,) * 10}
    choice = extrapolated(model_of(10, gain=gain, **bent), 0.7)

    assert "extrapolated" not in choice.denoisers[:5]


# divergence.


@given(st.integers(0, 6))
def test_the_valley_of_the_divergence_is_found(start: int) -> None:
    apart = [1.0] * 10
    apart[start : start + 4] = [0.2, 0.1, 0.1, 0.2]
    choice = divergence_threshold(model_of(10, divergence=apart), 0.7)

    assert letters(choice.denoisers) == "L" * start + "SSSS" + "L" * (6 - start)
    assert choice.evidence["threshold"] == 0.2
    assert choice.evidence["divergence"] == apart


# complexity.


def test_constant_acceleration_is_split_into_thirds() -> None:
    choice = complexity_balanced(model_of(12, acceleration=(2.0,) * 12))

    assert letters(choice.denoisers) == "LLLLSSSSLLLL"
    assert "budget" not in choice.evidence


def test_large_stages_carry_the_same_complexity() -> None:
    # All of it in the first four steps: the small stage leaves half of it on each side.
    acceleration = [4.0, 4.0, 4.0, 4.0] + [0.0] * 8
    choice = complexity_balanced(model_of(12, acceleration=acceleration), 0.875)

    assert letters(choice.denoisers) == "LSSLLLLLLLLL"


def test_no_complexity_at_all_is_no_reason_to_fail() -> None:
    assert len(complexity_balanced(model_of(6), 0.5).denoisers) == 6
    assert letters(complexity_balanced(model_of(6)).denoisers) == "LLLLLL"


# best.


def test_best_is_the_one_that_predicts_least() -> None:
    turns: dict[str, Any] = {"curvature": (900.0,) * 10, "acceleration": (900.0,) * 10}
    bent = model_of(10, gram=diagonal([0.01] * 10), **turns)
    straight = model_of(10, gram=diagonal([0.01] * 10))

    assert choose(bent, 0.6).criterion in ("contiguous", "free")
    assert choose(straight, 0.6).criterion == "extrapolated"


def test_best_leaves_out_what_the_budget_rules_out() -> None:
    assert choose(model_of(10), 0.2).criterion == "extrapolated"
    assert choose(model_of(1, gram=((1.0,),)), 0.6).denoisers == ("small",)


# similarity and detail.


def rendered(stages: StageSchedule) -> Scores:
    """Similarity is lost below 0.4, detail beyond 0.8."""
    edges = stages.boundaries or ()
    early = edges[0]
    late = edges[1] if len(edges) > 1 else 1.0
    return Scores(30.0 if early >= 0.4 else 20.0, 1.0 if late <= 0.8 else 0.9)


def test_similarity_and_detail_find_where_each_is_lost() -> None:
    choice = similarity_and_detail(rendered)

    assert choice.evidence["boundaries"] == [0.4, 0.8]
    assert letters(choice.denoisers) == "L" * 40 + "S" * 40 + "L" * 20
    assert choice.predicted_error is None
    assert len(choice.evidence["candidates"]) == 6  # LS at four, LSL that end at 1.0 and 0.8


def test_where_nothing_is_lost_the_small_stage_is_longest() -> None:
    choice = similarity_and_detail(lambda stages: Scores(30.0, 1.0))

    assert choice.evidence["boundaries"] == [0.2, 1.0]


def test_where_all_detail_is_lost_there_is_no_small_stage() -> None:
    choice = similarity_and_detail(lambda stages: Scores(30.0, 0.0))

    assert set(choice.denoisers) == {"large"}


@pytest.mark.parametrize("candidates", [(), (0.4, 0.2), (0.4, 0.4)])
def test_candidates_that_do_not_ascend_are_refused(candidates: tuple[float, ...]) -> None:
    with pytest.raises(StageError, match="ascending"):
        similarity_and_detail(rendered, candidates)


def test_what_was_not_measured_is_no_perfect_prediction() -> None:
    steps = tuple(
        CalibratedStep(i, level, {"guided_relative_l2": 1.0, "velocity_norm": 1.0}, {})
        for i, level in enumerate((1.0, 0.5))
    )
    known = Calibration({}, 1, steps, 0.2, (0, 1), ((1.0, 0.0), (0.0, 1.0)), 1, 1.0)
    model = known.at([1 - i / 50 for i in range(50)])
    with pytest.raises(StageError, match="no curvature"):
        choose(model, 0.5, "extrapolated")
    assert choose(model, 0.5).criterion != "extrapolated"
    with pytest.raises(BudgetError, match=r"from 0\.2 to 1"):
        choose(model, 0.1)


def test_many_steps_are_chosen_for_in_the_time_of_few() -> None:
    steps = tuple(
        CalibratedStep(i, 1 - i / 10, {"guided_relative_l2": 1.0, "velocity_norm": 1.0,
                                       "acceleration": 1.0, "curvature": 1.0}, {})
        for i in range(10)
    )  # fmt: skip
    gram = tuple(tuple(float(i == j) for j in range(10)) for i in range(10))
    model = Calibration({}, 1, steps, 0.2, tuple(range(10)), gram, 1, 1.0).at(
        [1 - i / 400 for i in range(400)]
    )
    # By trying every removal in full this would be hours.
    assert choose(model, 0.3, "extrapolated").denoisers.count("large") == 120
    assert choose(model, 0.3).share <= 0.3
