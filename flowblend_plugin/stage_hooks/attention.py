"""StageAttention: sets attention backends of diffusers for a stage, for ``DenoiserSwitch``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
)
from torch import nn

from flowblend_plugin.errors import SwitchError
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stages import Stage


class StageAttention(StageHook):
    """Gives each stage its attention backend.

    Args:
        stages: The stages.

    Raises:
        SwitchError: A backend's name is unknown.
    """

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._before: list[tuple[Any, Any]] = []
        self._global: Any = None
        known = [backend.value for backend in AttentionBackendName]
        for stage in stages:
            if stage.attention_backend is not None and stage.attention_backend not in known:
                raise SwitchError(
                    f"attention_backend {stage.attention_backend!r} is unknown: diffusers has "
                    f"{', '.join(known)}"
                )

    def enter(self, step: StageStep) -> None:
        """Set a stage's backend on its denoisers.

        Raises:
            SwitchError: The backend isn't installed, or doesn't run on this machine.
        """
        backend = step.stage.attention_backend
        if backend is None:
            return
        self._global = _AttentionBackendRegistry.get_active_backend()[0]
        for module in step.modules:
            self._before += [(p, p._attention_backend) for p in _processors(module)]
            try:
                module.set_attention_backend(backend)  # type: ignore[operator]
            except (RuntimeError, ValueError, ImportError) as error:
                self.leave()
                raise SwitchError(
                    f"attention_backend {backend!r} can't be used here: {error}"
                ) from error

    def leave(self) -> None:
        """Restore the backends that were set before."""
        if self._global is not None:  # set by denoisers without processors of their own, too
            _AttentionBackendRegistry.set_active_backend(self._global)
            self._global = None
        while self._before:
            processor, backend = self._before.pop()
            processor._attention_backend = backend


def _processors(module: nn.Module) -> list[Any]:
    found = (getattr(m, "processor", None) for m in module.modules())
    return [p for p in found if hasattr(p, "_attention_backend")]
