"""Whether the packages that measure are there; imports none of them."""

from __future__ import annotations

import importlib.util

_PACKAGES = {"cv2": "opencv-python-headless", "skimage": "scikit-image"}


def is_available() -> bool:
    """Whether the packages of the extra ``metrics`` are installed."""
    return not missing()


def missing() -> str:
    """What to install before anything can be measured; empty if nothing is missing."""
    absent = [
        name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if not absent:
        return ""
    return f"measuring needs {' and '.join(absent)}: pip install 'flowblend[metrics]'"
