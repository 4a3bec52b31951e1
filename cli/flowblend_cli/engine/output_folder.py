"""Output folder: its lock, which lets one run at a time write; removal of old temporary files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flowblend_cli.engine.lease import Lease
from flowblend_cli.errors import LockedError, OutputError
from flowblend_cli.jobs import Shard
from flowblend_cli.text import printable
from flowblend_cli.utils.files import TEMPORARY_SUFFIX
from flowblend_cli.utils.folders import (
    FOLDER,
    HeldFolder,
    Identity,
    check_held,
    held,
    identity_of,
    opened,
)

LOCK_NAME = ".flowblend.lock"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "afs", "ocfs2",
    "gfs2", "wekafs", "panfs", "fuse.ceph-fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.juicefs",
})  # fmt: skip

# Where flock isn't known: there a lease decides alone, on a network file system.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
# What other commands may be writing at the same time, who hold no lock.
_NOT_OURS = "reviews"
LOCKS = ".flowblend.locks"
_ALL = "all"
_SHARD = re.compile(r"(?P<recipe>.+)\.[0-9]+-of-(?P<count>[0-9]+)")
_MARK = r"\.(?:all|(?P<shard>[0-9]+-of-(?P<count>[0-9]+)))(?:\.e[0-9]+)?(?:\.[0-9]+)?"
_MARKED = re.compile(rf".+{_MARK}\.tmp")
_MARKED_FINAL = re.compile(rf"(?:.+\.(?:mp4|png)|[0-9a-f]{{32}}){_MARK}\.tmp")


@dataclass(frozen=True)
class Claim:
    """What a run wants of an output folder: all of it, or what one shard writes.

    Args:
        recipe: Name of the recipe.
        shard: The shard; None for all.
    """

    recipe: str = ""
    shard: Shard | None = None

    @property
    def name(self) -> str:
        """Name of its lock file, without suffix, and of its lease."""
        return _ALL if self.shard is None else f"{self.recipe}.{self.shard.slug}"

    def clashes(self, name: str) -> bool:
        """Whether a run of this name can't be at work at the same time."""
        if self.shard is None or name in (_ALL, self.name):
            return True
        found = _SHARD.fullmatch(name)
        return found is None or found.groups() != (self.recipe, str(self.shard.count))


@contextmanager
def output_lock(
    folder: Path, claim: Claim | None = None, tell: Callable[[str], None] = lambda text: None
) -> Iterator[Callable[[], None]]:
    """Hold an output folder, or a shard's part of it, for this run alone.

    The kernel frees the lock however the run ends. On a network file system there is a lease
    besides, see ``lease``.

    Args:
        folder: The folder.
        claim: What the run wants of it; None for all.
        tell: Called with words where this waits for a lease to end.

    Yields:
        What raises ``OutputError`` once the lease is lost, to be called now and then.

    Raises:
        LockedError: Another run holds it.
        OutputError: The folder is a link, or can't be made or locked.
    """
    if folder.is_symlink():
        raise OutputError(
            f"{folder}: is a symbolic link, and nothing is written through one, since whoever can "
            "change it decides where: name the folder that it leads to"
        )
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            hold, lease = _hold(folder, claim or Claim(), tell, stack)
        except LockedError as error:
            raise LockedError(f"{error}: wait for it, or choose another --out") from error
        except OutputError:  # an OSError too, and complete already
            raise
        except OSError as error:
            raise OutputError(
                f"{folder}: can't be used for output ({error.strerror or error}): choose another "
                "folder with --out, where files can be made"
            ) from error
        stack.enter_context(held([hold]))
        try:
            yield (lambda: None) if lease is None else lease.check
        finally:
            if lease is not None:
                _end(hold, lease)


def _hold(
    folder: Path, claim: Claim, tell: Callable[[str], None], stack: contextlib.ExitStack
) -> tuple[HeldFolder, Lease | None]:
    """Lock a folder: what is held as long as the stack is, and the lease where there is one."""
    inside = stack.enter_context(opened(folder))
    shard, is_network = claim.shard, bool(network_file_system(folder))
    mark = "" if shard is None and not is_network else f".{shard.slug if shard else _ALL}"
    try:
        how = fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH
        locks = [(LOCK_NAME, _locked(inside, LOCK_NAME, how, stack, lax=is_network))]
    except BlockingIOError:
        raise LockedError(f"{_who_blocks(inside, claim)} into {folder}") from None
    lease = None
    if shard is not None or is_network:
        with contextlib.suppress(FileExistsError):
            os.mkdir(LOCKS, dir_fd=inside)
        beside = _kept(os.open(LOCKS, _FOLDER, dir_fd=inside), stack)
        if shard is not None:
            mine = f"{claim.name}.lock"
            try:
                identity = _locked(beside, mine, fcntl.LOCK_EX, stack, lax=is_network)
            except BlockingIOError:
                raise LockedError(
                    f"another run of shard {shard} is rendering into {folder}"
                ) from None
            locks.append((f"{LOCKS}/{mine}", identity))
            if others := [n for n in _busy(beside) if n != claim.name and claim.clashes(n)]:
                raise LockedError(
                    f"other shards are rendering into {folder} ({_some(others)}), and those that "
                    f"do so at one time have to be of one recipe and one number, {claim.recipe!r} "
                    f"and {shard.count} here"
                )
        if is_network:
            about = {"host": platform.node(), "pid": os.getpid(), "shard": str(shard or "")}
            lease = Lease(beside, str(folder), claim.name, claim.clashes, about, tell)
            lease.take()
            mark += f".e{lease.epoch}"
    path = "" if lease is None else f"{LOCKS}/{lease.path}"
    identity = identity_of(os.fstat(inside))
    return HeldFolder(os.path.abspath(folder), identity, tuple(locks), path, mark), lease


