"""Count what one forward of a denoiser costs, without its weights.

The denoiser is built on the meta device, where tensors have shapes and no memory, and a forward
runs through it; the products are counted on the way. Two conventions, always named: published
figures usually leave attention out (``linear_only``), what runs includes it (``full``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from flowblend_plugin.errors import FlopsError
from flowblend_plugin.meta_inputs import MAKERS, Clip

__all__ = ["Clip", "FlopsError", "ForwardFlops", "build_denoiser", "count_flops", "count_forward"]

# Products of an input with weights; what else is counted are products of two activations, which
# is attention: its scores and its weighted values.
_WITH_WEIGHTS = ("mm", "addmm", "convolution", "_convolution")


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
    counter = FlopCounterMode(display=False)
    try:
        inputs = MAKERS[name](module.config, clip)
        with torch.no_grad(), _EveryTokenCounts(), counter:
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


class _EveryTokenCounts(TorchFunctionMode):
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
