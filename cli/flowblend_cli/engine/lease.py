"""Lease: says who may write into a folder of a network file system, where a lock may not.

There two machines may both be given a lock. So a run makes a folder ``NAME.eEPOCH`` beside it,
which only one of two can make, with a file about itself, and touches that file again and again.
Who finds a lease that wasn't touched for ``LEASE_S`` ends it by renaming it, and makes one of the
next epoch. A run whose lease was ended finds its file no longer, which it looks for before it gives
anything a name; and what it was writing is removed before its successor begins.

Times are the file system's own: nothing is compared with the clock of a machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from flowblend_cli.errors import LockedError, OutputError
from flowblend_cli.text import printable
from flowblend_cli.utils.folders import GONE, lease_lost

# How often a holder renews its lease, when others may end one that isn't renewed, and how often
# they look meanwhile.
HEARTBEAT_S = 5.0
LEASE_S = 60.0
LOOK_S = 0.5

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OVER = ".over"
_LOOK = "look."
_MOST_BYTES = 10_000
_LEASE = re.compile(r"(?P<name>.+)\.e(?P<epoch>[0-9]{1,9})(?P<over>\.over)?")


class FoundLease(NamedTuple):
    """A lease that is there.

    Args:
        folder: Name of its folder.
        name: Whose it is: the same run may be started again.
        epoch: How many of that name there were, with it.
        is_over: Whether it was ended.
    """

    folder: str
    name: str
    epoch: int
    is_over: bool


class Lease:
    """The lease of one run.

    Args:
        folder: The open folder of leases, which the caller closes.
        place: What people call the folder that is written to.
        name: Whose lease it is.
        clashes: Tells whether a lease of some name is in the way of this one.
        about: What people are told of its holder: ``host``, ``pid``.
        tell: Called once, with words, where this waits for another one to be renewed or to end.
    """

    def __init__(
        self,
        folder: int,
        place: str,
        name: str,
        clashes: Callable[[str], bool],
        about: Mapping[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self._folder, self._name, self._clashes = folder, name, clashes
        self._place, self._about, self._tell = place, about, tell
        self._file = f"{os.urandom(8).hex()}.json"
        self._mine = ""
        self._lost = ""
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self.epoch = 0

    @property
    def path(self) -> str:
        """Its file, in the folder of leases."""
        return f"{self._mine}/{self._file}"

    def take(self) -> None:
        """Take it, once every other one in its way has ended or wasn't renewed for too long.

        Raises:
            LockedError: Another one in its way is renewed.
            OSError: The file system fails.
        """
        for stale, beat in self._wait().items():
            with contextlib.suppress(FileNotFoundError):
                if self._beat_ns(stale) == beat:  # this process may have slept since it looked
                    os.rename(
                        stale, stale + _OVER, src_dir_fd=self._folder, dst_dir_fd=self._folder
                    )
        known = [one.epoch for one in self._found() if one.name == self._name]
        self.epoch = 1 + max(known, default=0)
        mine = f"{self._name}.e{self.epoch}"
        try:
            os.mkdir(mine, dir_fd=self._folder)
        except FileExistsError:
            raise LockedError(f"another run has just begun in {self._place}") from None
        self._mine = mine
        try:
            self._write()
            if rivals := self._rivals():  # of two that came at once, at least one sees the other
                raise LockedError(self._words(min(rivals)))
            self._tidy()
        except BaseException:  # a signal, too: nobody is to wait for this one
            self.release()
            raise
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if it was seen to be lost.

        Raises:
            OutputError: It was.
        """
        if self._lost:
            raise OutputError(self._lost)

    def stop(self) -> None:
        """Renew it no longer."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(HEARTBEAT_S)

    def release(self) -> None:
        """End it, so that nobody waits; its name stays, since epochs only ever grow."""
        self.stop()
        over = self._mine + _OVER
        with contextlib.suppress(OSError):
            os.unlink(self.path, dir_fd=self._folder)  # fails where another run has the name now
            os.rename(self._mine, over, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _write(self) -> None:
        document = json.dumps({"v": 1, **self._about, "epoch": self.epoch}).encode()
        try:
            file = os.open(self.path, _NEW, 0o666, dir_fd=self._folder)
        except FileNotFoundError:  # this process slept, and its lease was ended
            raise LockedError(f"another run has just begun in {self._place}") from None
        with os.fdopen(file, "wb") as opened:
            opened.write(document)

    def _renew(self) -> None:
        while not self._is_over.wait(HEARTBEAT_S):
            try:
                os.utime(self.path, dir_fd=self._folder, follow_symlinks=False)
            except OSError as error:
                if error.errno in GONE:
                    self._lost = f"{self._place}: {lease_lost(error)}"
                    return
                # A server that is away is asked again, at the latest by what is written next.

    def _wait(self) -> dict[str, int]:
        """Wait until no lease in the way is renewed; those that weren't, with their last renewal.

        One counts as renewed until ``LEASE_S`` have passed since, by the clock of the file system,
        or, where that was set back, by this process's while it watched.
        """
        seen: dict[str, tuple[int, float]] = {}
        is_told = False
        while True:
            now, watched = self._now_ns(), time.monotonic()  # before looking: this may be stopped
            rivals = self._rivals()
            fresh = []
            for lease, beat in rivals.items():
                first, since = seen.setdefault(lease, (beat, watched))
                if beat != first:
                    raise LockedError(self._words(lease))
                if now - beat <= LEASE_S * 1e9 and watched - since <= LEASE_S:
                    fresh.append(lease)
            if not fresh:
                return rivals
            if not is_told:
                is_told = True
                self._tell(
                    f"{self._words(fresh[0])}, or was until less than {LEASE_S:g} s ago: waiting "
                    "to see whether it still is"
                )
            time.sleep(LOOK_S)

    def _found(self) -> Iterator[FoundLease]:
        for entry in os.listdir(self._folder):
            if found := _LEASE.fullmatch(entry):
                yield FoundLease(entry, found["name"], int(found["epoch"]), bool(found["over"]))

    def _rivals(self) -> dict[str, int]:
        """The leases in the way that weren't ended, with when they were last renewed."""
        rivals = {}
        for one in self._found():
            if not one.is_over and one.folder != self._mine and self._clashes(one.name):
                beat = self._beat_ns(one.folder)
                if beat is not None:
                    rivals[one.folder] = beat
        return rivals

    def _beat_ns(self, lease: str) -> int | None:
        """When a lease was last renewed; None where it is gone.

        Opened, not only looked at: network file systems then ask the server.
        """
        try:
            inside = os.open(lease, _FOLDER, dir_fd=self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            beats = [os.fstat(inside).st_mtime_ns]
            for name in os.listdir(inside):
                with contextlib.suppress(FileNotFoundError):
                    file = os.open(name, _OLD, dir_fd=inside)
                    beats.append(os.fstat(file).st_mtime_ns)
                    os.close(file)
        finally:
            os.close(inside)
        return max(beats)

    def _now_ns(self) -> int:
        """What time it is by the clock of the file system: that of a file touched just now."""
        name = f"{_LOOK}{os.urandom(8).hex()}"
        file = os.open(name, _NEW, 0o666, dir_fd=self._folder)
        try:
            os.utime(file)
            return os.fstat(file).st_mtime_ns
        finally:
            os.close(file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)

    def _words(self, lease: str) -> str:
        """Who holds a lease, as far as its file says."""
        try:
            inside = os.open(lease, _FOLDER, dir_fd=self._folder)
            try:
                (name,) = os.listdir(inside)
                with os.fdopen(os.open(name, _OLD, dir_fd=inside), "rb") as file:
                    about = json.loads(file.read(_MOST_BYTES))
            finally:
                os.close(inside)
            who = f"process {about['pid']} on {about['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            who = "another run"
        return printable(f"{who} is rendering into {self._place} ({lease})")

    def _tidy(self) -> None:
        """Remove what is left of former leases of this name, and of who looked and was killed."""
        former = [
            one.folder
            for one in self._found()
            if one.is_over and one.name == self._name and one.epoch < self.epoch
        ]
        with contextlib.suppress(OSError):
            for folder in former:
                inside = os.open(folder, _FOLDER, dir_fd=self._folder)
                for name in os.listdir(inside):
                    os.unlink(name, dir_fd=inside)
                os.close(inside)
                os.rmdir(folder, dir_fd=self._folder)
            for name in os.listdir(self._folder):
                if name.startswith(_LOOK):
                    os.unlink(name, dir_fd=self._folder)
