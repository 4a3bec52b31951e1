"""Metrics of a study: which ones its clips need, and the one score out of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flowblend_cli.errors import UsageError
from flowblend_cli.study import MeasureSpec, Study
from flowblend_plugin import metrics as library
from flowblend_plugin.errors import MeasureError

# What deciding about motion goes by.
_MOTION = ("flow_mean", "unsteadiness")
# What a score's floor goes by.
_FLOOR = "change"
_OF_CLIPS = ("frames", "reference", "weights")


def metrics_of(study: Study) -> tuple[str, ...]:
    """Names of what is measured of each clip: what is asked for, and what scores and rules need.

    Returns:
        The names in their usual order; empty where the recipe wants nothing to be measured, or
        asks for nothing in particular and the extra ``metrics`` isn't installed.

    Raises:
        UsageError: The recipe asks for measurements, and the extra isn't installed.
    """
    wants = study.measure
    is_needed = bool(study.adapt is not None or study.selections or wants.names or wants.weights)
    if wants.names == () and not is_needed:
        return ()
    if not library.is_available():
        if is_needed or wants != MeasureSpec():
            raise UsageError(
                f"the recipe asks for measurements: {library.missing()}, or leave [metrics], "
                "[score], [adapt] and explored seeds out"
            )
        return ()
    chosen = {name for name, metric in library.METRICS.items() if metric.is_default}
    if wants.names is not None:
        chosen = set(wants.names)
    chosen |= set(dict(wants.weights))
    if study.selections:
        chosen |= {*(dict(wants.weights) or library.DEFAULT_WEIGHTS), _FLOOR}
    chosen |= set(_MOTION if study.adapt is not None else ())
    known = library.METRICS.items()
    return tuple(name for name, one in known if name in chosen and one.needs in _OF_CLIPS)


def score_of(
    prompt: str, metrics: Mapping[str, float], weights: Mapping[str, float]
) -> float | None:
    """The score of a clip; None where nothing that it weighs was measured.

    Args:
        prompt: The clip's prompt: one that asks for stillness isn't blamed for it.
        metrics: Values by name.
        weights: Weight of each metric; empty for the default score.
    """
    try:
        value = library.score(metrics, weights or None, floor=library.motion_floor(prompt))
    except MeasureError:
        return None
    return value if math.isfinite(value) else None
