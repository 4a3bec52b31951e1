"""Files: checks that names stay inside a folder, publishes files atomically, seals their contents.

``resolve_inside`` is the one check of a name that a recipe gives, ``open_regular`` the one way in
which a file that a run left is opened, ``publish`` the one way in which a file gets its final name,
and ``seal`` puts a file's checksum into its own document.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from flowblend_cli.errors import OutputError
from flowblend_cli.text import is_unsafe
from flowblend_cli.utils.folders import check_held, mark_of, opened

TEMPORARY_SUFFIX = ".tmp"
SEAL_KEY = "file_sha256"
UNSEALED = "0" * 64
_MARK = re.compile(rb'"file_sha256":"([0-9a-f]{64})"')
_MARK_BYTES = len(f'"{SEAL_KEY}":"{UNSEALED}"')
_PIECE_BYTES = 1 << 20
_LONGEST_NAME = 255
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


def check_relative(name: str) -> None:
    """Check a path as it is written: what ``resolve_inside`` refuses without asking the disk.

    Raises:
        UnsafeName: It can't stay inside of a folder.
    """
    if not name.strip() or any(is_unsafe(character) for character in name):
        raise UnsafeName("characters")
    if _ADDRESS.match(name):
        raise UnsafeName("address")
    is_rooted = name.startswith(("/", "~")) or _DRIVE.match(name)
    if is_rooted or "\\" in name or ".." in name.split("/"):
        raise UnsafeName("outside")


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
    check_relative(name)
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


def temporary_path(path: Path, mark: str = "") -> Path:
    """Name the file that holds a half-written ``path``: ``name.mp4.tmp``, never a media suffix.

    Where others may write at the same time, it has a mark of who writes it: see
    ``folders.HeldFolder``; ``mark`` is one that the caller chose.
    """
    end = mark_of(path.parent) + mark + TEMPORARY_SUFFIX
    name = path.name + end
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32] + end
    return path.with_name(name)


def publish(
    path: Path,
    data: bytes,
    check: Callable[[BinaryIO], None] | None = None,
    *,
    durable: bool = True,
    mark: str = "",
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
        mark: Part of the temporary name, where several processes may write this file at once.

    Raises:
        OutputError: The file can't be written, or a link sits at the temporary name.
    """
    with _output_errors(path), opened(path.parent) as folder:
        temporary = temporary_path(path, mark).name
        _remove_leftover(path.with_name(temporary), folder)
        try:
            _write(temporary, folder, data, durable=durable)
            if check is not None:
                with _open(temporary, os.O_RDONLY, "rb", folder) as file:
                    check(file)
            _rename(temporary, path, folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        if durable:
            os.fsync(folder)  # the new name survives a power cut: a folder is flushed like a file


def _rename(temporary: str, path: Path, folder: int) -> None:
    """Give a temporary file its final name, if this run may still do so."""
    check_held(path.parent)
    try:
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except FileNotFoundError:
        check_held(path.parent)  # whoever took the folder over removed it just now
        raise


def remove(path: Path) -> None:
    """Remove a file of ours, no link on the way there being followed.

    Raises:
        OSError: It isn't there, or can't be removed.
        OutputError: Its folder is held, and isn't what it was.
    """
    with opened(path.parent) as folder:
        check_held(path.parent)
        os.unlink(path.name, dir_fd=folder)


def set_aside(path: Path) -> Path:
    """Give a file of somebody's a name beside it that is free: ``NAME.edited.EXT``.

    Where there is one, it becomes ``NAME.edited-2.EXT``, and so on.

    Returns:
        Its new path.

    Raises:
        OutputError: It can't be renamed.
    """
    with _output_errors(path), opened(path.parent) as folder:
        for number in itertools.count(1):
            mark = ".edited" if number == 1 else f".edited-{number}"
            name = path.stem + mark + path.suffix
            try:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                break
        check_held(path.parent)
        os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
        return path.with_name(name)


def open_regular(path: Path, limit: int, *, follow: bool = False) -> BinaryIO:
    """Open a plain file for reading, without ever waiting for anybody.

    No link is followed, neither at the file itself nor in a folder of ours on the way to it, see
    ``folders.opened``. A pipe, a device and a folder are refused, and so is a file that is too
    large, before a byte is read.

    Args:
        path: The file.
        limit: Most bytes that it may have, see ``limits``.
        follow: Follow links: where somebody named this very file on a command line.

    Raises:
        OSError: It isn't there or can't be opened, is no plain file, or is too large; its
            ``strerror`` says which.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with contextlib.ExitStack() as stack:
        folder = None if follow else stack.enter_context(opened(path.parent))
        descriptor = os.open(path if follow else path.name, flags, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_appending(path: Path) -> int:
    """Open a plain file of ours, made where it is missing, to write at its end.

    Returns:
        Its descriptor.

    Raises:
        OSError: It can't be opened, or something else lies there.
        OutputError: Its folder is held, and isn't what it was.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with opened(path.parent) as folder:
        check_held(path.parent)
        descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return descriptor


def read_regular(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """Read a plain file whole; see ``open_regular``, whose arguments and errors these are."""
    with open_regular(path, limit, follow=follow) as file:
        data = file.read(limit + 1)  # it may have grown since
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
    return data


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


def _remove_leftover(temporary: Path, folder: int) -> None:
    """Remove what a killed run left; refuse what no run leaves, such as a link."""
    try:
        mode = os.stat(temporary.name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise OutputError(
            f"{temporary}: is {kind}, which no run leaves at a temporary name: remove it, then run "
            "the same command again"
        )
    os.unlink(temporary.name, dir_fd=folder)


def _open(name: str, flags: int, mode: str, folder: int) -> BinaryIO:
    """Open without ever following a link."""
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
    return os.fdopen(descriptor, mode)  # type: ignore[return-value]


def _write(name: str, folder: int, data: bytes, *, durable: bool) -> None:
    with _open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb", folder) as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


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


def seal_holds(source: bytes | BinaryIO) -> bool:
    """Whether the checksum of a file is there and right.

    Args:
        source: The whole file, or an open one, of which only a piece is in memory at a time.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    place = _place_of_seal(file)
    if place is None:
        return False
    file.seek(0)
    digest, left = hashlib.sha256(), place
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    found = file.read(len(UNSEALED))
    digest.update(UNSEALED.encode())
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest().encode() == found


def _place_of_seal(file: BinaryIO) -> int | None:
    """Where the first checksum of an open file stands in it; None where there is none."""
    file.seek(0)
    start, window = 0, b""
    while piece := file.read(_PIECE_BYTES):
        window += piece
        if mark := _MARK.search(window):
            return start + mark.start(1)
        start += max(0, len(window) - _MARK_BYTES)
        window = window[-_MARK_BYTES:]
    return None
