"""Pipelines with a UNet and classic schedulers: SDXL, AnimateDiff, I2VGen-XL."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from families.base import Family, built, numbers, quiet, seeded
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

CHANNELS = (8, 8)
BLOCKS = {
    "block_out_channels": CHANNELS,
    "layers_per_block": 1,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def shared(steps: int) -> dict[str, Any]:
    """What every call here says."""
    return {
        "prompt_embeds": numbers(1, 4, 8),
        "negative_prompt_embeds": numbers(1, 4, 8, seed=98),
        "num_inference_steps": steps,
        "height": 32,
        "width": 32,
        "generator": seeded(),
        "output_type": "latent",
    }


# SDXL.


def sdxl_denoiser(seed: int = 0, **config: Any) -> Any:
    shape = {
        **BLOCKS,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 6,
    }
    return built(UNet2DConditionModel, seed=seed, **{**shape, **config})


def sdxl_pipe() -> Any:
    nothing = dict.fromkeys(["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    return quiet(
        StableDiffusionXLPipeline(
            unet=sdxl_denoiser(),
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
            add_watermarker=False,
            **nothing,
        )
    )


def run_sdxl(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    pooled = {
        "pooled_prompt_embeds": numbers(1, 6),
        "negative_pooled_prompt_embeds": numbers(1, 6, seed=98),
    }
    return pipe(**pooled, **shared(steps), **more).images


# AnimateDiff.


def motion_denoiser(seed: int = 0, **config: Any) -> Any:
    """A UNetMotionModel: what AnimateDiff makes of a picture UNet and a motion adapter."""
    shape = {
        **BLOCKS,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "use_motion_mid_block": False,
    }
    return built(UNetMotionModel, seed=seed, **{**shape, **config})


@functools.cache
def motion_parts() -> tuple[Any, Any]:
    """A picture UNet with its motion adapter made one, as the pipeline does it, and the adapter."""
    picture = built(
        UNet2DConditionModel,
        seed=0,
        **BLOCKS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )
    motion = built(
        MotionAdapter,
        seed=1,
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    return UNetMotionModel.from_unet2d(picture, motion).eval(), motion


def motion_pipe(scheduler: Any = None) -> Any:
    unet, motion = motion_parts()
    return quiet(
        AnimateDiffPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=copy.deepcopy(unet),
            motion_adapter=motion,
            scheduler=scheduler or DDIMScheduler(**BETAS, clip_sample=False),
        )
    )


def run_motion(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    return pipe(**shared(steps), num_frames=2, **more).frames


# I2VGen-XL, deprecated in diffusers.


def tiny_vae() -> Any:
    """A tiny AutoencoderKL that shrinks pictures by 8."""
    return built(
        AutoencoderKL,
        seed=0,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
    )


def i2vgen_denoiser(seed: int = 0, **config: Any) -> Any:
    shape = {
        **BLOCKS,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 2,
    }
    return built(I2VGenXLUNet, seed=seed, **{**shape, **config})


def i2vgen_pipe() -> Any:
    torch.manual_seed(0)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            projection_dim=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return quiet(
            I2VGenXLPipeline(
                vae=tiny_vae(),
                text_encoder=None,
                tokenizer=None,
                image_encoder=encoder,
                feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8),
                unet=i2vgen_denoiser(),
                scheduler=DDIMScheduler(**BETAS, clip_sample=False),
            )
        )


def run_i2vgen(pipe: Any, steps: int = 4) -> torch.Tensor:
    torch.manual_seed(0)  # it samples its picture's latents without the generator
    image = Image.new("RGB", (32, 32), (200, 40, 90))
    return pipe(**shared(steps), image=image, num_frames=2).frames


FAMILIES = (
    Family(
        name="Stable Diffusion XL",
        pipeline="StableDiffusionXLPipeline",
        denoiser="UNet2DConditionModel",
        make_pipe=sdxl_pipe,
        make_small=lambda: sdxl_denoiser(seed=1, block_out_channels=(4, 8)),
        make_misfit=lambda: sdxl_denoiser(addition_embed_type=None),
        misfit="addition_embed_type",
        run=run_sdxl,
        attributes=("unet",),
        forwards=1,
    ),
    Family(
        name="AnimateDiff",
        pipeline="AnimateDiffPipeline",
        denoiser="UNetMotionModel",
        make_pipe=motion_pipe,
        make_small=lambda: motion_denoiser(seed=1, block_out_channels=(4, 8)),
        make_misfit=lambda: motion_denoiser(cross_attention_dim=12),
        misfit="cross_attention_dim",
        run=run_motion,
        attributes=("unet",),
        forwards=1,
        note="both are UNetMotionModels, each with its motion modules in it",
    ),
    Family(
        name="I2VGen-XL",
        pipeline="I2VGenXLPipeline",
        denoiser="I2VGenXLUNet",
        make_pipe=i2vgen_pipe,
        make_small=lambda: i2vgen_denoiser(seed=1, block_out_channels=(4, 8)),
        make_misfit=lambda: i2vgen_denoiser(cross_attention_dim=12),
        misfit="cross_attention_dim",
        run=run_i2vgen,
        attributes=("unet",),
        has_callback=False,
        forwards=1,
        note="deprecated in diffusers",
    ),
)
