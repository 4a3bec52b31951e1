"""What killed runs left in an output folder, removed by the next one before it works."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from flowblend_cli.artifacts.records import FOLDER
from flowblend_cli.utils.files import TEMPORARY_SUFFIX, temporary_path

# What other commands may be writing at the same time, who hold no lock.
_NOT_OURS = "reviews"


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
