"""count_flops: the operations of one forward of a denoiser, counted without its weights.

The denoiser is built on the meta device, where tensors have shapes and no memory, and a forward
runs through it; the products are counted on the way. Two conventions, always named: published
figures usually leave attention out (``linear_only``), what runs includes it (``full``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from flowblend_plugin.errors import FlopsError

__all__ = ["Clip", "FlopsError", "ForwardFlops", "build_denoiser", "count_flops", "count_forward"]

# Products of an input with weights; what else is counted are products of two activations, which
# is attention: its scores and its weighted values.
_WITH_WEIGHTS = ("mm", "addmm", "convolution", "_convolution")

Config = Any  # a module's own config: every key with its default
Inputs = dict[str, Any]
# Tokens of the image encoder (CLIP ViT-H/14 at 224 pixels) that Wan 2.1's image-to-video reads.
_CLIP_IMAGE_TOKENS = 257
# Tokens that Stable Diffusion 3 puts in front of its T5's.
_CLIP_TEXT_TOKENS = 77
_SAMPLE_SIZE = 128  # of Flux and Qwen-Image, in latent pixels, where a call names no size


@dataclass(frozen=True)
class Clip:
    """Size, frames and text of a clip, which decide the shapes of a denoiser's forward.

    Args:
        height: Height in pixels; None for the size that the denoiser's config names.
        width: Width in pixels, likewise.
        num_frames: Frames of the clip, 1 for a picture; None likewise.
        text_tokens: Tokens of the prompt, padded: the pipeline's ``max_sequence_length``.
        timestep_per_token: Whether every token is handed a timestep of its own, as where LTX-Video
            starts from a picture, or in Wan 2.2's 5B (``expand_timesteps``).
        vae: Config of the VAE, which tells how much smaller latents are; empty for the usual one.
    """

    height: int | None
    width: int | None
    num_frames: int | None
    text_tokens: int
    timestep_per_token: bool = False
    vae: Mapping[str, Any] = field(default_factory=dict)

    def pixels(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width, with those of the denoiser's config for what is left out."""
        height, width = self.height or height, self.width or width
        if height is None or width is None:
            raise ValueError("its config names no size: give height and width")
        return height, width

    def latent_frames(self, compression: int, default: int | None = None) -> int:
        """Number of latent frames of a VAE that keeps the first frame by itself."""
        frames = self.num_frames or default
        if frames is None:
            raise ValueError("its config names no number of frames: give num_frames")
        return (frames - 1) // compression + 1


@dataclass(frozen=True)
class ForwardFlops:
    """Floating-point operations of one forward, 2 per multiply-add.

    Args:
        linear_only: Linear layers and convolutions alone, as papers usually count.
        full: The same with the products of attention.
    """

    linear_only: int
    full: int


def count_flops(config: Mapping[str, Any], clip: Clip) -> ForwardFlops:
    """Count one forward of a denoiser for a clip, from its config alone.

    Args:
        config: The denoiser's ``config.json``, with ``_class_name``.
        clip: Size, frames and text; a batch of one.

    Returns:
        The operations of one forward. A call under classifier-free guidance runs two of them.

    Raises:
        FlopsError: The class is none of those known, or the config or the clip doesn't fit it.

    Reference:
        FlowBlending, arXiv:2512.24724, publishes ``linear_only``, one forward a step.
    """
    return count_forward(build_denoiser(config), clip)


def build_denoiser(config: Mapping[str, Any]) -> nn.Module:
    """Build a denoiser on the meta device: its layers without their weights.

    Raises:
        FlopsError: See ``count_flops``.
    """
    name = config.get("_class_name")
    if name not in MAKERS:
        raise FlopsError(
            f"the forward of {name or 'a denoiser without _class_name'} can't be counted: known "
            f"are {', '.join(MAKERS)}"
        )
    try:
        with torch.device("meta"):
            module: Any = getattr(diffusers, name).from_config(dict(config))
    except Exception as error:  # whatever a config that doesn't fit makes its class raise
        raise FlopsError(f"{name} can't be built from its config: {_first_line(error)}") from error
    if name == "MochiTransformer3DModel":
        # It asks for autocast, which the meta device doesn't have; its angles are shapes here.
        module.rope._create_rope = _angles
    built: nn.Module = module.eval()
    return built


