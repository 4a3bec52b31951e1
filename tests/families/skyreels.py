"""SkyReels V2: text to video, and diffusion forcing, which steps a private scheduler per frame."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from families.base import Family, built, numbers, quiet, seeded
from tiny import FLOW


def denoiser(layers: int = 2, **config: Any) -> Any:
    """A SkyReels V2 denoiser of a few thousand random weights."""
    shape = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 24,
        "num_layers": layers,
    }
    return built(SkyReelsV2Transformer3DModel, seed=layers, **{**shape, **config})


def make(cls: Any) -> Any:
    return quiet(
        cls(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=UniPCMultistepScheduler(**FLOW),
            transformer=denoiser(),
        )
    )


def run(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    arguments = {
        "prompt_embeds": numbers(1, 4, 8),
        "negative_prompt_embeds": numbers(1, 4, 8, seed=98),
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": steps,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**{**arguments, **more}).frames


def run_forcing(pipe: Any, **more: Any) -> torch.Tensor:
    return run(pipe, prompt=None, **more)


FAMILIES = (
    Family(
        name="SkyReels V2 text to video",
        pipeline="SkyReelsV2Pipeline",
        denoiser="SkyReelsV2Transformer3DModel",
        make_pipe=lambda: make(SkyReelsV2Pipeline),
        make_small=lambda: denoiser(layers=1, num_attention_heads=1),
        make_misfit=lambda: denoiser(patch_size=(1, 1, 1)),
        misfit="patch_size",
        run=run,
        note="1.3B and 14B fit",
    ),
    Family(
        name="SkyReels V2 diffusion forcing",
        pipeline="SkyReelsV2DiffusionForcingPipeline",
        denoiser="SkyReelsV2Transformer3DModel",
        make_pipe=lambda: make(SkyReelsV2DiffusionForcingPipeline),
        make_small=lambda: denoiser(layers=1, num_attention_heads=1),
        make_misfit=lambda: denoiser(text_dim=12),
        misfit="text_dim",
        run=run_forcing,
        needs_callback=True,
        note="pass the switch as callback_on_step_end: every frame has a scheduler of its own; "
        "`ar_step` above 0: see below",
    ),
)
