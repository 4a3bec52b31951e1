"""Wildcards: ``__name__`` in a prompt stands for every entry of ``wildcards/name.txt``."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from flowblend_cli.recipe.prompts.structured_wildcards import WildcardEntry
from flowblend_cli.recipe.prompts.syntax import (
    NO_VALUES,
    WEIGHT,
    InvalidPrompt,
    Values,
    parse_template,
)
from flowblend_cli.recipe.prompts.template import Alternatives, Template
from flowblend_cli.recipe.prompts.wildcard_files import WildcardFiles
from flowblend_cli.recipe.source.limits import MAX_WILDCARD_DEPTH
from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import closest

_PART = r"(?![\s_.])[\w .,&'+()!*?\[\]-]+(?<!\s)"
_NAME = re.compile(f"{_PART}(?:/{_PART})*")
_LONGEST = 100
_MOST_SHOWN = 5
_Key = str | tuple[str, frozenset[tuple[str, object]]]


class Wildcards:
    """The wildcards of a recipe, each read once.

    Args:
        recipe_dir: The recipe's folder.
        folder: Folder of the files, relative to it.
        variables: Names that entries may have in braces.
    """

    def __init__(self, recipe_dir: Path, folder: str, variables: Collection[str] = ()) -> None:
        self._files = WildcardFiles(recipe_dir, folder)
        self._folder = folder
        self._variables = variables
        self._known: dict[_Key, Alternatives | str] = {}
        self._open: list[str] = []

    @property
    def files(self) -> list[str]:
        """The files that were read, relative to the recipe's folder."""
        return list(self._files.read)

    def find(self, name: str, values: Values = NO_VALUES) -> Alternatives:
        """What a wildcard stands for.

        Args:
            name: What stands between its underscores, such as ``"colour"``, ``"people/job"`` or
                ``"people/*"``.
            values: Values of the variables that its entries may use.

        Raises:
            ValueError: There is no such file, or one that can't be used; names file and line.
        """
        if name in self._open:
            circle = " -> ".join(f"__{each}__" for each in [*self._open, name])
            raise ValueError(f"stands inside itself: {circle}; take one of them out")
        if len(self._open) == MAX_WILDCARD_DEPTH:
            raise ValueError(_too_deep(f"deeper than {MAX_WILDCARD_DEPTH}"))
        key = (name, frozenset(values.items())) if values else name
        if key not in self._known:
            self._open.append(name)
            try:
                self._known[key] = self._read(name, values)
            except ValueError as error:
                self._known[key] = str(error)
            finally:
                self._open.pop()
        found = self._known[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def parse(self, text: str, values: Values = NO_VALUES) -> Template:
        """Read a prompt that may have wildcards.

        Raises:
            InvalidPrompt: See ``parse_template``; also more than ``MAX_WILDCARD_DEPTH`` wildcard
                files that stand inside one another.
        """
        template = parse_template(text, self._variables, self.find, values)
        if template.depth > MAX_WILDCARD_DEPTH:
            raise InvalidPrompt(_too_deep(f"{template.depth} deep"))
        return template

    def _read(self, name: str, values: Values) -> Alternatives:
        if len(name) > _LONGEST or not _NAME.fullmatch(name) or ".." in name:
            raise ValueError(
                f"{shorten(f'__{name}__')} is no wildcard: its name may have up to {_LONGEST} "
                "letters, digits, spaces, - _ . * ? and / for folders; write ____ for a literal __"
            )
        found = self._files.find(name)
        if not found:
            raise ValueError(self._missing(name))
        options: dict[str, tuple[float, Template]] = {}
        problems: list[str] = []
        for entry in found:
            weight = WEIGHT.match(entry.text)
            text = entry.text[weight.end() :] if weight else entry.text
            often = float(weight[1]) if weight else entry.weight
            if text in options or not often:
                continue  # an entry that stands there twice is one entry
            try:
                template = self._parse_entry(entry, text, values)
                options[text] = (often, template)
            except ValueError as error:
                problems.append(str(error))
        if problems or not options:
            empty = f"{name} has entries that all have the weight 0"
            raise ValueError("; ".join(problems[:_MOST_SHOWN]) or empty)
        weights = tuple(often for often, _ in options.values())
        return Alternatives(
            tuple(template for _, template in options.values()),
            tuple(options),
            weights if len(set(weights)) > 1 else (),
        )

    def _parse_entry(self, entry: WildcardEntry, text: str, values: Values) -> Template:
        """Read an entry; its errors and notes name its place."""
        skipped = len(entry.text) - len(text)
        try:
            template = self.parse(text, values)
        except InvalidPrompt as error:
            raise ValueError(f"{entry.place(skipped + error.offset)}: {error}") from error
        if not template.notes:
            return template
        notes = (
            replace(note, place=note.place or f"{entry.place(skipped + note.offset)}: ")
            for note in template.notes
        )
        return Template(template.parts, template.depth, tuple(notes))

    def _missing(self, name: str) -> str:
        there = self._files.names
        meant = closest(name, there)
        if meant:
            hint = f"did you mean __{meant}__?"
        elif there:
            hint = f"there are {', '.join(there[:10])}{'...' if len(there) > 10 else ''}"
        else:
            hint = f"the folder {self._folder!r} has no .txt file"
        file = f"{self._folder}/{name}.txt"
        return f"there is no file {file!r} for __{name}__; {hint}; write ____ for a literal __"


def _too_deep(how: str) -> str:
    return (
        f"nests wildcards {how}, and the limit is {MAX_WILDCARD_DEPTH} inside one another: write "
        "some of them out"
    )
