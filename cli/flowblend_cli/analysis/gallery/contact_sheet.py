"""Contact sheet, clips side by side and animated WebP, drawn for the gallery.

Everything here is a function of frames; files are published like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowblend_cli import __version__
from flowblend_cli.artifacts.image import encode_png
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.text import printable
from flowblend_cli.utils.files import publish
from flowblend_cli.utils.frames import Frames, FramesError, require_frames

CaptionedClip = tuple[str, Frames]

_PAPER = (250, 250, 248)
_INK = (24, 24, 28)
_GAP = 8
_SHEET_SIDE = 128
_COMPARE_SIDE = 256
# What marks a file of the gallery as ours; it is nobody's job.
_DOCUMENT = {"flowblend": __version__, "v": 1, "gallery": True}


def contact_sheet(clips: Sequence[CaptionedClip], path: Path, *, columns: int = 6) -> None:
    """Publish one PNG that shows each clip as a captioned row of frames over time.

    Args:
        clips: Caption (its prompt) and frames, (T, H, W, 3), uint8, of each clip; at least one.
        path: Final name, ending in ``.png``; its folder exists.
        columns: Frames to show of each clip, evenly spread, the first and the last included.

    Raises:
        FramesError: No clip, or frames of another shape or type.
        OutputError: The file can't be written.
    """
    _require_clips(clips)
    width = max(columns, 1) * (_SHEET_SIDE + _GAP) + _GAP
    rows = [_sheet_row(caption, frames, columns, width) for caption, frames in clips]
    publish(path, encode_png(np.concatenate(rows), _DOCUMENT))


def _sheet_row(caption: str, frames: Frames, columns: int, width: int) -> Frames:
    """Draw a caption and, under it, the clip's frames from left to right."""
    moments = np.linspace(0, len(frames) - 1, max(1, min(columns, len(frames)))).round().astype(int)
    cells = [_fit(frames[moment], _SHEET_SIDE) for moment in moments]
    font = ImageFont.load_default(size=15)
    lines = _wrap(printable(caption), font, width - 2 * _GAP)
    caption_height = 20 * len(lines) + _GAP
    height = caption_height + max(cell.height for cell in cells) + 2 * _GAP
    row = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        draw.text((_GAP, _GAP + 20 * number), line, fill=_INK, font=font)
    for number, cell in enumerate(cells):
        row.paste(cell, (_GAP + number * (_SHEET_SIDE + _GAP), caption_height + _GAP))
    return np.asarray(row)


def side_by_side(clips: Sequence[CaptionedClip]) -> Frames:
    """Show clips beside each other, in step, each with its caption under it.

    Args:
        clips: Caption (such as ``"LSL 3.1 s"``) and frames, (T, H, W, 3), uint8; at least one. A
            shorter clip holds its last frame.

    Returns:
        Frames of even height and width, (T of the longest, H', W', 3), uint8.

    Raises:
        FramesError: No clip, or frames of another shape or type.
    """
    _require_clips(clips)
    length = max(len(frames) for _, frames in clips)
    captions = [_caption_strip(caption) for caption, _ in clips]
    return np.stack([_moment(clips, captions, index) for index in range(length)])


def _moment(clips: Sequence[CaptionedClip], captions: Sequence[Image.Image], index: int) -> Frames:
    """Draw all clips at one moment."""
    cells = [_fit(frames[min(index, len(frames) - 1)], _COMPARE_SIDE) for _, frames in clips]
    top = _GAP + max(cell.height for cell in cells)
    width = _GAP + len(clips) * (_COMPARE_SIDE + _GAP)
    height = top + captions[0].height + _GAP
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
    for number, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        left = _GAP + number * (_COMPARE_SIDE + _GAP)
        canvas.paste(cell, (left + (_COMPARE_SIDE - cell.width) // 2, _GAP))
        canvas.paste(caption, (left, top))
    return np.asarray(canvas)


def _caption_strip(caption: str) -> Image.Image:
    """Write a caption in the middle of a strip as wide as a cell, smaller if it must be."""
    text = printable(caption)
    size = 22
    while size > 9 and ImageFont.load_default(size=size).getlength(text) > _COMPARE_SIDE:
        size -= 1
    strip = Image.new("RGB", (_COMPARE_SIDE, 36), _PAPER)
    ImageDraw.Draw(strip).text(
        (_COMPARE_SIDE / 2, 18),
        text,
        fill=_INK,
        font=ImageFont.load_default(size=size),
        anchor="mm",
    )
    return strip


def comparison_video(clips: Sequence[CaptionedClip], path: Path, *, fps: int) -> None:
    """Publish the clips side by side as one mp4.

    Args:
        clips: See ``side_by_side``.
        path: Final name, ending in ``.mp4``; its folder exists.
        fps: Frames per second.

    Raises:
        FramesError: No clip, or frames of another shape or type.
        OutputError: The file can't be written.
    """
    document = {**_DOCUMENT, "comparison": [caption for caption, _ in clips]}
    publish_video(side_by_side(clips), path, fps=fps, document=document)


def animated_webp(frames: Frames, path: Path, *, fps: int, quality: int = 80) -> None:
    """Publish frames as an animated WebP that loops for ever, for pages that show no video.

    Args:
        frames: Pixels, (T, H, W, 3), uint8.
        path: Final name, ending in ``.webp``; its folder exists.
        fps: Frames per second.
        quality: 0 to 100.

    Raises:
        FramesError: Frames of another shape or type.
        OutputError: The file can't be written.
    """
    import imageio.v3 as imageio  # slow to import, and only this function needs it

    require_frames(frames)
    data = imageio.imwrite(
        "<bytes>",
        frames,
        plugin="pillow",
        extension=".webp",
        duration=round(1000 / fps),
        loop=0,
        quality=quality,
        method=6,
    )
    publish(path, bytes(data))


def _require_clips(clips: Sequence[CaptionedClip]) -> None:
    if not clips:
        raise FramesError("there is no clip to show: give at least one")
    for _, frames in clips:
        require_frames(frames)


def _fit(frame: Frames, side: int) -> Image.Image:
    """Fit a frame into a square: enlarged by a whole number, or made smaller, never distorted."""
    image = Image.fromarray(frame)
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _wrap(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int = 3
) -> list[str]:
    """Break text into lines that fit; what doesn't fit into ``most`` lines ends in ``...``."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " ..."]
    return [_clip(line, font, width) for line in lines]


def _clip(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while line and font.getlength(line) > width:
        line = line[: -max(4, len(line) // 20)].rstrip() + "..." if len(line) > 7 else ""
    return line
