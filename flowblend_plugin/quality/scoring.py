"""One number between 0 and 1 out of many metrics, and the thresholds of too little motion."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.quality.catalogue import METRICS

WEAK_MOTION = 2.0
"""``flow_mean`` below which motion counts as weak. Provisional."""

JITTER = 4.0
"""``flow_std`` above which motion jitters. Provisional."""

MOTION_FLOOR = 0.3
"""``flow_mean`` below which a clip counts as frozen, and its score goes to 0. Provisional."""

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "inter_frame_ssim": 2.0,
    "inter_frame_ssim_min": 1.0,
    "flow_std": 1.0,
    "flicker": 1.0,
    "sharpness": 1.0,
}
"""Weights of the default score."""

# Where a metric has no end, the value that counts half.
_HALF = {
    "flow_mean": WEAK_MOTION,
    "flow_std": JITTER,
    "flicker": 2.0,
    "sharpness": 200.0,
    "high_frequency": 0.05,
    "psnr": 30.0,
    "delta_e": 5.0,
    "lpips": 0.3,
    "trajectory_spread": 10.0,
}
_STILL = ("standing still", "motionless", "not moving", "static", "still life", "frozen", "静止")


def motion_floor(prompt: str) -> float:
    """The floor that suits a prompt: none where it asks for stillness."""
    words = prompt.casefold()
    return 0.0 if any(word in words for word in _STILL) else MOTION_FLOOR


def score(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    *,
    floor: float = MOTION_FLOOR,
) -> float:
    """Combine metrics into one number: their weighted mean, each mapped to 0..1 first.

    Args:
        values: Values by metric's name, as ``measure`` gives them.
        weights: Weight of each metric; ``DEFAULT_WEIGHTS`` if None. Metrics that aren't among the
            values are left out.
        floor: ``flow_mean`` below which the score falls in proportion, to 0 for a frozen clip;
            0 for scenes that ask for stillness.

    Returns:
        From 0 to 1, higher is better.

    Raises:
        MeasureError: A weight names no metric, is below 0, or none of them is among the values.
    """
    weights = DEFAULT_WEIGHTS if weights is None else weights
    for name, weight in weights.items():
        if name not in METRICS or not (0 <= weight < math.inf):
            raise MeasureError(
                f"{name} = {weight!r} is no weight of a metric: name one of {', '.join(METRICS)}, "
                "and a number from 0 on"
            )
    used = {name: weight for name, weight in weights.items() if name in values}
    if not sum(used.values()):
        raise MeasureError(
            f"a score of {', '.join(weights) or 'nothing'} can't be told from "
            f"{', '.join(values) or 'nothing'}: measure one of them, or weigh what is measured"
        )
    found = sum(weight * _goodness(name, values[name]) for name, weight in used.items())
    moves = values.get("flow_mean", math.inf)
    return min(1.0, moves / floor if floor > 0 else 1.0) * found / sum(used.values())


def _goodness(name: str, value: float) -> float:
    """Map a value to 0 (bad) .. 1 (good)."""
    half = _HALF.get(name)
    if half is None:
        return min(1.0, max(0.0, value))
    grown = value / (value + half)
    return 1 - grown if METRICS[name].better == "lower" else grown
