"""Frames decoded from a finished file, at the size they were rendered in, for measurements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image

from flowblend_cli.artifacts.video import CONVERSION
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.frames import Frames


def read_native_frames(path: Path, scale: int = 1) -> Frames:
    """Decode a clip or picture of ours and undo its whole-number enlargement.

    Args:
        path: A finished file, mp4 or PNG.
        scale: The enlargement that it was written with; each square becomes its mean.

    Returns:
        Pixels at native size, (T, H, W, 3), uint8. Of an mp4 they are close to what was rendered,
        not equal to it.

    Raises:
        OutputError: The file can't be read, or holds no frame.
    """
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                return _shrink(np.asarray(image.convert("RGB")), scale)[None]
        return np.stack([_shrink(frame, scale) for frame in _decode(path)])
    except (OSError, ValueError, IndexError) as error:  # FFmpeg's errors are among them
        raise OutputError(
            f"{path}: can't be decoded ({error}): move it away, and render it again"
        ) from error


def _decode(path: Path) -> Iterator[Frames]:
    reformatter = VideoReformatter()
    with av.open(str(path), format="mp4") as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            pixels = reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=CONVERSION,
                threads=1,
            )
            yield pixels.to_ndarray().astype(np.uint8, copy=False)


def _shrink(frame: Frames, scale: int) -> Frames:
    """Undo an enlargement: each square becomes the mean of its middle, which no neighbour tints."""
    if scale == 1:
        return frame
    height, width = (side // scale for side in frame.shape[:2])
    squares = frame[: height * scale, : width * scale].reshape(height, scale, width, scale, 3)
    middle = slice(scale // 4, scale - scale // 4)
    means: Frames = squares[:, middle, :, middle].mean(axis=(1, 3)).round().astype(np.uint8)
    return means
