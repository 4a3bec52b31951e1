"""A recipe's text, the document in it, and where everything in the document stands."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.recipe.positions import (
    MAX_DEPTH,
    START,
    KeyPath,
    Position,
    Positions,
    check_nesting,
    format_path,
    scan,
)
from flowblend_cli.recipe.validation import Fault

MAX_RECIPE_BYTES = 4 * 1024 * 1024
SWEEPS = ("sweep", "matrix")


class RecipeSource:
    """One recipe as read: its document, and positions for messages about it.

    Args:
        path: The file, as it was named.
        text: Its text, with ``\\n`` line ends.
        document: The parsed document; ``--set`` edits it.
    """

    def __init__(self, path: Path, text: str, document: dict[str, Any]) -> None:
        self.path = path
        self.text = text
        self.document = document
        # Paths that --set gave a value, with the option as it was typed.
        self.options: dict[KeyPath, str] = {}
        # Paths that were renamed when dotted keys were joined, with their path in the text.
        self.renamed: dict[KeyPath, KeyPath] = {}

    @cached_property
    def positions(self) -> Positions:
        """Where keys and values stand; only ever computed for a message."""
        return scan(self.text)

    def problem(self, fault: Fault) -> Problem:
        """Turn a fault into a line for people: file, line, column, key, message."""
        position = self.position(fault)
        location = format_path(fault.path)
        options = self._options_of(fault)
        if options:
            location = f"{' '.join(f'--set {option}' for option in options)}: {location}"
        line, column = position.line, position.column
        return Problem(str(self.path), line, column, location, fault.message)

    def position(self, fault: Fault) -> Position:
        """Where a fault stands in the text."""
        path = self._path_in_text(fault.path)
        return self.positions.key(path) if fault.at == "key" else self.positions.value(path)

    def fail(self, faults: Iterable[Fault]) -> None:
        """Raise one error with every fault, if there is any.

        Raises:
            RecipeError: There is at least one fault.
        """
        problems = [self.problem(fault) for fault in faults]
        if problems:
            raise RecipeError(problems)

    def _options_of(self, fault: Fault) -> list[str]:
        """The ``--set`` options that a fault comes from."""
        path = fault.path
        for end in range(len(path), 0, -1):
            if path[:end] in self.options:
                return [self.options[path[:end]]]
        return [
            option
            for written, option in self.options.items()
            if written[0] in fault.related
            or (len(path) == 1 and written[0] == path[0] and path not in self.positions.values)
        ]

    def _path_in_text(self, path: KeyPath) -> KeyPath:
        for end in range(len(path), 0, -1):
            if path[:end] in self.renamed:
                return self.renamed[path[:end]] + path[end:]
        return path


def read_source(path: Path) -> RecipeSource:
    """Read and parse a recipe.

    Args:
        path: The file.

    Returns:
        Its source, with the nested keys of [sweep] and [matrix] joined to dotted ones.

    Raises:
        RecipeError: The file can't be read, is too large, no UTF-8, no TOML, or nested too deep.
    """
    text = _decode(path, _read(path))
    if not text.strip():
        raise _error(path, START, "the recipe is empty: start one with flowblend init")
    too_deep = check_nesting(text)
    if too_deep is not None:
        raise _error(path, too_deep, f"nested deeper than the limit of {MAX_DEPTH} levels")
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        position = Position(error.lineno, error.colno)
        raise _error(path, position, f"not valid TOML: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise _error(path, START, f"not valid TOML: {error}") from error
    source = RecipeSource(path, text, document)
    for table in SWEEPS:
        _join_sweep_keys(source, table)
    return source


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError as error:
        message = "no such recipe; flowblend recipes ls lists the bundled ones"
        raise _error(path, None, message) from error
    except IsADirectoryError as error:
        raise _error(path, None, "is a folder: name a recipe, a .toml file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _error(path, None, f"can't be read: {reason}") from error
    if len(data) > MAX_RECIPE_BYTES:
        limit = MAX_RECIPE_BYTES // 1024 // 1024
        raise _error(path, START, f"larger than the limit of {limit} MiB for a recipe")
    return data


def _decode(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line = before.count("\n") + 1
        position = Position(line, len(before) - (before.rfind("\n") + 1) + 1)
        raise _error(path, position, "not UTF-8 text: save the recipe as UTF-8") from error
    return text.replace("\r\n", "\n")


def _join_sweep_keys(source: RecipeSource, table: str) -> None:
    """Write ``[sweep] blend.stages`` and ``[sweep.blend] stages`` as ``"blend.stages"``."""
    sweep = source.document.get(table)
    if not isinstance(sweep, dict):
        return
    joined: dict[str, Any] = {}
    for key, value in sweep.items():
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for inner, item in entries:
            path = (table, key) if inner is None else (table, key, inner)
            name = sweep_name(key if inner is None else f"{key}.{inner}")
            if name in joined:
                fault = Fault(path, f"sweeps {name} twice: keep one of them", at="key")
                raise RecipeError([source.problem(fault)])
            joined[name] = item
            source.renamed[table, name] = path
    source.document[table] = joined


def sweep_name(key: str) -> str:
    """The one name of an axis: a bare key is a key of [defaults]."""
    return key.removeprefix("defaults.")


def _error(path: Path, position: Position | None, message: str) -> RecipeError:
    line, column = (position.line, position.column) if position else (None, None)
    return RecipeError([Problem(str(path), line, column, "", message)])
