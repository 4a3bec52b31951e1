"""Beginning below pure noise: EDM's sigma_max in flow matching's noise levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny import FLOW, ltx_pipe, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, SchedulerConfigError, Stage, StageError, StageSchedule
from flowblend_plugin.schedulers.factory import make_scheduler
from flowblend_plugin.schedulers.flow_blend import begin_at
from flowblend_plugin.stages import SOLVERS

EULER = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_first_level_is_sigma_max_and_the_others_follow_the_solver(name: str) -> None:
    pipe = wan_pipe(make_scheduler(EULER, name))
    plain = make_scheduler(EULER, name)
    plain.set_timesteps(20)
    own = pipe.scheduler
    with begin_at(pipe, 200.0), DenoiserSwitch(pipe, stages="L", seed=1):
        run_wan(pipe, steps=20)
        sigmas = pipe.scheduler.sigmas.tolist()
    assert pipe.scheduler is own
    assert "prepare_latents" not in vars(pipe)
    assert sigmas[0] == pytest.approx(200 / 201)
    assert sigmas[-1] == 0
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(abs(a - b) < 0.006 for a, b in zip(sigmas, plain.sigmas.tolist(), strict=True))


def test_a_flow_that_stands_still_keeps_the_scaled_noise() -> None:
    def zero(*args: Any, **kwargs: Any) -> Any:
        return (torch.zeros_like(kwargs["hidden_states"]),)

    pipe = wan_pipe(EULER)
    pipe.transformer.forward = zero
    noise = run_wan(pipe, steps=2)
    with begin_at(pipe, 4.0):
        assert torch.allclose(run_wan(pipe, steps=2), 0.8 * noise)
    assert torch.equal(run_wan(pipe, steps=2), noise)


def test_an_infinite_start_is_the_plain_one() -> None:
    pipe = wan_pipe(EULER)
    plain = run_wan(pipe)
    with begin_at(pipe, 1e12):
        assert torch.allclose(run_wan(pipe), plain, atol=1e-4)
    with begin_at(pipe, 20.0):
        assert not torch.allclose(run_wan(pipe), plain, atol=1e-3)
    assert torch.equal(run_wan(pipe), plain)


def test_stages_with_steps_of_their_own_begin_there_too() -> None:
    stages = StageSchedule(
        (
            Stage("large", until_sigma=0.6, steps=3, scheduler="unipc"),
            Stage("small", steps=2),
        )
    )
    pipe = wan_pipe(EULER)
    with begin_at(pipe, 9.0), DenoiserSwitch(pipe, wan_denoiser(seed=1), stages) as switch:
        run_wan(pipe, steps=5)
        sigmas = pipe.scheduler.sigmas.tolist()
        assert switch.denoisers_run == ["large"] * 3 + ["small"] * 2
    assert sigmas[0] == pytest.approx(0.9)
    assert sigmas[3] == pytest.approx(0.6)


def test_where_it_isnt_known_to_hold_it_is_refused() -> None:
    with pytest.raises(StageError, match="above 0"), begin_at(wan_pipe(), -1.0):
        pass
    with pytest.raises(SchedulerConfigError, match="LTXPipeline"), begin_at(ltx_pipe(), 200.0):
        pass
    heun = wan_pipe(FlowMatchHeunDiscreteScheduler(shift=3.0))
    with pytest.raises(SchedulerConfigError, match="can't be divided"), begin_at(heun, 200.0):
        pass
    karras = wan_pipe(UniPCMultistepScheduler(**FLOW, use_karras_sigmas=True))
    with pytest.raises(SchedulerConfigError, match="use_karras_sigmas"), begin_at(karras, 200.0):
        pass
