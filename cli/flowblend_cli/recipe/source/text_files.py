"""Text files beside a recipe, for prompts and wildcards: found in its folder, read with limits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from flowblend_cli.recipe.source.limits import MAX_TEXT_BYTES, MAX_TEXT_LINES, MIB
from flowblend_cli.text import shorten
from flowblend_cli.utils.files import UnsafeName, resolve_inside

_MAX_SHOWN = 200  # characters of a name
_REFUSED = {
    "characters": "is empty or holds control characters: rename the file",
    "address": "is an address, and nothing is ever fetched: name a file",
    "outside": "isn't inside the recipe's folder {folder}: copy the file there, and name it "
    "without .. or links that lead out",
    "lookup": "can't be looked up: {reason}",
}


def read_lines(name: str, recipe_dir: Path) -> list[str]:
    """Read a text file line by line.

    Args:
        name: As the recipe writes it: a path below ``recipe_dir``.
        recipe_dir: The recipe's folder.

    Returns:
        The lines without their ends.

    Raises:
        ValueError: The name leads out of the folder, or to no UTF-8 text within the limits.
    """
    path = locate(name, recipe_dir)
    if not path.is_file():
        found = "is no file" if path.exists() else "doesn't exist"
        raise ValueError(f"{name!r} {found}: expected a text file at {path}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} can't be read: {error.strerror}") from error
    if len(data) > MAX_TEXT_BYTES:
        limit = MAX_TEXT_BYTES // MIB
        raise ValueError(f"{name} is larger than the limit of {limit} MiB: split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}:{line}: not UTF-8 text: save the file as UTF-8") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if len(lines) > MAX_TEXT_LINES + 1:
        raise ValueError(f"{name} has more lines than the limit of {MAX_TEXT_LINES:,}: split it")
    return lines


class Entry(NamedTuple):
    """A line that says something.

    Args:
        line: Its number, from 1.
        column: The column of its first character that isn't space, from 1.
        text: The line without the space around it.
    """

    line: int
    column: int
    text: str


def entries(lines: list[str]) -> list[Entry]:
    """The lines that aren't blank or ``#`` comments."""
    found = (
        Entry(number, len(line) - len(line.lstrip()) + 1, line.strip())
        for number, line in enumerate(lines, 1)
    )
    return [entry for entry in found if entry.text and not entry.text.startswith("#")]


def locate(name: str, recipe_dir: Path) -> Path:
    """Tell where a name leads to, links followed; nothing need be there.

    Args:
        name: As the recipe writes it.
        recipe_dir: The recipe's folder.

    Raises:
        ValueError: It leads out of the recipe's folder, or can't be looked up.
    """
    try:
        return resolve_inside(name, recipe_dir)
    except UnsafeName as error:
        problem = _REFUSED[error.kind].format(folder=recipe_dir, reason=error.reason)
        raise ValueError(f"{shorten(repr(name), _MAX_SHOWN)} {problem}") from error
