"""Anonymous copies of clips for reviews: the same pictures without record, tags and settings."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
from av.bitstream import BitStreamFilterContext

from flowblend_cli.artifacts.image import encode_png
from flowblend_cli.artifacts.reading import decode_picture
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import open_regular
from flowblend_cli.utils.limits import MAX_FINISHED_BYTES, MAX_FRAMES

# H.264 units of supplementary information: x264 writes its settings, crf among them, into one.
_WITHOUT_SETTINGS = "filter_units=remove_types=6"


@dataclass(frozen=True)
class AnonymousCopy:
    """A copy of one file.

    Args:
        data: The whole file.
        fps: Frames per second; 0 for a picture.
        frames: Number of frames.
    """

    data: bytes
    fps: float
    frames: int


def copy_anonymously(path: Path) -> AnonymousCopy:
    """Copy a finished file without its record, its tags, and its encoder's notes.

    A clip's frames stay as they were encoded, bit for bit; a picture's pixels are written anew.

    Args:
        path: A finished file of ours, mp4 or PNG.

    Raises:
        OutputError: It can't be read.
    """
    try:
        with open_regular(path, MAX_FINISHED_BYTES) as file:
            if path.suffix == ".png":
                return AnonymousCopy(encode_png(decode_picture(file)), 0, 1)
            return _remux(file)
    except (OSError, ValueError, IndexError) as error:  # FFmpeg's errors are among them
        raise OutputError(
            f"{path}: can't be read ({error}): move it away, and render it again"
        ) from error


def _remux(file: BinaryIO) -> AnonymousCopy:
    buffer = io.BytesIO()
    frames = 0
    with (
        av.open(file, "r", format="mp4", metadata_errors="replace") as source,
        av.open(
            buffer,
            "w",
            format="mp4",
            options={"movflags": "+faststart", "fflags": "+bitexact"},
            io_open=lambda _url, _flags, _options: io.BytesIO(buffer.getvalue()),
        ) as target,
    ):
        found = source.streams.video[0]
        stream = target.add_stream_from_template(found)
        stream.metadata.clear()
        without_settings = BitStreamFilterContext(_WITHOUT_SETTINGS, found, stream)
        for packet in source.demux(found):
            if packet.dts is None:
                continue
            frames += 1
            if frames > MAX_FRAMES:
                raise ValueError(f"it has more than {MAX_FRAMES:,} frames")
            for kept in without_settings.filter(packet):
                kept.stream = stream
                target.mux(kept)
        rate = found.average_rate
        fps = float(rate) if rate else 0.0
    return AnonymousCopy(buffer.getvalue(), fps, frames)
