"""Checks of packages and frames, which ``measure`` and the metrics make before they compute.

Neither numpy nor the extra is loaded before the first check of frames.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, TypeAlias

from flowblend_plugin.errors import MeasureError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Frames: TypeAlias = "NDArray[np.uint8]"
"""RGB pixels, uint8, (T, H, W, 3), or (H, W, 3) where one frame is meant."""

_PACKAGES = {"cv2": "opencv-python-headless", "skimage": "scikit-image"}


def is_available() -> bool:
    """Whether the packages of the extra ``metrics`` are installed."""
    return not missing()


def missing() -> str:
    """Say what to install before anything can be measured; empty if nothing is missing."""
    absent = [
        name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if not absent:
        return ""
    return f"measuring needs {' and '.join(absent)}: pip install 'flowblend[metrics]'"


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
    import numpy as np

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
