"""Calibrations: kept and read back, refused where damaged, read at other noise levels."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import Calibration, CalibrationError, Probe, calibrate
from flowblend_plugin.calibration.calibration import CalibratedStep, ErrorModel


def levels_of(count: int, shift: float = 3.0) -> list[float]:
    sigmas = [1 - step / count for step in range(count)]
    return [shift * s / (1 + (shift - 1) * s) for s in sigmas]


def widths_of(levels: Sequence[float]) -> list[float]:
    return [a - b for a, b in itertools.pairwise([*levels, 0.0])]


def flat(sigma: float) -> float:
    return 1.0


def smooth(a: float, b: float) -> float:
    """A kernel without kinks: large at the beginning, neighbours alike."""
    return (0.2 + a * a) * (0.2 + b * b) * math.exp(-((a - b) ** 2))


def calibration_of(
    levels: Sequence[float],
    positions: Sequence[int] | None = None,
    kernel: Callable[[float, float], float] = smooth,
    divergence: Callable[[float], float] = flat,
    **other: Any,
) -> Calibration:
    """A calibration whose interactions are a kernel's, a density over sigma."""
    asked = list(range(len(levels))) if positions is None else list(positions)
    widths = widths_of(levels)
    steps = tuple(
        CalibratedStep(
            i, s, {"guided_relative_l2": divergence(s), "velocity_norm": 1.0}, {"cosine": 0.1}
        )
        for i, s in enumerate(levels)
    )
    gram = tuple(
        tuple(kernel(levels[i], levels[j]) * widths[i] * widths[j] for j in asked) for i in asked
    )
    return Calibration(
        **{
            "conditions": {"pipeline": "x", "height": None},
            "prompts": 3,
            "steps": steps,
            "cost_ratio": 0.2,
            "positions": tuple(asked),
            "interactions": gram,
            "sensitivity_prompts": 2,
            "final_rms": 1.0,
            **other,
        }
    )


numbers = st.floats(-1e6, 1e6)


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    count = draw(st.integers(1, 6))
    sigmas = sorted(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)), reverse=True)
    names = ["guided_relative_l2", "velocity_norm", *draw(st.lists(st.text(min_size=1)))]
    names = [name for name in names if name not in ("step", "sigma", "spread")]
    steps = tuple(
        CalibratedStep(i, s, {name: draw(numbers) for name in names}, {"a": draw(numbers)})
        for i, s in enumerate(sigmas)
    )
    positions = tuple(sorted(draw(st.sets(st.integers(0, count - 1), min_size=1))))
    row = st.tuples(*[numbers] * len(positions))
    return Calibration(
        conditions=draw(st.dictionaries(st.text(), st.none() | st.integers() | st.text())),
        prompts=draw(st.integers(1, 99)),
        steps=steps,
        cost_ratio=draw(st.floats(0, 1, exclude_min=True)),
        positions=positions,
        interactions=draw(st.tuples(*[row] * len(positions))),
        sensitivity_prompts=draw(st.integers(1, 99)),
        final_rms=draw(st.floats(1e-6, 1e6)),
    )


# Kept and read back.


@given(calibrations())
def test_a_document_is_json_and_reads_back_equal(calibration: Calibration) -> None:
    text = json.dumps(calibration.to_document(), allow_nan=False)

    assert Calibration.from_document(json.loads(text)) == calibration


def test_a_document_is_what_it_is_documented_to_be() -> None:
    document = calibration_of(levels_of(3)).to_document()

    assert list(document) == [
        "v", "kind", "conditions", "prompts", "sensitivity_prompts", "cost_ratio", "final_rms",
        "steps", "positions", "interactions",
    ]  # fmt: skip
    assert document["steps"][1] == {
        "step": 1,
        "sigma": levels_of(3)[1],
        "guided_relative_l2": 1.0,
        "velocity_norm": 1.0,
        "spread": {"cosine": 0.1},
    }


# Damage.


@pytest.mark.parametrize("document", [None, [], 7, "x", {}, {"kind": "else"}, {"v": 1}])
def test_what_is_no_calibration_is_said_to_be_none(document: Any) -> None:
    with pytest.raises(CalibrationError, match="no calibration"):
        Calibration.from_document(document)


