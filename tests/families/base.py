"""What a family of pipelines is to these tests: how to build a tiny pair of it and to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler


@dataclass(frozen=True)
class Family:
    """One pipeline class, with a tiny random pair of its real denoiser class.

    ``attributes`` are the pipeline's places for a denoiser; where there are two experts, the small
    one is a pair too.
    ``steps`` is the number of whole steps of the full trajectory, ``skipped`` how many of them a
    late start leaves out, ``trajectories`` how many trajectories one call runs, and ``forwards``
    how many forwards the denoiser does in one step.
    """

    name: str
    pipeline: str
    denoiser: str
    make_pipe: Callable[[], Any]
    make_small: Callable[[], Any]
    make_misfit: Callable[[], Any]
    misfit: str
    run: Callable[..., torch.Tensor]
    attributes: tuple[str, ...] = ("transformer",)
    has_callback: bool = True
    needs_callback: bool = False
    steps: int = 4
    skipped: int = 0
    trajectories: int = 1
    forwards: int = 2
    note: str = ""
    pending: str = ""


def euler(shift: float = 3.0, **config: Any) -> Any:
    """The scheduler of most flow-matching pipelines."""
    return FlowMatchEulerDiscreteScheduler(shift=shift, **config)


def quiet(pipe: Any) -> Any:
    """A pipeline without progress bars."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def numbers(*shape: int, seed: int = 99) -> torch.Tensor:
    """Fixed random numbers, such as stand for the output of a text encoder."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    """The generator of a call's initial noise."""
    return torch.Generator().manual_seed(seed)


def built(cls: Any, seed: int, **config: Any) -> Any:
    """A model of random weights that are the same for the same seed."""
    torch.manual_seed(seed)
    return cls(**config).eval()


def wan_vae() -> Any:
    """A tiny AutoencoderKLWan of four latent channels."""
    return built(
        AutoencoderKLWan,
        seed=0,
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0, 0.1, -0.1, 0.2],
        latents_std=[1.0, 1.1, 0.9, 1.2],
    )
