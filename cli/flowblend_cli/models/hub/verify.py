"""Verification: checks model files offline, for `flowblend models verify`.

It compares hashes, reads headers of safetensors and configs, and looks for missing shards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowblend_cli.models.completeness import Place, find_faults, read_header
from flowblend_cli.models.contents import (
    SUFFIXES,
    code_of,
    files_of,
    missing_of_component,
    missing_of_pipeline,
    other_variants,
    reader_of,
)
from flowblend_cli.models.hub.requirements import CacheEntry
from flowblend_cli.utils.files import read_regular
from flowblend_cli.utils.json_files import NotJson, parse_json
from flowblend_cli.utils.limits import MAX_TOKENIZER_BYTES

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
        is_pipeline = requirement.kind == "pipeline"
        inside = None if is_pipeline else requirement.inside
        problems += _faults(Place(folder, inside, is_pipeline, requirement.variant), _FETCH)
    return _check_files(requirement.repo, folder, entry.files, problems)


def verify_folder(name: str, place: Place) -> VerifyResult:
    """Check that a folder's files, which have no recorded hashes, are there and can be read.

    Args:
        name: The model as it was named.
        place: Its folder.
    """
    names, read = files_of(place.folder), reader_of(place.folder)
    prefix = f"{place.subfolder}/" if place.subfolder else ""
    missing = (
        missing_of_pipeline(names, read, place.variant)
        if place.is_pipeline
        else missing_of_component(names, read, prefix[:-1], "diffusers", "", place.variant)
    )
    others = other_variants(names, missing)
    remedy = f'set variant = "{others[0]}" in [model]' if others else "copy or install it again"
    problems = [FileProblem(lacking, "is missing", remedy) for lacking in missing]
    problems += _faults(place, "install or copy it again")
    chosen = sorted(one for one in names if one.endswith(SUFFIXES) and one.startswith(prefix))
    return _check_files(name, place.folder, chosen, problems + _code_problems(place.folder))


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


def _faults(place: Place, remedy: str) -> Iterator[FileProblem]:
    """What its components' classes miss in a model's files, or find too much or misshapen."""
    for fault in find_faults([place])[place]:
        if not fault.is_of_file:
            yield FileProblem(fault.file, fault.problem, remedy)


def _code_problems(folder: Path) -> list[FileProblem]:
    remedy = "use a model that needs no code of its own"
    found = (code.partition(": ") for code in code_of(files_of(folder), reader_of(folder)))
    return [FileProblem(file, f"has code of its own run ({key})", remedy) for file, _, key in found]


def _problems_of(path: Path, digest: str | None) -> Iterator[str]:
    try:
        if digest is not None and _hash(path, digest) != digest:
            yield f"has other bytes than were published (hash {digest[:12]} expected)"
        elif path.suffix == ".safetensors":
            problem = read_header(path)[1]
            if problem is not None:
                yield problem
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
