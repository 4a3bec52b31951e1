"""Stage-aware sampling for diffusers: a large and a small denoiser share one trajectory.

``StageSchedule`` is pure Python; the names that need torch are imported when first used.

Reference:
    FlowBlending: stage-aware multi-model sampling, arXiv:2512.24724.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.errors import (
    AdapterError,
    BudgetError,
    CalibrationError,
    CheckpointError,
    FlopsError,
    FlowBlendError,
    MeasureError,
    PairMismatchError,
    SchedulerConfigError,
    StageError,
    SwitchError,
)
from flowblend_plugin.stages import Adapter, Cache, Stage, StageSchedule

if TYPE_CHECKING:
    from flowblend_plugin.calibration.probe import Probe, calibrate
    from flowblend_plugin.checkpoints.checkpoint import Checkpoint, Checkpoints
    from flowblend_plugin.flops import Clip, count_flops
    from flowblend_plugin.modular import FlowBlendBlock
    from flowblend_plugin.schedulers.flow_blend import FlowBlendScheduler, wrap_scheduler
    from flowblend_plugin.stage_hooks.base import StageHook, StageStep
    from flowblend_plugin.switch import DenoiserSwitch

__all__ = [
    "Adapter",
    "AdapterError",
    "BudgetError",
    "Cache",
    "Calibration",
    "CalibrationError",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "Clip",
    "DenoiserSwitch",
    "FlopsError",
    "FlowBlendBlock",
    "FlowBlendError",
    "FlowBlendScheduler",
    "MeasureError",
    "PairMismatchError",
    "Probe",
    "SchedulerConfigError",
    "Stage",
    "StageError",
    "StageHook",
    "StageSchedule",
    "StageStep",
    "SwitchError",
    "calibrate",
    "count_flops",
    "wrap_scheduler",
]

_LAZY = {
    "Checkpoint": "flowblend_plugin.checkpoints.checkpoint",
    "Checkpoints": "flowblend_plugin.checkpoints.checkpoint",
    "Clip": "flowblend_plugin.flops",
    "DenoiserSwitch": "flowblend_plugin.switch",
    "FlowBlendBlock": "flowblend_plugin.modular",
    "FlowBlendScheduler": "flowblend_plugin.schedulers.flow_blend",
    "Probe": "flowblend_plugin.calibration.probe",
    "StageHook": "flowblend_plugin.stage_hooks.base",
    "StageStep": "flowblend_plugin.stage_hooks.base",
    "calibrate": "flowblend_plugin.calibration.probe",
    "count_flops": "flowblend_plugin.flops",
    "wrap_scheduler": "flowblend_plugin.schedulers.flow_blend",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
