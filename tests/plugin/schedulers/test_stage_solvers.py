"""Stages with steps and solvers of their own; plain diffusers and a known flow are the oracles."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny import FLOW, ltx_pipe, run_ltx, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import (
    DenoiserSwitch,
    FlowBlendBlock,
    FlowBlendScheduler,
    SchedulerConfigError,
    Stage,
    StageError,
    StageSchedule,
    SwitchError,
    wrap_scheduler,
)
from flowblend_plugin.schedulers.factory import make_scheduler
from flowblend_plugin.schedulers.sigmas import SigmaSegment, join_segments, start_level
from flowblend_plugin.stage_hooks.early_exit import SelfDifference
from flowblend_plugin.stages import SOLVERS

EULER = FlowMatchEulerDiscreteScheduler(shift=3.0)
DETERMINISTIC = [name for name in SOLVERS if name not in ("dpmpp_2m_sde", "lcm")]


class Listener:
    """What a scheduler with stages needs to run; it swaps nothing."""

    denoisers_run: list[str]

    def __init__(self) -> None:
        self.denoisers_run = []

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        self.stage_indices = stage_indices

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        return output

    def step_finished(self, step_index: int) -> None: ...

    def trajectory_finished(self) -> None: ...

    def copy_stepped(self, copied: Any, calls: int) -> None: ...


def two(
    first: int, second: int, level: float, solvers: tuple[str | None, str | None] = (None, None)
) -> StageSchedule:
    return StageSchedule(
        (
            Stage("large", until_sigma=level, steps=first, scheduler=solvers[0]),
            Stage("large", steps=second, scheduler=solvers[1]),
        )
    )


def announced(stages: StageSchedule, own: Any = EULER, seed: int = 1) -> tuple[Any, Listener]:
    """A scheduler whose timesteps are set, and the listener that keeps it alive."""
    scheduler, listener = wrap_scheduler(own, stages, seed=seed), Listener()
    scheduler.attach_listener(listener)
    scheduler.set_timesteps(stages.num_inference_steps)
    return scheduler, listener


def velocity(sample: torch.Tensor, sigma: float) -> torch.Tensor:
    """Velocity of the flow from noise to a normal distribution of mean 0.7 and deviation 0.5."""
    mean, variance = (1 - sigma) * 0.7, ((1 - sigma) * 0.5) ** 2 + sigma**2
    noise = sigma / variance * (sample - mean)
    clean = 0.7 + (1 - sigma) * 0.25 / variance * (sample - mean)
    return noise - clean


def noise() -> torch.Tensor:
    return torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))


def flown(scheduler: Any) -> torch.Tensor:
    found = noise()
    for index, timestep in enumerate(scheduler.timesteps):
        output = velocity(found, float(scheduler.sigmas[index]))
        found = scheduler.step(output, timestep, found, return_dict=False)[0]
    return found


def error(scheduler: Any) -> float:
    """Relative error against the exact end of the flow from the first noise level."""
    sigma = float(scheduler.sigmas[0])
    deviation = (((1 - sigma) * 0.5) ** 2 + sigma**2) ** 0.5
    exact = 0.7 + (noise() - (1 - sigma) * 0.7) / deviation * 0.5
    return float((flown(scheduler) - exact).norm() / exact.norm())


# The grid.


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("is_named", [True, False])
def test_one_stage_is_the_plain_solver_bit_for_bit(name: str, is_named: bool) -> None:
    plain = make_scheduler(EULER, name)
    own, solver = (EULER, name) if is_named else (plain, None)
    stages = StageSchedule((Stage("large", steps=7, scheduler=solver),))
    pipe = wan_pipe(own)
    with DenoiserSwitch(pipe, stages=stages, seed=5):
        found = run_wan(pipe, steps=7)
    assert torch.equal(found, run_wan(wan_pipe(wrap_scheduler(plain, seed=5)), steps=7))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
def test_two_stages_that_meet_on_the_plain_grid_are_that_grid(name: str, shift: float) -> None:
    plain = make_scheduler(EULER, name, shift)
    plain.set_timesteps(40)
    for first in (1, 25, 39):
        level = float(plain.sigmas[first])
        scheduler = announced(two(first, 40 - first, level), plain)[0]
        assert torch.allclose(scheduler.sigmas, plain.sigmas, atol=2e-6)
        assert scheduler.timesteps.dtype == plain.timesteps.dtype
        # Whole timesteps are cut, not rounded, so the last bit may move one.
        assert (scheduler.timesteps - plain.timesteps).abs().max() <= 1


@pytest.mark.parametrize("name", [None, *DETERMINISTIC])
def test_stages_with_one_solver_keep_its_memory(name: str | None) -> None:
    own = make_scheduler(EULER, name)
    own.set_timesteps(20)
    plain = flown(own)
    solvers = (name, name)
    joined = flown(announced(two(12, 8, float(own.sigmas[12]), solvers))[0])
    assert torch.allclose(joined, plain, atol=1e-4)


@given(
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    solvers=st.lists(st.sampled_from(SOLVERS), min_size=4, max_size=4),
    levels=st.lists(st.integers(5, 95), min_size=3, max_size=3, unique=True),
    shift=st.floats(0.5, 12),
    start=st.one_of(st.none(), st.floats(0.96, 0.999)),
)
def test_joined_levels_descend_through_every_boundary(
    steps: list[int], solvers: list[str], levels: list[int], shift: float, start: float | None
) -> None:
    ends = [level / 100 for level in sorted(levels, reverse=True)][: len(steps) - 1]
    legs = [SigmaSegment(*leg) for leg in zip(solvers, steps, [*ends, None], strict=False)]
    grid = join_segments(legs, shift, start)
    assert len(grid.sigmas) == len(grid.levels) == sum(steps)
    assert list(grid.sigmas) == sorted(grid.sigmas, reverse=True)
    assert all(0 <= level <= 1 for level in grid.levels)
    passed = 0
    for leg in legs[:-1]:
        passed += leg.steps
        assert grid.sigmas[passed] == leg.until
    if start is not None:
        assert grid.sigmas[0] == start


def test_a_level_that_a_solver_never_reaches_is_refused() -> None:
    with pytest.raises(StageError, match=r"move until_sigma \(0.0001\)"):
        join_segments(
            [SigmaSegment("flow_match_euler", 3, 1e-4), SigmaSegment("flow_match_euler", 3)], 3.0
        )
    with pytest.raises(StageError, match="above 0"):
        start_level(0)


# The solvers.


@pytest.mark.parametrize("first", DETERMINISTIC)
@pytest.mark.parametrize("second", DETERMINISTIC)
def test_25_and_15_steps_converge_to_the_flow(first: str, second: str) -> None:
    few = error(announced(two(25, 15, 0.6, (first, second)))[0])
    many = error(announced(two(100, 60, 0.6, (first, second)))[0])
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_timesteps(40)
    euler = error(plain)
    assert many < max(few / 2, euler / 50)
    assert few < 1.5 * euler
    if "flow_match_euler" not in (first, second):
        assert few < euler / 3


def test_another_solver_begins_as_one_that_was_never_used_before() -> None:
    own = UniPCMultistepScheduler(**FLOW)
    scheduler = announced(two(4, 4, 0.7, (None, "dpmpp_2m")), own)[0]
    found = flown(scheduler)
    parts = [UniPCMultistepScheduler(**FLOW), make_scheduler(own, "dpmpp_2m")]
    sample = noise()
    for part, steps in zip(parts, (range(4), range(4, 8)), strict=True):
        part.set_timesteps(8)
        part.sigmas, part.timesteps = scheduler.sigmas, scheduler.timesteps
        part.set_begin_index(steps.start)
        for index in steps:
            output = velocity(sample, float(part.sigmas[index]))
            sample = part.step(output, part.timesteps[index], sample, return_dict=False)[0]
    assert torch.equal(found, sample)


def test_a_solver_that_comes_back_has_forgotten() -> None:
    stages = StageSchedule(
        tuple(
            Stage("large", until_sigma=level, steps=4, scheduler=name)
            for level, name in [(0.8, None), (0.5, "flow_match_euler"), (None, None)]
        )
    )
    scheduler, _ = announced(stages, UniPCMultistepScheduler(**FLOW))
    found = noise()
    for index, timestep in enumerate(scheduler.timesteps):
        if index == 8:
            before = scheduler.lower_order_nums
        output = velocity(found, float(scheduler.sigmas[index]))
        found = scheduler.step(output, timestep, found, return_dict=False)[0]
        if index == 8:
            assert (before, scheduler.lower_order_nums) == (2, 1)


def test_resetting_reaches_the_solvers_of_stages() -> None:
    def run(history: Any, layers: int = 1) -> torch.Tensor:
        pipe, small = wan_pipe(EULER), wan_denoiser(layers=layers, seed=1)
        stages = StageSchedule(
            (
                Stage("large", until_sigma=0.8, steps=3, scheduler="unipc"),
                Stage("small", steps=3, scheduler="unipc"),
            )
        )
        with DenoiserSwitch(pipe, small, stages, solver_history=history) as switch:
            first = run_wan(pipe, steps=6)
            assert torch.equal(run_wan(pipe, steps=6), first)
            assert switch.denoisers_run == ["large"] * 3 + ["small"] * 3
        return first

    assert not torch.equal(run("keep"), run("reset"))


def test_stochastic_stages_repeat_with_their_seed_and_deterministic_ones_take_none() -> None:
    def run(seed: int, own: Any = EULER, solvers: Any = ("lcm", "unipc")) -> torch.Tensor:
        pipe = wan_pipe(own)
        with DenoiserSwitch(pipe, stages=two(3, 2, 0.7, solvers), seed=seed):
            return run_wan(pipe, steps=5)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(1, solvers=("deis", "unipc")), run(2, solvers=("deis", "unipc")))
    stochastic = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    named = ("dpmpp_2m", "unipc")
    assert not torch.equal(run(1, stochastic, named), run(2, stochastic, named))
    assert torch.equal(run(1, EULER, named), run(2, EULER, named))


def test_a_late_start_lands_in_the_stage_of_its_step() -> None:
    scheduler, _ = announced(two(6, 4, 0.7, ("deis", "unipc")))
    scheduler.set_begin_index(7)
    sample = noise()
    scheduler.step(velocity(sample, 0.5), scheduler.timesteps[7], sample)
    used = [solver.lower_order_nums for solver in scheduler.stage_solvers]
    assert used == [0, 1]
    assert scheduler.step_index == 8


# Schedules and configs.


def test_steps_say_who_runs_which_step_without_noise_levels() -> None:
    stages = two(25, 15, 0.7, ("unipc", None))
    assert stages.num_inference_steps == 40
    assert stages.edges(40) == (0, 25, 40)
    assert not stages.needs_noise_levels
    assert stages.boundary_sigmas == (0.7,)
    assert str(stages) == "LL sigmas (0.7,) in 25 + 15 steps"
    assert stages.describe(40) == "steps 0-24 large (unipc), 25-39 large"
    with pytest.raises(StageError, match=r"is 50, and the stages have 25 \+ 15 = 40 .* set it to"):
        stages.denoisers(50)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([Stage("large", 0.5, steps=3), Stage("large", steps=3)], "needs until_sigma"),
        ([Stage("large", until_sigma=1.0, steps=3), Stage("large", steps=3)], "between 1 and 0"),
        ([Stage("large", until_sigma=0.5, steps=3), Stage("large")], "stage 2 has no steps"),
        ([Stage("large", steps=0)], "at least 1"),
        ([Stage("large", steps=2.0)], "whole number"),  # type: ignore[arg-type]
        ([Stage("large", steps=3, scheduler="heun")], "one of flow_match_euler, unipc"),
        ([Stage("large", scheduler="unipc")], "no steps of its own"),
        (
            [Stage("large", until_sigma=0.5, steps=3)] * 2 + [Stage("large", steps=3)],
            "stage 2 .* below that of the stage before",
        ),
    ],
)
def test_stages_that_make_no_two_phases_are_refused(stages: list[Stage], says: str) -> None:
    with pytest.raises(StageError, match=says):
        StageSchedule(tuple(stages))


def test_flowblend_scheduler_carries_them_through_save_and_load(tmp_path: Path) -> None:
    stages = two(5, 3, 0.6, ("unipc", None))
    scheduler = FlowBlendScheduler(shift=3.0, stages=stages)
    scheduler.save_pretrained(tmp_path)
    again = FlowBlendScheduler.from_pretrained(tmp_path)
    assert again.stages == stages
    for each in (scheduler, again, pickle.loads(pickle.dumps(scheduler))):
        pipe = wan_pipe(each)
        with DenoiserSwitch(pipe):
            found = run_wan(pipe, steps=8)
        other = wan_pipe(EULER)
        with DenoiserSwitch(other, stages=stages):
            assert torch.equal(found, run_wan(other, steps=8))


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (FlowMatchHeunDiscreteScheduler(shift=3.0), "can't be divided"),
        (DEISMultistepScheduler(**FLOW), "can't be divided"),
        (DDIMScheduler(), "isn't a flow-matching scheduler"),
        (FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), "size of the picture"),
        (UniPCMultistepScheduler(**FLOW, use_karras_sigmas=True), "use_karras_sigmas = True"),
        (UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min"), "final_sigmas_type"),
    ],
    ids=lambda own: type(own).__name__,
)
def test_schedulers_whose_grid_isnt_known_are_refused(own: Any, says: str) -> None:
    with pytest.raises(SchedulerConfigError, match=says):
        announced(two(3, 3, 0.6), own)


def test_a_shift_set_in_passing_is_refused() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own.set_shift(5.0)
    with pytest.raises(SchedulerConfigError, match="another shift than its config"):
        announced(two(3, 3, 0.6), own)


def test_pipelines_that_bring_their_own_grid_or_copies_are_refused() -> None:
    pipe = ltx_pipe()
    with (
        DenoiserSwitch(pipe, stages=two(3, 3, 0.6)),
        pytest.raises(SchedulerConfigError, match="hands its scheduler sigmas"),
    ):
        run_ltx(pipe, steps=6)
    scheduler, listener = announced(two(3, 3, 0.6))
    copied = pickle.loads(pickle.dumps(scheduler)).__deepcopy__({})
    copied._copy_of = scheduler._listener
    with pytest.raises(SwitchError, match="private copies"):
        copied.step(noise(), copied.timesteps[0], noise())
    assert listener.stage_indices == (0, 0, 0, 1, 1, 1)


def test_adaptive_stages_and_modular_blocks_refuse_steps() -> None:
    stages = StageSchedule(
        (
            Stage("large", until_sigma=0.8, steps=2),
            Stage("small", until_sigma=0.3, steps=2),
            Stage("large", steps=2),
        )
    )
    with pytest.raises(StageError, match="leave steps out"):
        DenoiserSwitch(wan_pipe(), wan_denoiser(seed=1), stages, adaptive=SelfDifference())
    with pytest.raises(StageError, match="got steps"):
        FlowBlendBlock(stages)
