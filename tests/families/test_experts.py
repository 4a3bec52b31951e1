"""Stages on top of Wan 2.2's two experts: large is both of them, as the pipeline uses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from families.wan import denoiser, expert_pipe, run_text, small_experts
from tiny import FLOW

from flowblend_plugin import DenoiserSwitch, PairMismatchError, StageSchedule, SwitchError

LSL = StageSchedule.parse("LSL", boundaries=(0.25, 0.75))


def by_place(pipe: Any, small: tuple[Any, ...]) -> list[str]:
    """Which of all modules ran, forward by forward, as it goes on."""
    ran: list[str] = []
    named = {"large high": pipe.transformer, "large low": pipe.transformer_2}
    named |= dict(zip(("small high", "small low"), small, strict=False))
    for name, module in named.items():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    return ran


def test_each_stage_runs_the_expert_that_its_noise_level_asks_for() -> None:
    pipe, small = expert_pipe(), small_experts()
    ran = by_place(pipe, small)
    stages = StageSchedule.parse("LSL", boundaries=(0.125, 0.75))
    with DenoiserSwitch(pipe, small=small, stages=stages):
        run_text(pipe, steps=8)
        noise = [float(t) for t in pipe.scheduler.timesteps]
    places = ["high" if t >= 900 else "low" for t in noise]
    expected = [f"{r} {p}" for r, p in zip(stages.denoisers(8), places, strict=True)]
    assert ran[::2] == ran[1::2] == expected
    assert len(set(expected)) == 4, "all four modules have their turn"


def test_one_small_denoiser_takes_the_place_of_either_expert() -> None:
    pipe, one = expert_pipe(), denoiser(layers=1)
    with DenoiserSwitch(pipe, small=one, stages=LSL):
        alone = run_text(pipe, steps=8)
    with DenoiserSwitch(pipe, small=(one, one), stages=LSL):
        assert torch.equal(run_text(pipe, steps=8), alone)


def test_a_pair_may_be_given_by_name() -> None:
    pipe, small = expert_pipe(), small_experts()
    with DenoiserSwitch(pipe, small=small, stages=LSL):
        expected = run_text(pipe, steps=8)
    with DenoiserSwitch(pipe, denoisers={"small": small}, stages=LSL):
        assert torch.equal(run_text(pipe, steps=8), expected)


def test_all_small_equals_a_pipeline_of_the_small_experts() -> None:
    high, low = small_experts()
    alone = expert_pipe()
    alone.transformer, alone.transformer_2 = high, low
    pipe = expert_pipe()
    with DenoiserSwitch(pipe, small=(high, low), stages="SSS"):
        assert torch.equal(run_text(pipe), run_text(alone))


def test_the_experts_own_guidance_stays_with_their_places() -> None:
    more = {"guidance_scale": 4.0, "guidance_scale_2": 2.0}
    plain = run_text(expert_pipe(), **more)
    pipe = expert_pipe()
    twins = (pipe.transformer, pipe.transformer_2)
    with DenoiserSwitch(pipe, small=twins, stages=LSL):
        assert torch.equal(run_text(pipe, **more), plain)


def test_experts_work_with_a_multistep_solver_and_the_callback() -> None:
    def make() -> Any:
        pipe = expert_pipe()
        pipe.scheduler = UniPCMultistepScheduler(**FLOW)
        return pipe

    pipe = make()
    with DenoiserSwitch(pipe, small=small_experts(), stages="LLL") as switch:
        assert torch.equal(run_text(pipe, callback_on_step_end=switch), run_text(make()))


def test_the_wrong_number_of_experts_and_a_misfit_among_them_are_refused() -> None:
    high, low = small_experts()
    with pytest.raises(SwitchError, match="transformer and transformer_2"):
        DenoiserSwitch(expert_pipe(), small=(high, low, high), stages=LSL)
    with pytest.raises(PairMismatchError, match="text_dim"):
        DenoiserSwitch(expert_pipe(), small=(high, denoiser(text_dim=12)), stages=LSL)
