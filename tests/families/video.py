"""CogVideoX, Mochi, Cosmos-Predict2, Kandinsky 5 and Sana-Video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTransformer3DModel,
    DPMSolverMultistepScheduler,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from families.base import Family, built, euler, numbers, quiet, seeded, wan_vae
from tiny import FLOW


def embeds(width: int) -> dict[str, Any]:
    """What stands for the texts."""
    return {
        "prompt_embeds": numbers(1, 4, width),
        "negative_prompt_embeds": numbers(1, 4, width, seed=98),
    }


def masked_embeds(width: int) -> dict[str, Any]:
    """The same, with masks of valid tokens."""
    mask = torch.ones(1, 4, dtype=torch.bool)
    return {
        **embeds(width),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
    }


def shared(steps: int) -> dict[str, Any]:
    """What every call here says."""
    return {
        "num_inference_steps": steps,
        "height": 32,
        "width": 32,
        "generator": seeded(),
        "output_type": "latent",
    }


# CogVideoX: classic schedulers without step_index; 5B gets its rotary table from the pipeline.


def cog_denoiser(layers: int = 2, heads: int = 2, rotary: bool = False, **config: Any) -> Any:
    shape = {
        "num_attention_heads": heads,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 8,
        "num_layers": layers,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "max_text_seq_length": 4,
        "use_rotary_positional_embeddings": rotary,
    }
    return built(CogVideoXTransformer3DModel, seed=layers, **{**shape, **config})


def cog_pipe(scheduler: Any, rotary: bool) -> Any:
    return quiet(
        CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=cog_denoiser(rotary=rotary),
            scheduler=scheduler,
        )
    )


def run_cog(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    return pipe(**embeds(8), **shared(steps), num_frames=9, **more).frames


# Mochi.


def mochi_denoiser(layers: int = 2, **config: Any) -> Any:
    shape = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": layers,
        "pooled_projection_dim": 8,
        "in_channels": 4,
        "text_embed_dim": 8,
        "time_embed_dim": 4,
        "max_sequence_length": 4,
    }
    return built(MochiTransformer3DModel, seed=layers, **{**shape, **config})


def mochi_pipe() -> Any:
    return quiet(
        MochiPipeline(
            scheduler=euler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            transformer=mochi_denoiser(),
        )
    )


def run_mochi(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    return pipe(**masked_embeds(8), **shared(steps), num_frames=7, **more).frames


# Cosmos-Predict2.


class NoPromptToCheck:
    """Stands for the guardrail, a package of its own, in calls that pass embeddings only."""

    def to(self, *_: Any, **__: Any) -> NoPromptToCheck:
        return self


def cosmos_denoiser(layers: int = 2, heads: int = 2, **config: Any) -> Any:
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": heads,
        "attention_head_dim": 12,
        "num_layers": layers,
        "mlp_ratio": 2,
        "text_embed_dim": 8,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "rope_scale": (1.0, 4.0, 4.0),
        "extra_pos_embed_type": None,
        "concat_padding_mask": False,  # the mask takes torchvision, which nothing else here needs
    }
    return built(CosmosTransformer3DModel, seed=layers, **{**shape, **config})


def cosmos_pipe(cls: Any, channels: int) -> Any:
    return quiet(
        cls(
            text_encoder=None,
            tokenizer=None,
            transformer=cosmos_denoiser(in_channels=channels),
            vae=wan_vae(),
            scheduler=euler(shift=1.0, use_karras_sigmas=True),
            safety_checker=NoPromptToCheck(),
        )
    )


def run_cosmos_image(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    return pipe(**embeds(8), **shared(steps), **more).images


def run_cosmos_world(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    image = numbers(1, 3, 32, 32).sigmoid()
    return pipe(image=image, num_frames=5, **embeds(8), **shared(steps), **more).frames


# Kandinsky 5: it calls its channels in_visual_dim, and hides its latents' layout.


def kandinsky_denoiser(layers: int = 2, width: int = 20, **config: Any) -> Any:
    shape = {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 8,
        "in_text_dim2": 6,
        "time_dim": 8,
        "model_dim": width,
        "ff_dim": 16,
        "num_text_blocks": 1,
        "num_visual_blocks": layers,
        "axes_dims": (2, 4, 4),
    }
    return built(Kandinsky5Transformer3DModel, seed=layers, **{**shape, **config})


def kandinsky_pipe() -> Any:
    return quiet(
        Kandinsky5T2VPipeline(
            transformer=kandinsky_denoiser(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            scheduler=euler(shift=5.0),
        )
    )


def run_kandinsky(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    lengths = torch.tensor([0, 4], dtype=torch.int32)
    texts = {
        "prompt_embeds_qwen": numbers(1, 4, 8),
        "prompt_embeds_clip": numbers(1, 6),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": numbers(1, 4, 8, seed=98),
        "negative_prompt_embeds_clip": numbers(1, 6, seed=98),
        "negative_prompt_cu_seqlens": lengths,
    }
    return pipe(**texts, **shared(steps), num_frames=5, **more).frames


# Sana-Video.


def sana_denoiser(layers: int = 2, heads: int = 2, **config: Any) -> Any:
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": heads,
        "attention_head_dim": 12,
        "num_layers": layers,
        "num_cross_attention_heads": heads,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 12 * heads,
        "caption_channels": 8,
    }
    return built(SanaVideoTransformer3DModel, seed=layers, **{**shape, **config})


def sana_pipe() -> Any:
    return quiet(
        SanaVideoPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=sana_denoiser(),
            scheduler=DPMSolverMultistepScheduler(**FLOW),
        )
    )


def run_sana(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    texts = {**masked_embeds(8), "negative_prompt": None, "use_resolution_binning": False}
    return pipe(**texts, **shared(steps), frames=5, **more).frames


FAMILIES = (
    Family(
        name="CogVideoX, DDIM",
        pipeline="CogVideoXPipeline",
        denoiser="CogVideoXTransformer3DModel",
        make_pipe=lambda: cog_pipe(CogVideoXDDIMScheduler(), rotary=False),
        make_small=lambda: cog_denoiser(layers=1, heads=1),
        make_misfit=lambda: cog_denoiser(rotary=True),
        misfit="use_rotary_positional_embeddings",
        run=run_cog,
        forwards=1,
        note="2B and 5B don't fit: the pipeline makes 5B's rotary table, 2B has none",
    ),
    Family(
        name="CogVideoX, DPM",
        pipeline="CogVideoXPipeline",
        denoiser="CogVideoXTransformer3DModel",
        make_pipe=lambda: cog_pipe(CogVideoXDPMScheduler(), rotary=True),
        make_small=lambda: cog_denoiser(layers=1, heads=1, rotary=True),
        make_misfit=lambda: cog_denoiser(rotary=True, attention_head_dim=32),
        misfit="attention_head_dim",
        run=run_cog,
        forwards=1,
    ),
    Family(
        name="Mochi",
        pipeline="MochiPipeline",
        denoiser="MochiTransformer3DModel",
        make_pipe=mochi_pipe,
        make_small=lambda: mochi_denoiser(layers=1, num_attention_heads=1),
        make_misfit=lambda: mochi_denoiser(text_embed_dim=16),
        misfit="text_embed_dim",
        run=run_mochi,
        forwards=1,
    ),
    Family(
        name="Cosmos-Predict2 text to image",
        pipeline="Cosmos2TextToImagePipeline",
        denoiser="CosmosTransformer3DModel",
        make_pipe=lambda: cosmos_pipe(Cosmos2TextToImagePipeline, channels=4),
        make_small=lambda: cosmos_denoiser(layers=1, heads=1),
        make_misfit=lambda: cosmos_denoiser(text_embed_dim=12),
        misfit="text_embed_dim",
        run=run_cosmos_image,
        note="2B and 14B fit; proven without guardrail and padding mask",
    ),
    Family(
        name="Cosmos-Predict2 video to world",
        pipeline="Cosmos2VideoToWorldPipeline",
        denoiser="CosmosTransformer3DModel",
        make_pipe=lambda: cosmos_pipe(Cosmos2VideoToWorldPipeline, channels=5),
        make_small=lambda: cosmos_denoiser(layers=1, heads=1, in_channels=5),
        make_misfit=lambda: cosmos_denoiser(in_channels=4),
        misfit="in_channels",
        run=run_cosmos_world,
        note="as above",
    ),
    Family(
        name="Kandinsky 5 text to video",
        pipeline="Kandinsky5T2VPipeline",
        denoiser="Kandinsky5Transformer3DModel",
        make_pipe=kandinsky_pipe,
        make_small=lambda: kandinsky_denoiser(layers=1, width=10),
        make_misfit=lambda: kandinsky_denoiser(attention_type="nabla"),
        misfit="attention_type",
        run=run_kandinsky,
        note="Lite and Pro fit where their attention is of one type",
    ),
    Family(
        name="Sana-Video",
        pipeline="SanaVideoPipeline",
        denoiser="SanaVideoTransformer3DModel",
        make_pipe=sana_pipe,
        make_small=lambda: sana_denoiser(layers=1, heads=1),
        make_misfit=lambda: sana_denoiser(caption_channels=12),
        misfit="caption_channels",
        run=run_sana,
        forwards=1,
    ),
)
