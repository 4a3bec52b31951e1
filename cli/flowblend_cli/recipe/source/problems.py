"""Problems: the collector to which every check of a recipe reports, for the loader and expansion.

A check calls ``problems.add(path, message)`` and goes on, so that people see everything that is
wrong at once. ``RecipeSource.fail`` turns what was collected into one error with lines and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from flowblend_cli.errors import RecipeError
from flowblend_cli.utils.toml_positions import KeyPath


class Entry(NamedTuple):
    """One thing that is wrong at one path of a document; see ``Problems.add``."""

    path: KeyPath
    message: str
    at: Literal["key", "value"] | int = "value"
    related: tuple[str, ...] = ()
    exit_code: int = RecipeError.exit_code


class Problems:
    """Everything that is wrong with a recipe, each problem once, in the order of finding.

    True if there is any.
    """

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}

    def add(
        self,
        path: KeyPath,
        message: str,
        at: Literal["key", "value"] | int = "value",
        related: tuple[str, ...] = (),
        exit_code: int = RecipeError.exit_code,
    ) -> None:
        """Add one problem.

        Args:
            path: Keys and indices from the top of the document.
            message: What was found, what was expected, what to do.
            at: Whether the key or its value is to blame; of a text, the offset of a character.
            related: Tables whose values take part as well, so that ``--set`` there is named.
            exit_code: What a command ends with where nothing else is wrong.
        """
        self._entries[Entry(path, message, at, related, exit_code)] = None

    def extend(self, others: Problems) -> None:
        """Add the problems of another collector."""
        self._entries |= others._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)
