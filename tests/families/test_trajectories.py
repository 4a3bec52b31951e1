"""The odd ways in which pipelines and solvers walk a trajectory, each on a real pipeline."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    SkyReelsV2DiffusionForcingPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from families import skyreels, unets, video, wan
from families.base import euler
from tiny import FLOW, SCHEDULERS, ForwardRecorder, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import (
    Cache,
    DenoiserSwitch,
    FlowBlendScheduler,
    Stage,
    StageSchedule,
    SwitchError,
)
from flowblend_plugin.schedulers.stage_solvers import spread_stages

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
HALVES = StageSchedule.parse("SL", boundaries=(0.5,))


# Every solver can be the clock.

FLOW_SOLVERS = {
    "Euler, stochastic": lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "LCM": FlowMatchLCMScheduler,
    "DPM++ SDE": lambda: DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"),
    "DPM++ single step": lambda: DPMSolverSinglestepScheduler(**FLOW),
    "DEIS": lambda: DEISMultistepScheduler(**FLOW),
    "SA": lambda: SASolverScheduler(**FLOW),
}
CLASSIC_SOLVERS = {
    "DDPM, without step_index": DDPMScheduler,
    "LCM": LCMScheduler,
    "Euler ancestral": EulerAncestralDiscreteScheduler,
    "Heun, two evaluations a step": HeunDiscreteScheduler,
}


@pytest.mark.parametrize("key", FLOW_SOLVERS)
def test_flow_solvers_run_as_they_are_and_switch_as_planned(key: str) -> None:
    def run(pipe: Any) -> torch.Tensor:
        torch.manual_seed(0)  # pipelines hand stochastic solvers no generator
        return run_wan(pipe, steps=5)

    plain = run(wan_pipe(FLOW_SOLVERS[key]()))
    pipe, small = wan_pipe(FLOW_SOLVERS[key]()), wan_denoiser(layers=1, seed=1)
    with DenoiserSwitch(pipe, small=small, stages="LLL"):
        assert torch.equal(run(pipe), plain)
    record = ForwardRecorder(large=pipe.transformer, small=small)
    with DenoiserSwitch(pipe, small=small, stages=LSL):
        run(pipe)
    assert record.per_step() == LSL.denoisers(5)


@pytest.mark.parametrize("key", CLASSIC_SOLVERS)
def test_classic_solvers_run_as_they_are_and_switch_as_planned(key: str) -> None:
    def run(pipe: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return unets.run_motion(pipe, steps=5)

    plain = run(unets.motion_pipe(CLASSIC_SOLVERS[key]()))
    pipe, small = unets.motion_pipe(CLASSIC_SOLVERS[key]()), unets.motion_denoiser(seed=1)
    with DenoiserSwitch(pipe, small=small, stages="LLL"):
        assert torch.equal(run(pipe), plain)
    record = ForwardRecorder(large=pipe.unet, small=small)
    with DenoiserSwitch(pipe, small=small, stages=LSL) as switch:
        run(pipe)
    order = pipe.scheduler.order
    expected = tuple(role for role in LSL.denoisers(5) for _ in range(order))
    assert record.per_step(forwards=1) == expected[: 5 * order - (order - 1)]
    assert tuple(switch.denoisers_run) == LSL.denoisers(5)


def test_pndms_extra_evaluation_counts_as_a_step() -> None:
    pipe = unets.motion_pipe(PNDMScheduler(skip_prk_steps=True))
    small = unets.motion_denoiser(seed=1)
    record = ForwardRecorder(large=pipe.unet, small=small)
    with DenoiserSwitch(pipe, small=small, stages=LSL) as switch:
        unets.run_motion(pipe, steps=5)
    assert record.per_step(forwards=1) == LSL.denoisers(6) == switch.denoisers


def test_repeated_whole_timesteps_dont_confuse_the_steps() -> None:
    pipe = wan_pipe(UniPCMultistepScheduler(**{**FLOW, "flow_shift": 60.0}))
    small = wan_denoiser(layers=1, seed=1)
    record = ForwardRecorder(large=pipe.transformer, small=small)
    stages = StageSchedule.parse("LSLSL", boundaries=(0.1, 0.2, 0.3, 0.4))
    with DenoiserSwitch(pipe, small=small, stages=stages):
        run_wan(pipe, steps=30)
        timesteps = pipe.scheduler.timesteps
    assert timesteps.dtype == torch.int64
    assert len(timesteps.unique()) < len(timesteps)
    assert record.per_step() == stages.denoisers(30)


# A trajectory may begin late, run several times, or end early.


@pytest.mark.parametrize("key", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
def test_video_to_video_begins_in_the_stage_of_its_first_step(key: str, strength: float) -> None:
    pipe, small = wan.video_pipe(), wan.denoiser(layers=1)
    pipe.scheduler = SCHEDULERS[key]()
    record = ForwardRecorder(large=pipe.transformer, small=small)
    with DenoiserSwitch(pipe, small=small, stages=HALVES) as switch:
        wan.run_video(pipe, steps=8, strength=strength)
    first, order = 8 - int(8 * strength), pipe.scheduler.order
    whole = HALVES.denoisers(8)[first:]
    expected = tuple(role for role in whole for _ in range(order))[: len(record.per_step())]
    assert record.per_step() == expected
    assert tuple(switch.denoisers_run) == whole


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_a_trajectory_of_pndm_may_begin_with_the_step_that_it_takes_twice(start: int) -> None:
    # Its second timestep stands there twice; it counts no steps, and looks none up.
    pipe, small = wan.video_pipe(), wan.denoiser(layers=1)
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True)
    stages = StageSchedule.parse("LSLS", boundaries=(0.2, 0.3, 0.5))
    record = ForwardRecorder(large=pipe.transformer, small=small)
    with DenoiserSwitch(pipe, small=small, stages=stages) as switch:
        wan.run_video(pipe, steps=8, strength=1 - start / 8)
    whole = stages.denoisers(9)[start:]
    assert record.per_step() == whole
    assert tuple(switch.denoisers_run) == whole


def test_free_init_begins_every_pass_with_the_first_stage() -> None:
    pipe, small = unets.motion_pipe(), unets.motion_denoiser(seed=1)
    pipe.enable_free_init(num_iters=3)
    record = ForwardRecorder(large=pipe.unet, small=small)
    with DenoiserSwitch(pipe, small=small, stages=HALVES):
        unets.run_motion(pipe)
    assert record.per_step(forwards=1) == HALVES.denoisers(4) * 3


def test_a_trajectory_that_ends_early_keeps_the_full_ones_stages() -> None:
    pipe, small = unets.sdxl_pipe(), unets.sdxl_denoiser(seed=1)
    large = pipe.unet
    record = ForwardRecorder(large=large, small=small)
    with DenoiserSwitch(pipe, small=small, stages="LS", boundaries=(0.5,)):
        first = unets.run_sdxl(pipe, steps=8, denoising_end=0.75)
        assert torch.equal(unets.run_sdxl(pipe, steps=8, denoising_end=0.75), first)
    assert record.per_step(forwards=1) == (("large",) * 4 + ("small",) * 2) * 2
    assert pipe.unet is large


# Diffusion forcing steps a private copy of the scheduler for every frame.


def forcing_pipe() -> Any:
    return skyreels.make(SkyReelsV2DiffusionForcingPipeline)


def test_private_schedulers_without_the_callback_raise_instead_of_running_one_stage() -> None:
    pipe = forcing_pipe()
    with (
        DenoiserSwitch(pipe, small=skyreels.denoiser(layers=1), stages=LSL),
        pytest.raises(SwitchError, match="callback_on_step_end"),
    ):
        skyreels.run_forcing(pipe)


def test_a_long_video_begins_every_chunk_with_the_first_stage() -> None:
    pipe, small = forcing_pipe(), skyreels.denoiser(layers=1)
    record = ForwardRecorder(large=pipe.transformer, small=small)
    with DenoiserSwitch(pipe, small=small, stages=HALVES) as switch:
        skyreels.run_forcing(
            pipe,
            num_frames=17,
            base_num_frames=9,
            overlap_history=5,
            addnoise_condition=0,
            callback_on_step_end=switch,
        )
    chunks = len(record.per_step()) // 4
    assert chunks > 1
    assert record.per_step() == HALVES.denoisers(4) * chunks


@pytest.mark.parametrize("ar_step", [0, 2])
@pytest.mark.parametrize("order", [1, 2])
def test_reset_makes_private_schedulers_forget_at_a_switch(order: int, ar_step: int) -> None:
    pipe = forcing_pipe()
    pipe.scheduler = DPMSolverMultistepScheduler(**FLOW, solver_order=order)
    call = {"num_frames": 9, "ar_step": ar_step, "steps": 5}
    plain, twin = skyreels.run_forcing(pipe, **call), copy.deepcopy(pipe.transformer)
    with DenoiserSwitch(pipe, twin, HALVES, solver_history="reset") as switch:
        forgetful = skyreels.run_forcing(pipe, callback_on_step_end=switch, **call)
        again = skyreels.run_forcing(pipe, callback_on_step_end=switch, **call)
    assert torch.equal(forgetful, again)
    # A solver of first order has nothing to forget.
    assert torch.equal(forgetful, plain) == (order == 1)


# Frames that begin one after another: every iteration has frames at several steps.

STAGGERED: dict[str, dict[str, Any]] = {
    "frame by frame": {"num_frames": 9, "ar_step": 2},
    "close together": {"num_frames": 9, "ar_step": 1},
    "in blocks": {"num_frames": 13, "ar_step": 3, "causal_block_size": 2},
    "one step a frame": {"num_frames": 9, "ar_step": 1, "steps": 1},
    "by DPM++": {"num_frames": 9, "ar_step": 2, "scheduler": "dpmpp_2m"},
}
# A stage that gets an iteration gets a step of each frame, even of a single one.
LATE = StageSchedule.parse("LSL", boundaries=(0.5, 0.8))


def staggered_pipe(key: str) -> tuple[Any, dict[str, Any]]:
    # The pipeline hands out whole timesteps, which diffusers' Euler and Heun refuse.
    call, pipe = dict(STAGGERED[key]), forcing_pipe()
    if "scheduler" in call:
        pipe.scheduler = SCHEDULERS[call.pop("scheduler")]()
    return pipe, call


@pytest.mark.parametrize("key", STAGGERED)
def test_equal_weights_change_no_bit_of_staggered_frames(key: str) -> None:
    pipe, call = staggered_pipe(key)
    plain = skyreels.run_forcing(pipe, **call)
    twin = copy.deepcopy(pipe.transformer)
    for letters, small in (("LLL", skyreels.denoiser(layers=1)), ("LSL", twin)):
        stages = StageSchedule.parse(letters, boundaries=(0.5, 0.8))
        with DenoiserSwitch(pipe, small=small, stages=stages) as switch:
            again = skyreels.run_forcing(pipe, callback_on_step_end=switch, **call)
        assert torch.equal(again, plain)


@pytest.mark.parametrize("stages", [LATE, HALVES], ids=str)
@pytest.mark.parametrize("key", STAGGERED)
def test_staggered_frames_spread_the_stages_over_all_iterations(
    key: str, stages: StageSchedule
) -> None:
    pipe, call = staggered_pipe(key)
    small, large = skyreels.denoiser(layers=1), pipe.transformer
    record = ForwardRecorder(large=large, small=small)
    with DenoiserSwitch(pipe, small=small, stages=stages) as switch:
        first = skyreels.run_forcing(pipe, callback_on_step_end=switch, **call)
        planned = stages.denoisers(pipe.num_timesteps)
        assert record.per_step() == planned == switch.denoisers == tuple(switch.denoisers_run)
        assert len(planned) > call.get("steps", 4)
        assert pipe.transformer is large
        again = skyreels.run_forcing(pipe, callback_on_step_end=switch, **call)
        assert torch.equal(again, first)


def test_staggered_frames_of_a_long_video_begin_every_chunk_with_the_first_stage() -> None:
    pipe, small = forcing_pipe(), skyreels.denoiser(layers=1)
    record = ForwardRecorder(large=pipe.transformer, small=small)
    iterations: list[int] = []
    with DenoiserSwitch(
        pipe, small=small, stages=HALVES, on_step=lambda i, _: iterations.append(i)
    ) as switch:
        skyreels.run_forcing(
            pipe, num_frames=17, base_num_frames=9, overlap_history=5, addnoise_condition=0,
            ar_step=2, callback_on_step_end=switch,
        )  # fmt: skip
    starts = [i for i, iteration in enumerate(iterations) if iteration == 0]
    lengths = [end - start for start, end in pairwise([*starts, len(iterations)])]
    assert len(lengths) > 1
    assert max(lengths) > 4
    assert record.per_step() == sum((HALVES.denoisers(n) for n in lengths), ())


def test_an_exception_among_staggered_frames_leaves_the_pipe_as_it_was() -> None:
    pipe, call = staggered_pipe("frame by frame")
    scheduler, large, small = pipe.scheduler, pipe.transformer, skyreels.denoiser(layers=1)
    plain = skyreels.run_forcing(pipe, **call)

    def fail(*_: Any) -> None:
        raise RuntimeError("in mid-trajectory")

    small.register_forward_pre_hook(fail)
    with (
        pytest.raises(RuntimeError, match="in mid-trajectory"),
        DenoiserSwitch(pipe, small=small, stages=LSL) as switch,
    ):
        skyreels.run_forcing(pipe, callback_on_step_end=switch, **call)
    assert (pipe.scheduler, pipe.transformer) == (scheduler, large)
    assert torch.equal(skyreels.run_forcing(pipe, **call), plain)


@pytest.mark.parametrize("key", STAGGERED)
def test_staggered_frames_without_the_callback_raise_instead_of_running_one_stage(key: str) -> None:
    pipe, call = staggered_pipe(key)
    with (
        DenoiserSwitch(pipe, small=skyreels.denoiser(layers=1), stages=LSL),
        pytest.raises(SwitchError, match="callback_on_step_end"),
    ):
        skyreels.run_forcing(pipe, **call)


CACHED = StageSchedule(
    (
        Stage("large", 0.5),
        Stage("small", cache=Cache.of("mag", {"mag_ratios": [1.0] * 4, "num_inference_steps": 4})),
    )
)


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        (StageSchedule.parse("LS", None, (0.9,)), "boundary_sigmas ask for one"),
        (CACHED, "a stage's cache counts them"),
        (StageSchedule.parse("SL", (0.1,)), "stage 0 gets none of 4 steps, but the first of 8"),
    ],
)
def test_what_staggered_frames_cant_do_is_refused(stages: StageSchedule, reason: str) -> None:
    pipe = forcing_pipe()
    large = pipe.transformer
    with (
        pytest.raises(SwitchError, match=rf"ar_step.*{reason}"),
        DenoiserSwitch(pipe, small=skyreels.denoiser(layers=1), stages=stages) as switch,
    ):
        skyreels.run_forcing(pipe, num_frames=9, ar_step=2, callback_on_step_end=switch)
    assert pipe.transformer is large


def test_staggered_frames_need_a_solver_of_one_evaluation_a_step() -> None:
    scheduler = SCHEDULERS["heun"]()
    scheduler.set_timesteps(4)
    with pytest.raises(SwitchError, match="FlowMatchHeunDiscreteScheduler takes two iterations"):
        spread_stages(scheduler, HALVES, iterations=12)


# Noise levels, where timesteps aren't noise levels.


def test_sigma_boundaries_count_noise_where_the_scheduler_counts_signal() -> None:
    pipe = video.mochi_pipe()
    pipe.scheduler = euler(shift=1.0, invert_sigmas=True)
    with DenoiserSwitch(
        pipe, small=video.mochi_denoiser(layers=1), stages="LS", boundary_sigmas=(0.985,)
    ) as switch:
        video.run_mochi(pipe, steps=8)
        levels = 1 - pipe.scheduler.timesteps / 1000
    assert switch.denoisers == tuple("large" if level >= 0.985 else "small" for level in levels)
    assert len(set(switch.denoisers)) == 2


def test_sigma_boundaries_are_shares_of_noise_where_sigmas_exceed_one() -> None:
    pipe = video.cosmos_pipe(video.Cosmos2TextToImagePipeline, channels=4)
    small = video.cosmos_denoiser(layers=1, heads=1)
    with DenoiserSwitch(pipe, small=small, stages="LS", boundary_sigmas=(0.5,)) as switch:
        video.run_cosmos_image(pipe)
        sigmas = pipe.scheduler.timesteps / 1000
    assert switch.denoisers == tuple("large" if s / (1 + s) >= 0.5 else "small" for s in sigmas)
    assert len(set(switch.denoisers)) == 2


# Copies and saved files.


def test_a_copied_or_pickled_flowblend_scheduler_is_still_one() -> None:
    scheduler = FlowBlendScheduler(shift=3.0, stages=LSL, mode="sde", seed=5)
    for again in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert type(again) is FlowBlendScheduler
        assert again.stages == LSL
        assert dict(again.config) == dict(scheduler.config)


def test_a_saved_pipeline_comes_back_with_its_flowblend_scheduler(tmp_path: Path) -> None:
    pipe, small = wan_pipe(FlowBlendScheduler(shift=3.0, stages=LSL)), wan_denoiser(layers=1)
    with DenoiserSwitch(pipe, small=small):
        expected = run_wan(pipe)
        pipe.save_pretrained(tmp_path)
    again = WanPipeline.from_pretrained(tmp_path, vae=None, text_encoder=None, tokenizer=None)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is FlowBlendScheduler
    with DenoiserSwitch(again, small=small):
        assert torch.equal(run_wan(again), expected)
