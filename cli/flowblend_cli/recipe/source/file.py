"""RecipeFile: one file of a recipe, its text, the document in it, and the place of every value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.recipe.source.limits import MAX_RECIPE_BYTES, MAX_VALUES, MIB
from flowblend_cli.utils.toml_positions import (
    START,
    TOO_DEEP,
    InvalidToml,
    KeyPath,
    Position,
    Positions,
    format_path,
    measure,
    parse_toml,
    scan,
)

# Tables whose keys name axes.
SWEEPS = ("sweep", "matrix")


@dataclass(frozen=True, eq=False)
class RecipeFile:
    """A recipe, or a file that one includes, as read.

    Args:
        path: The file, as messages name it.
        text: Its text, with ``\\n`` line ends.
        size: Its bytes.
        document: The parsed document, its [sweep] and [matrix] with dotted keys.
        renamed: Paths that were renamed when keys were joined, with their path in the text.
    """

    path: Path
    text: str
    size: int
    document: dict[str, Any]
    renamed: dict[KeyPath, KeyPath]

    @cached_property
    def positions(self) -> Positions:
        """Where keys and values stand; only ever computed for a message."""
        return scan(self.text)

    def position(self, path: KeyPath, at: Literal["key", "value"] | int = "value") -> Position:
        """Where a path of the document stands, or the nearest table around it.

        Args:
            path: The path.
            at: Its key or its value; of a text, the offset of a character.
        """
        for end in range(len(path), 0, -1):
            if path[:end] in self.renamed:
                path = self.renamed[path[:end]] + path[end:]
                break
        if isinstance(at, int) and at:
            return self.positions.inside(path, at)
        return self.positions.key(path) if at == "key" else self.positions.value(path)

    def problem(
        self, path: KeyPath, message: str, at: Literal["key", "value"] = "value"
    ) -> Problem:
        """What is wrong at a path of the document, with its line and column."""
        where = self.position(path, at)
        return Problem(str(self.path), *where, format_path(path), message)


def read_file(path: Path, shown: Path, limit: int = MAX_RECIPE_BYTES) -> RecipeFile:
    """Read and parse one file.

    Args:
        path: The file.
        shown: How messages name it.
        limit: Bytes that it may have; no more are read.

    Raises:
        RecipeError: The file can't be read, is too large, no UTF-8, no TOML, or nested too deep.
    """
    data = _read(path, shown, limit)
    try:
        text, document = parse_toml(data)
    except InvalidToml as error:
        raise _error(shown, error.position, error.message) from error
    values, deep_path = measure(document)
    if values > MAX_VALUES:
        message = f"has {values:,} keys and entries of lists, more than the limit of {MAX_VALUES:,}"
        raise _error(shown, START, message)
    if deep_path is not None:
        raise _error(shown, scan(text).value(deep_path), TOO_DEEP)
    renamed: dict[KeyPath, KeyPath] = {}
    file = RecipeFile(shown, text, len(data), document, renamed)
    for table in SWEEPS:
        _join_sweep_keys(file, table)
    return file


def _read(path: Path, shown: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        message = "no such recipe; flowblend recipes ls lists the bundled ones"
        raise _error(shown, None, message) from error
    except IsADirectoryError as error:
        raise _error(shown, None, "is a folder: name a recipe, a .toml file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _error(shown, None, f"can't be read: {reason}") from error
    if len(data) > limit:
        message = f"larger than the limit of {MAX_RECIPE_BYTES // MIB} MiB for a recipe"
        if limit < MAX_RECIPE_BYTES:
            message += " with all that it includes"
        raise _error(shown, START, message)
    return data


def _join_sweep_keys(file: RecipeFile, table: str) -> None:
    """Write ``[sweep] blend.stages`` and ``[sweep.blend] stages`` as ``"blend.stages"``."""
    sweep = file.document.get(table)
    if not isinstance(sweep, dict):
        return
    joined: dict[str, Any] = {}
    for key, value in sweep.items():
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for inner, item in entries:
            path = (table, key) if inner is None else (table, key, inner)
            name = sweep_name(key if inner is None else f"{key}.{inner}")
            if name in joined:
                message = f"sweeps {name} twice: keep one of them"
                raise RecipeError([file.problem(path, message, "key")])
            joined[name] = item
            file.renamed[table, name] = path
    file.document[table] = joined


def sweep_name(key: str) -> str:
    """The one name of an axis: a bare key is a key of [defaults]."""
    return key.removeprefix("defaults.")


def _error(shown: Path, position: Position | None, message: str) -> RecipeError:
    place: tuple[int | None, int | None] = position or (None, None)
    return RecipeError([Problem(str(shown), *place, "", message)])