def _kept(descriptor: int, stack: contextlib.ExitStack) -> int:
    """Close a descriptor at the end."""
    stack.callback(os.close, descriptor)
    return descriptor


def _locked(
    inside: int, name: str, how: int, stack: contextlib.ExitStack, *, lax: bool
) -> Identity | None:
    """Lock a file in an open folder until the stack ends; its identity.

    Args:
        inside: The folder.
        name: The file.
        how: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``.
        stack: What keeps it.
        lax: Whether a file system that knows no locks will do.

    Raises:
        BlockingIOError: Another run has locked it.
    """
    while True:
        with contextlib.ExitStack() as trial:
            lock = _kept(os.open(name, _LOCK_FLAGS, 0o666, dir_fd=inside), trial)
            try:
                fcntl.flock(lock, how | fcntl.LOCK_NB)
            except OSError as error:
                if not (lax and error.errno in _NO_LOCKS):
                    raise
            mine = identity_of(os.fstat(lock))
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile: once more
                if mine == identity_of(os.stat(name, dir_fd=inside, follow_symlinks=False)):
                    stack.push(trial.pop_all())
                    return mine


def _busy(locks: int) -> Iterator[str]:
    """The shards that other runs have locked now, by name; those of this run aside."""
    for entry in sorted(os.listdir(locks)):
        name = entry.removesuffix(".lock")
        if name == entry or not _SHARD.fullmatch(name):
            continue
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as trial:
            lock = _kept(os.open(entry, _LOCK_FLAGS & ~os.O_CREAT, dir_fd=locks), trial)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield name
            except OSError:
                pass  # no locks here: leases tell


def _who_blocks(inside: int, claim: Claim) -> str:
    """Who has locked the folder as a whole, in words."""
    if claim.shard is not None:
        return "a run without --shard is rendering"
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        busy = list(_busy(_kept(os.open(LOCKS, _FOLDER, dir_fd=inside), stack)))
        if busy:
            return f"shards of it ({_some(busy)}) are rendering"
    return "another run is rendering"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return printable(", ".join(names[:3]) + more)


def _end(hold: HeldFolder, lease: Lease) -> None:
    """Let a lease go, unless the folder is no longer this run's: then nothing is touched."""
    lease.stop()
    with contextlib.suppress(OutputError):
        hold.check()
        lease.release()


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


def sweep(output_dir: Path, finals: Iterable[Path], shard: Shard | None = None) -> None:
    """Remove the temporary files of runs that are no more; the folder's lock is held.

    Only plain files are removed: beside the final names of this batch, in the folder of records,
    and those that are marked as the temporary files of runs which can't be at work now. Any other
    name could be somebody's own.

    Args:
        output_dir: The output folder.
        finals: The final names of the batch.
        shard: The shard that is rendered: what the others of as many are writing is left alone.
    """
    beside = {final.name + TEMPORARY_SUFFIX for final in finals}
    # Whoever writes next says what is wrong where a folder can't be opened.
    with contextlib.suppress(OSError), opened(output_dir) as folder:
        names = [n for n in os.listdir(folder) if n in beside or _MARKED_FINAL.fullmatch(n)]
        _remove(output_dir, folder, (name for name in names if not _is_others(name, shard)))
    with contextlib.suppress(OSError), opened(output_dir / FOLDER) as ours:
        for _, folders, files, inside in os.fwalk(".", dir_fd=ours):
            folders[:] = [name for name in folders if name != _NOT_OURS]
            left = [name for name in files if name.endswith(TEMPORARY_SUFFIX)]
            _remove(output_dir, inside, (name for name in left if not _is_others(name, shard)))


def _is_others(name: str, shard: Shard | None) -> bool:
    """Whether a temporary name is marked by a shard that may be at work beside this one."""
    found = _MARKED.fullmatch(name)
    if shard is None or found is None or found["count"] != str(shard.count):
        return False
    return found["shard"] != shard.slug


def _remove(output_dir: Path, folder: int, names: Iterable[str]) -> None:
    """Remove those of these files of an open folder below an output folder that are plain ones."""
    for name in names:
        check_held(output_dir)  # what a successor is writing isn't left over
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)
