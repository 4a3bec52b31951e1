"""score: combines metrics into one number from 0 to 1; motion_floor: motion that a prompt needs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics.catalogue import METRICS

WEAK_MOTION = 3.5
"""``flow_mean`` below which motion counts as weak: it parts what stands still on sprites."""

JITTER = 1.5
"""``unsteadiness`` above which motion jitters: it parts clips of sprites from ones that jump."""

MOTION_FLOOR = 0.02
"""``change`` below which a clip counts as frozen, and its score falls to 0."""

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "inter_frame_ssim": 1.0,
    "unsteadiness": 3.0,
    "flicker": 1.0,
    "sharpness": 1.0,
}
"""Weights of the default score, chosen on sprites: docs/metrics.md."""

# Where a metric has no end, the value that counts half; chosen on sprites, as the weights were.
HALF: Mapping[str, float] = {
    "change": 0.1,
    "flow_mean": WEAK_MOTION,
    "flow_std": 4.5,
    "unsteadiness": 1.0,
    "flicker": 1.0,
    "sharpness": 50.0,
    "high_frequency": 0.05,
    "psnr": 30.0,
    "delta_e": 5.0,
    "lpips": 0.3,
    "trajectory_spread": 10.0,
    "elapsed_s": 60.0,
    "elapsed_share": 100.0,
    "step_s": 1.0,
    "peak_rss_bytes": 16e9,
    "peak_vram_bytes": 16e9,
}
# A camera that is static says nothing about what it looks at.
_STILL = re.compile(
    r"\b(?:stand|sit|lie|lying|stay|hold|keep|remain)(?:s|ting|ing)? (?:perfectly |very )?still\b"
    r"|\bmotionless\b|\bstill life\b|\bnot moving\b|\b(?:without|no) (?:any )?mo(?:tion|vement)\b"
    r"|\bstatic\b(?! (?:camera|shot|view))|静止(?!镜头)|一动不动",
    re.IGNORECASE,
)


def motion_floor(prompt: str) -> float:
    """Give the floor that suits a prompt: ``MOTION_FLOOR``, or 0 where it asks for stillness."""
    return 0.0 if _STILL.search(prompt) else MOTION_FLOOR


def score(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    *,
    floor: float = MOTION_FLOOR,
) -> float:
    """Combine metrics into one number: the weighted mean of each one mapped to 0..1.

    A metric that lies between 0 and 1 counts as it is, cut off at both ends. Of the others, with h
    the value of ``HALF``, x / (x + h) counts where higher is better or neither end is, and
    h / (x + h) where lower is better; of ``sharpness``, a variance, the roots of x and h.

    Args:
        values: Values by metric's name, as ``measure`` gives them.
        weights: Weight of each metric; ``DEFAULT_WEIGHTS`` if None. Metrics that aren't among the
            values are left out.
        floor: ``change`` (or, where that wasn't measured, ``flow_mean``) below which the score
            falls in proportion, to 0 for a frozen clip; 0 for scenes that ask for stillness, see
            ``motion_floor``. Pictures, which have neither, have no floor.

    Returns:
        From 0 to 1, higher is better. It compares renders of one prompt at one size: across
        prompts and sizes it says little.

    Raises:
        MeasureError: A weight names no metric, is below 0, or none of them is among the values.
    """
    weights = DEFAULT_WEIGHTS if weights is None else weights
    for name, weight in weights.items():
        if name not in METRICS or not 0 <= weight < math.inf:
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
    mean = sum(used[name] * _goodness(name, values[name]) for name in used) / sum(used.values())
    moves = values.get("change", values.get("flow_mean", math.inf))
    return mean * min(1.0, max(0.0, moves) / floor) if floor > 0 else mean


def _goodness(name: str, value: float) -> float:
    """Map a value to 0 (bad) .. 1 (good)."""
    half = HALF.get(name)
    if half is None:
        return min(1.0, max(0.0, value))
    value = max(0.0, value)
    if name == "sharpness":
        value, half = math.sqrt(value), math.sqrt(half)
    return (half if METRICS[name].better == "lower" else value) / (value + half)
