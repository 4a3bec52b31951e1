"""Frames as arrays: their shape and type, their hash, and whole-number enlargement."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from flowblend_plugin.errors import FlowBlendError

Frames = NDArray[np.uint8]


class FramesError(FlowBlendError, ValueError):
    """Frames whose shape, type or size can't be published."""


def require_frames(frames: Frames) -> None:
    """Raise unless the array holds at least one RGB frame.

    Args:
        frames: Pixels, (T, H, W, 3), uint8.

    Raises:
        FramesError: Another shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise FramesError(
            f"frames must be uint8 of shape (T, H, W, 3) with at least one frame, got "
            f"{frames.dtype} of shape {frames.shape}"
        )


def pixels_sha256(frames: Frames) -> str:
    """Hash frames as they left the decoder, so that two renders can be compared bit for bit.

    Args:
        frames: Pixels at native size, (T, H, W, C), uint8, before scaling and encoding.

    Returns:
        The sha256 of the bytes in C order, 64 hexadecimal digits.

    Raises:
        FramesError: The pixels aren't uint8.
    """
    if frames.dtype != np.uint8:
        raise FramesError(f"pixels are hashed as uint8, got {frames.dtype}: convert them first")
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


def upscale(frames: Frames, scale: int) -> Frames:
    """Enlarge frames by a whole number, each pixel becoming a square of equal pixels.

    Args:
        frames: Pixels, (T, H, W, C), uint8.
        scale: Whole number of at least 1; 1 returns the frames as they are.

    Returns:
        Pixels, (T, H * scale, W * scale, C).

    Raises:
        FramesError: The scale isn't a whole number of at least 1.
    """
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise FramesError(f"scale must be a whole number of at least 1, got {scale!r}")
    if scale == 1:
        return frames
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)
