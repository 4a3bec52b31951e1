"""RayWorker: a worker on some machine of a cluster, run as an actor of Ray.

It is the body of a worker process (``worker.serve``) behind another link: documents are handed over
by calls, and fetched by calls. Nothing here imports Ray.
"""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from flowblend_cli.engine.executors.input_store import WorkerInputs, lacking
from flowblend_cli.engine.executors.inputs import Input
from flowblend_cli.engine.executors.worker import serve
from flowblend_cli.errors import WorkerDiedError
from flowblend_cli.utils.code import code_sha256
from flowblend_cli.utils.worker_process import Document

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

# A worker that nobody asks for news any more ends by itself: whoever started it is gone.
PATIENCE_S = 25.0
# Before it is asked for the first time, torch is imported, and the driver may be busy.
_STARTING_S = 600.0
_LAST_WORDS_S = 10.0
# What has to be the same on every machine for the same bits.
PACKAGES = ("flowblend", "torch", "diffusers", "transformers")


class RayWorker:
    """A worker, and its link: ``receive`` and ``send`` are for its body, the others are called."""

    def __init__(self) -> None:
        self._to_do: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self._asked = time.monotonic() + _STARTING_S
        self._early: dict[int, Document] = {}
        self._handed = 0
        self._handing = threading.Lock()
        self._about: dict[str, Any] = {}
        self._is_known = threading.Event()
        self._inputs = WorkerInputs(self.send)
        self._fault = ""
        for target in (self._serve, self._watch):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def about(self, repositories: Sequence[Document] = ()) -> dict[str, Any]:
        """Tell where this worker is, and what decides its bits, as plain values.

        Args:
            repositories: Inputs of the Hub that this run needs; what is wrong with them here stands
                in ``lacking``.

        Raises:
            WorkerDiedError: It can't work; says why.
        """
        self._is_known.wait()
        if self._fault:
            raise WorkerDiedError(self._fault)
        return {**self._about, "lacking": lacking([*map(Input.from_document, repositories)])}

    def give(self, sha256: str, piece: int, data: bytes | None) -> None:
        """See ``WorkerInputs``."""
        self._inputs.give(sha256, piece, data)

    def hand(self, number: int, document: Document) -> None:
        """Take a document for the body, which gets them by their numbers, from 0.

        Calls are carried out by several threads, so that they may overtake each other.
        """
        with self._handing:
            self._early[number] = document
            while (following := self._early.pop(self._handed, None)) is not None:
                self._to_do.put(following)
                self._handed += 1

    def take(self, timeout_s: float) -> list[Document]:
        """Give what the body has sent by now; waits for something a while."""
        self._asked = time.monotonic()
        found = []
        try:
            found.append(self._told.get(timeout=timeout_s))
            while True:
                found.append(self._told.get_nowait())
        except queue.Empty:
            pass
        self._asked = time.monotonic()
        return found

    def receive(self) -> Document | None:
        """See ``worker.Link``."""
        while (document := self._inputs.ready(self._to_do.get())) is None:
            pass
        return document

    def send(self, document: Document, frames: Frames | None = None) -> None:
        """See ``worker.Link``."""
        self._told.put(document if frames is None else {**document, "frames": frames})

    def _serve(self) -> None:
        try:
            # torch is imported by this thread alone: two at once see each other's half of it.
            from flowblend_cli.engine.runtime.placement import usual_device

            self._about = {
                "host": platform.node(),
                "pid": os.getpid(),
                "versions": installed_versions(),
                **usual_device(),
            }
            self._is_known.set()
            serve(self)
        except BaseException as error:  # noqa: BLE001 - nobody could tell it otherwise
            traceback.print_exc()
            if not self._is_known.is_set():
                self._fault = f"{type(error).__name__}: {error}"
                self._is_known.set()
                time.sleep(_LAST_WORDS_S)
            os._exit(1)

    def _watch(self) -> None:
        while time.monotonic() - self._asked < PATIENCE_S:
            time.sleep(1.0)
        os._exit(0)


def installed_versions() -> dict[str, str]:
    """Versions of what decides bits, without importing it; of our own code, its hash."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    found["flowblend's code"] = code_sha256()[:12]
    for name in PACKAGES:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found
