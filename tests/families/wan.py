"""Wan 2.1: text, image or video to video, and VACE with conditioned layers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from families.base import Family, built, euler, numbers, quiet, seeded, wan_vae
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

WIDTH = 32


def denoiser(
    cls: Any = WanTransformer3DModel, layers: int = 2, seed: int | None = None, **config: Any
) -> Any:
    """A Wan denoiser of a few thousand random weights; fewer layers make another one."""
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
    return built(cls, seed=layers if seed is None else seed, **{**shape, **config})


def image_denoiser(layers: int = 2, **config: Any) -> Any:
    """Wan 2.1's image-to-video denoiser: more channels in, and an image embedding."""
    shape = {"in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 24}
    return denoiser(layers=layers, **{**shape, **config})


def vace_denoiser(layers: int = 2, conditioned: tuple[int, ...] = (0, 1), **config: Any) -> Any:
    """A VACE denoiser with conditioned layers."""
    vace = {"vace_layers": conditioned, "vace_in_channels": 8 + 64}
    return denoiser(WanVACETransformer3DModel, layers, **{**vace, **config})


def parts(**more: Any) -> dict[str, Any]:
    """The components that need no weights of their own here."""
    return {"tokenizer": None, "text_encoder": None, "scheduler": euler(), **more}


def call(pipe: Any, steps: int = 4, **more: Any) -> torch.Tensor:
    """Latents of one call with fixed embeddings."""
    arguments = {
        "prompt_embeds": numbers(1, 4, 8),
        "negative_prompt_embeds": numbers(1, 4, 8, seed=98),
        "height": WIDTH,
        "width": WIDTH,
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**{**arguments, **more}).frames


def text_pipe(**more: Any) -> Any:
    return quiet(WanPipeline(**parts(vae=None, transformer=denoiser(), **more)))


def expert_pipe() -> Any:
    """Wan 2.2: one expert for high noise, one for low."""
    return text_pipe(transformer_2=denoiser(seed=7), boundary_ratio=0.9)


def image_expert_pipe() -> Any:
    """Wan 2.2 image to video; its experts take no image embedding."""
    return quiet(
        WanImageToVideoPipeline(
            **parts(
                vae=wan_vae(),
                transformer=denoiser(in_channels=12),
                transformer_2=denoiser(in_channels=12, seed=7),
                boundary_ratio=0.9,
                image_encoder=None,
                image_processor=None,
            )
        )
    )


def small_experts(**config: Any) -> tuple[Any, Any]:
    """A small one for each expert's place."""
    high, low = denoiser(layers=1, **config), denoiser(layers=1, seed=8, **config)
    return high, low


def image_pipe() -> Any:
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    torch.manual_seed(0)
    encoder = CLIPVisionModel(config).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8)
    return quiet(
        WanImageToVideoPipeline(
            **parts(
                vae=wan_vae(),
                transformer=image_denoiser(),
                image_encoder=encoder,
                image_processor=processor,
            )
        )
    )


def video_pipe() -> Any:
    return quiet(WanVideoToVideoPipeline(**parts(vae=wan_vae(), transformer=denoiser())))


def vace_pipe() -> Any:
    return quiet(WanVACEPipeline(**parts(vae=wan_vae(), transformer=vace_denoiser())))


def image() -> torch.Tensor:
    """One picture, (1, 3, H, W), from 0 to 1."""
    return numbers(1, 3, WIDTH, WIDTH).sigmoid()


def run_text(pipe: Any, **more: Any) -> torch.Tensor:
    return call(pipe, num_frames=5, **more)


def run_image(pipe: Any, **more: Any) -> torch.Tensor:
    return call(pipe, image=image(), num_frames=5, **more)


def run_video(pipe: Any, strength: float = 0.8, **more: Any) -> torch.Tensor:
    video = numbers(1, 5, 3, WIDTH, WIDTH).sigmoid()
    return call(pipe, video=video, strength=strength, **more)


def run_vace(pipe: Any, **more: Any) -> torch.Tensor:
    return call(pipe, num_frames=5, conditioning_scale=[0.5, 1.5], **more)


FAMILIES = (
    Family(
        name="Wan 2.1 text to video",
        pipeline="WanPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=text_pipe,
        make_small=lambda: denoiser(layers=1, num_attention_heads=1),
        make_misfit=lambda: denoiser(in_channels=12, out_channels=12),
        misfit="in_channels",
        run=run_text,
        note="1.3B and 14B fit; TI2V-5B (48 channels) with A14B doesn't",
    ),
    Family(
        name="Wan 2.1 image to video",
        pipeline="WanImageToVideoPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=image_pipe,
        make_small=lambda: image_denoiser(layers=1),
        make_misfit=lambda: image_denoiser(image_dim=None, added_kv_proj_dim=None),
        misfit="image_dim",
        run=run_image,
        note="no official 1.3B",
    ),
    Family(
        name="Wan 2.1 video to video",
        pipeline="WanVideoToVideoPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=video_pipe,
        make_small=lambda: denoiser(layers=1),
        make_misfit=lambda: denoiser(text_dim=12),
        misfit="text_dim",
        run=run_video,
        skipped=1,
        note="starts late; the stage of its first step comes first",
    ),
    Family(
        name="Wan VACE",
        pipeline="WanVACEPipeline",
        denoiser="WanVACETransformer3DModel",
        make_pipe=vace_pipe,
        make_small=lambda: vace_denoiser(layers=3, conditioned=(0, 1, 2)),
        make_misfit=lambda: vace_denoiser(vace_in_channels=80),
        misfit="vace_in_channels",
        run=run_vace,
        note="the conditioning scales are fitted to the small one's layers (15 against 8)",
    ),
    Family(
        name="Wan 2.2 text to video, two experts",
        pipeline="WanPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=expert_pipe,
        make_small=small_experts,
        make_misfit=lambda: small_experts(text_dim=12),
        misfit="text_dim",
        run=run_text,
        attributes=("transformer", "transformer_2"),
        note="large is both experts as they are; small is one module for both places, or a pair",
    ),
    Family(
        name="Wan 2.2 image to video, two experts",
        pipeline="WanImageToVideoPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=image_expert_pipe,
        make_small=lambda: small_experts(in_channels=12),
        make_misfit=small_experts,
        misfit="in_channels",
        run=run_image,
        attributes=("transformer", "transformer_2"),
    ),
    Family(
        name="Wan 2.2 TI2V",
        pipeline="WanPipeline",
        denoiser="WanTransformer3DModel",
        make_pipe=lambda: text_pipe(expand_timesteps=True),
        make_small=lambda: denoiser(layers=1),
        make_misfit=lambda: denoiser(patch_size=(1, 1, 1)),
        misfit="patch_size",
        run=run_text,
        note="a timestep for every token; no official small one",
    ),
)
