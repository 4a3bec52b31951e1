"""Solvers of pipelines that predict noise, by name, with diffusers' own runs as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from families.unets import BETAS, run_sdxl, sdxl_denoiser, sdxl_pipe
from tiny import FLOW

from flowblend_plugin import DenoiserSwitch, SchedulerConfigError
from flowblend_plugin.schedulers.factory import make_scheduler

OWN = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
CLASSIC = ("dpmpp_2m_karras", "euler_a")


def sdxl(scheduler: Any) -> Any:
    pipe = sdxl_pipe()
    pipe.scheduler = scheduler
    return pipe


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        (
            "dpmpp_2m_karras",
            DPMSolverMultistepScheduler(
                **BETAS, timestep_spacing="leading", steps_offset=1, use_karras_sigmas=True
            ),
        ),
        (
            "euler_a",
            EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        ),
    ],
)
def test_named_solvers_are_diffusers_own_with_the_pipelines_betas(name: str, stock: Any) -> None:
    made = make_scheduler(OWN, name)
    assert type(made) is type(stock)
    assert torch.equal(run_sdxl(sdxl(made)), run_sdxl(sdxl(stock)))
    with DenoiserSwitch(pipe := sdxl(made), stages="L"):
        assert torch.equal(run_sdxl(pipe), run_sdxl(sdxl(stock)))


@pytest.mark.parametrize("name", CLASSIC)
def test_what_is_predicted_is_kept_and_stages_run(name: str) -> None:
    own = DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction")
    assert make_scheduler(own, name).config.prediction_type == "v_prediction"
    pipe = sdxl(make_scheduler(OWN, name))
    with DenoiserSwitch(pipe, sdxl_denoiser(seed=1), "LSL", (0.4, 0.8)) as switch:
        first = run_sdxl(pipe, steps=5)
        assert switch.denoisers_run == ["large", "large", "small", "small", "large"]
        assert torch.equal(run_sdxl(pipe, steps=5), first)


def test_the_schedulers_seed_counts_over_a_handed_generator_only_if_asked_to() -> None:
    def run(seed: int, name: str, *, own_noise: bool) -> torch.Tensor:
        pipe = sdxl(make_scheduler(OWN, name))
        with DenoiserSwitch(pipe, stages="L", seed=seed):
            pipe.scheduler.own_noise = own_noise
            return run_sdxl(pipe)

    assert torch.equal(run(1, "euler_a", own_noise=False), run(2, "euler_a", own_noise=False))
    assert torch.equal(run(1, "euler_a", own_noise=True), run(1, "euler_a", own_noise=True))
    assert not torch.equal(run(1, "euler_a", own_noise=True), run(2, "euler_a", own_noise=True))
    plain = run(1, "dpmpp_2m_karras", own_noise=False)
    assert torch.equal(run(2, "dpmpp_2m_karras", own_noise=True), plain)


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize(
    ("own", "says"),
    [
        (FlowMatchEulerDiscreteScheduler(), "is of flow matching: choose one of flow_match_euler"),
        (UniPCMultistepScheduler(**FLOW), "is of flow matching"),
        (DDIMScheduler(**BETAS), "clip_sample = True"),
        (CogVideoXDDIMScheduler(), "snr_shift_scale"),
    ],
    ids=lambda own: type(own).__name__,
)
def test_they_are_refused_where_something_would_be_lost(name: str, own: Any, says: str) -> None:
    with pytest.raises(SchedulerConfigError, match=says):
        make_scheduler(own, name)


def test_other_kinds_of_noise_levels_are_refused() -> None:
    with pytest.raises(SchedulerConfigError, match="no flow_shift"):
        make_scheduler(OWN, "euler_a", flow_shift=3.0)
    with pytest.raises(SchedulerConfigError, match="no stochastic form"):
        make_scheduler(OWN, "dpmpp_2m_karras", mode="sde")
    with pytest.raises(SchedulerConfigError, match="choose dpmpp_2m_karras or euler_a"):
        make_scheduler(OWN, "unipc")
    assert make_scheduler(OWN, "euler_a", mode="sde").config.beta_start == BETAS["beta_start"]
