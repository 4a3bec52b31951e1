"""Lock: ``flowblend.lock``, the commits that the recipes of a folder render with."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.utils.files import read_regular
from flowblend_cli.utils.toml_positions import (
    START,
    InvalidToml,
    KeyPath,
    Position,
    format_path,
    parse_toml,
    quote,
    scan,
)

LOCK_NAME = "flowblend.lock"
VERSION = 1
MAX_BYTES = 1024 * 1024
_TOO_LARGE = "larger than the limit of 1 MiB for a lock"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_KEYS = ("repo", "revision", "asked")
_HEADER = """\
# Written by `flowblend models fetch`: the commits of models that the recipes in this folder render
# with. Delete an entry, or fetch with --update, to take the newest commit.
version = 1
"""


@dataclass(frozen=True, order=True)
class Pin:
    """One repository at one commit.

    Args:
        repo: The Hub id.
        revision: The commit, 40 hexadecimal digits.
        asked: What a recipe calls it: the id, a known pair, or a file of the repository.
    """

    repo: str
    revision: str
    asked: str


# Name and repository of every known pair's models.
Aliases = frozenset[tuple[str, str]]


def read_lock(folder: Path, aliases: Aliases) -> Mapping[str, Pin]:
    """Read the pins of a folder by repository; empty where it has no lock.

    Args:
        folder: The recipe's folder.
        aliases: Which repositories the names of known pairs stand for.

    Raises:
        RecipeError: The lock can't be read, or is wrong; holds every problem.
    """
    path = folder / LOCK_NAME
    try:
        data = read_regular(path, MAX_BYTES, follow=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EFBIG:
            raise _error(path, START, _TOO_LARGE) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise _error(path, None, f"can't be read: {reason}") from error
    return _parse(path, data, aliases)


def write_lock(folder: Path, pins: Iterable[Pin]) -> Path:
    """Write the lock of a folder, replacing the former one.

    Raises:
        OutputError: It can't be written.
    """
    from flowblend_cli.utils.files import publish

    entries = [
        "\n[[model]]\n" + "".join(f"{key} = {quote(getattr(pin, key))}\n" for key in _KEYS)
        for pin in sorted(pins)
    ]
    path = folder / LOCK_NAME
    data = (_HEADER + "".join(entries)).encode()
    publish(path, data, mark=f".{os.urandom(6).hex()}")  # several renders may fetch at once
    return path


@lru_cache(maxsize=64)
def _parse(path: Path, data: bytes, aliases: Aliases) -> Mapping[str, Pin]:
    try:
        text, document = parse_toml(data)
    except InvalidToml as error:
        raise _error(path, error.position, error.message) from error
    problems = list(_problems_of(document, aliases))
    if problems:
        positions = scan(text)
        raise RecipeError(
            Problem(str(path), *positions.key(where), format_path(where), message)
            for where, message in problems
        )
    return {entry["repo"]: Pin(**entry) for entry in document.get("model", [])}


def _problems_of(document: dict[str, Any], aliases: Aliases) -> Iterator[tuple[KeyPath, str]]:
    """Everything that is wrong in a lock, and where."""
    if document.get("version") != VERSION:
        found = document.get("version")
        yield ("version",), f"must be {VERSION}, got {found!r}: another flowblend wrote this lock"
    for key in document.keys() - {"version", "model"}:
        yield (key,), "is no key of a lock: expected version and [[model]]"
    entries = document.get("model", [])
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        yield ("model",), "must be [[model]] tables"
        return
    repos: set[str] = set()
    for number, entry in enumerate(entries):
        where: KeyPath = ("model", number)
        problems = list(_problems_of_entry(entry, aliases))
        yield from (((*where, key), message) for key, message in problems)
        if not problems and entry["repo"] in repos:
            yield (*where, "repo"), f"{entry['repo']!r} is pinned twice: keep one entry"
        repos.add(str(entry.get("repo")))


def _problems_of_entry(entry: dict[str, Any], aliases: Aliases) -> Iterator[tuple[str, str]]:
    for key in entry.keys() - set(_KEYS):
        yield key, f"is no key of an entry: expected {', '.join(_KEYS)}"
    repo, revision, asked = (entry.get(key) for key in _KEYS)
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        yield "repo", f"must be a Hub id owner/name, got {repo!r}"
    if not isinstance(revision, str) or not _COMMIT.fullmatch(revision):
        yield "revision", f"must be a commit of 40 hexadecimal digits, got {revision!r}"
    if not isinstance(asked, str):
        yield "asked", f"must be a string, got {asked!r}"
        return
    is_its_own = asked == repo or asked.startswith(f"{repo}/")
    if not is_its_own and (asked, repo) not in aliases:
        yield "asked", f"{asked!r} doesn't stand for {repo!r}: delete the entry and fetch again"


def _error(path: Path, position: Position | None, message: str) -> RecipeError:
    place: tuple[int | None, int | None] = position or (None, None)
    return RecipeError([Problem(str(path), *place, "", message)])
