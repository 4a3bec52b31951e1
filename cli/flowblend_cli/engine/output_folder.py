"""Output folder: its lock, which lets one run at a time write; removal of old temporary files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowblend_cli.errors import LockedError, OutputError
from flowblend_cli.utils.files import TEMPORARY_SUFFIX, temporary_path
from flowblend_cli.utils.folders import FOLDER, HeldFolder, held, identity_of, opened

LOCK_NAME = ".flowblend.lock"
_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "afs", "ocfs2",
    "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.juicefs",
})  # fmt: skip

# What other commands may be writing at the same time, who hold no lock.
_NOT_OURS = "reviews"


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold an output folder for this run alone; the kernel frees it however the run ends.

    Raises:
        LockedError: Another run holds it.
        OutputError: The folder is a link, or can't be made or locked.
    """
    if folder.is_symlink():
        raise OutputError(
            f"{folder}: is a symbolic link, and nothing is written through one, since whoever can "
            "change it decides where: name the folder that it leads to"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, mine = _lock(folder)
    except BlockingIOError as error:
        raise LockedError(
            f"another run is rendering into {folder}: wait for it, or choose another --out"
        ) from error
    except OutputError:  # an OSError too, and complete already
        raise
    except OSError as error:
        raise OutputError(
            f"{folder}: can't be used for output ({error.strerror or error}): choose another "
            "folder with --out, where files can be made"
        ) from error
    try:
        with held([mine]):
            yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> tuple[int, HeldFolder]:
    """Lock a folder: the open lock file, and what is held as long as it is open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with opened(folder) as inside:
        while True:
            lock = os.open(LOCK_NAME, flags, 0o666, dir_fd=inside)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = identity_of(os.fstat(lock))
                place = os.path.abspath(folder)
                hold = HeldFolder(place, identity_of(os.fstat(inside)), LOCK_NAME, mine)
                if mine == identity_of(os.stat(LOCK_NAME, dir_fd=inside, follow_symlinks=False)):
                    return lock, hold
            except FileNotFoundError:
                pass  # removed between opening and locking it, or replaced: once more
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def network_file_system(folder: Path) -> str:
    """The kind of network file system that a folder lies on, such as ``nfs4``; empty for none.

    There a lock may keep out the runs of one machine only.
    """
    try:
        device = os.stat(folder).st_dev
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for mount in mounts:
        told, _, source = mount.partition(" - ")
        if told.split()[2:3] == [number] and source.split()[0] in _NETWORK:
            return source.split()[0]
    return ""


def sweep(output_dir: Path, finals: Iterable[Path]) -> None:
    """Remove the temporary files of runs that are no more; the folder's lock is held.

    Only plain files are removed: beside the final names of this batch, and in the folder of
    records. Any other name could be somebody's own.

    Args:
        output_dir: The output folder.
        finals: The final names of the batch.
    """
    beside = {temporary_path(final).name for final in finals}
    # Whoever writes next says what is wrong where a folder can't be opened.
    with contextlib.suppress(OSError), opened(output_dir) as folder:
        _remove(folder, beside.intersection(os.listdir(folder)))
    with contextlib.suppress(OSError), opened(output_dir / FOLDER) as ours:
        for _, names, files, inside in os.fwalk(".", dir_fd=ours):
            names[:] = [name for name in names if name != _NOT_OURS]
            _remove(inside, (name for name in files if name.endswith(TEMPORARY_SUFFIX)))


def _remove(folder: int, names: Iterable[str]) -> None:
    """Remove those of these files of an open folder that are plain ones."""
    for name in names:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)
