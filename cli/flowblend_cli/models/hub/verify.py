"""Verification: checks model files offline, for `flowblend models verify`.

It compares hashes, reads headers of safetensors and configs, and looks for missing shards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowblend_cli.models.contents import (
    SUFFIXES,
    code_of,
    files_of,
    missing_of_pipeline,
    reader_of,
)
from flowblend_cli.models.hub.requirements import CacheEntry
from flowblend_cli.utils.files import read_regular
from flowblend_cli.utils.json_files import NotJson, parse_json
from flowblend_cli.utils.limits import MAX_TOKENIZER_BYTES

_MAX_HEADER = 100_000_000  # safetensors' own limit
_FETCH = "fetch it with `flowblend models fetch`"


@dataclass(frozen=True)
class FileProblem:
    """One file that isn't what it should be.

    Args:
        file: Its name in the model.
        problem: What is wrong.
        remedy: What to do.
    """

    file: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class VerifyResult:
    """What was found of one model.

    Args:
        name: What it is called in the recipe, or its Hub id.
        place: Its folder; None where it isn't here.
        files: How many files were checked.
        size_bytes: Their size.
        unhashed: How many have no recorded hash, so that only their form could be checked.
        problems: What is wrong.
    """

    name: str
    place: Path | None
    files: int = 0
    size_bytes: int = 0
    unhashed: int = 0
    problems: Sequence[FileProblem] = field(default_factory=tuple)


def verify_entry(entry: CacheEntry) -> VerifyResult:
    """Check every file of a part of a repository in the local Hub cache, byte by byte."""
    requirement, folder = entry.requirement, entry.folder
    if folder is None:
        at = f" at commit {requirement.revision}" if requirement.revision else ""
        absent = FileProblem("", f"isn't in the cache{at}", _FETCH)
        return VerifyResult(requirement.repo, None, problems=(absent,))
    problems = [FileProblem(name, "is missing", _FETCH) for name in entry.missing]
    if requirement.kind != "file":
        problems += _code_problems(folder)
    return _check_files(requirement.repo, folder, entry.files, problems)


def verify_folder(name: str, folder: Path) -> VerifyResult:
    """Check that a pipeline's files, which have no recorded hashes, are there and can be read."""
    names = files_of(folder)
    missing = missing_of_pipeline(names, reader_of(folder))
    problems = [
        FileProblem(lacking, "is missing", "copy or install it again") for lacking in missing
    ]
    chosen = sorted(one for one in names if one.endswith(SUFFIXES))
    return _check_files(name, folder, chosen, problems + _code_problems(folder))


def _check_files(
    name: str, folder: Path, files: Sequence[str], problems: list[FileProblem]
) -> VerifyResult:
    unhashed = size = 0
    for file in files:
        path = folder / file
        digest = _recorded(path)
        unhashed += digest is None
        size += path.stat().st_size
        remedy = f"delete {path.resolve()} and {_FETCH}" if digest else "install or copy it again"
        problems += [FileProblem(file, problem, remedy) for problem in _problems_of(path, digest)]
    return VerifyResult(name, folder, len(files), size, unhashed, tuple(problems))


def _code_problems(folder: Path) -> list[FileProblem]:
    remedy = "use a model that needs no code of its own"
    found = (code.partition(": ") for code in code_of(files_of(folder), reader_of(folder)))
    return [FileProblem(file, f"has code of its own run ({key})", remedy) for file, _, key in found]


def _problems_of(path: Path, digest: str | None) -> Iterator[str]:
    try:
        if digest is not None and _hash(path, digest) != digest:
            yield f"has other bytes than were published (hash {digest[:12]} expected)"
        elif path.suffix == ".safetensors":
            yield from _header_problems(path)
        elif path.suffix == ".json":
            parse_json(read_regular(path, MAX_TOKENIZER_BYTES, follow=True), lenient=True)
    except OSError as error:
        yield f"can't be read ({error.strerror or error})"
    except NotJson as error:
        yield f"isn't JSON that can be used: it {error}"


def _recorded(path: Path) -> str | None:
    """The hash that a file of the Hub's cache is stored under; None where it has none.

    The cache stores a file under its ETag, which is the SHA-256 of large files, and Git's SHA-1 of
    small ones. See the Hub's documentation of the cache's layout.
    """
    blob = path.resolve()
    is_blob = blob.parent.name == "blobs" and blob != path.absolute()
    return blob.name if is_blob and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) else None


def _hash(path: Path, like: str) -> str:
    """The hash of a file, of the kind that its recorded one is."""
    digest = hashlib.sha256()
    if len(like) != 64:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _header_problems(path: Path) -> Iterator[str]:
    """What is wrong with a safetensors file: its header, or how many bytes follow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            yield "is no safetensors file, or is cut short"
            return
        header = file.read(length)
    try:
        tensors = parse_json(header)
        ends = [one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"]
        end = int(max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        yield "has a header that can't be read"
        return
    if 8 + length + end != size:
        yield f"has {size} bytes, and its header tells of {8 + length + end}"
