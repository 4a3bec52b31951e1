"""Frames decoded from a finished file, at the size they were rendered in, for measurements."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image

from flowblend_cli.artifacts.video import CONVERSION
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import open_regular
from flowblend_cli.utils.frames import Frames, pixels_sha256
from flowblend_cli.utils.limits import MAX_DECODED_PIXELS, MAX_FINISHED_BYTES, MAX_FRAMES


class Undecodable(ValueError):  # noqa: N818 - callers say it in their own words
    """A file that no decoder can make whole pictures of; says why."""


class TooLarge(Undecodable):
    """A file with more pixels than are decoded, see ``limits``."""


def read_native_frames(path: Path, scale: int = 1) -> Frames:
    """Decode a clip or picture of ours and undo its whole-number enlargement.

    Args:
        path: A finished file, mp4 or PNG.
        scale: The enlargement that it was written with; each square becomes its mean.

    Returns:
        Pixels at native size, (T, H, W, 3), uint8. Of an mp4 they are close to what was rendered,
        not equal to it.

    Raises:
        OutputError: The file can't be read, is too large, or holds no frame.
    """
    try:
        with open_regular(path, MAX_FINISHED_BYTES) as file:
            if path.suffix == ".png":
                return _shrink(decode_picture(file), scale)[None]
            return np.stack([_shrink(frame, scale) for frame in _rgb_frames(file)])
    except (OSError, ValueError, IndexError) as error:  # FFmpeg's errors are among them
        raise OutputError(
            f"{path}: can't be decoded ({error}): move it away, and render it again"
        ) from error


def decode_picture(file: BinaryIO) -> Frames:
    """Decode an open PNG, once its size is known to be no trap.

    Returns:
        Its pixels, (H, W, 3), uint8; where they let something through, over black.

    Raises:
        TooLarge: It says that it has too many pixels.
        Undecodable: It can't be decoded.
    """
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=["PNG"]) as image:
                if image.has_transparency_data:
                    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
                    return np.asarray(
                        Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
                    )
                return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    except Exception as error:
        raise Undecodable(str(error) or type(error).__name__) from error


def shown_sha256(file: BinaryIO, kind: str | None) -> str:
    """Hash all that an open picture or clip shows, as it decodes.

    Args:
        file: The file.
        kind: Its format, see ``metadata.format_of``.

    Raises:
        Undecodable: It can't be decoded.
    """
    if kind == "png":
        return pixels_sha256(decode_picture(file))
    if kind is None:
        raise Undecodable("it doesn't begin like a clip")
    require_decodable(file, kind)
    file.seek(0)
    digest = hashlib.sha256()
    for frame in _rgb_frames(file, kind):
        digest.update(repr(frame.shape).encode() + frame.tobytes())
    return digest.hexdigest()


def require_decodable(file: BinaryIO, container_format: str) -> None:
    """Decode an open clip to its end.

    Args:
        file: The clip.
        container_format: FFmpeg's name for its container.

    Raises:
        TooLarge: It has more pixels than are decoded.
        Undecodable: It holds no frame, fewer than it says, or one that can't be decoded.
    """
    count = pixels = 0
    file.seek(0)
    try:
        with av.open(file, "r", format=container_format, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            _require_few(stream.frames, 0)
            for frame in container.decode(stream):
                count += 1
                pixels += frame.width * frame.height
                _require_few(count, pixels)
            said = stream.frames
    except TooLarge:
        raise
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise Undecodable(f"after {count} frames: {error}") from error
    if count < max(said, 1):
        raise Undecodable(f"it says that it has {said} frames, and holds {count}")


def _rgb_frames(file: BinaryIO, container_format: str = "mp4") -> Iterator[Frames]:
    reformatter = VideoReformatter()
    pixels_so_far = 0
    with av.open(file, "r", format=container_format, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        _require_few(stream.frames, 0)
        for count, frame in enumerate(container.decode(stream), 1):
            pixels_so_far += frame.width * frame.height
            _require_few(count, pixels_so_far)
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


def middle_frame(file: BinaryIO) -> Frames:
    """Decode one frame of an open clip, from its middle, at the size that it is encoded in.

    Returns:
        Its pixels, (H, W, 3), uint8.

    Raises:
        TooLarge: It has more frames or pixels than are decoded.
        Undecodable: It can't be decoded.
    """
    try:
        with av.open(file, "r", format="mp4", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            _require_few(stream.frames, stream.frames // 2 * stream.width * stream.height)
            frames = itertools.islice(container.decode(stream), stream.frames // 2 + 1)
            frame = deque(frames, maxlen=1).pop()
            return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except TooLarge:
        raise
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise Undecodable(str(error)) from error


def _require_few(frames: int, pixels: int) -> None:
    if frames > MAX_FRAMES:
        raise TooLarge(f"it has more than {MAX_FRAMES:,} frames")
    if pixels > MAX_DECODED_PIXELS:
        raise TooLarge(f"its frames have more than {MAX_DECODED_PIXELS:,} pixels")


def _shrink(frame: Frames, scale: int) -> Frames:
    """Undo an enlargement: each square becomes the mean of its middle, which no neighbour tints."""
    if scale == 1:
        return frame
    height, width = (side // scale for side in frame.shape[:2])
    squares = frame[: height * scale, : width * scale].reshape(height, scale, width, scale, 3)
    middle = slice(scale // 4, scale - scale // 4)
    means: Frames = squares[:, middle, :, middle].mean(axis=(1, 3)).round().astype(np.uint8)
    return means
