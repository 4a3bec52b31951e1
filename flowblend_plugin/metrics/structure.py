"""Structure: SSIM of neighbouring frames, flicker, and how fine the detail is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowblend_plugin.metrics.checks import Frames

_CUTOFF = 0.25  # cycles a pixel: half of what a grid of pixels can hold
_PAIRS = 8


def inter_frame_ssim(frames: Frames) -> tuple[float, float]:
    """Mean and least structural similarity of neighbouring frames."""
    found = [ssim_of(a, b) for a, b in pairwise(frames)]
    return float(np.mean(found)), min(found)


def change(frames: Frames) -> float:
    """Measure how much less frames far apart resemble each other than neighbours do.

    Structural similarity of neighbours, less the least one of frames 2, 4, 8... apart; each the
    mean of at most 8 pairs.
    """
    apart = [1]
    while 2 * apart[-1] < len(frames):
        apart.append(2 * apart[-1])
    near, *far = (_ssim_apart(frames, distance) for distance in apart)
    return near - min(far)


def _ssim_apart(frames: Frames, distance: int) -> float:
    last = len(frames) - 1 - distance
    starts = np.unique(np.linspace(0, last, min(_PAIRS, last + 1)).round().astype(int))
    return float(np.mean([ssim_of(frames[start], frames[start + distance]) for start in starts]))


def ssim_of(a: Frames, b: Frames) -> float:
    """Structural similarity of two frames."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a, b, channel_axis=-1))  # type: ignore[no-untyped-call]


def flicker(frames: Frames) -> float:
    """Mean absolute second difference of the frames' mean brightness, in grey levels."""
    brightness = [float(grey(frame).mean()) for frame in frames]
    return float(np.abs(np.diff(brightness, n=2)).mean())


def sharpness(frames: Frames) -> float:
    """Variance of the Laplacian of the brightness, in grey levels squared, the mean over frames."""
    import cv2

    return float(np.mean([cv2.Laplacian(grey(frame), cv2.CV_64F).var() for frame in frames]))


def high_frequency(frames: Frames) -> float:
    """Share of spectral energy above a quarter of a cycle a pixel; 0 for frames of one colour."""
    height, width = frames.shape[1:3]
    window = np.outer(np.hanning(height), np.hanning(width))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    # A real spectrum is symmetric: rfft leaves out one of two columns, but for the outer ones.
    twice = np.full(radius.shape[1], 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return float(
        np.mean([_share(grey(frame), window, radius > _CUTOFF, twice) for frame in frames])
    )


def _share(
    image: Frames, window: NDArray[Any], is_high: NDArray[np.bool_], twice: NDArray[Any]
) -> float:
    values = image.astype(np.float64)
    energy = np.abs(np.fft.rfft2((values - values.mean()) * window)) ** 2 * twice
    whole = float(energy.sum())
    return float(energy[is_high].sum()) / whole if whole > 0 else 0.0


def grey(frame: Frames) -> Frames:
    """Brightness of one frame, (H, W) uint8, by the weights of BT.601."""
    import cv2

    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
