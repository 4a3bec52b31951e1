"""LayerCounts: how many linear layers each forward of a cached denoiser called.

Nothing is put where ``torch.compile`` looks, so that a count compiles nothing anew. What was
compiled calls no layer that could be counted: there the cache's own state tells what it skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from diffusers.hooks.faster_cache import FasterCacheBlockHook
from diffusers.hooks.first_block_cache import FBCBlockHook
from diffusers.hooks.mag_cache import MagCacheBlockHook, MagCacheHeadHook
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from diffusers.hooks.sea_cache import SeaCacheBlockHook, SeaCacheLeaderBlockHook
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook
from torch import nn

from flowblend_plugin.denoisers.calls import intercept, is_compiled

_Compute = Callable[..., Any]
# Frames that torch.compile passes by, and goes on within.
_uncompiled: Any = torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call]
_COUNTED = (nn.Linear, nn.Conv2d, nn.Conv3d)
# They run what they wrap outside compiled code, where its layers are counted one by one.
_UNCOMPILED = (MagCacheBlockHook, MagCacheHeadHook, SeaCacheLeaderBlockHook)


class LayerCounts:
    """Counts forwards of denoisers, and the calls of their linear layers.

    Args:
        modules: The denoisers.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._forwards: list[int] = []
        self._calls: Counter[nn.Module] = Counter()  # of the forward that runs
        self._undo = ExitStack()
        for module in modules:
            for part in module.modules():
                if isinstance(part, _COUNTED):
                    self._undo.callback(intercept(part, partial(self._call_layer, part)))
                elif part is not module and is_compiled(part):
                    self._undo.callback(intercept(part, partial(self._call_compiled, part)))

    def begin(self) -> None:
        """Begin a forward; what one that failed has called is forgotten."""
        self._calls.clear()

    def end(self, module: nn.Module) -> None:
        """End a forward of one of the denoisers."""
        if is_compiled(module):
            self._calls += _unseen(module, self._calls, is_whole=True)
        self._forwards.append(self._calls.total())

    @property
    def forwards(self) -> int:
        """Number of forwards."""
        return len(self._forwards)

    def summary(self) -> tuple[int, float]:
        """Forwards that did less than the fullest one, and the share of calls that ran."""
        full = max(self._forwards)
        skipped = sum(calls < full for calls in self._forwards)
        return skipped, sum(self._forwards) / (full * len(self._forwards)) if full else 1.0

    def close(self) -> None:
        """Count nothing any more."""
        self._undo.close()

    @_uncompiled  # type: ignore[untyped-decorator]
    def _call_layer(self, layer: nn.Module, compute: _Compute, *args: Any, **kwargs: Any) -> Any:
        self._calls[layer] += 1
        return compute(*args, **kwargs)

    @_uncompiled  # type: ignore[untyped-decorator]
    def _call_compiled(self, part: nn.Module, compute: _Compute, *args: Any, **kwargs: Any) -> Any:
        before = self._calls.copy()
        output = compute(*args, **kwargs)
        self._calls += _unseen(part, self._calls - before)
        return output


def _unseen(
    part: nn.Module, seen: Counter[nn.Module], is_whole: bool = False
) -> Counter[nn.Module]:
    """Tell which layers a compiled part has called, besides those that were seen."""
    found: Counter[nn.Module] = Counter()

    def visit(module: nn.Module) -> None:
        registry = vars(module).get("_diffusers_hook")
        hooks = registry.hooks.values() if registry is not None else ()
        if not all(_has_run(hook, is_whole) for hook in hooks):
            return
        if isinstance(module, _COUNTED) and module not in seen:
            found[module] = 1
        for child in module.children():
            visit(child)

    visit(part)
    return found


def _has_run(hook: Any, is_whole: bool) -> bool:
    """Whether compiled code under a cache's hook ran in the forward that has just ended."""
    if isinstance(hook, _UNCOMPILED):
        return False
    if isinstance(hook, FBCBlockHook):
        return bool(hook.state_manager.get_state().should_compute)
    if isinstance(hook, TaylorSeerCacheHook):
        state = hook.state_manager.get_state()
        return bool(state.last_update_step == state.current_step)
    if isinstance(hook, SeaCacheBlockHook) and hook.state_manager._context is not None:
        state = hook.state_manager.get_state()
        return not (state.consecutive_cached if is_whole else state.skip_remaining)
    if isinstance(hook, (PyramidAttentionBroadcastHook, FasterCacheBlockHook)):
        low, high = hook.timestep_skip_range
        turn = hook.state.iteration - 1  # it has counted this forward already
        is_due = turn % hook.block_skip_range == 0
        return is_due or not low < hook.current_timestep_callback() < high
    return True
