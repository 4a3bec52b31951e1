"""Colour differences as people see them: CIEDE2000."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics.checks import Frames, check_frames

Patch = tuple[tuple[int, int, int, int], tuple[int, int, int]]


def delta_e(frames: Frames, reference: Frames) -> float:
    """Mean CIEDE2000 between two clips of one shape, over pixels and frames."""
    pairs = zip(frames, reference, strict=True)
    return float(np.mean([_ciede2000(_lab(b), _lab(a)).mean() for a, b in pairs]))


def chart_difference(frame: Frames, patches: Sequence[Patch]) -> float:
    """Measure how far the patches of a colour chart in a picture are from their own colours.

    Args:
        frame: uint8 RGB, (H, W, 3).
        patches: For each patch its box (left, top, right, bottom) in pixels, right and bottom
            exclusive, and its sRGB colour from 0 to 255.

    Returns:
        CIEDE2000 between each patch's mean colour (in CIELAB) and its own, the mean over patches.

    Raises:
        MeasureError: The picture isn't such an array, there is no patch, or one lies outside.
    """
    check_frames(frame[None], "a picture's pixels")
    if not patches:
        raise MeasureError("no patch of a colour chart was given: name one box and its colour")
    found, height, width = [], *frame.shape[:2]
    for (left, top, right, bottom), colour in patches:
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise MeasureError(
                f"the patch {(left, top, right, bottom)} isn't inside a picture of {width}x"
                f"{height}: give left, top, right, bottom in pixels"
            )
        seen = _lab(frame[top:bottom, left:right]).mean(axis=(0, 1))
        wanted = _lab(np.array(colour, np.uint8))
        found.append(float(_ciede2000(wanted, seen)))
    return float(np.mean(found))


def _lab(pixels: Frames) -> NDArray[Any]:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(pixels))


def _ciede2000(wanted: NDArray[Any], found: NDArray[Any]) -> NDArray[Any]:
    from skimage.color import deltaE_ciede2000

    return np.asarray(deltaE_ciede2000(wanted, found))  # type: ignore[no-untyped-call]
