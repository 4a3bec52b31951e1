"""HunyuanVideo, and HunyuanVideo 1.5, which has a guider and no step callback."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from families.base import Family, built, euler, numbers, quiet, seeded


def denoiser(layers: int = 2, **config: Any) -> Any:
    """A HunyuanVideo denoiser of a few thousand random weights."""
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": layers,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "text_embed_dim": 8,
        "pooled_projection_dim": 6,
        "rope_axes_dim": (2, 4, 4),
    }
    return built(HunyuanVideoTransformer3DModel, seed=layers, **{**shape, **config})


def pipe() -> Any:
    return quiet(
        HunyuanVideoPipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=denoiser(),
            vae=None,
            scheduler=euler(shift=7.0),
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def run(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    arguments = {
        "prompt_embeds": numbers(1, 4, 8),
        "pooled_prompt_embeds": numbers(1, 6),
        "prompt_attention_mask": torch.ones(1, 4),
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": steps,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**{**arguments, **more}).frames


def denoiser_15(layers: int = 2, **config: Any) -> Any:
    """A HunyuanVideo 1.5 denoiser; its byte text projection keeps its fixed width of 2048."""
    shape = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": layers,
        "num_refiner_layers": 1,
        "text_embed_dim": 8,
        "text_embed_2_dim": 6,
        "image_embed_dim": 6,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 16,
        "task_type": "t2v",
    }
    return built(HunyuanVideo15Transformer3DModel, seed=layers, **{**shape, **config})


def pipe_15() -> Any:
    vae = built(
        AutoencoderKLHunyuanVideo15,
        seed=0,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    made = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=denoiser_15(),
        vae=vae,
        scheduler=euler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    made.vision_num_semantic_tokens = 5
    return quiet(made)


def run_15(pipe: Any, steps: int = 4) -> torch.Tensor:
    texts = {
        "prompt_embeds": numbers(1, 4, 8),
        "prompt_embeds_mask": torch.ones(1, 4),
        "prompt_embeds_2": numbers(1, 3, 6),
        "prompt_embeds_mask_2": torch.ones(1, 3),
        "negative_prompt_embeds": numbers(1, 4, 8, seed=98),
        "negative_prompt_embeds_mask": torch.ones(1, 4),
        "negative_prompt_embeds_2": numbers(1, 3, 6, seed=98),
        "negative_prompt_embeds_mask_2": torch.ones(1, 3),
    }
    size = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": steps}
    return pipe(**texts, **size, generator=seeded(), output_type="latent").frames


FAMILIES = (
    Family(
        name="HunyuanVideo",
        pipeline="HunyuanVideoPipeline",
        denoiser="HunyuanVideoTransformer3DModel",
        make_pipe=pipe,
        make_small=lambda: denoiser(layers=1, num_attention_heads=1),
        make_misfit=lambda: denoiser(guidance_embeds=False),
        misfit="guidance_embeds",
        run=run,
        forwards=1,
    ),
    Family(
        name="HunyuanVideo 1.5",
        pipeline="HunyuanVideo15Pipeline",
        denoiser="HunyuanVideo15Transformer3DModel",
        make_pipe=pipe_15,
        make_small=lambda: denoiser_15(layers=1),
        make_misfit=lambda: denoiser_15(text_embed_2_dim=8),
        misfit="text_embed_2_dim",
        run=run_15,
        has_callback=False,
        note="guidance by a guider object",
    ),
)
