"""Numbers about finished frames, each one defined, with its unit and which way is better.

Pure functions of uint8 RGB frames, (T, H, W, 3), as they were before encoding. They need the extra
``metrics`` (opencv and scikit-image), and torch only where a metric needs a network's weights.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowblend_plugin.metrics.catalogue import METRICS, QUALITY_VERSION, Metric
from flowblend_plugin.metrics.checks import is_available, missing
from flowblend_plugin.metrics.score import (
    DEFAULT_WEIGHTS,
    JITTER,
    MOTION_FLOOR,
    WEAK_MOTION,
    motion_floor,
    score,
)

if TYPE_CHECKING:
    from flowblend_plugin.metrics.colour import chart_difference
    from flowblend_plugin.metrics.compute import measure
    from flowblend_plugin.metrics.motion import tracks, trajectory_spread
    from flowblend_plugin.metrics.similarity import bit_equal

__all__ = [
    "DEFAULT_WEIGHTS",
    "JITTER",
    "METRICS",
    "MOTION_FLOOR",
    "QUALITY_VERSION",
    "WEAK_MOTION",
    "Metric",
    "bit_equal",
    "chart_difference",
    "is_available",
    "measure",
    "missing",
    "motion_floor",
    "score",
    "tracks",
    "trajectory_spread",
]

# What needs numpy is imported when it is first used: a command that finds nothing to do needs none.
_LAZY = {
    "bit_equal": "similarity",
    "chart_difference": "colour",
    "measure": "compute",
    "tracks": "motion",
    "trajectory_spread": "motion",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
