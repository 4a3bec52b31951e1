"""Output folder: its lock, which lets one run at a time write; removal of old temporary files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowblend_cli.artifacts.records import FOLDER
from flowblend_cli.errors import LockedError, OutputError
from flowblend_cli.utils.files import TEMPORARY_SUFFIX, temporary_path

LOCK_NAME = ".flowblend.lock"


# What other commands may be writing at the same time, who hold no lock.
_NOT_OURS = "reviews"


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


def sweep(output_dir: Path, finals: Iterable[Path]) -> None:
    """Remove the temporary files of runs that are no more; the folder's lock is held.

    Only plain files are removed: beside the final names of this batch, and in the folder of
    records. Any other name could be somebody's own.

    Args:
        output_dir: The output folder.
        finals: The final names of the batch.
    """
    beside = {temporary_path(final).name for final in finals}
    for entry in _files(output_dir):
        if entry.name in beside:
            _remove(entry)
    ours = output_dir / FOLDER
    # A link is nobody's of ours, and the walk would follow it.
    for folder, names, _ in () if ours.is_symlink() else os.walk(ours):
        names[:] = [name for name in names if name != _NOT_OURS]
        for entry in _files(Path(folder)):
            if entry.name.endswith(TEMPORARY_SUFFIX):
                _remove(entry)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The plain files of a folder; none where it can't be read, which its writer will tell of."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))


def _remove(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):  # whoever writes there next says what is wrong
        os.unlink(entry)
