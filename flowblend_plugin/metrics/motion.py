"""Motion: dense optical flow between neighbouring frames, and points followed along it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics.checks import Frames, check_frames
from flowblend_plugin.metrics.structure import grey

GRID = 8
"""Points in a row, and rows, that ``tracks`` follows."""

STILL = 0.5
"""Added to ``flow_mean``, in its unit, where something is divided by it."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run OpenCV on one thread: sums come out the same, and the denoiser keeps its cores."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def flows(frames: Frames) -> Iterator[NDArray[np.float32]]:
    """Flow from each frame to the next, (H, W, 2), x and y in pixels."""
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    for a, b in pairwise(map(grey, frames)):
        yield dis.calc(a, b, None)


def flow_statistics(frames: Frames) -> dict[str, float]:
    """``flow_mean``, and of three frames or more ``flow_std`` and ``unsteadiness``."""
    unit = 1000 / diagonal(frames)
    before, lengths, changes = None, [], []
    for flow in flows(frames):
        lengths.append(unit * _mean_length(flow))
        if before is not None:
            changes.append(unit * _mean_length(_sampled_along(flow, before) - before))
        before = flow
    found = {"flow_mean": float(np.mean(lengths))}
    if changes:
        found["flow_std"] = float(np.std(lengths))
        found["unsteadiness"] = float(np.mean(changes)) / (found["flow_mean"] + STILL)
    return found


def _mean_length(flow: NDArray[np.float32]) -> float:
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64))


def _sampled_along(flow: NDArray[np.float32], along: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sample a flow at the places to which another one leads."""
    import cv2

    height, width = flow.shape[:2]
    x = along[..., 0] + np.arange(width, dtype=np.float32)
    y = along[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    found = cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def diagonal(frames: Frames) -> float:
    """Length of a frame's diagonal in pixels."""
    return math.hypot(frames.shape[1], frames.shape[2])


def tracks(frames: Frames) -> NDArray[np.float64]:
    """Follow a grid of points through a clip.

    Args:
        frames: uint8 RGB, (T, H, W, 3), at least 16 pixels high and wide.

    Returns:
        Where each point is in each frame, x and y, (P, T, 2), as fractions of the frame's
        diagonal. All clips of one size begin at the same points. Points that leave the frame
        stay at its edge.

    Raises:
        MeasureError: The frames aren't such an array.
    """
    check_frames(frames, min_size=16)
    height, width = frames.shape[1:3]
    places = (np.arange(GRID) + 0.5) / GRID
    x, y = np.meshgrid(places * width - 0.5, places * height - 0.5)
    here = np.stack([x.ravel(), y.ravel()], axis=-1)
    path, last = [here], np.array([width - 1, height - 1])
    with one_thread():
        for flow in flows(frames):
            here = np.clip(here + _at(flow, here), 0, last)
            path.append(here)
    return np.stack(path, axis=1) / diagonal(frames)


def trajectory_spread(paths: Sequence[Any]) -> float:
    """Measure how far the points of several renders are from their mean path.

    Args:
        paths: ``tracks`` of at least two renders, or the same as lists.

    Returns:
        Root of the mean square over renders, points and frames, in thousandths of the diagonal;
        0 where all move alike.

    Raises:
        MeasureError: There are fewer than two, or they differ in shape.
    """
    shapes = {np.shape(path) for path in paths}
    if len(paths) < 2 or len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise MeasureError(
            f"tracks of {len(paths)} renders, of the shapes {sorted(map(str, shapes))}, can't be "
            "compared: it takes two or more of one shape (points, frames, 2)"
        )
    found = np.asarray(paths, np.float64)
    apart = ((found - found.mean(axis=0)) ** 2).sum(axis=-1)
    return 1000 * math.sqrt(float(apart.mean()))


def _at(flow: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear values of a flow at points, (P, 2)."""
    import cv2

    x, y = (points[:, axis].astype(np.float32)[:, None] for axis in (0, 1))
    found = cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float64)[:, 0]
