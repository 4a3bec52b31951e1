"""Files: checks that names stay inside a folder, publishes files atomically, seals their contents.

``resolve_inside`` is the one check of a name that a recipe gives, ``publish`` the one way in which
a file gets its final name, and ``seal`` puts a file's checksum into its own document.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from flowblend_cli.errors import OutputError
from flowblend_cli.text import is_unsafe

TEMPORARY_SUFFIX = ".tmp"
SEAL_KEY = "file_sha256"
UNSEALED = "0" * 64
_MARK = re.compile(rb'"file_sha256":"([0-9a-f]{64})"')
_ADDRESS = re.compile(r".*://|(?:data|file|ftp|https?|javascript):", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")


class UnsafeName(ValueError):  # noqa: N818 - callers say it in their own words
    """A name that may not be looked for inside a folder.

    Args:
        kind: ``"characters"`` for an empty name or one with control characters, ``"address"`` for
            a URL, ``"outside"`` for one that leads out of the folder or might on some system,
            ``"lookup"`` for one that the system refuses.
        reason: The system's reason for a ``"lookup"``; else empty.
    """

    def __init__(
        self, kind: Literal["characters", "address", "outside", "lookup"], reason: str = ""
    ) -> None:
        super().__init__(reason or kind)
        self.kind = kind
        self.reason = reason


def resolve_inside(name: str, folder: Path) -> Path:
    """Tell where a name leads to inside a folder, links followed; nothing need be there.

    Nothing is opened, and the disk isn't asked for a name that is refused as it is written: one
    that is empty, holds control characters, is a URL, is absolute, begins with ``~`` or a drive
    letter, or has ``..`` among its folders or a backslash anywhere.

    Args:
        name: A path as somebody else wrote it, its folders separated by ``/``.
        folder: Where it starts from.

    Returns:
        The absolute path, inside of the folder.

    Raises:
        UnsafeName: The name is one of those, leads out of the folder through a link, or can't
            be looked up, because it is too long or its links go in a circle.
    """
    if not name.strip() or any(is_unsafe(character) for character in name):
        raise UnsafeName("characters")
    if _ADDRESS.match(name):
        raise UnsafeName("address")
    is_rooted = name.startswith(("/", "~")) or _DRIVE.match(name)
    if is_rooted or "\\" in name or ".." in name.split("/"):
        raise UnsafeName("outside")
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        is_inside = path.is_relative_to(root)
        if is_inside:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnsafeName("lookup", reason) from error
    if not is_inside:
        raise UnsafeName("outside")
    return path


def temporary_path(path: Path) -> Path:
    """Name the file that holds a half-written ``path``: ``name.mp4.tmp``, never a media suffix."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def publish(
    path: Path,
    data: bytes,
    check: Callable[[BinaryIO], None] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write a file so that its final name only ever shows complete contents.

    The bytes go to a temporary name beside it, are flushed to the disk, read back by ``check``, and
    renamed over ``path``; the folder's entry is flushed too. After a failure or an interruption the
    temporary file is gone and ``path`` is as it was.

    Args:
        path: The final name; its folder exists.
        data: The whole contents.
        check: Reads the written file, and raises if it isn't what it should be.
        durable: Flush to the disk, so that a power cut costs nothing; without that it doesn't
            wait for the disk.

    Raises:
        OutputError: The file can't be written, or a link sits at the temporary name.
    """
    with _output_errors(path):
        temporary = temporary_path(path)
        _remove_leftover(temporary)
        try:
            _write(temporary, data, durable=durable)
            if check is not None:
                with _open(temporary, os.O_RDONLY, "rb") as file:
                    check(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            _flush_folder(path.parent)


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into one that names the file."""
    try:
        yield
    except OutputError:  # an OSError too, and complete already
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: can't be written ({reason}): nothing was published under that name; free the "
            "disk or the folder and run the same command again"
        ) from error


def _remove_leftover(temporary: Path) -> None:
    """Remove what a killed run left; refuse what no run leaves, such as a link."""
    try:
        mode = os.lstat(temporary).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise OutputError(
            f"{temporary}: is {kind}, which no run leaves at a temporary name: remove it, then run "
            "the same command again"
        )
    os.unlink(temporary)


def _open(path: Path, flags: int, mode: str) -> BinaryIO:
    """Open without ever following a link."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, mode)  # type: ignore[return-value]


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    with _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut; a folder is flushed like a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(data: bytes) -> bytes:
    """Put a file's checksum into its document, which must hold the unsealed mark exactly once.

    Raises:
        ValueError: The mark isn't there, or is there more than once.
    """
    marks = [mark for mark in _MARK.finditer(data) if mark[1] == UNSEALED.encode()]
    if len(marks) != 1:
        raise ValueError(f"expected one unsealed mark in the file, found {len(marks)}")
    start, end = marks[0].span(1)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[end:]


def seal_holds(data: bytes) -> bool:
    """Whether the file's checksum is there and right."""
    mark = _MARK.search(data)
    if mark is None:
        return False
    start, end = mark.span(1)
    digest = hashlib.sha256(data[:start])
    digest.update(UNSEALED.encode())
    digest.update(data[end:])
    return digest.hexdigest().encode() == mark[1]
