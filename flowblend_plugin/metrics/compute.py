"""measure: computes all requested metrics of a clip, each group of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics import colour, learned, motion, similarity, structure
from flowblend_plugin.metrics.catalogue import METRICS
from flowblend_plugin.metrics.checks import Frames, check_frames, missing


def measure(
    frames: Frames,
    names: Iterable[str] | None = None,
    *,
    reference: Frames | None = None,
    models: Mapping[str, str | Path] | None = None,
) -> dict[str, float]:
    """Measure a clip or a picture.

    Args:
        frames: uint8 RGB, (T, H, W, 3); a picture has T = 1.
        names: Metrics, see ``METRICS``; None for the default ones that these frames, and a
            reference if there is one, are enough for: a picture has no motion.
        reference: A clip of the same shape, for the metrics that compare.
        models: Of metrics that need weights, the folder or the name on the Hub of each one's
            network; names are looked for in the local cache, nothing is downloaded.

    Returns:
        Finite values by name, in the order of ``METRICS``.

    Raises:
        MeasureError: The frames are no such array, a name is unknown or can't be computed from
            what was given, or a package or a network isn't there.
    """
    if absent := missing():
        raise MeasureError(absent)
    check_frames(frames)
    if reference is not None:
        check_frames(reference, "reference frames")
        if frames.shape != reference.shape:
            raise MeasureError(
                f"frames of the shape {frames.shape} can't be compared with a reference of the "
                f"shape {reference.shape}: both have to be equally long, high and wide"
            )
    wanted = _chosen(frames, names, reference is not None)
    with motion.one_thread():
        found = _compute(frames, wanted, reference, models or {})
    for name, value in found.items():
        if not np.isfinite(value):
            raise MeasureError(f"{name} of these frames is {value}: it can't be measured of them")
    return {name: found[name] for name in METRICS if name in found}


def _chosen(frames: Frames, names: Iterable[str] | None, has_reference: bool) -> set[str]:
    """Names to compute; every one of them fits the frames."""
    if names is None:
        needs = ("frames", "reference") if has_reference else ("frames",)
        return {
            name
            for name, metric in METRICS.items()
            if metric.is_default and metric.needs in needs and metric.is_large_enough(frames.shape)
        }
    wanted = set(names)
    for name in sorted(wanted):
        metric = METRICS.get(name)
        if metric is None or metric.needs in ("renders", "run"):
            what = "unknown" if metric is None else f"no metric of one clip, but of {metric.needs}"
            known = ", ".join(n for n, m in METRICS.items() if m.needs not in ("renders", "run"))
            raise MeasureError(f"{name!r} is {what}: choose from {known}")
        check_frames(frames, f"frames for {name}", metric.min_frames, metric.min_size)
        if metric.needs != "frames" and not has_reference:
            raise MeasureError(f"{name} compares with another clip: give it as reference")
    return wanted


def _compute(
    frames: Frames,
    wanted: set[str],
    reference: Frames | None,
    models: Mapping[str, str | Path],
) -> dict[str, float]:
    found: dict[str, float] = {}
    if wanted & {"inter_frame_ssim", "inter_frame_ssim_min"}:
        mean, least = structure.inter_frame_ssim(frames)
        found |= {"inter_frame_ssim": mean, "inter_frame_ssim_min": least}
    if wanted & {"flow_mean", "flow_std", "unsteadiness"}:
        found |= motion.flow_statistics(frames)
    of_frames: dict[str, Callable[[Frames], float]] = {
        "change": structure.change,
        "flicker": structure.flicker,
        "sharpness": structure.sharpness,
        "high_frequency": structure.high_frequency,
    }
    compared: dict[str, Callable[[Frames, Any], float]] = {
        "psnr": similarity.psnr,
        "ssim": similarity.ssim,
        "delta_e": colour.delta_e,
    }
    found |= {name: take(frames) for name, take in of_frames.items() if name in wanted}
    found |= {name: take(frames, reference) for name, take in compared.items() if name in wanted}
    if reference is not None:
        for name in sorted(wanted & set(learned.DEFAULT_MODELS)):
            found[name] = learned.compare(name, frames, reference, models.get(name))
    return {name: value for name, value in found.items() if name in wanted}
