"""Compatibility: lists all that keeps two denoisers, by their configs, from taking turns.

Pure Python: it compares configs, so it needs no torch and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Config keys that decide what goes in and what comes out, or that a pipeline reads from whichever
# denoiser it holds at that moment; sizes inside may differ.
_INTERFACE = {
    "in_channels": "latent channels in",
    "out_channels": "latent channels out",
    "in_visual_dim": "latent channels in",
    "out_visual_dim": "latent channels out",
    "audio_in_channels": "audio latent channels in",
    "audio_out_channels": "audio latent channels out",
    "vace_in_channels": "VACE channels",
    "visual_cond": "conditioning channels",
    "image_condition_type": "image conditioning",
    "patch_size": "patch size",
    "patch_size_t": "temporal patch size",
    "audio_patch_size": "audio patch size",
    "audio_patch_size_t": "temporal audio patch size",
    "text_dim": "text embedding width",
    "text_embed_dim": "text embedding width",
    "text_embed_2_dim": "second text embedding's width",
    "in_text_dim": "text embedding width",
    "in_text_dim2": "pooled text width",
    "caption_channels": "text embedding width",
    "cross_attention_dim": "text embedding width",
    "audio_cross_attention_dim": "audio text embedding width",
    "joint_attention_dim": "text embedding width",
    "pooled_projection_dim": "pooled text width",
    "use_prompt_embeddings": "text projected by the denoiser",
    "encoder_hidden_states_channels": "text embedding width",
    "use_crossattn_projection": "text projected by the denoiser",
    "crossattn_proj_in_channels": "text embedding width",
    "max_text_seq_length": "text tokens",
    "image_dim": "image embedding width",
    "image_embed_dim": "image embedding width",
    "img_context_dim_in": "image embedding width",
    "pos_embed_seq_len": "image token positions",
    "rope_max_seq_len": "length of the rotary table",
    "vae_scale_factors": "latent scale of the positions",
    "causal_offset": "offset of the first frame's position",
    "audio_scale_factor": "latent scale of the audio positions",
    "audio_sampling_rate": "sampling rate of the audio positions",
    "audio_hop_length": "hop of the audio positions",
    "guidance_embeds": "embedded guidance",
    "time_cond_proj_dim": "embedded guidance",
    "use_meanflow": "second timestep",
    "use_additional_t_cond": "second timestep condition",
    "encoder_hid_dim_type": "embedded image, such as an IP-Adapter's",
    "addition_embed_type": "added embeddings",
    "addition_time_embed_dim": "added time embedding's width",
    "projection_class_embeddings_input_dim": "added embeddings' width",
    "use_rotary_positional_embeddings": "rotary positions made by the pipeline",
    "attention_type": "attention type",
}
# Widths that follow each denoiser's own size: only whether they are there must agree.
_PRESENCE = {"added_kv_proj_dim": "image attention", "ofs_embed_dim": "embedded motion"}
# What a rotary table that the pipeline makes for the denoiser depends on.
_ROTARY_TABLE = {
    "attention_head_dim": "width of the pipeline's rotary table",
    "sample_height": "height of the pipeline's rotary table",
    "sample_width": "width in tokens of the pipeline's rotary table",
}
# What Mochi calls a pooled projection is the inner width of its own text stream.
_INNER = {"MochiTransformer3DModel": {"pooled_projection_dim"}}
_CROSS_ATTENTION = {"cross_attention_dim", "audio_cross_attention_dim"}


def config_mismatches(large: Mapping[str, Any], small: Mapping[str, Any]) -> tuple[str, ...]:
    """List what keeps two denoisers' configs from fitting, one line each.

    Args:
        large: Config of the large denoiser (its ``config.json``).
        small: Config of the small one.

    Returns:
        One line a mismatch, naming key and both values; empty where they fit.
    """
    found = []
    classes = large.get("_class_name"), small.get("_class_name")
    if None not in classes and classes[0] != classes[1]:
        found.append(f"class: large {classes[0]}, small {classes[1]}")
    for key, meaning in _interface(large).items():
        a, b = _plain(large.get(key)), _plain(small.get(key))
        # A key that one side leaves out has the class's default there, which nobody can tell here.
        if a != b and (key in large) == (key in small):
            found.append(f"{key} ({meaning}): large {a}, small {b}")
    for key, meaning in _PRESENCE.items():
        a, b = large.get(key), small.get(key)
        if (a is None) != (b is None):
            found.append(f"{key} ({meaning}): large {a}, small {b}")
    return tuple(found)


def _interface(config: Mapping[str, Any]) -> dict[str, str]:
    """The keys, and their meanings, that matter for a denoiser of this config."""
    keys = dict(_INTERFACE)
    if config.get("use_rotary_positional_embeddings"):
        keys.update(_ROTARY_TABLE)
    inner = set(_INNER.get(str(config.get("_class_name")), ()))
    if config.get("caption_channels") is not None and config.get("use_prompt_embeddings", True):
        # The denoiser projects its captions to its own width.
        inner |= _CROSS_ATTENTION
    return {key: meaning for key, meaning in keys.items() if key not in inner}


def latent_space_mismatches(large: Mapping[str, Any], small: Mapping[str, Any]) -> tuple[str, ...]:
    """List where the VAEs of two pipeline folders speak of different latent spaces.

    Args:
        large: The VAE config of the large denoiser's pipeline.
        small: The VAE config of the small denoiser's pipeline.

    Returns:
        One line a mismatch; empty where the latent spaces agree, as far as configs tell.
    """
    keys = ("_class_name", "z_dim", "latent_channels", "latents_mean", "latents_std",
            "scaling_factor", "shift_factor", "scale_factor_spatial", "scale_factor_temporal",
            "spatial_compression_ratio", "temporal_compression_ratio")  # fmt: skip
    return tuple(
        f"vae {key}: large {_short(large.get(key))}, small {_short(small.get(key))}"
        for key in keys
        if _plain(large.get(key)) != _plain(small.get(key))
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
