"""Similarity to a reference clip, pixel by pixel: PSNR, SSIM, equality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flowblend_plugin.metrics.checks import Frames, check_frames
from flowblend_plugin.metrics.structure import ssim_of

EQUAL_PSNR = 100.0
"""PSNR of equal clips, in dB: a finite number, so that it can be written and averaged."""


def psnr(frames: Frames, reference: Frames) -> float:
    """Peak signal-to-noise ratio of a whole clip to another one.

    Args:
        frames: uint8 RGB, (T, H, W, 3).
        reference: The other clip, of the same shape.

    Returns:
        ``10 log10(255^2 / mean squared error)`` in dB, the error averaged over the whole clip; at
        most ``EQUAL_PSNR``, which equal clips have.
    """
    pairs = zip(frames, reference, strict=True)
    error = float(np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs]))
    return EQUAL_PSNR if error == 0 else min(EQUAL_PSNR, 10 * math.log10(255**2 / error))


def ssim(frames: Frames, reference: Frames) -> float:
    """Structural similarity to a reference, the mean over frames."""
    return float(np.mean([ssim_of(a, b) for a, b in zip(frames, reference, strict=True)]))


def bit_equal(clips: Sequence[Frames]) -> bool:
    """Whether all clips have the same shape and the same pixels.

    Raises:
        MeasureError: One of them is no clip.
    """
    for clip in clips:
        check_frames(clip)
    return all(np.array_equal(clips[0], clip) for clip in clips[1:])
