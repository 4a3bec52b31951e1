"""One memory per pass, for the caches that diffusers gives a single one.

Guidance runs a denoiser twice a step, conditional and unconditional. Pyramid attention broadcast
and FasterCache count both passes in one counter and keep both outputs in one place, so that with
their default range of 2 the unconditional pass always reuses what the conditional one kept, and
guidance fades. FasterCache also expects an output to reuse at its very first call, which isn't
there when a stage begins inside its timestep range.
"""

from __future__ import annotations

from typing import Any

from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheBlockState
from diffusers.hooks.hooks import CacheContext, StateManager
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastHook,
    PyramidAttentionBroadcastState,
)
from torch import nn

_OWN = ("_state_cls", "_init_args", "_init_kwargs", "_state_cache", "_context")
_ONLY = CacheContext("only")
_Manager: Any = StateManager  # typed for one kind of state, and works with any


class _Memory(_Manager):  # type: ignore[misc]
    """Reads and writes the state of the pass that ``cache_context`` names.

    diffusers tells every ``StateManager`` among a hook's attributes which pass begins.
    """

    @property
    def context(self) -> CacheContext:
        given: CacheContext | None = self._context
        return given or _ONLY

    def __getattr__(self, name: str) -> Any:
        return getattr(self.get_state(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.get_state(), name, value)


class _ComputesFirst(FasterCacheBlockState):
    """FasterCache's memory, counting from where an attention is computed."""

    def __init__(self, skip_range: int) -> None:
        super().__init__()
        self.iteration = skip_range


def remember_per_pass(denoiser: nn.Module) -> None:
    """Give every attention of a denoiser with PAB or FasterCache one memory per pass.

    Pipelines that don't name their passes with ``cache_context`` keep one memory for all.

    Args:
        denoiser: A denoiser on which the cache was just enabled.
    """
    for module in denoiser.modules():
        registry = getattr(module, "_diffusers_hook", None)
        hooks: list[Any] = list(registry.hooks.values()) if registry is not None else []
        for hook in hooks:
            if isinstance(hook, PyramidAttentionBroadcastHook):
                hook.state = _Memory(PyramidAttentionBroadcastState)
            elif isinstance(hook, FasterCacheBlockHook):
                hook.state = _Memory(_ComputesFirst, (hook.block_skip_range,))
