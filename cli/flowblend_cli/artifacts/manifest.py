"""Manifest: a cache of the finished files of a folder, so that a run inspects only new ones.

It holds a JSON line for each file in ``DIR/.flowblend/manifest.jsonl``; of two lines of one file
the last one counts. A shard has lines of its own, which the next run of all jobs takes over.

A file that differs from its line is inspected, and so is every file where the
manifest is missing or damaged. The manifest can only ever say that a file is still what it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flowblend_cli.artifacts.records import make_folders, own_folder, shards_of
from flowblend_cli.errors import DocumentError, OutputError
from flowblend_cli.jobs import Shard
from flowblend_cli.utils.files import open_appending, open_regular, publish, read_regular, remove
from flowblend_cli.utils.json_files import NotJson, parse_json
from flowblend_cli.utils.limits import MAX_FINISHED_BYTES, MAX_MANIFEST_BYTES

NAME = "manifest.jsonl"
MANIFEST_VERSION = 1
# Larger files are judged by their size alone, unless everything is to be verified.
HASHED_BYTES = 4 * 1024 * 1024
_SPARE_LINES = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished file, and the parts of its document that a run needs.

    Args:
        file: Its name in the output folder.
        size: Its length, in bytes.
        sha256: Hash of its bytes.
        recipe: Name of the recipe that made it.
        job_key: Its job key.
        pixels_sha256: Hash of its frames.
        seed: Seed of its noise.
        sampling_s: Seconds for sampling and decoding.
    """

    file: str
    size: int
    sha256: str
    recipe: str
    job_key: str
    pixels_sha256: str
    seed: int
    sampling_s: float


class Manifest:
    """The manifest of one output folder, for the one run that holds the folder's lock.

    Args:
        output_dir: The folder.
        tell: Called with a message if the manifest can't be written, which ends no batch.
        shard: The shard whose lines are read beside those of all jobs, and added to; None for all
            jobs, which take over what shards have written.
    """

    def __init__(
        self, output_dir: Path, tell: Callable[[str], None], shard: Shard | None = None
    ) -> None:
        self._path = own_folder(output_dir, shard) / NAME
        self._tell = tell
        self._file: int | None = None
        self._is_broken = False
        data = _read(self._path)
        self._is_torn = bool(data) and not data.endswith(b"\n")
        self._lines = data.count(b"\n") + self._is_torn
        self._entries = _entries(data)
        self._others: dict[str, Entry] = {}
        self._taken_over: list[Path] = []
        if shard is not None:
            self._others = _entries(_read(own_folder(output_dir) / NAME))
        for one in shards_of(output_dir) if shard is None else ():
            path = own_folder(output_dir, one) / NAME
            if data := _read(path):  # newer than those of all jobs, which would have taken it over
                self._entries |= _entries(data)
                self._taken_over.append(path)

    def entry(self, name: str) -> Entry | None:
        """The entry of the file of this name; ``matches`` tells whether it still holds."""
        return self._entries.get(name) or self._others.get(name)

    def note(self, entry: Entry) -> None:
        """Add or replace an entry; a manifest that can't be written only costs time."""
        if self.entry(entry.file) == entry:
            return
        self._entries[entry.file] = entry
        self._lines += 1
        if self._is_broken:
            return
        try:
            if self._file is None:
                self._file = self._open()
            line = _line(entry)
            if os.write(self._file, line) < len(line):
                raise OSError("the disk took only a part of it")
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Stop writing; write the file anew where most lines no longer count, or shards' came."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None
        is_short = self._lines <= 2 * len(self._entries) + _SPARE_LINES
        if self._is_broken or (is_short and not self._taken_over):
            return
        try:
            make_folders(self._path)
            publish(self._path, b"".join(map(_line, self._entries.values())))
            for path in self._taken_over:
                with contextlib.suppress(OSError):
                    remove(path)
        except OutputError as error:
            self._give_up(error)

    def _open(self) -> int:
        make_folders(self._path)
        file = open_appending(self._path)
        if self._is_torn:
            os.write(file, b"\n")
        return file

    def _give_up(self, error: OSError) -> None:
        self._is_broken = True
        reason = str(error) if isinstance(error, OutputError) else error.strerror or str(error)
        self._tell(
            f"{self._path}: can't be written ({reason}): the batch goes on, and the next run looks "
            "into every file that isn't in it"
        )


def matches(entry: Entry, path: Path) -> bool:
    """Whether a file is still as its entry describes it.

    Args:
        entry: The entry.
        path: The file, of which the size decides above ``HASHED_BYTES``.
    """
    found = fingerprint(path, up_to=HASHED_BYTES)
    return found is not None and found[0] == entry.size and found[1] in (None, entry.sha256)


def fingerprint(path: Path, *, up_to: int | None = None) -> tuple[int, str | None] | None:
    """Size and hash of a plain file; None where there is none, or none that can be read.

    Args:
        path: The file. Links aren't followed.
        up_to: Most bytes that are hashed; the hash of a larger file is None. None for all files.
    """
    try:
        with open_regular(path, MAX_FINISHED_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            if up_to is not None and size > up_to:
                return size, None
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
            return file.tell(), digest.hexdigest()
    except OSError:
        return None


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_MANIFEST_BYTES)
    except OSError:
        return b""


def _entries(data: bytes) -> dict[str, Entry]:
    known = (entry for entry in map(_entry, data.splitlines()) if entry is not None)
    return {entry.file: entry for entry in known}


def _line(entry: Entry) -> bytes:
    return (json.dumps({"v": MANIFEST_VERSION, **asdict(entry)}) + "\n").encode()


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None where it was cut off or isn't ours."""
    from flowblend_cli.artifacts.schema.records import ManifestLine

    try:
        found = ManifestLine.read(parse_json(line))
    except (NotJson, DocumentError):
        return None
    return Entry(**{name: getattr(found, name) for name in Entry.__match_args__})
