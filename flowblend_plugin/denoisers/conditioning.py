"""fit_inputs: arguments in the large denoiser's sizes, translated for the small one.

``DenoiserSwitch`` and ``FlowBlendBlock`` use it. A pipeline takes such sizes from the denoiser that
it holds when the call begins. Everything here can be undone, and is needed only where the two
denoisers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from flowblend_plugin.denoisers.placement import uncompiled


def fit_inputs(large: nn.Module, small: nn.Module) -> ExitStack:
    """Let the small denoiser understand the arguments that a pipeline makes for the large one.

    Args:
        large: The pipeline's own denoiser.
        small: The denoiser that takes turns with it; compiled modules are welcome.

    Returns:
        A stack that undoes everything when it is closed.
    """
    undo = ExitStack()
    if small is large:
        return undo
    ours, theirs = _vace_layers(small), _vace_layers(large)
    if ours and theirs and len(ours) != len(theirs):
        undo.callback(_fit_scales(small, theirs, ours).remove)
    return undo


def fit_scales(
    scales: torch.Tensor, large_depths: Sequence[float], small_depths: Sequence[float]
) -> torch.Tensor:
    """Read the conditioning scales of the large denoiser's layers at the small one's depths.

    Args:
        scales: One scale for each conditioned layer of the large denoiser, (N,).
        large_depths: Where those layers sit, ascending from 0 (first layer) to 1 (last).
        small_depths: The same of the small denoiser's M conditioned layers.

    Returns:
        The M scales, (M,), of the same dtype and device: linear between the large one's layers,
        constant beyond its last. Equal scales stay exactly what they are.
    """
    known = torch.tensor(large_depths, dtype=torch.float64)
    wanted = torch.tensor(small_depths, dtype=torch.float64)
    above = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    below = (above - 1).clamp(min=0)
    gap = (known[above] - known[below]).clamp(min=torch.finfo(torch.float64).tiny)
    weight = ((wanted - known[below]) / gap).clamp(0, 1).to(scales)
    return torch.lerp(scales[below.to(scales.device)], scales[above.to(scales.device)], weight)


def _vace_layers(module: nn.Module) -> tuple[float, ...]:
    """Relative depths of a VACE denoiser's conditioned layers; empty for other denoisers."""
    config = uncompiled(module).config
    deepest = max(config.get("num_layers", 1) - 1, 1)
    return tuple(layer / deepest for layer in sorted(config.get("vace_layers") or ()))


def _fit_scales(small: nn.Module, theirs: Sequence[float], ours: Sequence[float]) -> Any:
    name = "control_hidden_states_scale"

    def fit(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        scales = kwargs.get(name)
        # After a call that failed, the next one may begin with the small one's own length.
        if scales is None or len(scales) != len(theirs):
            return args, kwargs
        return args, {**kwargs, name: fit_scales(scales, theirs, ours)}

    return small.register_forward_pre_hook(fit, with_kwargs=True)
