"""WorkerProcess: a module of ours in a process of its own, and Channel, that process's end.

Renders, measurements, downloads, FLOPs and doctor's self-test run in such processes, so that the
command itself never loads torch and no death of theirs is its own. Both ends exchange documents:
one JSON line each, which frames may follow.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flowblend_cli.errors import WorkerDiedError
from flowblend_cli.text import shorten
from flowblend_plugin import errors as plugin_errors

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

Document = dict[str, Any]
POLL_S = 0.1
_LENGTH_BYTES = 8
_LAST_LINES = 20
_LAST_WORDS_S = 2.0
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """A process that is handed documents and answers in documents; threads write and read them.

    It has a session of its own, so that Ctrl-C on a terminal reaches the command alone.

    Args:
        module: Dotted name of the module that it runs.
        name: What messages call it: ``"render"`` for "the render process".
        environment: Variables that it has besides this process's own.
        on_document: Called by a thread where ``receive`` has something to give or to raise.

    Raises:
        WorkerDiedError: It can't be started.
    """

    def __init__(
        self,
        module: str,
        name: str,
        environment: Mapping[str, str] | None = None,
        *,
        on_document: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._on_document = on_document or (lambda: None)
        self._patience_s: float | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={**worker_environment(), **(environment or {})},
            )
        except OSError as error:
            raise WorkerDiedError(f"the {name} process can't be started ({error})") from error
        self._outgoing: queue.SimpleQueue[tuple[Document, Frames | None] | None] = (
            queue.SimpleQueue()
        )
        self._incoming: queue.SimpleQueue[Document | None] = queue.SimpleQueue()
        self._words: deque[str] = deque(maxlen=_LAST_LINES)
        self._threads = [
            threading.Thread(target=target, name=f"{name} {target.__name__}", daemon=True)
            for target in (self._write, self._read, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be handed documents."""
        return self._process.poll() is None

    def send(self, document: Document, frames: Frames | None = None) -> None:
        """Hand it a document, and frames; one that is gone is noticed by ``receive``."""
        self._outgoing.put((document, frames))

    def close_input(self) -> None:
        """Tell it that no further document comes."""
        self._outgoing.put(None)

    def receive(self, timeout_s: float) -> Document | None:
        """The next document that it sent; None where it sends none within the time.

        Frames that follow one stand in it as ``"frames"``, bytes as ``"data"``.

        Raises:
            WorkerDiedError: It sends nothing more, because it has ended; says of what.
        """
        try:
            document = self._incoming.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if document is None:
            self._incoming.put(None)
            raise WorkerDiedError(self.last_words())
        return document

    def documents(self, check: Callable[[], None], patience_s: float) -> Iterator[Document]:
        """All documents that it sends until it ends, which it does by itself.

        Args:
            check: Called again and again meanwhile; may raise.
            patience_s: Seconds after which it is ended.
        """
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            check()
            with contextlib.suppress(queue.Empty):
                document = self._incoming.get(timeout=POLL_S)
                if document is None:
                    return
                yield document
        self._patience_s = patience_s

    def end(self) -> int:
        """End it at once, whatever it does; the code that it ended with."""
        self._process.kill()
        code = self._process.wait()
        self._outgoing.put(None)
        for thread in self._threads:
            thread.join(_LAST_WORDS_S)
        return code

    def last_words(self) -> str:
        """What it ended of, which ends it first if it still runs."""
        if self._patience_s is not None:
            self.end()
            return f"the {self._name} process took longer than {self._patience_s:g} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        code = self.end()
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"the {self._name} process died of {signal.Signals(-code).name}"
        said = next((line for line in reversed(self._words) if line), "it said nothing")
        return f"the {self._name} process ended with code {code} ({shorten(said, 160)})"

    def _write(self) -> None:
        assert self._process.stdin is not None
        # It may be gone: whoever waits for its answer is told.
        with contextlib.suppress(OSError, ValueError), self._process.stdin as stream:
            while (item := self._outgoing.get()) is not None:
                write_document(stream, *item)
                del item

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            # Cut off anywhere, in the middle of frames too.
            with contextlib.suppress(OSError, ValueError, EOFError), self._process.stdout as stream:
                while (document := read_document(stream)) is not None:
                    self._incoming.put(document)
                    self._on_document()
        finally:
            self._incoming.put(None)
            self._on_document()

    def _listen(self) -> None:
        """Keep the last of what libraries print: what a process dies of stands there."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError), self._process.stderr as stream:
            while line := stream.readline(4096):
                self._words.append(line.decode(errors="replace").strip())


class Channel:
    """A worker process's end: the documents that it is handed, and those that it sends.

    It takes standard input and output for itself: what libraries print goes to standard error, and
    they read nothing. Where the kernel can, it kills this process with the thread that started it.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._source, self._out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)

    def receive(self) -> Document | None:
        """The next document; None where no further one comes."""
        return read_document(self._source)

    def send(self, document: Document, frames: Frames | None = None) -> None:
        """Send a document, and frames; where nobody listens any more, this process ends."""
        try:
            write_document(self._out, document, frames)
        except OSError:
            os._exit(0)


def run_worker(
    module: str, request: Document, *, name: str, patience_s: float
) -> tuple[list[Document], str]:
    """Run a module as a process that answers one request and ends.

    Args:
        module: Its dotted name.
        request: What it is handed.
        name: What messages call it, see ``WorkerProcess``.
        patience_s: Seconds after which it is ended.

    Returns:
        The documents that it sent, and what went wrong if that isn't everything.
    """
    try:
        worker = WorkerProcess(module, name)
    except WorkerDiedError as error:
        return [], str(error)
    try:
        worker.send(request)
        worker.close_input()
        answers = list(worker.documents(lambda: None, patience_s))
        return answers, worker.last_words()
    finally:
        worker.end()


def worker_environment() -> dict[str, str]:
    """The environment of such a process: it finds both packages however this one found them."""
    packages = [Path(__file__).parents[2], Path(plugin_errors.__file__).parents[1]]
    given = os.environ.get("PYTHONPATH")
    paths = [*dict.fromkeys(map(str, packages)), *([given] if given else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def write_document(stream: IO[bytes], document: Document, frames: Frames | None = None) -> None:
    """Write a document as one JSON line; the bytes of its ``"data"``, and frames, behind it.

    Frames are 8 bytes that tell the length of a .npy, and the .npy itself.
    """
    told, data = {**document, "has_frames": frames is not None}, b""
    if isinstance(document.get("data"), bytes):
        data = told.pop("data")
        told["data_bytes"] = len(data)
    stream.write(json.dumps(told).encode() + b"\n" + data)
    if frames is not None:
        import numpy as np

        whole = np.ascontiguousarray(frames)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(whole))
        length = len(head.getvalue()) + whole.nbytes
        stream.write(length.to_bytes(_LENGTH_BYTES, "big") + head.getvalue())
        stream.write(whole.data)
    stream.flush()


def read_document(stream: IO[bytes]) -> Document | None:
    """Read what ``write_document`` wrote, its bytes in ``"data"``, frames in ``"frames"``.

    Returns:
        The document; None where the stream ended.

    Raises:
        ValueError: The stream ended in the middle of one.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    document: Document = json.loads(line)
    if (size := document.pop("data_bytes", None)) is not None:
        document["data"] = stream.read(size)
        if len(document["data"]) < size:
            raise ValueError("the stream ended in the middle of a file")
    if document.pop("has_frames"):
        import numpy as np

        length = int.from_bytes(stream.read(_LENGTH_BYTES), "big")
        document["frames"] = np.load(io.BytesIO(stream.read(length)), allow_pickle=False)
    return document
