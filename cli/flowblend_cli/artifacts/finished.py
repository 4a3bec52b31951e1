"""State of a file under a final name: missing, intact, edited, damaged or foreign.

``inspect_final`` tells it, for runs, reports and ``info``.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flowblend_cli.artifacts import png
from flowblend_cli.artifacts.metadata import document_of, format_of
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import SEAL_KEY, open_regular, seal_holds
from flowblend_cli.utils.limits import MAX_FINISHED_BYTES

# Two marks of a document of ours, so that one damaged byte can't hide both.
_MARKS = (b'{"flowblend":"', f'"{SEAL_KEY}":"'.encode())
_RECIPE = re.compile(rb'"recipe":("(?:[^"\\]|\\.){0,1000}")')
_MARK_SEARCH_BYTES = 32 * 1024 * 1024
_NOT_A_FILE = {errno.EINVAL, errno.ELOOP, errno.ENXIO}


class FileState(enum.Enum):
    """State of the file under a final name."""

    MISSING = "missing"
    INTACT = "intact"
    EDITED = "edited"
    DAMAGED = "damaged"
    FOREIGN = "foreign"


# How files of formats begin that nothing is rendered in, and that a user may have converted to.
_START_BYTES = 400
_OTHER_FORMATS = (
    rb"RIFF....(AVI |WEBP)", rb"FLV\x01", rb"OggS", rb"nut/multimedia", rb"\xff\xd8\xff",
    rb"GIF8[79]a", rb"BM....\0\0\0\0", rb"II\*\0|MM\0\*", rb"\0\0\x01\xba", rb"\x06\x0e\x2b\x34",
    rb"....(moov|mdat|wide|free)", rb"\x30\x26\xb2\x75\x8e\x66", rb"(.{4})?G.{187}(.{4})?G",
    rb"\xff\x0a|\0\0\0\x0cJXL ",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """State and document of the file under a final name.

    Args:
        state: Missing; intact; edited (ours, and whole, but not what was rendered any more);
            damaged (ours, and can't be decoded); or foreign.
        document: The document, where it can still be read.
        recipe: Name of the recipe that made it, where that can still be read.
        change: What an edited file has changed, in words that follow "it".
    """

    state: FileState
    document: dict[str, Any] | None = None
    recipe: str | None = None
    change: str = ""


def inspect_final(path: Path, *, follow: bool = False) -> Finished:
    """Find out what lies under a final name, by its contents and never by its date.

    A picture's pixels are compared with their hash in its record, and a clip's bytes with its own
    checksum. A clip whose checksum doesn't hold is decoded, to tell an edited one from a damaged
    one.

    Args:
        path: A final name. A link or a folder there is foreign.
        follow: Follow a link that somebody named.

    Returns:
        What was found; the caller compares the document's job key.

    Raises:
        OutputError: The file can't be read.
    """
    try:
        with open_regular(path, sys.maxsize, follow=follow) as file:
            return inspect_open(file, os.fstat(file.fileno()).st_size)
    except (FileNotFoundError, NotADirectoryError):
        return Finished(FileState.MISSING)
    except OutputError:
        raise
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            return Finished(FileState.FOREIGN)
        raise OutputError(
            f"{path}: can't be read ({error.strerror or error}), so it's unknown whether its job "
            "is done: give the file's owner back the right to read it, or move it away"
        ) from error


def shows_the_same(path: Path, other: Path) -> bool:
    """Whether two files decode to the same frames, whatever else they hold."""
    from flowblend_cli.artifacts.reading import Undecodable, shown_sha256

    try:
        found = []
        for one in (path, other):
            with open_regular(one, MAX_FINISHED_BYTES, follow=True) as file:
                found.append(shown_sha256(file, format_of(file)))
        return found[0] == found[1]
    except (OSError, Undecodable):
        return False


def inspect_open(file: BinaryIO, size: int) -> Finished:
    """Find out what an open file of so many bytes is, see ``inspect_final``."""
    document = document_of(file)
    if document is None:
        file.seek(0)
        start = file.read(_MARK_SEARCH_BYTES)
        if not any(mark in start for mark in _MARKS):
            return Finished(FileState.FOREIGN)
        recipe = _recipe_in(start)
    else:
        job = document.get("job")
        recipe = job.get("recipe") if isinstance(job, dict) else None
    state, change = _state(file, size, document)
    return Finished(state, document, recipe if isinstance(recipe, str) else None, change)


def _state(file: BinaryIO, size: int, document: dict[str, Any] | None) -> tuple[FileState, str]:
    if size > MAX_FINISHED_BYTES:
        return FileState.EDITED, "is larger than anything that is rendered, and isn't looked into"
    kind = format_of(file)
    if kind != "png" and document is not None and seal_holds(file):
        return FileState.INTACT, ""
    from flowblend_cli.artifacts.reading import TooLarge, Undecodable

    try:
        change = (
            _change_of_picture(file, document) if kind == "png" else _change_of_clip(file, kind)
        )
    except TooLarge as error:
        return FileState.EDITED, f"has too many pixels to be looked into ({error})"
    except Undecodable:
        return FileState.DAMAGED, ""
    return (FileState.EDITED, change) if change else (FileState.INTACT, "")


def _change_of_picture(file: BinaryIO, document: dict[str, Any] | None) -> str:
    """What isn't as it was rendered in a PNG that can be decoded; empty for nothing."""
    from flowblend_cli.artifacts.reading import Undecodable, decode_picture

    end = png.end_of(file)
    if end is None:
        raise Undecodable("its chunks don't hold what they say")
    pixels = decode_picture(file)
    if document is None:
        return "holds no record any more that can be read"
    file.seek(end)
    if file.read(1):
        return "was altered since it was rendered, behind its end"
    digest = document.get("pixels_sha256")
    is_same = digest is None or _native_sha256(pixels, _scale(document)) == digest
    return "" if is_same else "has pixels that differ from its record"


def _change_of_clip(file: BinaryIO, kind: str | None) -> str:
    from flowblend_cli.artifacts.reading import Undecodable, require_decodable

    if kind is None:
        file.seek(0)
        start = file.read(_START_BYTES)
        if any(re.match(pattern, start, re.DOTALL) for pattern in _OTHER_FORMATS):
            return "was converted to another format since it was rendered"
        raise Undecodable("it doesn't begin like a clip")
    require_decodable(file, kind)
    return "was altered since it was rendered"


def _native_sha256(pixels: Any, scale: int) -> str | None:
    """Hash of a picture before its enlargement; None where it can't have been enlarged so."""
    import numpy as np

    from flowblend_cli.utils.frames import pixels_sha256, upscale

    if any(side % scale for side in pixels.shape[:2]):
        return None
    native = pixels[None, ::scale, ::scale]
    return pixels_sha256(native) if np.array_equal(upscale(native, scale)[0], pixels) else None


def _scale(document: dict[str, Any]) -> int:
    """The enlargement that a document says; 1 where it says none."""
    found: Any = document.get("job")
    for name in ("output", "scale"):
        found = found.get(name) if isinstance(found, dict) else None
    return max(found, 1) if type(found) is int else 1


def _recipe_in(start: bytes) -> object:
    found = _RECIPE.search(start)
    try:
        return json.loads(found[1]) if found else None
    except ValueError:
        return None
