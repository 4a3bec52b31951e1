"""StageAttention: sets attention backends of diffusers for a stage, for ``DenoiserSwitch``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

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
        self._undo = ExitStack()
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
        # Denoisers without processors of their own set the global one.
        present = _AttentionBackendRegistry.get_active_backend()[0]
        self._undo.callback(_AttentionBackendRegistry.set_active_backend, present)
        for module in step.modules:
            for part in module.modules():
                processor: Any = getattr(part, "processor", None)
                if hasattr(processor, "_attention_backend"):
                    before = processor._attention_backend
                    self._undo.callback(setattr, processor, "_attention_backend", before)
            try:
                module.set_attention_backend(backend)  # type: ignore[operator]
            except (RuntimeError, ValueError, ImportError) as error:
                self.leave()
                raise SwitchError(
                    f"attention_backend {backend!r} can't be used here: {error}"
                ) from error

    def leave(self) -> None:
        """Restore the backends that were set before."""
        self._undo.close()
