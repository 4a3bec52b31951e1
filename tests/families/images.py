"""QwenImage (text to image, image to image, inpainting), Flux and Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from families.base import Family, built, euler, numbers, quiet, seeded


def shared(steps: int) -> dict[str, Any]:
    """What every call here says."""
    return {
        "num_inference_steps": steps,
        "height": 32,
        "width": 32,
        "generator": seeded(),
        "output_type": "latent",
    }


def picture() -> torch.Tensor:
    """One picture, (1, 3, H, W), from 0 to 1."""
    return numbers(1, 3, 32, 32).sigmoid()


# QwenImage; its image-to-image forms say where they begin with set_begin_index.


def qwen_denoiser(layers: int = 2, heads: int = 2, **config: Any) -> Any:
    shape = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": layers,
        "attention_head_dim": 12,
        "num_attention_heads": heads,
        "joint_attention_dim": 8,
        "axes_dims_rope": (4, 4, 4),
    }
    return built(QwenImageTransformer2DModel, seed=layers, **{**shape, **config})


def qwen_pipe(cls: Any, with_vae: bool = True) -> Any:
    vae = None
    if with_vae:
        vae = built(
            AutoencoderKLQwenImage,
            seed=0,
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0, 0.1, -0.1, 0.2],
            latents_std=[1.0, 1.1, 0.9, 1.2],
        )
    return quiet(
        cls(
            scheduler=euler(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            transformer=qwen_denoiser(),
        )
    )


def run_qwen(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    mask = torch.ones(1, 4, dtype=torch.long)
    texts = {
        "prompt_embeds": numbers(1, 4, 8),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": numbers(1, 4, 8, seed=98),
        "negative_prompt_embeds_mask": mask,
    }
    return pipe(**texts, **shared(steps), true_cfg_scale=3.0, **more).images


def run_qwen_image(pipe: Any, **more: Any) -> torch.Tensor:
    return run_qwen(pipe, image=picture(), strength=0.75, **more)


def run_qwen_inpaint(pipe: Any, **more: Any) -> torch.Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1.0
    return run_qwen(pipe, image=picture(), mask_image=mask, strength=0.75, **more)


# Flux.


def flux_denoiser(layers: int = 2, heads: int = 2, **config: Any) -> Any:
    shape = {
        "in_channels": 16,
        "num_layers": layers,
        "num_single_layers": 1,
        "attention_head_dim": 12,
        "num_attention_heads": heads,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 6,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 4),
    }
    return built(FluxTransformer2DModel, seed=layers, **{**shape, **config})


def flux_pipe() -> Any:
    return quiet(
        FluxPipeline(
            scheduler=euler(use_dynamic_shifting=True),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=flux_denoiser(),
        )
    )


def run_flux(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    texts = {"prompt_embeds": numbers(1, 4, 8), "pooled_prompt_embeds": numbers(1, 6)}
    return pipe(**texts, **shared(steps), **more).images


# Stable Diffusion 3.


def sd3_denoiser(layers: int = 2, heads: int = 2, **config: Any) -> Any:
    shape = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": layers,
        "attention_head_dim": 12,
        "num_attention_heads": heads,
        "joint_attention_dim": 8,
        "caption_projection_dim": 12 * heads,
        "pooled_projection_dim": 6,
        "pos_embed_max_size": 8,
    }
    return built(SD3Transformer2DModel, seed=layers, **{**shape, **config})


def sd3_pipe() -> Any:
    nothing = dict.fromkeys(
        ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3",
         "tokenizer_3", "vae"]
    )  # fmt: skip
    return quiet(StableDiffusion3Pipeline(transformer=sd3_denoiser(), scheduler=euler(), **nothing))


def run_sd3(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    texts = {
        "prompt_embeds": numbers(1, 4, 8),
        "negative_prompt_embeds": numbers(1, 4, 8, seed=98),
        "pooled_prompt_embeds": numbers(1, 6),
        "negative_pooled_prompt_embeds": numbers(1, 6, seed=98),
    }
    return pipe(**texts, **shared(steps), **more).images


FAMILIES = (
    Family(
        name="QwenImage text to image",
        pipeline="QwenImagePipeline",
        denoiser="QwenImageTransformer2DModel",
        make_pipe=lambda: qwen_pipe(QwenImagePipeline, with_vae=False),
        make_small=lambda: qwen_denoiser(layers=1, heads=1),
        make_misfit=lambda: qwen_denoiser(joint_attention_dim=12),
        misfit="joint_attention_dim",
        run=run_qwen,
    ),
    Family(
        name="QwenImage image to image",
        pipeline="QwenImageImg2ImgPipeline",
        denoiser="QwenImageTransformer2DModel",
        make_pipe=lambda: qwen_pipe(QwenImageImg2ImgPipeline),
        make_small=lambda: qwen_denoiser(layers=1, heads=1),
        make_misfit=lambda: qwen_denoiser(in_channels=32),
        misfit="in_channels",
        run=run_qwen_image,
        skipped=1,
        note="starts late; the stage of its first step comes first",
    ),
    Family(
        name="QwenImage inpainting",
        pipeline="QwenImageInpaintPipeline",
        denoiser="QwenImageTransformer2DModel",
        make_pipe=lambda: qwen_pipe(QwenImageInpaintPipeline),
        make_small=lambda: qwen_denoiser(layers=1, heads=1),
        make_misfit=lambda: qwen_denoiser(guidance_embeds=True),
        misfit="guidance_embeds",
        run=run_qwen_inpaint,
        skipped=1,
        note="starts late, and noises its picture anew at every step",
    ),
    Family(
        name="Flux",
        pipeline="FluxPipeline",
        denoiser="FluxTransformer2DModel",
        make_pipe=flux_pipe,
        make_small=lambda: flux_denoiser(layers=1, heads=1),
        make_misfit=lambda: flux_denoiser(guidance_embeds=False),
        misfit="guidance_embeds",
        run=run_flux,
        forwards=1,
    ),
    Family(
        name="Stable Diffusion 3",
        pipeline="StableDiffusion3Pipeline",
        denoiser="SD3Transformer2DModel",
        make_pipe=sd3_pipe,
        make_small=lambda: sd3_denoiser(layers=1, heads=1),
        make_misfit=lambda: sd3_denoiser(pooled_projection_dim=8),
        misfit="pooled_projection_dim",
        run=run_sd3,
        forwards=1,
        note="3.5 medium and large fit",
    ),
)
