"""Whether two denoisers can take turns in one trajectory.

Pure Python: it compares configs, so it needs no torch and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Config keys that decide what goes in and what comes out; sizes inside may differ.
_INTERFACE = {
    "in_channels": "latent channels in",
    "out_channels": "latent channels out",
    "patch_size": "patch size",
    "patch_size_t": "temporal patch size",
    "text_dim": "text embedding width",
    "text_embed_dim": "text embedding width",
    "caption_channels": "text embedding width",
    "cross_attention_dim": "text embedding width",
    "joint_attention_dim": "text embedding width",
    "caption_projection_dim": "caption projection width",
    "pooled_projection_dim": "pooled text width",
    "image_dim": "image embedding width",
    "pos_embed_seq_len": "image token positions",
    "rope_max_seq_len": "length of the rotary table",
    "guidance_embeds": "embedded guidance",
    "vace_in_channels": "VACE channels",
    "use_rotary_positional_embeddings": "rotary positions made by the pipeline",
    "attention_type": "attention type",
}
# Widths that follow each denoiser's own size: only whether they are there must agree.
_PRESENCE = {"added_kv_proj_dim": "image attention", "addition_embed_type": "added embeddings"}


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
    for key, meaning in _INTERFACE.items():
        a, b = _plain(large.get(key)), _plain(small.get(key))
        # A key that one side leaves out has the class's default there, which nobody can tell here.
        if a != b and (key in large) == (key in small):
            found.append(f"{key} ({meaning}): large {a}, small {b}")
    for key, meaning in _PRESENCE.items():
        a, b = large.get(key), small.get(key)
        if (a is None) != (b is None):
            found.append(f"{key} ({meaning}): large {a}, small {b}")
    a, b = large.get("vace_layers") or (), small.get("vace_layers") or ()
    if len(a) != len(b):
        found.append(f"vace_layers (conditioned layers): large has {len(a)}, small {len(b)}")
    return tuple(found)


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
