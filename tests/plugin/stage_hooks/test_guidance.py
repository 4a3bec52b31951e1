"""A stage's own guidance scale, and what a caller, a callback or a second expert makes of it."""

from __future__ import annotations

from typing import Any

import families.wan as wan
import pytest
import torch
from diffusers import WanPipeline
from diffusers.callbacks import SDXLCFGCutoffCallback
from families.unets import run_sdxl, sdxl_denoiser, sdxl_pipe
from tiny import SCHEDULERS, ForwardRecorder, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, Stage, StageSchedule, SwitchError

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


def guided(scale: float, until: float = 0.5) -> StageSchedule:
    return StageSchedule((Stage("large", until, guidance_scale=scale), Stage("large")))


def drop(at: int) -> Any:
    """A callback that drops guidance after a step."""

    def callback(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        if index == at:
            pipe._guidance_scale = 0.0
        return kwargs

    return callback


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_callbacks_guidance_counts_where_no_stage_sets_one(at: int) -> None:
    plain = wan_pipe()
    expected = run_wan(plain, callback_on_step_end=drop(at))
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, pipe.transformer, LSL):
        assert torch.equal(run_wan(pipe, callback_on_step_end=drop(at)), expected)
        assert pipe.guidance_scale == plain.guidance_scale == 0.0


def test_diffusers_own_cutoff_works_in_every_stage() -> None:
    cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    expected = run_sdxl(sdxl_pipe(), callback_on_step_end=cutoff)
    pipe = sdxl_pipe()
    with DenoiserSwitch(pipe, pipe.unet, LSL):
        assert torch.equal(run_sdxl(pipe, callback_on_step_end=cutoff), expected)
    stages = StageSchedule((Stage("small", 0.75, guidance_scale=4.0), Stage("large")))
    with (
        DenoiserSwitch(pipe, sdxl_denoiser(seed=1), stages),
        pytest.raises(SwitchError, match=r"became 0\.0 during the call, as a callback"),
    ):
        run_sdxl(pipe, callback_on_step_end=cutoff)


def test_a_callbacks_guidance_beside_a_stages_is_refused_and_stays() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, stages=guided(5.0)):
        with pytest.raises(SwitchError, match="the stages set it too"):
            run_wan(pipe, callback_on_step_end=drop(1))
        assert pipe.guidance_scale == 0.0
        expected = run_wan(wan_pipe(), guidance_scale=5.0, steps=2)
        run_wan(pipe, steps=4)
        with DenoiserSwitch(again := wan_pipe(), stages="L"):
            assert torch.equal(run_wan(again, guidance_scale=5.0, steps=2), expected)


def test_a_call_after_a_failed_one_has_its_own_scale_even_where_a_stage_had_it() -> None:
    pipe, stages = (
        wan_pipe(),
        StageSchedule((Stage("large", 0.5, guidance_scale=1.0), Stage("large"))),
    )

    def fail(*_: Any) -> Any:
        raise InterruptedError

    fresh = wan_pipe()
    with DenoiserSwitch(fresh, stages=stages):
        expected = run_wan(fresh, guidance_scale=1.0)
    with DenoiserSwitch(pipe, stages=stages):
        with pytest.raises(InterruptedError):
            run_wan(pipe, callback_on_step_end=fail)
        assert torch.equal(run_wan(pipe, guidance_scale=1.0), expected)
        assert pipe.guidance_scale == 1.0


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_a_pass_too_many_is_an_error_and_never_the_calls_own_scale(scale: float) -> None:
    class Thorough(WanPipeline):
        """Runs its denoiser once more in every step."""

    Thorough.__name__ = "WanPipeline"
    pipe = Thorough(
        tokenizer=None, text_encoder=None, vae=None, transformer=wan_denoiser(),
        scheduler=SCHEDULERS["euler"](),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    shown = pipe.transformer.cache_context

    def again(name: str, **where: Any) -> Any:
        if name == "cond":
            with torch.no_grad():
                pass_of(pipe)
        return shown(name, **where)

    pipe.transformer.cache_context = again
    with (
        DenoiserSwitch(pipe, stages=guided(scale)),
        pytest.raises(
            SwitchError,
            match=r"this WanPipeline has to run [12] of its passes a step, but it ran [23]",
        ),
    ):
        run_wan(pipe)


def pass_of(pipe: Any) -> None:
    pipe.transformer(torch.zeros(1, 4, 2, 4, 4), torch.ones(1), torch.zeros(1, 4, 8))


# Wan 2.2: two experts, each with a scale of the call.


@pytest.mark.parametrize("wanted", [5.0, 3.5, 3.0])
@pytest.mark.parametrize("role", ["small", "large"])
def test_each_experts_own_scale_is_the_one_that_a_stage_replaces(wanted: float, role: str) -> None:
    small, pipe = wan.denoiser(layers=1), wan.expert_pipe()
    with DenoiserSwitch(pipe, small, StageSchedule((Stage(role, guidance_scale=wanted),))):
        found = wan.call(pipe, steps=8, guidance_scale=3.5, guidance_scale_2=3.0)
    oracle = wan.expert_pipe()
    with DenoiserSwitch(oracle, small, StageSchedule((Stage(role),))):
        expected = wan.call(oracle, steps=8, guidance_scale=wanted, guidance_scale_2=wanted)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_a_pipe_with_its_second_expert_alone_blends() -> None:
    large, small = wan_denoiser(), wan_denoiser(layers=1, seed=1)
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=None, transformer_2=large,
        scheduler=SCHEDULERS["unipc"](), boundary_ratio=1.0,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    ran = ForwardRecorder(large=large, small=small)
    with DenoiserSwitch(pipe, small, LSL) as switch:
        run_wan(pipe, steps=5)
    assert ran.per_step() == tuple(switch.denoisers_run) == LSL.denoisers(5)
    assert (pipe.transformer, pipe.transformer_2) == (None, large)