def test_another_version_is_named() -> None:
    document = calibration_of(levels_of(3)).to_document() | {"v": 2}

    with pytest.raises(CalibrationError, match="version 2"):
        Calibration.from_document(document)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("steps", [], "no steps"),
        ("steps", 5, "damaged"),
        ("steps", [{"step": 0}], "damaged"),
        ("steps", [{"step": 0, "sigma": 1.0}] * 3, "lacks guided_relative_l2"),
        ("steps", [{"step": 0, "sigma": 1.0, "spread": 3}], "damaged"),
        ("positions", [], "no sensitivities"),
        ("positions", [1, 0, 2], "ascending"),
        ("positions", [0, 1, 3], "ascending"),
        ("positions", [math.inf], "damaged"),
        ("interactions", [[1.0]], "no square"),
        ("interactions", [[1.0, 1.0, math.nan]] * 3, "infinite"),
        ("cost_ratio", 0, "cost_ratio"),
        ("cost_ratio", 1.5, "cost_ratio"),
        ("cost_ratio", math.nan, "cost_ratio"),
        ("final_rms", 0, "final_rms"),
        ("final_rms", math.inf, "infinite"),
        ("prompts", None, "damaged"),
        ("conditions", 3, "damaged"),
    ],
)
def test_damage_is_named(key: str, value: Any, said: str) -> None:
    document = calibration_of(levels_of(3)).to_document()

    with pytest.raises(CalibrationError, match=said):
        Calibration.from_document(document | {key: value})


def test_a_missing_key_is_named() -> None:
    document = calibration_of(levels_of(3)).to_document()
    for key in document.keys() - {"kind", "v"}:
        with pytest.raises(CalibrationError, match=key):
            Calibration.from_document({k: v for k, v in document.items() if k != key})


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)


@given(st.sampled_from(["conditions", "steps", "positions", "interactions", "cost_ratio"]), values)
def test_any_value_is_either_read_or_refused(key: str, value: Any) -> None:
    document = calibration_of(levels_of(3)).to_document() | {key: value}
    try:
        model = Calibration.from_document(document).at(levels_of(4))
    except CalibrationError:
        return
    assert model.levels == tuple(levels_of(4))
    assert 0 < model.cost_ratio <= 1


@pytest.mark.parametrize("levels", [[], [0.5, 0.6], [1.2, 0.5], [0.5, -0.1], [math.nan]])
def test_noise_levels_that_are_none_are_refused(levels: list[float]) -> None:
    with pytest.raises(CalibrationError, match="noise levels"):
        calibration_of(levels_of(3)).at(levels)


# Read at noise levels.


def assert_near(found: Any, wanted: Any, **tolerance: float) -> None:
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, **tolerance)


@given(st.integers(1, 12), st.floats(0.5, 9.0))
def test_at_its_own_levels_it_gives_back_what_was_measured(count: int, shift: float) -> None:
    levels = levels_of(count, shift)
    calibration = calibration_of(levels, divergence=lambda s: 0.1 + s)
    model = calibration.at(calibration.levels)

    assert_near(model.gram, calibration.interactions, rel=1e-9)
    assert model.divergence == pytest.approx([0.1 + s for s in levels])
    assert sum(model.widths) == pytest.approx(levels[0])


def test_a_smooth_pair_is_read_at_half_the_steps() -> None:
    asked = [round(k * 49 / 9) for k in range(10)]
    transferred = calibration_of(levels_of(50), asked).at(levels_of(25))
    wanted = calibration_of(levels_of(25)).interactions

    for span in ((0, 25), (0, 8), (8, 16), (16, 25)):
        steps = range(*span)
        assert transferred.small_error(steps) == pytest.approx(
            sum(wanted[i][j] for i in steps for j in steps), rel=0.1
        )


def test_a_whole_trajectory_small_predicts_one_error_at_any_number_of_steps() -> None:
    errors = [
        calibration_of(levels_of(50)).at(levels_of(n)).small_error(range(n)) for n in (20, 50, 100)
    ]

    assert errors == pytest.approx([errors[1]] * 3, rel=0.1)


def test_beyond_its_ends_it_stays_as_it_was_there() -> None:
    model = calibration_of([0.8, 0.4], kernel=lambda a, b: 1.0).at([1.0, 0.5, 0.1])

    assert_near(model.gram, [[a * b for b in (0.5, 0.4, 0.1)] for a in (0.5, 0.4, 0.1)])


def test_the_gain_is_how_much_an_error_has_grown() -> None:
    levels = levels_of(5)
    calibration = calibration_of(
        levels, kernel=lambda a, b: 9.0, divergence=lambda s: 0.5, final_rms=2.0
    )

    # 3 a sigma at the end, 0.5 * 1 / 2 a sigma at the step.
    assert calibration.gains() == pytest.approx([12.0] * 5)
    assert calibration.at(levels).gain == pytest.approx([12.0] * 5)


