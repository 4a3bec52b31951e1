"""One run per output folder: a lock that the kernel frees however the run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowblend_cli.errors import LockedError, OutputError

LOCK_NAME = ".flowblend.lock"


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold an output folder for this run alone; the kernel frees it however the run ends.

    Raises:
        LockedError: Another run holds it.
        OutputError: The folder is a link, or can't be made or locked.
    """
    from filelock import FileLock, Timeout

    if folder.is_symlink():
        raise OutputError(
            f"{folder}: is a symbolic link, and nothing is written through one, since whoever can "
            "change it decides where: name the folder that it leads to"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, timeout=0, fallback_to_soft=False)
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"another run is rendering into {folder}: wait for it, or choose another --out"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{folder}: can't be used for output ({reason}): choose another folder with --out, "
            "where files can be made"
        ) from error
    try:
        yield
    finally:
        lock.release()
