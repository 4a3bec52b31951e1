"""Single images as PNG, with the job's document and the ``parameters`` that image tools read."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from flowblend_cli.artifacts import png
from flowblend_cli.artifacts.metadata import (
    COMMENT,
    PARAMETERS,
    Document,
    from_text,
    parameters_text,
    read_comment,
    to_text,
)
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import publish
from flowblend_cli.utils.frames import Frames, require_frames, upscale


def publish_image(frame: Frames, path: Path, *, document: Document, scale: int = 1) -> None:
    """Write one image as PNG and publish it under its final name, complete or not at all.

    Args:
        frame: Pixels at native size, (H, W, 3), uint8.
        path: Final name, ending in ``.png``; its folder exists.
        document: The file's document: JSON-able values, with the key ``flowblend``.
        scale: Whole-number enlargement.

    Raises:
        FramesError: Pixels of another shape or type.
        OutputError: The file can't be written, or what was written doesn't hold what it should.
    """
    publish(path, *encode_image(frame, path.name, document=document, scale=scale))


def encode_image(
    frame: Frames, name: str, *, document: Document, scale: int = 1
) -> tuple[bytes, Callable[[BinaryIO], None]]:
    """Encode an image that is to be published; see ``publish_image``, whose arguments these are.

    Returns:
        The whole file, and the check that it reads back as it should.
    """
    require_frames(frame[None])
    pixels = upscale(frame[None], scale)[0]
    check = functools.partial(check_image, name=name, pixels=pixels, document=document)
    return encode_png(pixels, document), check


def encode_png(pixels: Frames, document: Document | None = None) -> bytes:
    """Encode an image as PNG.

    Args:
        pixels: (H, W, 3), uint8.
        document: Kept as text chunks ``comment`` (JSON) and ``parameters`` (for people); None for
            an image that says nothing about itself.

    Returns:
        The whole file.
    """
    info = PngImagePlugin.PngInfo()
    if document is not None:
        info.add_itxt(COMMENT, to_text(document))
        # UTF-8 can't hold lone surrogates, nor a PNG text NUL.
        parameters = parameters_text(document).encode("utf-8", "replace").decode("utf-8")
        info.add_itxt(PARAMETERS, parameters.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def check_image(file: BinaryIO, *, name: str, pixels: Frames, document: Document) -> None:
    """Raise unless a written image holds every pixel and its document.

    Args:
        file: The written file, open.
        name: Its final name, for the message.
        pixels: The pixels that went into it, (H, W, 3).
        document: The document that it should hold.

    Raises:
        OutputError: Pixels, checksums or the document read back differently.
    """
    intact = png.is_intact(file)
    text = read_comment(file)
    file.seek(0)
    if (
        not intact
        or text is None
        or from_text(text) != from_text(to_text(document))
        or not np.array_equal(np.asarray(Image.open(file)), pixels)
    ):
        raise OutputError(
            f"{name}: reads back differently from what was written, so it wasn't published: check "
            "the disk, then run the same command again"
        )
