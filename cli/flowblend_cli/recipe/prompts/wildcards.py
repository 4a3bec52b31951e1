"""Wildcard files: ``__name__`` in a prompt stands for every line of ``wildcards/name.txt``."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection
from pathlib import Path

from flowblend_cli.recipe.prompts.template import Alternatives, Template, parse_template
from flowblend_cli.recipe.source.limits import MAX_WILDCARD_DEPTH
from flowblend_cli.recipe.source.text_files import entries, locate, read_lines
from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import closest

_NAME = re.compile(r"[^\W_][\w.-]*(?:/[^\W_][\w.-]*)*")
_LONGEST = 100
_MOST_SHOWN = 5
_MOST_LISTED = 1000


class Wildcards:
    """The wildcard files of a recipe, each read once.

    Args:
        recipe_dir: The recipe's folder.
        folder: Folder of the files, relative to it.
        variables: Names that entries may have in braces.
    """

    def __init__(self, recipe_dir: Path, folder: str, variables: Collection[str] = ()) -> None:
        self._recipe_dir = recipe_dir
        self._folder = folder
        self._variables = variables
        self._known: dict[str, Alternatives | str] = {}
        self._open: list[str] = []
        self.files: list[str] = []
        """The files that were read, relative to the recipe's folder."""

    def find(self, name: str) -> Alternatives:
        """What a wildcard stands for.

        Args:
            name: What stands between its underscores, such as ``"colour"`` or ``"people/job"``.

        Raises:
            ValueError: There is no such file, or one that can't be used; names file and line.
        """
        if name in self._open:
            circle = " -> ".join(f"__{each}__" for each in [*self._open, name])
            raise ValueError(f"stands inside itself: {circle}; take one of them out")
        if len(self._open) == MAX_WILDCARD_DEPTH:
            raise ValueError(_too_deep(f"deeper than {MAX_WILDCARD_DEPTH}"))
        if name not in self._known:
            self._open.append(name)
            try:
                self._known[name] = self._read(name)
            except ValueError as error:
                self._known[name] = str(error)
            finally:
                self._open.pop()
        found = self._known[name]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def parse(self, text: str) -> Template:
        """Read a prompt that may have wildcards.

        Raises:
            ValueError: See ``parse_template``; also more than ``MAX_WILDCARD_DEPTH`` wildcard files
                that stand inside one another.
        """
        template = parse_template(text, self._variables, self.find)
        if template.depth > MAX_WILDCARD_DEPTH:
            raise ValueError(_too_deep(f"{template.depth} deep"))
        return template

    def _read(self, name: str) -> Alternatives:
        if len(name) > _LONGEST or not _NAME.fullmatch(name) or ".." in name:
            raise ValueError(
                f"{shorten(f'__{name}__')} is no wildcard: its name may have up to {_LONGEST} "
                "letters, digits, - _ . and / for folders; write ____ for a literal __"
            )
        file = f"{self._folder}/{name}.txt"
        if not locate(file, self._recipe_dir).exists():
            raise ValueError(self._missing(name, file))
        lines = entries(read_lines(file, self._recipe_dir))
        self.files.append(file)
        if not lines:
            raise ValueError(f"{file} has no entry: write one a line")
        options: dict[str, Template] = {}
        problems = []
        for number, line in lines:
            if line in options:
                continue  # an entry that stands there twice is one entry
            try:
                options[line] = self.parse(line)
            except ValueError as error:
                problems.append(f"{file}:{number}: {error}")
        if problems:
            raise ValueError("; ".join(problems[:_MOST_SHOWN]))
        return Alternatives(tuple(options.values()), tuple(options))

    def _missing(self, name: str, file: str) -> str:
        there = self._names()
        meant = closest(name, there)
        if meant:
            hint = f"did you mean __{meant}__?"
        elif there:
            hint = f"there are {', '.join(there[:10])}{'...' if len(there) > 10 else ''}"
        else:
            hint = f"the folder {self._folder!r} has no .txt file"
        return f"there is no file {file!r} for __{name}__; {hint}; write ____ for a literal __"

    def _names(self) -> list[str]:
        """The names of the wildcards that there are, at most a thousand or so."""
        names: list[str] = []
        root = self._recipe_dir / self._folder
        for folder, _, files in itertools.islice(os.walk(root), _MOST_LISTED):
            where = Path(folder).relative_to(root)
            names += [(where / f).as_posix()[:-4] for f in files if f.endswith(".txt")]
            if len(names) > _MOST_LISTED:
                break
        return sorted(names)


def _too_deep(how: str) -> str:
    return (
        f"nests wildcards {how}, and the limit is {MAX_WILDCARD_DEPTH} inside one another: write "
        "some of them out"
    )
