"""What frames have to be before anything is measured of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowblend_plugin.errors import MeasureError

Frames = NDArray[np.uint8]


def check_frames(frames: Any, what: str = "frames", min_frames: int = 1, min_size: int = 1) -> None:
    """Refuse what isn't a clip.

    Args:
        frames: What was given.
        what: What it is, for the message.
        min_frames: Fewest frames.
        min_size: Least height and width in pixels.

    Raises:
        MeasureError: It isn't a uint8 array (T, H, W, 3) of that many frames and pixels.
    """
    if not isinstance(frames, np.ndarray):
        raise MeasureError(
            f"{what} are a {type(frames).__name__}: they have to be a numpy array of uint8, "
            "(T, H, W, 3)"
        )
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise MeasureError(
            f"{what} are {frames.dtype} of the shape {frames.shape}: they have to be uint8, "
            "(T, H, W, 3), RGB from 0 to 255; a single picture has T = 1"
        )
    if len(frames) < min_frames:
        raise MeasureError(
            f"{what} are {len(frames)}: this takes {min_frames} or more; leave it out for "
            "single pictures"
        )
    if min(frames.shape[1:3]) < min_size:
        raise MeasureError(
            f"{what} are {frames.shape[2]}x{frames.shape[1]} pixels: this takes "
            f"{min_size}x{min_size} or more"
        )


def check_same_shape(frames: Frames, reference: Frames) -> None:
    """Refuse clips that can't be compared.

    Raises:
        MeasureError: They differ in shape.
    """
    if frames.shape != reference.shape:
        raise MeasureError(
            f"frames of the shape {frames.shape} can't be compared with a reference of the shape "
            f"{reference.shape}: both have to be equally long, high and wide"
        )
