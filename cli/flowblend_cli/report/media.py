"""Small pictures of clips, and where the clips are: what a page shows of each file."""

from __future__ import annotations

import base64
import io
import itertools
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

_SIDE = 200
_QUALITY = 80


def poster(path: Path) -> str:
    """One frame of a clip, from its middle, or a picture, small, as a ``data:`` address.

    Args:
        path: A finished file, mp4 or PNG.

    Returns:
        The address of a WebP of at most 200 pixels a side; empty where the file can't be decoded.
    """
    from PIL import Image

    try:
        image = _still(path)
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=6)
    except (OSError, ValueError, IndexError):  # FFmpeg's errors are among them
        return ""
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _still(path: Path) -> Any:
    from PIL import Image

    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.convert("RGB")
    import av

    with av.open(str(path), format="mp4") as container:
        stream = container.streams.video[0]
        middle = max(stream.frames // 2, 0)
        frames = itertools.islice(container.decode(stream), middle + 1)
        *_, frame = frames
        return Image.fromarray(frame.to_ndarray(format="rgb24"))


def address(name: str) -> str:
    """Where a file beside the page is, whatever characters its name has."""
    return quote(os.fsencode(name), safe="")
