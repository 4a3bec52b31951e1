"""Stages: which denoiser runs which step. Pure Python."""

from __future__ import annotations

from flowblend_plugin.stages.schedule import LETTERS, StageSchedule, letters, stage_letters
from flowblend_plugin.stages.stage import EXTRAPOLATED, SOLVERS, Adapter, Cache, Stage

__all__ = [
    "EXTRAPOLATED",
    "LETTERS",
    "SOLVERS",
    "Adapter",
    "Cache",
    "Stage",
    "StageSchedule",
    "letters",
    "stage_letters",
]