def _angles(frequencies: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    angles = positions.new_empty((positions.shape[0], *frequencies.shape[1:]))
    return angles, angles


def count_forward(module: nn.Module, clip: Clip) -> ForwardFlops:
    """Count one forward of a denoiser that ``build_denoiser`` made; see ``count_flops``.

    Raises:
        FlopsError: See ``count_flops``.
    """
    name = type(module).__name__
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = _OneSum()
    try:
        inputs = MAKERS[name](module.config, clip)
        with torch.no_grad(), _NoPadding(), counter:
            module(**inputs, return_dict=False)
    except Exception as error:  # whatever shapes that don't fit make a module raise
        size = f"{clip.width}x{clip.height}, {clip.num_frames} frames"
        raise FlopsError(f"{name} can't run {size}: {_first_line(error)}") from error
    linear_only = full = 0
    for operation, flops in counter.get_flop_counts()["Global"].items():
        full += flops
        if str(operation).rpartition(".")[2] in _WITH_WEIGHTS:
            linear_only += flops
    return ForwardFlops(linear_only, full)


class _OneSum:
    """Stands for the counter's module tracker, whose hooks all modules of the process would run.

    Compiled ones, in other threads, would be compiled anew for them.
    """

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class _NoPadding(TorchFunctionMode):
    """Say that no text token is padding, where a module asks its mask, which has no values here."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nonzero and args[0].is_meta and args[0].ndim == 1:
            return torch.arange(args[0].numel(), device="meta")[:, None]
        return func(*args, **(kwargs or {}))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


# The inputs of each class's forward, without values.


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _block_scale(vae: Mapping[str, Any]) -> int:
    """Compute how much smaller an image VAE's latents are: it halves once between two blocks."""
    return 1 << (len(vae.get("block_out_channels") or (0, 0, 0, 0)) - 1)


def _wan(config: Config, clip: Clip) -> Inputs:
    spatial = clip.vae.get("scale_factor_spatial") or 8
    temporal = clip.vae.get("scale_factor_temporal") or 4
    height, width = clip.pixels()
    frames = clip.latent_frames(temporal)
    if (clip.num_frames or 1) % temporal == 0:  # rounded to one more than a multiple
        frames += 1
    _, high, wide = config.patch_size
    rows, columns = height // (spatial * high), width // (spatial * wide)
    tokens = frames * rows * columns
    inputs = {
        "hidden_states": _empty(1, config.in_channels, frames, rows * high, columns * wide),
        "timestep": _empty(1, tokens) if clip.timestep_per_token else _empty(1),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.text_dim),
    }
    if config.image_dim:
        pictures = 2 if config.pos_embed_seq_len else 1  # first and last frame
        inputs["encoder_hidden_states_image"] = _empty(
            pictures, _CLIP_IMAGE_TOKENS, config.image_dim
        )
    return inputs


def _wan_vace(config: Config, clip: Clip) -> Inputs:
    inputs = _wan(config, clip)
    latents = inputs["hidden_states"].shape[2:]
    return inputs | {
        "control_hidden_states": _empty(1, config.vace_in_channels, *latents),
        "control_hidden_states_scale": _empty(len(config.vace_layers)),
    }


def _sky_reels(config: Config, clip: Clip) -> Inputs:
    return _wan(config, clip) | ({"fps": [0]} if config.inject_sample_info else {})


def _ltx(config: Config, clip: Clip) -> Inputs:
    scaling = sum(clip.vae.get("spatio_temporal_scaling") or (True, True, True, False))
    spatial = clip.vae.get("spatial_compression_ratio")
    temporal = clip.vae.get("temporal_compression_ratio")
    spatial = spatial or clip.vae.get("patch_size", 4) << scaling
    temporal = temporal or clip.vae.get("patch_size_t", 1) << scaling
    height, width = clip.pixels()
    frames = clip.latent_frames(temporal) // config.patch_size_t
    rows = height // spatial // config.patch_size
    columns = width // spatial // config.patch_size
    tokens = frames * rows * columns
    return {
        "hidden_states": _empty(1, tokens, config.in_channels),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.caption_channels),
        "timestep": _empty(1, tokens if clip.timestep_per_token else 1),
        "encoder_attention_mask": _empty(1, clip.text_tokens),
        "num_frames": frames,
        "height": rows,
        "width": columns,
    }


def _patch_pairs(clip: Clip, scale: int) -> tuple[int, int]:
    """Rows and columns of tokens of two latent pixels each, as Flux and Qwen-Image pack them."""
    size = _SAMPLE_SIZE * scale
    height, width = clip.pixels(size, size)
    return height // (2 * scale), width // (2 * scale)


def _qwen_image(config: Config, clip: Clip) -> Inputs:
    scale = 1 << len(clip.vae.get("temperal_downsample") or (False, True, True))
    rows, columns = _patch_pairs(clip, scale)
    return {
        "hidden_states": _empty(1, rows * columns, config.in_channels),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.joint_attention_dim),
        "timestep": _empty(1),
        "img_shapes": [[(1, rows, columns)]],
        "guidance": _empty(1) if config.guidance_embeds else None,
    }


