"""Stages that end when the trajectory says so, within their budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SCHEDULERS, run_wan, wan_denoiser, wan_pipe, with_one_buffer

from flowblend_plugin import DenoiserSwitch, StageError, StageSchedule
from flowblend_plugin.stage_hooks.early_exit import EarlyExit, SelfDifference

LATEST = StageSchedule.parse("LSL", (0.6, 0.9))
PLANNED = (0,) * 6 + (1,) * 3 + (2,)
NO_SAMPLE = torch.zeros(1, 4)


def watch(outputs: list[float], threshold: float) -> list[tuple[int, ...]]:
    """The stages after each step of a trajectory whose velocity has these sizes."""
    hook = EarlyExit(SelfDifference(threshold), LATEST)
    hook.start(None)
    stages, seen = PLANNED, []
    for step, size in enumerate(outputs):
        hook.model_output(torch.full((1, 4), size), NO_SAMPLE)
        stages = hook.revise_stages(step + 1, stages)
        seen.append(stages)
    return seen


def test_a_steady_velocity_ends_the_first_stage() -> None:
    changing = [4.0, 2.0, 1.0, 0.99, 0.99, 0.99]
    seen = watch(changing, threshold=0.05)
    assert seen[2] == PLANNED
    # Four large steps are done; the two that are spared go to the end.
    assert seen[3] == (0,) * 4 + (1,) * 3 + (2,) * 3
    assert seen[-1] == seen[3]


def test_a_velocity_that_goes_on_changing_keeps_the_latest_boundary() -> None:
    assert watch([2.0**-k for k in range(10)], threshold=0.05)[-1] == PLANNED


@given(
    st.lists(st.floats(0.01, 100, allow_nan=False), min_size=10, max_size=10),
    st.floats(0, 3),
)
def test_every_trajectory_costs_the_same(outputs: list[float], threshold: float) -> None:
    last = watch(outputs, threshold)[-1]
    assert last.count(1) == PLANNED.count(1)
    assert list(last) == sorted(last)
    assert last[0] == 0


def test_the_switch_runs_what_it_was_told() -> None:
    pipe, small = wan_pipe(), wan_denoiser(layers=1, seed=1)
    stages = StageSchedule.parse("LSL", (0.5, 0.9))

    def render(threshold: float) -> tuple[torch.Tensor, tuple[str, ...]]:
        rule = SelfDifference(threshold)
        with DenoiserSwitch(pipe, small, stages, adaptive=rule) as switch:
            return run_wan(pipe, steps=10), tuple(switch.denoisers_run)

    plain, as_planned = render(0.0)
    assert as_planned == stages.denoisers(10)
    early, roles = render(1e9)
    assert roles == ("large",) * 2 + ("small",) * 4 + ("large",) * 4
    with DenoiserSwitch(pipe, small, StageSchedule.parse("LSL", (0.2, 0.6))):
        assert torch.equal(run_wan(pipe, steps=10), early)
    assert torch.equal(render(1e9)[0], early)
    assert not torch.equal(early, plain)


def test_the_sample_that_changes_most_decides() -> None:
    hook = EarlyExit(SelfDifference(0.05), LATEST)
    hook.start(None)
    hook.model_output(torch.tensor([[1.0], [1.0]]), NO_SAMPLE)
    hook.model_output(torch.tensor([[1.0], [2.0]]), NO_SAMPLE)
    assert hook.differences == [1.0]
    assert hook.revise_stages(2, PLANNED) == PLANNED


@pytest.mark.parametrize("stages", ["L", "SLS"])
def test_other_shapes_are_refused(stages: str) -> None:
    schedule = StageSchedule.parse(stages, None if len(stages) == 1 else (0.4, 0.8))
    with pytest.raises(StageError, match="LSL"):
        EarlyExit(SelfDifference(), schedule)


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(StageError, match="0 or more"):
        SelfDifference(-0.1)


def test_nothing_is_decided_from_what_is_no_number() -> None:
    assert watch([float("nan")] * 5, threshold=1e9)[-1] == PLANNED


def test_a_velocity_of_nothing_doesnt_change() -> None:
    hook = EarlyExit(SelfDifference(0.0), LATEST)
    for _ in range(2):
        hook.model_output(torch.zeros(1, 4), NO_SAMPLE)
    assert hook.differences == [0.0]


def test_solvers_that_ask_twice_a_step_are_refused() -> None:
    pipe = wan_pipe(SCHEDULERS["heun"]())
    with pytest.raises(StageError, match="twice a step"):
        DenoiserSwitch(pipe, wan_denoiser(layers=1), LATEST, adaptive=SelfDifference())


def test_a_denoiser_that_writes_into_its_output_again_changes_no_decision() -> None:
    found = []
    for is_reused in (False, True):
        pipe = wan_pipe()
        if is_reused:
            with_one_buffer(pipe.transformer)
        with DenoiserSwitch(
            pipe, wan_denoiser(seed=1), LATEST, adaptive=SelfDifference(0.0)
        ) as switch:
            run_wan(pipe, steps=10, guidance_scale=1.0)
            found.append(switch.denoisers_run)
    assert found[0] == found[1] == list(LATEST.denoisers(10))
