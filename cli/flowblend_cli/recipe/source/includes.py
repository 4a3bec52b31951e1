"""Includes: ``include = ["base.toml"]``, the files of which the loader merges a recipe.

A file is merged over what it includes: tables key by key, and scenes by their names. Everything
else, lists too, is replaced as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.recipe.source.file import RecipeFile, read_file
from flowblend_cli.recipe.source.limits import MAX_INCLUDE_DEPTH, MAX_INCLUDED, MAX_RECIPE_BYTES
from flowblend_cli.text import shorten
from flowblend_cli.utils.files import UnsafeName, resolve_inside
from flowblend_cli.utils.suggestions import closest
from flowblend_cli.utils.toml_positions import KeyPath

KEY = "include"
Origin = tuple[RecipeFile, KeyPath]
_REFUSED = {
    "characters": "must be a file's name without control characters, got {name!r}",
    "address": "{name!r} is an address, and nothing is ever fetched: save the file beside the "
    "recipe",
    "outside": "{name!r} isn't inside the recipe's folder {folder}: copy it there, and name it "
    'like "base.toml" or "parts/base.toml"',
    "lookup": "{name!r} can't be looked up: {reason}",
}


@dataclass(frozen=True, eq=False)
class IncludedFile:
    """One file of a recipe, and all files below it.

    Args:
        file: The file.
        below: What it includes, directly and through others.
    """

    file: RecipeFile
    below: frozenset[RecipeFile]


def read_included(file: RecipeFile, recipe_dir: Path) -> list[IncludedFile]:
    """Read every file that a recipe includes.

    Args:
        file: The recipe.
        recipe_dir: Its folder: includes of every file are relative to it, and inside of it.

    Returns:
        Every file once, each after what it includes; the recipe itself is the last.

    Raises:
        RecipeError: Includes lead nowhere, out of the folder or in a circle, there are too many,
            or files can't be read; holds all of these problems.
    """
    reader = _Reader(file, recipe_dir)
    reader.add(file, [(file.path.absolute().resolve(), file.path.name)])
    if reader.problems:
        raise RecipeError(reader.problems)
    return list(reader.parts.values())


class _Reader:
    """One walk through the files of a recipe, each read once."""

    def __init__(self, file: RecipeFile, recipe_dir: Path) -> None:
        self.main, self.recipe_dir = file, recipe_dir
        self.parts: dict[Path, IncludedFile] = {}
        self.problems: list[Problem] = []
        self._room = MAX_RECIPE_BYTES - file.size
        self._read = 0

    def add(self, file: RecipeFile, chain: list[tuple[Path, str]]) -> IncludedFile:
        """Add a file after what it includes; ``chain`` is the files that led here and itself."""
        below: set[RecipeFile] = set()
        for index, name in enumerate(self._names(file)):
            try:
                part = self._include(name, chain)
            except RecipeError as error:
                self.problems += error.problems
            except ValueError as error:
                self.problems.append(file.problem((KEY, index), str(error)))
            else:
                below |= {part.file, *part.below}
        self.parts[chain[-1][0]] = part = IncludedFile(file, frozenset(below))
        return part

    def _names(self, file: RecipeFile) -> list[str]:
        names = file.document.pop(KEY, [])
        message = f'must be a list of files, such as {KEY} = ["base.toml"], got {shorten(names)}'
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            if len(names) <= MAX_INCLUDED:
                return names
            message = f"names {len(names):,} files, more than the limit of {MAX_INCLUDED}"
        self.problems.append(file.problem((KEY,), message))
        return []

    def _include(self, name: str, chain: list[tuple[Path, str]]) -> IncludedFile:
        path = find_beside(name, self.recipe_dir)
        if path in self.parts:
            return self.parts[path]
        names = [each for _, each in chain] + [name]
        if path in (each for each, _ in chain):
            raise ValueError(f"includes itself: {' -> '.join(names)}; leave one of them out")
        if len(chain) > MAX_INCLUDE_DEPTH:
            raise ValueError(
                f"is more than the limit of {MAX_INCLUDE_DEPTH} files deep: {' -> '.join(names)}"
            )
        self._read += 1
        if self._read > MAX_INCLUDED:
            raise ValueError(f"is more than the limit of {MAX_INCLUDED} included files")
        file = read_file(path, self.main.path.parent / name, self._room)
        self._room -= file.size
        return self.add(file, [*chain, (path, name)])


def find_beside(name: str, recipe_dir: Path) -> Path:
    """Find a file by its path below a recipe's folder.

    Args:
        name: As the recipe writes it.
        recipe_dir: The recipe's folder.

    Returns:
        The file itself, links followed.

    Raises:
        ValueError: The name leads out of the folder, or to no file.
    """
    try:
        path = resolve_inside(name, recipe_dir)
    except UnsafeName as error:
        problem = _REFUSED[error.kind]
        raise ValueError(
            problem.format(name=name, folder=recipe_dir, reason=error.reason)
        ) from error
    if path.is_file():
        return path
    found = "is no file" if path.exists() else "doesn't exist"
    raise ValueError(f"{name!r} {found} in {recipe_dir}{_near_miss(name, recipe_dir.resolve())}")


def _near_miss(name: str, folder: Path) -> str:
    """The file in the folder that was probably meant, as the end of a sentence."""
    try:
        entries = itertools.islice((folder / name).parent.iterdir(), 1000)
        known = [entry.name for entry in entries if entry.is_file()]
    except OSError:
        return ""
    meant = closest(Path(name).name, known)
    return f"; did you mean {str(Path(name).with_name(meant))!r}?" if meant else ""


def merge_files(parts: Iterable[IncludedFile]) -> tuple[dict[str, Any], dict[KeyPath, Origin]]:
    """Merge the documents of files.

    Args:
        parts: The files, each after what it includes; a later one wins.

    Returns:
        The document, and where its paths come from, see ``RecipeSource``. A scene stands in the
        place where its name first stands. A file changes the scenes of what it includes;
        two scenes of one name in files that don't include each other stay two.

    Raises:
        RecipeError: A file has [scene] with one bracket.
    """
    merger = _Merger()
    for part in parts:
        merger.add(part)
    return merger.document, merger.origins


class _Merger:
    """Merges files, each after what it includes."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self.origins: dict[KeyPath, Origin] = {}
        self._writers: list[set[RecipeFile]] = []  # of each scene

    def add(self, part: IncludedFile) -> None:
        """Merge a file over what is there."""
        rest = dict(part.file.document)
        scenes = rest.pop("scene", [])
        if not isinstance(scenes, list):
            message = "must be written with two brackets: [[scene]]"
            raise RecipeError([part.file.problem(("scene",), message, "key")])
        if scenes:
            self._merge_scenes(part, scenes, self.document.setdefault("scene", []))
        self._merge_table(part.file, rest, self.document, (), ())

    def _merge_table(
        self,
        file: RecipeFile,
        new: dict[str, Any],
        into: dict[str, Any],
        path: KeyPath,
        written: KeyPath,
    ) -> None:
        for key, value in new.items():
            here, there = (*path, key), (*written, key)
            former = into.get(key)
            if isinstance(value, dict) and isinstance(former, dict):
                self._merge_over(file, value, former, here, there)
                continue
            if isinstance(former, dict):
                # What stood in the table is gone.
                for known in [known for known in self.origins if known[: len(here)] == here]:
                    del self.origins[known]
            into[key] = value
            self.origins[here] = (file, there)

    def _merge_over(
        self,
        file: RecipeFile,
        new: dict[str, Any],
        former: dict[str, Any],
        path: KeyPath,
        written: KeyPath,
    ) -> None:
        """Merge a table over one whose keys, but those of ``new``, stay where they were."""
        former_file, former_path = self.origins[path]
        for key in former:
            self.origins.setdefault((*path, key), (former_file, (*former_path, key)))
        self.origins[path] = (file, written)
        self._merge_table(file, new, former, path, written)

    def _merge_scenes(self, part: IncludedFile, scenes: list[Any], merged: list[Any]) -> None:
        known = {_name(scene): index for index, scene in reversed(list(enumerate(merged)))}
        for number, scene in enumerate(scenes):
            there: KeyPath = ("scene", number)
            name = _name(scene)
            index = known.get(name) if name is not None else None
            if index is not None and self._writers[index] <= part.below:
                path: KeyPath = ("scene", index)
                self._merge_over(part.file, scene, merged[index], path, there)
                self._writers[index].add(part.file)
                continue
            self.origins["scene", len(merged)] = (part.file, there)
            merged.append(scene)
            self._writers.append({part.file})


def _name(scene: Any) -> str | None:
    name = scene.get("name") if isinstance(scene, dict) else None
    return name if isinstance(name, str) else None
