"""The linear preview, on pixels that a linear map does make, and clean latents of a known flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeliosScheduler,
    I2VGenXLPipeline,
    KDPM2DiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    MiniMaxH3Scheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)
from tiny import FLOW, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, SchedulerConfigError, SwitchError
from flowblend_plugin.preview import EarlyLook, LatentProjection, clean_latents


def linear_clips(count: int, temporal: int, spatial: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents, and frames that a fixed linear map makes of each voxel."""
    draw = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 4, 3, 4, 5, generator=draw)
    maps = torch.randn(4, temporal * spatial * spatial * 3, generator=draw) / 40
    patches = (latents.movedim(1, -1) @ maps + 0.5).reshape(
        count, 3, 4, 5, temporal, spatial, spatial, 3
    )
    frames = patches.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(
        count, 3 * temporal, 4 * spatial, 5 * spatial, 3
    )
    # The first latent frame stands for one frame only.
    shown = frames[:, temporal - 1 :].clamp(0, 1) * 255
    return latents, shown.round().to(torch.uint8)


@pytest.mark.parametrize(("temporal", "spatial"), [(1, 1), (2, 4), (4, 2)])
def test_a_linear_map_is_found_again(tmp_path: Path, temporal: int, spatial: int) -> None:
    latents, frames = linear_clips(80, temporal, spatial)
    LatentProjection.fit(latents[:79], frames[:79]).save(tmp_path / "preview.safetensors")
    shown = LatentProjection.load(tmp_path / "preview.safetensors").project(latents[79:])
    assert shown.dtype == np.uint8
    assert shown.shape == tuple(frames[79].shape)
    assert np.abs(shown.astype(int) - frames[79].numpy()).max() <= 3  # the ridge


def test_pictures_are_projected_as_one_frame() -> None:
    latents, frames = linear_clips(80, 1, 2)
    projection = LatentProjection.fit(latents[:, :, :1], frames[:, :1])
    assert projection.project(latents[:1, :, 0]).shape == (1, 8, 10, 3)


def test_what_has_no_whole_factors_or_another_number_of_channels_is_refused(
    tmp_path: Path,
) -> None:
    latents, frames = linear_clips(4, 2, 2)
    with pytest.raises(ValueError, match="no whole factors"):
        LatentProjection.fit(latents, frames[:, :-1])
    projection = LatentProjection.fit(latents, frames)
    with pytest.raises(ValueError, match=r"\(1, 4, T, H, W\), got \(1, 5"):
        projection.project(torch.zeros(1, 5, 3, 4, 5))
    (tmp_path / "other.safetensors").write_bytes(b"none")
    with pytest.raises(SwitchError, match="no latent projection"):
        LatentProjection.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(shift=3.0), UniPCMultistepScheduler(**FLOW)]
)
def test_a_velocity_that_is_noise_minus_clean_points_to_the_clean_latents(scheduler: Any) -> None:
    clean, noise = torch.full((1, 3), 0.7), torch.tensor([[-1.0, 0.0, 2.0]])
    scheduler.set_timesteps(9)
    for index in (0, 4, 8):
        sigma = scheduler.sigmas[index]
        sample = (1 - sigma) * clean + sigma * noise
        found = clean_latents(scheduler, noise - clean, sample, index)
        assert torch.allclose(found, clean, atol=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMapEulerDiscreteScheduler(),  # a velocity towards any later step
        KDPM2DiscreteScheduler(),
        DDPMScheduler(variance_type="learned_range"),  # outputs hold a variance too
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True, stochastic_sampling=True),
    ],
)
def test_schedulers_whose_outputs_say_something_else_are_refused_by_name(scheduler: Any) -> None:
    scheduler.set_timesteps(4)
    with pytest.raises(
        SchedulerConfigError, match=f"can't be told from.*{type(scheduler).__name__}"
    ):
        clean_latents(scheduler, torch.zeros(1), torch.zeros(1), 0)


def test_helios_pyramid_of_flows_is_refused_and_its_single_flow_is_not() -> None:
    one, pyramid = HeliosScheduler(stages=1, stage_range=[0, 1]), HeliosScheduler()
    one.set_timesteps(4)
    pyramid.set_timesteps(4, stage_index=0)
    clean, noise, sigma = torch.tensor([0.7]), torch.tensor([-1.0]), one.sigmas[1]
    found = clean_latents(one, noise - clean, (1 - sigma) * clean + sigma * noise, 1)
    assert torch.allclose(found, clean)
    with pytest.raises(SchedulerConfigError, match="HeliosScheduler"):
        clean_latents(pyramid, noise, clean, 1)


@pytest.mark.parametrize(
    ("scheduler", "sign"), [(MiniMaxH3Scheduler(), -1), (LTXEulerAncestralRFScheduler(), 1)]
)
def test_flows_of_other_classes_are_known_with_their_sign(scheduler: Any, sign: int) -> None:
    scheduler.set_timesteps(5)
    clean, noise = torch.tensor([0.7, -2.0]), torch.tensor([1.0, 0.5])
    for index in (0, 2, 3):
        sigma = scheduler.sigmas[index]
        sample = (1 - sigma) * clean + sigma * noise
        found = clean_latents(scheduler, sign * (noise - clean), sample, index)
        assert torch.allclose(found, clean, atol=1e-6)


def test_a_trigonometric_flow_is_known() -> None:
    scheduler = SCMScheduler()
    scheduler.set_timesteps(4, max_timesteps=1.5, intermediate_timesteps=None)
    clean, noise, angle = torch.tensor([0.7]), torch.tensor([-1.0]), scheduler.timesteps[2]
    sample = torch.cos(angle) * clean + torch.sin(angle) * noise
    output = torch.cos(angle) * noise - torch.sin(angle) * clean
    assert torch.allclose(clean_latents(scheduler, output, sample, 2), clean, atol=1e-6)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_preconditioned_outputs_are_known(kind: Any, prediction: str) -> None:
    scheduler = kind(prediction_type=prediction)
    scheduler.set_timesteps(6)
    sample, output = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    result = scheduler.step(output, scheduler.timesteps[0], sample)
    if kind is EDMEulerScheduler:
        expected = result.pred_original_sample
    else:
        expected = scheduler.model_outputs[-1]
    assert torch.allclose(clean_latents(scheduler, output, sample, 0), expected, rtol=1e-4)


def test_the_steps_after_the_look_are_left_out_and_its_latents_come_back() -> None:
    pipe = wan_pipe()
    full = run_wan(pipe)
    told: list[int] = []
    look = EarlyLook(pipe, 3, lambda index, role: told.append(index))
    with (
        DenoiserSwitch(
            pipe, wan_denoiser(layers=1, seed=1), "LS", (0.5,), on_step=look.on_step
        ) as switch,
        look.watching(),
    ):
        found = run_wan(pipe, callback_on_step_end=look.after_step)
        assert torch.equal(found, look.latents)
        assert switch.denoisers_run == ["large"] * 3
    assert told == [0, 1, 2]
    assert torch.equal(run_wan(pipe), full)


def test_pipelines_that_cant_be_ended_early_are_refused() -> None:
    pipe = object.__new__(I2VGenXLPipeline)
    with pytest.raises(SwitchError, match="takes no callback_on_step_end"):
        EarlyLook(pipe, 3)
    with pytest.raises(SwitchError, match="attach one first"), EarlyLook(wan_pipe(), 1).watching():
        pass
