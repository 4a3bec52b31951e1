"""Inputs on a worker's machine: found where they lie, or brought, checked and kept by their hash.

All workers of a user on one machine share a folder in his cache. What isn't in use there makes room
for what is brought.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flowblend_cli.engine.executors.base import RenderRequest
from flowblend_cli.engine.executors.inputs import PIECE_BYTES, Input, fingerprint, placed
from flowblend_cli.errors import DeviceLostError, FileChangedError, ModelMissingError
from flowblend_cli.events import Message
from flowblend_cli.models.contents import name_files
from flowblend_cli.models.hub.fetch import format_bytes
from flowblend_cli.models.hub_cache import hub_cache, snapshot
from flowblend_cli.models.identity import file_hashes
from flowblend_cli.utils.cache_dirs import cache_path
from flowblend_cli.utils.worker_process import Document

MOST_BYTES = 64 * 2**30
# Less of it comes without a word.
_TOLD_FROM_BYTES = 256 * 2**20
_LOOK_AGAIN_S = 0.2
# So many workers may bring something before they count again what is there.
_SHARES = 16
Bring = Callable[[str, int], bytes]


class InputStore:
    """Inputs that were brought, each in a folder that is named by its hash.

    Args:
        folder: Where they lie; None for the user's cache.
        most_bytes: What all together may have, beside those that are in use.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._found: dict[tuple[str, str], Path] = {}  # in this process's time
        self._held: dict[Path, int] = {}
        self._left = 0  # that may be brought before all is counted anew

    def place(
        self,
        inputs: Mapping[str, Input],
        bring: Bring,
        wait: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> dict[str, Path]:
        """See that inputs are on this machine; those of the former call aren't held any more.

        Args:
            inputs: The inputs.
            bring: Gets a piece of ``PIECE_BYTES`` of a file by the file's hash.
            wait: Called again and again while another process of this machine is at work.
            tell: Told where much is to come.

        Returns:
            The folder of each.

        Raises:
            ModelMissingError: A repository isn't here, or has other files.
            FileChangedError: A file was changed since it was hashed.
            OSError: There is no room.
        """
        former, self._held = self._held, {}
        try:
            return {
                place: self._find(wanted) or self._keep(wanted, bring, wait, tell)
                for place, wanted in inputs.items()
            }
        finally:
            for descriptor in former.values():
                os.close(descriptor)

    def _find(self, wanted: Input) -> Path | None:
        """Where an input lies without being brought; None for nowhere."""
        mark = (wanted.folder, wanted.key)
        if mark not in self._found:
            folder = Path(wanted.folder)
            if wanted.repo:
                folder = repo_folder(wanted)
            elif not _is_in(folder, wanted):
                return None
            self._found[mark] = folder
        return self._found[mark]

    def _keep(
        self,
        wanted: Input,
        bring: Bring,
        wait: Callable[[], None],
        tell: Callable[[str], None],
    ) -> Path:
        """Have an input in the store, and hold it there."""
        home = self._home()
        with _alone_in(home, wait):
            folder = home / wanted.key
            known = ("", wanted.key)
            if not (folder.is_dir() and (known in self._found or _is_in(folder, wanted))):
                if wanted.size >= _TOLD_FROM_BYTES:
                    tell(f"{format_bytes(wanted.size)} of {wanted.folder} come to this worker")
                _remove(folder)
                self._make_room(home, wanted.size)
                _bring_all(wanted, folder, bring)
            self._found[known] = folder
            os.utime(folder)
            if folder not in self._held:
                self._held[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(self._held[folder], fcntl.LOCK_SH)
        return folder

    def _home(self) -> Path:
        for folder in [self._folder] if self._folder else [cache_path("inputs"), _in_temporary()]:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                if folder.stat().st_uid == os.getuid() and _has_locks(folder):
                    self._folder = folder
                    return folder
        raise OSError("neither the user's cache nor the folder of temporary files can be used")

    def _make_room(self, home: Path, size: int) -> None:
        """Remove what was used longest ago and isn't in use."""
        if size <= self._left and size <= _free_in(home):
            self._left -= size
            return
        kept = {path: _size_of(path) for path in home.iterdir() if path.is_dir()}
        for path in sorted(kept, key=lambda path: (path.suffix != ".tmp", path.stat().st_mtime)):
            is_full = sum(kept.values()) + size > self._most_bytes
            if path.suffix != ".tmp" and not is_full and _free_in(home) >= size:
                break
            if _is_unused(path):
                _remove(path)
                del kept[path]
        self._left = max(0, self._most_bytes - sum(kept.values()) - size) // _SHARES
        if (free := _free_in(home)) < size:
            told = f"{format_bytes(size)} are needed, {format_bytes(free)} are free"
            raise OSError(f"{home} has no room: {told}")


class WorkerInputs:
    """Makes requests of the driver's into such that this machine can carry out.

    Args:
        send: Sends the driver a document; ``lacks`` (sha256, piece) asks for a piece of a file, and
            ``waits`` says that this worker lives.
        store: Where inputs are kept.
    """

    def __init__(self, send: Callable[[Document], None], store: InputStore | None = None) -> None:
        self._send = send
        self._store = store or InputStore()
        self._given: queue.SimpleQueue[tuple[str, int, bytes | None]] = queue.SimpleQueue()

    def give(self, sha256: str, piece: int, data: bytes | None) -> None:
        """Take a piece that was asked for; None where the driver hasn't got it any more."""
        self._given.put((sha256, piece, data))

    def ready(self, document: Document) -> Document | None:
        """A document for the body, whose inputs are here; None where they can't be had.

        A failure is then sent.
        """
        given = document.pop("inputs", None)
        if given is None:
            return document
        inputs = {place: Input.from_document(one) for place, one in given.items()}
        try:
            folders = self._store.place(inputs, self._bring, self._wait, self._tell)
        except Exception as error:  # noqa: BLE001 - the driver decides
            self._send(_failure(error))
            return None
        request = RenderRequest.from_document(document["request"])
        models = placed(request.models, folders).to_document()
        return {**document, "request": {**document["request"], "models": models}}

    def _bring(self, sha256: str, piece: int) -> bytes:
        self._send({"say": "lacks", "sha256": sha256, "piece": piece})
        while (found := self._given.get())[:2] != (sha256, piece):
            pass
        if found[2] is None:
            raise FileChangedError
        return found[2]

    def _wait(self) -> None:
        self._send({"say": "waits"})

    def _tell(self, text: str) -> None:
        self._send({"say": "event", "name": Message.name, "values": {"text": text}})


def repo_folder(wanted: Input) -> Path:
    """Find a repository's files in this machine's own Hub cache, or in a folder that it shares.

    Raises:
        ModelMissingError: They aren't there, or are others than the driver's.
    """
    name = f"{wanted.repo} at {wanted.commit[:12]}"
    own, shared = snapshot(wanted.repo, wanted.commit), Path(wanted.folder)
    difference = f"isn't in {hub_cache()}" if own is None else _difference(own, wanted)
    if own is not None and not difference:
        return own
    if shared.is_dir() and not _difference(shared, wanted):
        return shared
    raise ModelMissingError(f"{name} {difference}")


def lacking(inputs: list[Input]) -> list[str]:
    """Say which repositories aren't whole on this machine, or differ from the driver's."""
    problems = []
    for wanted in inputs:
        try:
            repo_folder(wanted)
        except (ModelMissingError, OSError) as error:
            problems.append(str(error))
    return [*dict.fromkeys(problems)]


def _difference(folder: Path, wanted: Input) -> str:
    absent = [one.name for one in wanted.files if not (folder / one.name).is_file()]
    if absent:
        return f"is only half there: {name_files(absent)} missing in {folder}"
    other = [one.name for one in wanted.files if fingerprint(folder / one.name) != one.sha256]
    return f"isn't the driver's: {', '.join(other[:3])} differ in {folder}" if other else ""


def _is_in(folder: Path, wanted: Input) -> bool:
    """Whether a folder has an input's files, with the same bytes."""
    try:
        if any((folder / one.name).stat().st_size != one.size for one in wanted.files):
            return False
        hashes = file_hashes(folder, [one.name for one in wanted.files])
    except OSError:
        return False
    return all(hashes[one.name] == one.sha256 for one in wanted.files)


def _bring_all(wanted: Input, folder: Path, bring: Bring) -> None:
    """Write an input's files, which have their folder's name once all are there and checked."""
    temporary = folder.with_suffix(".tmp")
    try:
        temporary.mkdir()
        for one in wanted.files:
            path = temporary / one.name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with path.open("xb") as file:
                for piece in range(-(-one.size // PIECE_BYTES)):
                    data = bring(one.sha256, piece)
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != one.sha256:
                raise FileChangedError
        temporary.rename(folder)
    except FileChangedError:
        _remove(temporary)
        raise FileChangedError(
            f"{Path(wanted.folder, one.name)} was changed or removed since this run began: put it "
            "back, or run the same command again"
        ) from None
    except BaseException:
        _remove(temporary)
        raise


@contextlib.contextmanager
def _alone_in(home: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Keep the other workers of this machine from changing the store meanwhile."""
    descriptor = _open_lock(home)
    try:
        told = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - told > 1:
                    wait()
                    told = time.monotonic()
                time.sleep(_LOOK_AGAIN_S)
        yield
    finally:
        os.close(descriptor)


def _is_unused(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _open_lock(home: Path) -> int:
    return os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _has_locks(home: Path) -> bool:
    descriptor = _open_lock(home)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return True


def _failure(error: Exception) -> Document:
    """What the driver is told of inputs that can't be had: the file's fault, or this machine's."""
    if not isinstance(error, FileChangedError):
        error = DeviceLostError(f"the files of a job can't be had there: {error}")
    code = getattr(error, "exit_code", 1)
    told = {"error": type(error).__name__, "text": str(error), "exit_code": code}
    return {"say": "failure", "kind": "job", **told}


def _in_temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"flowblend-inputs-{os.getuid()}"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _free_in(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
