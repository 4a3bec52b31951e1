"""Clips as H.264 in mp4: the same bytes for the same frames, every frame checked after writing."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import av
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

from flowblend_cli.artifacts.metadata import (
    COMMENT,
    Document,
    from_text,
    read_comment,
    to_text,
    without_seal,
)
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import SEAL_KEY, UNSEALED, publish, seal
from flowblend_cli.utils.frames import Frames, FramesError, require_frames, upscale

# Bit-exact conversion with full chroma, so that no CPU's shortcut changes the file.
CONVERSION = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)

# x264's macroblock tree takes memory that nobody wrote for costs, in frames of most sizes, so that
# the same frames would give other bytes now and then.
_OPTIONS = {"x264-params": "mbtree=0"}


def publish_video(
    frames: Frames, path: Path, *, fps: int, document: Document, scale: int = 1, crf: int = 10
) -> None:
    """Encode a clip and publish it under its final name, complete or not at all.

    Args:
        frames: Pixels at native size, (T, H, W, 3), uint8.
        path: Final name, ending in ``.mp4``; its folder exists.
        fps: Frames per second, a whole number.
        document: The file's document: JSON-able values, with the key ``flowblend``.
        scale: Whole-number enlargement; height and width must be even after it.
        crf: Quality of H.264, 0 (lossless) to 51; 10 is hard to tell from the original.

    Raises:
        FramesError: Frames of another shape or type, or of an odd height or width.
        OutputError: The file can't be written, or what was written doesn't hold what it should.
    """
    encoded = encode_video(frames, path.name, fps=fps, document=document, scale=scale, crf=crf)
    publish(path, *encoded)


def encode_video(
    frames: Frames, name: str, *, fps: int, document: Document, scale: int = 1, crf: int = 10
) -> tuple[bytes, Callable[[BinaryIO], None]]:
    """Encode a clip that is to be published; see ``publish_video``, whose arguments these are.

    Returns:
        The whole file, and the check that it reads back as it should.
    """
    require_frames(frames)
    large = upscale(frames, scale)
    height, width = large.shape[1:3]
    if height % 2 or width % 2:
        raise FramesError(
            f"{name}: H.264 needs an even width and height, got {width}x{height}: set "
            "output.scale to 2, or choose an even size"
        )
    comment = to_text({**document, SEAL_KEY: UNSEALED})
    data = seal(encode_mp4(large, fps=fps, crf=crf, comment=comment))
    check = functools.partial(
        check_video, name=name, num_frames=len(frames), size=(width, height), document=document
    )
    return data, check


def encode_mp4(frames: Frames, *, fps: int, crf: int, comment: str) -> bytes:
    """Encode frames as H.264 in an mp4 that starts playing before it is all there.

    Args:
        frames: Pixels of even height and width, (T, H, W, 3), uint8.
        fps: Frames per second.
        crf: Quality, 0 to 51.
        comment: Text of the ``comment`` tag.

    Returns:
        The whole file. One thread and tagged BT.709: the same input gives the same bytes.
    """
    buffer = io.BytesIO()
    # Moving the index to the front makes FFmpeg read what it has written.
    with av.open(
        buffer,
        "w",
        format="mp4",
        options={"movflags": "+faststart"},
        io_open=lambda _url, _flags, _options: io.BytesIO(buffer.getvalue()),
    ) as container:
        container.metadata[COMMENT] = comment
        options = {"crf": str(crf), **_OPTIONS}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter = VideoReformatter()
        for pixels in frames:
            container.mux(stream.encode(_to_yuv(pixels, reformatter)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _to_yuv(pixels: Frames, reformatter: VideoReformatter) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    return reformatter.reformat(
        frame,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_color_primaries=ColorPrimaries.BT709,
        dst_color_trc=ColorTrc.BT709,
        interpolation=CONVERSION,
        threads=1,
    )


def check_video(
    file: BinaryIO, *, name: str, num_frames: int, size: tuple[int, int], document: Document
) -> None:
    """Raise unless a written clip decodes to all its frames and holds its document.

    Args:
        file: The written file, open.
        name: Its final name, for the message.
        num_frames: Frames that went into it.
        size: Width and height of each, in pixels.
        document: The document that it should hold.

    Raises:
        OutputError: Frames are missing or of another size, or the document reads back differently.
    """
    found, sizes = count_frames(file)
    if found != num_frames or sizes != {size}:
        shown = " and ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "nothing"
        raise OutputError(
            f"{name}: {num_frames} frames of {size[0]}x{size[1]} were encoded, but {found} of "
            f"{shown} read back, so it wasn't published: check the disk, then run the same "
            "command again"
        )
    text = read_comment(file)
    if text is None or without_seal(from_text(text)) != from_text(to_text(document)):
        raise OutputError(f"{name}: its metadata reads back differently, so it wasn't published")


def count_frames(file: BinaryIO) -> tuple[int, set[tuple[int, int]]]:
    """Decode a clip and count its frames, whatever its header claims.

    Args:
        file: Open mp4 file.

    Returns:
        The number of frames that decode, and their sizes as (width, height).
    """
    count, sizes = 0, set()
    try:
        with av.open(file, "r", format="mp4") as container:
            for frame in container.decode(video=0):
                count += 1
                sizes.add((frame.width, frame.height))
    except (av.FFmpegError, IndexError):
        pass  # what decoded before the damage is what counts
    return count, sizes


def count_packets(file: BinaryIO) -> tuple[int, tuple[int, int]]:
    """Count a clip's frames without decoding them.

    Args:
        file: Open mp4 file.

    Returns:
        The number of frames, and the size of each as (width, height); none where it can't be read.
    """
    file.seek(0)
    try:
        with av.open(file, "r", format="mp4", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            packets = sum(packet.size > 0 for packet in container.demux(stream))
            return packets, (stream.width, stream.height)
    except (av.FFmpegError, ValueError, IndexError):
        return 0, (0, 0)
