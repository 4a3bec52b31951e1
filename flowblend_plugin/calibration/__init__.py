"""A pair of denoisers measured, and stages chosen from that."""

from __future__ import annotations

from flowblend_plugin.calibration.calibration import Calibration

__all__ = ["Calibration"]
