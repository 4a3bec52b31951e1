"""RecipeSource: a recipe as one document, with the file and line of every value."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.recipe.source.file import RecipeFile, read_file
from flowblend_cli.recipe.source.includes import Origin, merge_files, read_included
from flowblend_cli.recipe.source.limits import MAX_PROBLEMS
from flowblend_cli.recipe.source.problems import Entry, Problems
from flowblend_cli.utils.toml_positions import START, KeyPath, format_path


@dataclass(eq=False)
class RecipeSource:
    """One recipe as read: its document, and the positions that messages about it name.

    Args:
        file: The recipe's own file.
        included: The files that it includes, directly and through others, in the order of merging.
        document: The parsed document, merged of all files; ``--set`` edits it.
        origins: The file that a path of the document comes from, and its path there. Paths
            below are the same; what isn't listed comes from the recipe itself.
        options: Paths that ``--set`` gave a value, with the option as it was typed.
    """

    file: RecipeFile
    included: tuple[RecipeFile, ...]
    document: dict[str, Any]
    origins: dict[KeyPath, Origin]
    options: dict[KeyPath, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The recipe's own file."""
        return self.file.path

    @property
    def text(self) -> str:
        """The recipe's text, and that of all that it includes, each under its name."""
        folder = self.path.parent
        return self.file.text + "".join(
            f"\n# included: {file.path.relative_to(folder).as_posix()}\n\n{file.text}"
            for file in self.included
        )

    def origin(self, path: KeyPath) -> Origin:
        """The file that a path of the document comes from, and its path there."""
        for end in range(len(path), 0, -1):
            found = self.origins.get(path[:end])
            if found is not None:
                return found[0], found[1] + path[end:]
        return self.file, path

    def place(self, path: KeyPath, seen_from: KeyPath) -> str:
        """Where a value stands, for a message about another one: ``"line 3"``, or with its file."""
        file, inner = self.origin(path)
        line = file.position(inner).line
        return f"line {line}" if file is self.origin(seen_from)[0] else f"{file.path}:{line}"

    def fail(
        self, problems: Problems, others: Iterable[Problem] = (), warnings: Iterable[str] = ()
    ) -> None:
        """Raise one error with every problem, if there is any; of very many, the first ones.

        Args:
            problems: What the checks found.
            others: What has its place already.
            warnings: What is to be told beside them.

        Raises:
            RecipeError: There is at least one problem.
        """
        shown = [*others]
        shown += [self.shown(entry) for entry in itertools.islice(problems, MAX_PROBLEMS)]
        if len(problems) > MAX_PROBLEMS:
            message = f"has more than {MAX_PROBLEMS} problems, of which these are some"
            shown.append(Problem(str(self.path), None, None, "", message))
        if shown:
            codes = {entry.exit_code for entry in problems}
            if others or len(codes) > 1:
                codes = {RecipeError.exit_code}
            raise RecipeError(shown, codes.pop(), warnings)

    def shown(self, entry: Entry) -> Problem:
        """A problem as people read it: file, line, column, key, message."""
        file, path = self.origin(entry.path)
        location = format_path(entry.path)
        options = self._options_of(entry)
        at = entry.at
        if options:
            location = f"{' '.join(f'--set {option}' for option in options)}: {location}"
            at = "key" if at == "key" else "value"
        return Problem(str(file.path), *file.position(path, at), location, entry.message)

    def _options_of(self, entry: Entry) -> list[str]:
        """The ``--set`` options that a problem comes from."""
        path = entry.path
        file, inner = self.origin(path)
        is_missing_table = len(path) == 1 and inner not in file.positions.values
        for end in range(len(path), 0, -1):
            if path[:end] in self.options:
                return [self.options[path[:end]]]
        return [
            option
            for written, option in self.options.items()
            if written[0] in entry.related or (is_missing_table and written[0] == path[0])
        ]


def read_source(path: Path) -> RecipeSource:
    """Read a recipe and what it includes.

    Args:
        path: The file.

    Returns:
        Its source, with the nested keys of [sweep] and [matrix] joined to dotted ones.

    Raises:
        RecipeError: A file can't be read, is too large, no UTF-8, no TOML, or nested too deep;
            or an include leads nowhere, out of the recipe's folder, or in a circle.
    """
    file = read_file(path, path)
    if not file.text.strip():
        message = "the recipe is empty: start one with flowblend init"
        raise RecipeError([Problem(str(path), *START, "", message)])
    if "include" not in file.document:
        return RecipeSource(file, (), file.document, {})
    files = read_included(file, path.absolute().parent)
    document, origins = merge_files(files)
    included = tuple(each.file for each in files[:-1])
    return RecipeSource(file, included, document, origins)
