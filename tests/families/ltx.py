"""LTX-Video: text or image to video, and with conditions; LTX-2 with its sound."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from families.base import Family, built, euler, numbers, quiet, seeded


def denoiser(layers: int = 2, heads: int = 2, **config: Any) -> Any:
    """An LTX denoiser of a few thousand random weights; its width follows the heads."""
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": heads,
        "attention_head_dim": 12,
        "cross_attention_dim": 12 * heads,
        "num_layers": layers,
        "caption_channels": 8,
    }
    return built(LTXVideoTransformer3DModel, seed=layers, **{**shape, **config})


def vae() -> Any:
    """A tiny AutoencoderKLLTXVideo that shrinks pictures by 32 and time by 8."""
    return built(
        AutoencoderKLLTXVideo,
        seed=0,
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        patch_size=4,
        patch_size_t=1,
    )


def make(cls: Any, with_vae: bool = True) -> Any:
    return quiet(
        cls(
            scheduler=euler(),
            vae=vae() if with_vae else None,
            text_encoder=None,
            tokenizer=None,
            transformer=denoiser(),
        )
    )


def arguments(steps: int = 4, text: int = 8, **more: Any) -> dict[str, Any]:
    """Those of a call with fixed embeddings."""
    return {
        "prompt_embeds": numbers(1, 4, text),
        "prompt_attention_mask": torch.ones(1, 4),
        "negative_prompt_embeds": numbers(1, 4, text, seed=98),
        "negative_prompt_attention_mask": torch.ones(1, 4),
        "num_inference_steps": steps,
        "generator": seeded(),
        "output_type": "latent",
        **more,
    }


def run(pipe: Any, **more: Any) -> torch.Tensor:
    return pipe(**arguments(**more), height=64, width=64, num_frames=9).frames


def run_image(pipe: Any, **more: Any) -> torch.Tensor:
    return run(pipe, image=numbers(1, 3, 64, 64).sigmoid(), **more)


def sound_denoiser(layers: int = 1, heads: int = 2, **config: Any) -> Any:
    """An LTX-2 denoiser of pictures and sound; its widths follow the heads."""
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": heads,
        "attention_head_dim": 8,
        "cross_attention_dim": 8 * heads,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": heads,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 4 * heads,
        "num_layers": layers,
        "caption_channels": 16,
        "rope_double_precision": False,
    }
    return built(LTX2VideoTransformer3DModel, seed=heads, **{**shape, **config})


def sound_pipe() -> Any:
    video = built(
        AutoencoderKLLTX2Video,
        seed=0,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    video.use_framewise_encoding = False
    video.use_framewise_decoding = False
    audio = built(
        AutoencoderKLLTX2Audio,
        seed=0,
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        dropout=0.0,
        mid_block_add_attention=False,
        sample_rate=16000,
        mel_hop_length=160,
        is_causal=True,
        mel_bins=8,
    )
    connectors = built(
        LTX2TextConnectors,
        seed=0,
        caption_channels=16,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )
    return quiet(
        LTX2Pipeline(
            scheduler=euler(),
            vae=video,
            audio_vae=audio,
            text_encoder=None,
            tokenizer=None,
            connectors=connectors,
            transformer=sound_denoiser(),
            vocoder=None,
        )
    )


def run_sound(pipe: Any, **more: Any) -> torch.Tensor:
    """Latents of the pictures and, after them, of the sound."""
    without = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0}
    result = pipe(
        **arguments(text=16, **without, **more),
        audio_modality_scale=1.0,
        height=32,
        width=32,
        num_frames=5,
        frame_rate=25.0,
    )
    return torch.cat([result.frames.flatten(), result.audio.flatten()])


FAMILIES = (
    Family(
        name="LTX-Video text to video",
        pipeline="LTXPipeline",
        denoiser="LTXVideoTransformer3DModel",
        make_pipe=lambda: make(LTXPipeline, with_vae=False),
        make_small=lambda: denoiser(layers=1, heads=1),
        make_misfit=lambda: denoiser(caption_channels=12),
        misfit="caption_channels",
        run=run,
        forwards=1,
        note="2B (from 0.9.5) and 13B fit, not 0.9.0 and 0.9.1, which have another VAE",
    ),
    Family(
        name="LTX-Video image to video",
        pipeline="LTXImageToVideoPipeline",
        denoiser="LTXVideoTransformer3DModel",
        make_pipe=lambda: make(LTXImageToVideoPipeline),
        make_small=lambda: denoiser(layers=1, heads=1),
        make_misfit=lambda: denoiser(in_channels=6, out_channels=6),
        misfit="in_channels",
        run=run_image,
        forwards=1,
    ),
    Family(
        name="LTX-Video with conditions",
        pipeline="LTXConditionPipeline",
        denoiser="LTXVideoTransformer3DModel",
        make_pipe=lambda: make(LTXConditionPipeline),
        make_small=lambda: denoiser(layers=1, heads=1),
        make_misfit=lambda: denoiser(patch_size=2),
        misfit="patch_size",
        run=run_image,
        forwards=1,
    ),
    Family(
        name="LTX-2",
        pipeline="LTX2Pipeline",
        denoiser="LTX2VideoTransformer3DModel",
        make_pipe=sound_pipe,
        make_small=lambda: sound_denoiser(heads=1),
        make_misfit=lambda: sound_denoiser(audio_in_channels=6, audio_out_channels=6),
        misfit="audio_in_channels",
        run=run_sound,
        forwards=1,
        note="sound has a private copy of the scheduler, which stays silent",
    ),
)
