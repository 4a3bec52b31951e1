"""Clean latents as diffusers itself has them, for schedulers by timestep, by sigma and of flows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from flowblend_plugin import FlowBlendScheduler, wrap_scheduler
from flowblend_plugin.schedulers.predictions import adds_noise, clean_weights

SHAPE = (1, 4, 3, 3)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
BY_SIGMA = [
    DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler,
    DEISMultistepScheduler,
]  # fmt: skip


def noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def said(scheduler: Any, index: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    weights = clean_weights(scheduler, index)
    assert weights is not None
    return weights[0] * sample + weights[1] * output


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_clean_latents_by_timestep_are_those_of_a_step(kind: Any, prediction: str) -> None:
    scheduler = kind(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(6)
    for index, timestep in enumerate(scheduler.timesteps):
        stepped = scheduler.step(noise(1), timestep, noise(0))
        clean = said(scheduler, index, noise(0), noise(1))
        torch.testing.assert_close(clean, stepped.pred_original_sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", BY_SIGMA)
def test_clean_latents_by_sigma_are_what_the_solver_converts_an_output_to(
    kind: Any, prediction: str
) -> None:
    scheduler = kind(prediction_type=prediction)
    scheduler.set_timesteps(6)
    for index in range(6):
        scheduler._step_index = index
        clean = said(scheduler, index, noise(0), noise(1))
        wanted = scheduler.convert_model_output(noise(1), sample=noise(0))
        if kind is DEISMultistepScheduler:  # its form of an output is the noise
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
            wanted = (noise(0) - sigma * wanted) / alpha
        torch.testing.assert_close(clean, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_clean_latents_of_added_noise_are_those_of_a_step(prediction: str) -> None:
    scheduler = EulerDiscreteScheduler(prediction_type=prediction)
    scheduler.set_timesteps(6)
    for index, timestep in enumerate(scheduler.timesteps):
        scheduler.is_scale_input_called = True
        stepped = scheduler.step(noise(1), timestep, noise(0))
        clean = said(scheduler, index, noise(0), noise(1))
        torch.testing.assert_close(
            clean, stepped.pred_original_sample, rtol=1e-4, atol=1e-4, check_dtype=False
        )


@pytest.mark.parametrize("inverted", [False, True])
def test_a_straight_flow_ends_at_its_clean_latents(inverted: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted)
    scheduler.set_timesteps(5)
    clean, start = noise(0), noise(1)
    for index in range(5):
        share = float(scheduler.sigmas[index])  # of the noise, or inverted, of the signal
        share = 1 - share if inverted else share
        sample = (1 - share) * clean + share * start
        velocity = (clean - start) if inverted else (start - clean)
        torch.testing.assert_close(said(scheduler, index, sample, velocity), clean)


@pytest.mark.parametrize("prediction", ["original_sample", "sample"])
def test_an_output_that_is_the_clean_latents_is_taken_as_it_is(prediction: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction)
    scheduler.set_timesteps(3)
    assert clean_weights(scheduler, 1) == (0.0, 1.0)


def test_what_isnt_known_to_say_clean_latents_says_none() -> None:
    learned = DDPMScheduler(variance_type="learned_range")
    unknown = DDIMScheduler(prediction_type="epsilon")
    unknown.register_to_config(prediction_type="else")
    for scheduler in (learned, unknown):
        scheduler.set_timesteps(3)
        assert clean_weights(scheduler, 1) is None


def test_noise_is_known_to_be_added() -> None:
    assert not adds_noise(FlowBlendScheduler())
    assert adds_noise(FlowBlendScheduler(mode="sde"))
    assert adds_noise(DDPMScheduler())
    assert not adds_noise(UniPCMultistepScheduler())


def test_a_watcher_is_told_each_step_until_it_is_taken_away() -> None:
    scheduler = FlowBlendScheduler()
    scheduler.set_timesteps(4)
    seen: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    scheduler.watch(lambda output, sample, done: seen.append((output, sample, done)))
    sample = noise(0)
    handed = []
    for index, timestep in enumerate(scheduler.timesteps):
        if index == 3:
            scheduler.watch(None)
        handed.append(sample)
        sample = scheduler.step(noise(index + 1), timestep, sample, return_dict=False)[0]

    assert [done for _, _, done in seen] == [0, 1, 2]
    assert all(torch.equal(output, noise(n + 1)) for n, (output, _, _) in enumerate(seen))
    assert all(torch.equal(one, handed[n]) for n, (_, one, _) in enumerate(seen))


@pytest.mark.parametrize("kind", [FlowMatchHeunDiscreteScheduler, PNDMScheduler])
def test_a_watcher_is_told_which_of_equal_timesteps_was_stepped(kind: Any) -> None:
    scheduler = wrap_scheduler(kind())
    scheduler.set_timesteps(4)
    seen: list[int] = []
    scheduler.watch(lambda output, sample, done: seen.append(done))
    for timestep in scheduler.timesteps:
        scheduler.step(noise(1), timestep, noise(0))
    equal = [scheduler.timesteps.tolist().index(t) for t in scheduler.timesteps.tolist()]
    calls = list(range(len(scheduler.timesteps)))
    assert len(set(equal)) < len(calls)
    assert seen == (calls if kind is FlowMatchHeunDiscreteScheduler else equal)


def test_sa_solver_adds_noise_where_its_tau_says_so() -> None:
    for tau, is_noisy in ((lambda timestep: 0.0, False), (lambda timestep: timestep < 500, True)):
        scheduler = SASolverScheduler(tau_func=tau)
        scheduler.set_timesteps(6)
        assert adds_noise(scheduler) is is_noisy


def test_a_scheduler_of_none_of_the_known_kinds_says_none() -> None:
    scheduler = KDPM2DiscreteScheduler()
    scheduler.set_timesteps(3)
    assert clean_weights(scheduler, 1) is None
