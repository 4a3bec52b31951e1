"""State of a file under a final name: missing, intact, damaged or foreign.

``inspect_final`` tells it, for runs, reports and ``info``.
"""

from __future__ import annotations

import enum
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.artifacts import png
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import SEAL_KEY, seal_holds

# Two marks of a document of ours, so that one damaged byte can't hide both.
_MARKS = (b'{"flowblend":"', f'"{SEAL_KEY}":"'.encode())
_RECIPE = re.compile(rb'"recipe":("(?:[^"\\]|\\.){0,1000}")')
_MARK_SEARCH_BYTES = 32 * 1024 * 1024


class FileState(enum.Enum):
    """State of the file under a final name."""

    MISSING = "missing"
    INTACT = "intact"
    DAMAGED = "damaged"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Finished:
    """State and document of the file under a final name.

    Args:
        state: Missing, intact, damaged (ours, but cut short or altered), or foreign.
        document: The document, where it can still be read.
        recipe: Name of the recipe that made it, where that can still be read.
    """

    state: FileState
    document: dict[str, Any] | None = None
    recipe: str | None = None


def inspect_final(path: Path) -> Finished:
    """Find out what lies under a final name, by its contents and never by its date.

    Reads the file once and decodes nothing: an mp4 by its own checksum, a PNG by its CRCs.

    Args:
        path: A final name. A link or a folder there is foreign.

    Returns:
        What was found; the caller compares the document's job key.

    Raises:
        OutputError: The file can't be read.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Finished(FileState.MISSING)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        return Finished(FileState.FOREIGN)
    document = read_document(path)
    try:
        if document is None:
            return _inspect_without_document(path)
        intact = _is_intact(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    recipe = document["job"].get("recipe") if isinstance(document.get("job"), dict) else None
    state = FileState.INTACT if intact else FileState.DAMAGED
    return Finished(state, document, recipe if isinstance(recipe, str) else None)


def _unreadable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: can't be read ({error.strerror or error}), so it's unknown whether its job is "
        "done: give the file's owner back the right to read it, or move it away"
    )


def _is_intact(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(len(png.SIGNATURE)) == png.SIGNATURE:
            return png.is_intact(file)
    return seal_holds(path.read_bytes())


def _inspect_without_document(path: Path) -> Finished:
    """Tell a damaged file of ours from a stranger's by what is left of its document."""
    with path.open("rb") as file:
        data = file.read(_MARK_SEARCH_BYTES)
    if not any(mark in data for mark in _MARKS):
        return Finished(FileState.FOREIGN)
    found = _RECIPE.search(data)
    try:
        recipe = json.loads(found[1]) if found else None
    except ValueError:
        recipe = None
    return Finished(FileState.DAMAGED, None, recipe)