def _flux(config: Config, clip: Clip) -> Inputs:
    rows, columns = _patch_pairs(clip, _block_scale(clip.vae))
    return {
        "hidden_states": _empty(1, rows * columns, config.in_channels),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.joint_attention_dim),
        "pooled_projections": _empty(1, config.pooled_projection_dim),
        "timestep": _empty(1),
        "img_ids": _empty(rows * columns, 3),
        "txt_ids": _empty(clip.text_tokens, 3),
        "guidance": _empty(1) if config.guidance_embeds else None,
    }


def _sd3(config: Config, clip: Clip) -> Inputs:
    scale = _block_scale(clip.vae)
    size = config.sample_size * scale
    height, width = clip.pixels(size, size)
    text_tokens = _CLIP_TEXT_TOKENS + clip.text_tokens
    return {
        "hidden_states": _empty(1, config.in_channels, height // scale, width // scale),
        "encoder_hidden_states": _empty(1, text_tokens, config.joint_attention_dim),
        "pooled_projections": _empty(1, config.pooled_projection_dim),
        "timestep": _empty(1),
    }


def _hunyuan_video(config: Config, clip: Clip) -> Inputs:
    spatial = clip.vae.get("spatial_compression_ratio") or 8
    temporal = clip.vae.get("temporal_compression_ratio") or 4
    height, width = clip.pixels()
    frames = clip.latent_frames(temporal)
    return {
        "hidden_states": _empty(1, config.in_channels, frames, height // spatial, width // spatial),
        "timestep": _empty(1),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.text_embed_dim),
        "encoder_attention_mask": _empty(1, clip.text_tokens),
        "pooled_projections": _empty(1, config.pooled_projection_dim),
        "guidance": _empty(1) if config.guidance_embeds else None,
    }


def _cogvideox(config: Config, clip: Clip) -> Inputs:
    spatial = _block_scale(clip.vae)
    temporal = clip.vae.get("temporal_compression_ratio") or 4
    height, width = clip.pixels(config.sample_height * spatial, config.sample_width * spatial)
    rows, columns = height // spatial, width // spatial
    frames = clip.latent_frames(temporal, config.sample_frames)
    patch_frames = config.patch_size_t or 1
    frames += -frames % patch_frames
    inputs: Inputs = {
        "hidden_states": _empty(1, frames, config.in_channels, rows, columns),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.text_embed_dim),
        "timestep": _empty(1),
    }
    if config.use_rotary_positional_embeddings:
        patch = config.patch_size
        tokens = (frames // patch_frames) * (rows // patch) * (columns // patch)
        angles = _empty(tokens, config.attention_head_dim)
        inputs["image_rotary_emb"] = (angles, angles)
    if config.ofs_embed_dim:
        inputs["ofs"] = _empty(1)
    return inputs


def _mochi(config: Config, clip: Clip) -> Inputs:
    height, width = clip.pixels()
    frames = clip.latent_frames(6)
    return {
        "hidden_states": _empty(1, config.in_channels, frames, height // 8, width // 8),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.text_embed_dim),
        "timestep": _empty(1),
        "encoder_attention_mask": _empty(1, clip.text_tokens),
    }


def _unet_2d(config: Config, clip: Clip) -> Inputs:
    scale = _block_scale(clip.vae)
    size = (config.sample_size or 64) * scale
    height, width = clip.pixels(size, size)
    inputs: Inputs = {
        "sample": _empty(1, config.in_channels, height // scale, width // scale),
        "timestep": _empty(1),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.cross_attention_dim),
    }
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = _empty(1, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        times = 6  # original size, crop, target size
        text = config.projection_class_embeddings_input_dim - times * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": _empty(1, text), "time_ids": _empty(1, times)}
    return inputs


def _i2vgen_xl(config: Config, clip: Clip) -> Inputs:
    scale = _block_scale(clip.vae)
    height, width = clip.pixels()
    frames = clip.latent_frames(1)
    latents = _empty(1, config.in_channels, frames, height // scale, width // scale)
    return {
        "sample": latents,
        "timestep": _empty(1),
        "fps": _empty(1),
        "image_latents": latents,
        "image_embeddings": _empty(1, config.cross_attention_dim),
        "encoder_hidden_states": _empty(1, clip.text_tokens, config.cross_attention_dim),
    }


MAKERS: dict[str, Callable[[Config, Clip], Inputs]] = {
    "CogVideoXTransformer3DModel": _cogvideox,
    "FluxTransformer2DModel": _flux,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "I2VGenXLUNet": _i2vgen_xl,
    "LTXVideoTransformer3DModel": _ltx,
    "MochiTransformer3DModel": _mochi,
    "QwenImageTransformer2DModel": _qwen_image,
    "SD3Transformer2DModel": _sd3,
    "SkyReelsV2Transformer3DModel": _sky_reels,
    "UNet2DConditionModel": _unet_2d,
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan_vace,
}
