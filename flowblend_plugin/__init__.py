"""Stage-aware sampling for diffusers: a large and a small denoiser share one trajectory.

``StageSchedule`` is pure Python; the names that need torch are imported when first used.

Reference:
    FlowBlending: stage-aware multi-model sampling, arXiv:2512.24724.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowblend_plugin.errors import (
    AdapterError,
    FlowBlendError,
    PairMismatchError,
    SchedulerConfigError,
    StageError,
    SwitchError,
)
from flowblend_plugin.stages import Adapter, Cache, Stage, StageSchedule

if TYPE_CHECKING:
    from flowblend_plugin.scheduler import FlowBlendScheduler, wrap_scheduler
    from flowblend_plugin.switch import DenoiserSwitch

__all__ = [
    "Adapter",
    "AdapterError",
    "Cache",
    "DenoiserSwitch",
    "FlowBlendError",
    "FlowBlendScheduler",
    "PairMismatchError",
    "SchedulerConfigError",
    "Stage",
    "StageError",
    "StageSchedule",
    "SwitchError",
    "wrap_scheduler",
]

_LAZY = {
    "DenoiserSwitch": "flowblend_plugin.switch",
    "FlowBlendScheduler": "flowblend_plugin.scheduler",
    "wrap_scheduler": "flowblend_plugin.scheduler",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
