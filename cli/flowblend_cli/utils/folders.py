"""Folders that files of ours lie in: walked without following links, and held by a run.

An output folder, and ``.flowblend`` in it, are anybody's to change while a run works. So no path
below them is handed to the system as a whole: the folder is opened, then each folder in it by its
name, none of them through a link, and files are opened, renamed and removed in what was opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowblend_cli.errors import OutputError

FOLDER = ".flowblend"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What a file that isn't there any more answers with, on a server too.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
Identity = tuple[int, int]


@dataclass(frozen=True)
class HeldFolder:
    """A folder that is being written to; plain values, so that a worker process can be told of it.

    Args:
        path: Its absolute path.
        identity: Its device and inode.
        locks: The lock files in it, each with its device and inode; none where it isn't locked, and
            its path may be a link.
        lease: The file in it that says who may write, see ``engine.lease``; empty without one.
        mark: What the temporary names of this run have before ``.tmp``; empty where nobody else can
            write at the same time.
    """

    path: str
    identity: Identity | None
    locks: tuple[tuple[str, Identity | None], ...] = ()
    lease: str = ""
    mark: str = ""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> HeldFolder:
        """Read it from the JSON form of its values."""
        locks = tuple((name, tuple(identity)) for name, identity in document["locks"])
        return cls(**{**document, "identity": tuple(document["identity"]), "locks": locks})

    def of_process(self, pid: int) -> HeldFolder:
        """The same for a worker process, whose temporary names are its own."""
        return replace(self, mark=f"{self.mark}.{pid}")

    def open(self) -> int:
        """Open it, for ``dir_fd``.

        Raises:
            OutputError: It was moved or replaced, or its lock file removed or replaced.
        """
        try:
            descriptor = os.open(self.path, _FLAGS | (os.O_NOFOLLOW if self.locks else 0))
        except OSError as error:
            raise OutputError(f"{self.path}: {_REPLACED}") from error
        try:
            self.check(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check(self, found: os.stat_result | None = None) -> None:
        """Raise unless its path leads to it, and its lock files are those that are locked.

        Args:
            found: Status of what its path leads to, where that was opened.

        Raises:
            OutputError: It was moved or replaced, or its lock file removed or replaced.
        """
        if identity_of(found or _status(self.path, follow=not self.locks)) != self.identity:
            raise OutputError(f"{self.path}: {_REPLACED}")
        for name, identity in self.locks:
            lock = os.path.join(self.path, name)
            if identity_of(_status(lock)) != identity:
                raise OutputError(f"{lock}: {_UNLOCKED}")

    def renew(self) -> None:
        """Renew its lease, where it has one.

        The file system itself answers, not what this machine remembers of it.

        Raises:
            OutputError: Another run has taken it, or it can't be renewed.
        """
        if not self.lease:
            return
        try:
            os.utime(os.path.join(self.path, self.lease), follow_symlinks=False)
        except OSError as error:
            raise OutputError(f"{self.path}: {lease_lost(error)}") from error


def lease_lost(error: OSError) -> str:
    """What to say where a lease can't be renewed."""
    if error.errno in GONE:
        return _TAKEN
    return f"its lease can't be renewed ({error.strerror}), so nothing more is written"


_REPLACED = (
    "was moved away or replaced in the meantime, so nothing more is written: put it back, then run "
    "the same command again"
)
_UNLOCKED = (
    "was removed or replaced while this run held it, so that another run may be at work in this "
    "folder, and nothing more is written: when none is, run the same command again"
)
_TAKEN = (
    "this run wasn't heard of for so long that its lease was ended, so that another run may be at "
    "work in this folder, and nothing more is written: what it has published stays, and the same "
    "command goes on once no other run works here"
)
_held: dict[str, HeldFolder] = {}


@contextlib.contextmanager
def held(folders: Iterable[HeldFolder]) -> Iterator[None]:
    """While this lasts, use these folders only as long as they are what they were."""
    mine = {folder.path: folder for folder in folders}
    former = {path: _held[path] for path in mine if path in _held}
    _held.update(mine)
    try:
        yield
    finally:
        for path in mine:
            del _held[path]
        _held.update(former)


def held_folders() -> list[HeldFolder]:
    """The folders that are held now."""
    return list(_held.values())


def identity_of(status: os.stat_result | None) -> Identity | None:
    """Device and inode of a file, which stay the same whatever it is called; None of nothing."""
    return None if status is None else (status.st_dev, status.st_ino)


def _status(path: str, *, follow: bool = False) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError:
        return None


def holding(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a folder that a command writes to without its lock, and follow no link inside it.

    Raises:
        OutputError: It isn't there.
    """
    try:
        identity = identity_of(os.stat(folder))
    except OSError as error:
        raise OutputError(f"{folder}: can't be opened ({error.strerror or error})") from error
    return held([HeldFolder(os.path.abspath(folder), identity)])


@contextlib.contextmanager
def opened(folder: Path, *, make: bool = False) -> Iterator[int]:
    """Open a folder so that no link in a folder of ours leads elsewhere.

    A path leads through an output folder where it is below one that is held, or has a
    ``.flowblend`` in it. All that comes after that is opened name by name; links that lead to the
    output folder are followed.

    Args:
        folder: The folder.
        make: Make those that are missing, from the output folder on.

    Yields:
        Its descriptor, for ``dir_fd``.

    Raises:
        OSError: It isn't there or can't be made, or a link sits where one of its folders should.
        OutputError: A folder that is held isn't what it was.
    """
    holder, start, names = _places(folder)
    descriptor = os.open(start, _FLAGS) if holder is None else holder.open()
    try:
        for depth, name in enumerate(names, 1):
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=descriptor)
                inner = _open_inside(name, descriptor)
            except OSError as error:
                error.filename = str(Path(start, *names[:depth]))  # all of it, for whoever tells it
                raise
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def check_held(folder: Path) -> None:
    """Raise if a folder is below one that is held, and that this run may no longer write to.

    Raises:
        OutputError: It was moved or replaced, or its lock or lease is lost.
    """
    holder, _, _ = _places(folder)
    if holder is not None:
        holder.check()
        holder.renew()


def mark_of(folder: Path) -> str:
    """What temporary names in a folder have before ``.tmp``, see ``HeldFolder``."""
    holder, _, _ = _places(folder)
    return "" if holder is None else holder.mark


def _places(folder: Path) -> tuple[HeldFolder | None, Path, tuple[str, ...]]:
    """Where the walk to a folder starts, who holds that, and the names that follow."""
    if _held:
        absolute = Path(os.path.abspath(folder))
        for start in (absolute, *absolute.parents):
            if holder := _held.get(str(start)):
                return holder, start, absolute.relative_to(start).parts
    parts = folder.parts
    if FOLDER not in parts:
        return None, folder, ()
    place = len(parts) - 1 - parts[::-1].index(FOLDER)
    return None, Path(*parts[:place]), parts[place:]


def _open_inside(name: str, descriptor: int) -> int:
    try:
        return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, "is a symbolic link", name) from None
        raise
