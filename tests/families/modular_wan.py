"""Wan as a modular pipeline: no callback; the scheduler drives, or a block in the loop."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, Wan22Blocks, WanBlocks, WanModularPipeline
from diffusers.guiders import ClassifierFreeGuidance
from families.base import Family, numbers, quiet, seeded
from families.wan import denoiser as wan_denoiser
from tiny import FLOW

from flowblend_plugin.modular import FlowBlendBlock


def denoiser(layers: int = 2, **config: Any) -> Any:
    """Without a VAE, the modular pipeline takes its latents to have 16 channels."""
    return wan_denoiser(layers=layers, **{"in_channels": 16, "out_channels": 16, **config})


def make(
    block: FlowBlendBlock | None = None, small: Any = None, experts: bool = False
) -> WanModularPipeline:
    """The text-to-video blocks from embeddings to latents; a block of ours may go first."""
    blocks = Wan22Blocks() if experts else WanBlocks()
    blocks.sub_blocks.pop("text_encoder")
    blocks.sub_blocks.pop("decode")
    components = {
        "transformer": denoiser(),
        "scheduler": UniPCMultistepScheduler(**FLOW),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
    }
    if experts:
        components["transformer_2"] = denoiser(seed=7)
        components["guider_2"] = ClassifierFreeGuidance(guidance_scale=2.0)
    loop = blocks.sub_blocks["denoise"].sub_blocks["denoise"]
    loop.set_progress_bar_config(disable=True)
    if block is not None:
        loop.sub_blocks.insert("flowblend", block, 0)
    pipe = blocks.init_pipeline()
    if small is not None:
        components["transformer_small"] = small
    pipe.update_components(**components)
    return quiet(pipe)


def run(pipe: Any, steps: int = 4, output: str = "latents", **more: Any) -> torch.Tensor:
    return pipe(
        prompt_embeds=numbers(1, 4, 8),
        negative_prompt_embeds=numbers(1, 4, 8, seed=98),
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=steps,
        generator=seeded(),
        output=output,
        **more,
    )


FAMILIES = (
    Family(
        name="Modular Wan",
        pipeline="WanModularPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=make,
        make_small=lambda: denoiser(layers=1, num_attention_heads=1),
        make_misfit=lambda: denoiser(text_dim=12),
        misfit="text_dim",
        run=run,
        has_callback=False,
        note="the scheduler drives, or FlowBlendBlock with the small one as a true component",
    ),
)