def test_no_gain_is_told_where_the_two_agree() -> None:
    levels = levels_of(4)
    calibration = calibration_of(levels, divergence=lambda s: 0.0 if s == 1 else 1.0)

    assert calibration.gains()[0] is None
    assert calibration.at(levels).gain[0] == pytest.approx(calibration.at(levels).gain[1])


def model_of(count: int, **parts: Sequence[float]) -> ErrorModel:
    levels = tuple(1 - step / count for step in range(count))
    zeros = (0.0,) * count
    fields: dict[str, Any] = {
        "levels": levels, "widths": (1 / count,) * count, "gram": (zeros,) * count,
        "divergence": zeros, "acceleration": zeros, "curvature": zeros, "gain": (1.0,) * count,
        "cost_ratio": 0.25,
    }  # fmt: skip
    return ErrorModel(**(fields | parts))


@given(st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=5, max_size=5))
def test_a_rectangle_is_the_sum_of_its_cells(rows: list[list[float]]) -> None:
    model = model_of(5, gram=tuple(map(tuple, rows)))

    for a in itertools.combinations(range(6), 2):
        for b in itertools.combinations(range(6), 2):
            wanted = sum(rows[i][j] for i in range(*a) for j in range(*b))
            assert model.between(a, b) == pytest.approx(wanted, rel=1e-6, abs=1e-3)


def test_a_line_misses_a_parabola_by_half_its_curvature() -> None:
    # Sigma 1, 0.9, ..., 0.1; computed at 0 and 2, extrapolated at 3: (0.3 * 0.1) / 2 * curvature.
    model = model_of(10, curvature=(4.0,) * 10, gain=(2.0,) * 10)
    computed = [step for step in range(10) if step != 3]
    computed.remove(1)

    alone = model.extrapolation_error([s for s in range(10) if s != 3])
    assert math.sqrt(alone) == pytest.approx(4 * 0.1 * 0.2 / 2 * 0.1 * 2)
    # Without step 1 the line at 3 begins at 0; and step 1 holds the first velocity.
    assert math.sqrt(model.extrapolation_error(computed)) == pytest.approx(
        4 * 0.1 * 0.3 / 2 * 0.1 * 2
    )


def test_a_share_is_counted_in_large_steps() -> None:
    assert model_of(4).share(("large", "small", "extrapolated", "large")) == (2 + 0.25) / 4


# Measured.


def test_a_real_pair_is_calibrated() -> None:
    pipe, small = wan_pipe(), wan_denoiser(layers=1, heads=1, seed=1)
    probes = [Probe(lambda seed=seed: run_wan(pipe, steps=4, seed=seed)) for seed in (1, 2, 3)]
    told: list[str] = []
    found = calibrate(
        pipe, small, probes, cost_ratio=0.5, conditions={"a": 1}, sensitivity_prompts=2,
        positions=3, on_run=told.append,
    )  # fmt: skip

    assert told == ["velocities"] * 3 + ["sensitivities"] * 2 * 4
    assert (found.prompts, found.sensitivity_prompts, found.positions) == (3, 2, (0, 2, 3))
    assert len(found.steps) == 4
    assert all(step.spread["guided_relative_l2"] > 0 for step in found.steps)
    assert Calibration.from_document(json.loads(json.dumps(found.to_document()))) == found
    assert len(found.at(levels_of(30))) == 30


def test_trajectories_of_different_lengths_are_refused() -> None:
    pipe, small = wan_pipe(), wan_denoiser(layers=1, heads=1, seed=1)
    probes = [Probe(lambda steps=steps: run_wan(pipe, steps=steps)) for steps in (3, 4)]

    with pytest.raises(CalibrationError, match="trajectories differ"):
        calibrate(pipe, small, probes, cost_ratio=0.5, conditions={})


def test_no_prompt_is_refused() -> None:
    with pytest.raises(CalibrationError, match="at least one prompt"):
        calibrate(wan_pipe(), wan_denoiser(), [], cost_ratio=0.5, conditions={})


def test_equal_calibrations_are_equal() -> None:
    calibration = calibration_of(levels_of(3))

    assert calibration == calibration_of(levels_of(3))
    assert calibration != replace(calibration, prompts=4)
