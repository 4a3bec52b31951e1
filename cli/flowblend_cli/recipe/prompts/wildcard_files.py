"""Wildcard files: the text, YAML and JSON files of a folder, and the names that they have."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from flowblend_cli.recipe.prompts.structured_wildcards import WildcardEntry, read_lists
from flowblend_cli.recipe.source.limits import MAX_STRUCTURED_BYTES, MAX_TEXT_LINES
from flowblend_cli.recipe.source.text_files import entries, locate, read_lines

_STRUCTURED = (".yaml", ".yml", ".json")
_GLOB = frozenset("*?[")
_MOST_FOLDERS = 10_000


class WildcardFiles:
    """The wildcard files below one folder, each read once.

    Args:
        recipe_dir: The recipe's folder.
        folder: Folder of the files, relative to it.
    """

    def __init__(self, recipe_dir: Path, folder: str) -> None:
        self._recipe_dir = recipe_dir
        self._folder = folder
        self._known: dict[str, str | list[WildcardEntry]] | None = None
        self._unread: list[str] = []
        self.read: dict[str, None] = {}
        """The files that were read, relative to the recipe's folder."""

    def find(self, name: str) -> list[WildcardEntry]:
        """The entries of a name, or of every name that a pattern fits; none where there is none.

        A name that isn't there is looked for in the folders below.

        Raises:
            ValueError: A file can't be read, leads out of the folder, or has no entry.
        """
        file, is_pattern = f"{self._folder}/{name}.txt", not _GLOB.isdisjoint(name)
        if not is_pattern and locate(file, self._recipe_dir).exists():
            return self._read_text(file)
        known = self._names()
        names = [each for each in known if each == name or (is_pattern and fnmatchcase(each, name))]
        if not names and not name.startswith("**"):
            names = [each for each in known if fnmatchcase(each, f"**/{name}")]
        if self._unread and (is_pattern or not names):
            raise ValueError("; ".join(self._unread))
        found: list[WildcardEntry] = []
        for each in names:
            entry = known[each]
            if isinstance(entry, str):
                found += self._read_text(entry)
            else:
                self.read[entry[0].file] = None
                found += entry
            if len(found) > MAX_TEXT_LINES:
                limit = f"the limit of {MAX_TEXT_LINES:,}"
                raise ValueError(f"__{name}__ has more entries than {limit}: name fewer files")
        return found

    @property
    def names(self) -> list[str]:
        """The names that there are."""
        return list(self._names())

    def _read_text(self, file: str) -> list[WildcardEntry]:
        lines = entries(read_lines(file, self._recipe_dir))
        self.read[file] = None
        if not lines:
            raise ValueError(f"{file} has no entry: write one a line")
        return [WildcardEntry(file, text, 1.0, line, column) for line, column, text in lines]

    def _names(self) -> dict[str, str | list[WildcardEntry]]:
        """Every name: its text file, or the list that a YAML or JSON file has under it."""
        if self._known is not None:
            return self._known
        found: dict[str, str | list[WildcardEntry]] = {}
        root = self._recipe_dir / self._folder
        for number, (folder, _, files) in enumerate(os.walk(root)):
            if number == _MOST_FOLDERS:
                raise ValueError(f"{self._folder!r} has more than {_MOST_FOLDERS:,} folders")
            within = Path(folder).relative_to(root)
            for file in sorted(files, reverse=True):  # so that a text file comes before others
                name, suffix = os.path.splitext((within / file).as_posix())
                if suffix == ".txt":
                    found[name] = f"{self._folder}/{name}.txt"
                elif suffix in _STRUCTURED:
                    for key, texts in self._read_structured(name, suffix).items():
                        found.setdefault((within / key).as_posix(), texts)
        self._known = dict(sorted(found.items()))
        return self._known

    def _read_structured(self, name: str, suffix: str) -> dict[str, list[WildcardEntry]]:
        """The lists of a file; of one that can't be read, why is kept."""
        file = f"{self._folder}/{name}{suffix}"
        try:
            path = locate(file, self._recipe_dir)
            if path.is_file() and path.stat().st_size > MAX_STRUCTURED_BYTES:
                limit = MAX_STRUCTURED_BYTES // 1024
                raise ValueError(f"{file} is larger than the limit of {limit} KiB: split it")
            text = "\n".join(read_lines(file, self._recipe_dir))
            is_json = suffix == ".json"
            return read_lists(text, file, is_json=is_json, name=Path(name).name)
        except ValueError as error:
            self._unread.append(str(error))
            return {}
