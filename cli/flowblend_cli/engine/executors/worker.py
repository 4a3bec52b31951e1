"""Worker that renders, at the far end of an executor: it is handed documents, and sends some.

``serve`` carries documents out one after the other, see ``child_process``, over whatever link they
come: standard input and output, or a cluster. ``python -m`` with this module's name is such a
process. It ends by itself where no more can come, also in the middle of a step: whoever
started it is gone. Signals are left to that one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.runtime.checkpoint_file import CarriedCheckpoint
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles, EmbeddingHome
from flowblend_cli.engine.signals import STOPPING
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event
from flowblend_cli.jobs import Job
from flowblend_cli.utils.folders import HeldFolder, held
from flowblend_cli.utils.worker_process import POLL_S, Channel, Document
from flowblend_plugin.errors import FlowBlendError

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

# The other end writes and checks files between its answers. Without one, a prompt is encoded here.
ANSWER_S = 60.0


class Link(Protocol):
    """A way between a worker and whoever hands it requests."""

    def receive(self) -> Document | None:
        """Wait for the next document; None where no further one comes."""
        ...

    def send(self, document: Document, frames: Frames | None = None) -> None:
        """Send a document, and frames."""
        ...


class RequestReader:
    """What is to be done, read by a thread, so that a stop or the end is seen in a step too.

    Args:
        link: Where it comes from.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self._stopped = self._present = -1
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def next_document(self) -> Document:
        """Wait for the next document that isn't a stop."""
        return self._waiting.get()

    def next_request(self) -> RenderRequest:
        """Wait for the next request."""
        document = self.next_document()
        request = RenderRequest.from_document(document["request"])
        self._present = request.number
        kept = request.checkpoint
        if kept is None or "state" not in document:  # it lies on this machine
            return request
        state = document["state"]
        held = [] if state is None else [state]
        carried = CarriedCheckpoint(kept.path, kept.job_key, kept.every, self._carry, held)
        return replace(request, checkpoint=carried)

    def check(self) -> None:
        """Raise if the present request isn't wanted any more.

        Raises:
            StopRequested: It isn't.
        """
        if self._stopped == self._present:
            raise StopRequested

    def ask(self, question: Document, key: str) -> Document | None:
        """Ask whoever hands out requests, in the midst of one.

        Args:
            question: What is asked.
            key: What its answer has as ``key``; others are late ones, which nobody waits for.

        Returns:
            The answer; None where it doesn't come in time.

        Raises:
            StopRequested: The present request isn't wanted any more.
        """
        self._link.send(question)
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            self.check()
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=POLL_S)
                if answer["key"] == key:
                    return answer
        return None

    def _carry(self, state: bytes | None) -> None:
        self._link.send({"say": "state", "number": self._present, "state": state})

    def _read(self) -> None:
        while (document := self._link.receive()) is not None:
            match document["do"]:
                case "stop":
                    self._stopped = document["number"]
                case "embedding":
                    self._answers.put(document)
                case _:
                    self._waiting.put(document)
        os._exit(0)


class AskedEmbeddings:
    """The ``EmbeddingHome`` of a worker that sees no folder: whoever hands out requests has one.

    Args:
        link: The way there.
        reader: Reads what comes from there.
    """

    def __init__(self, link: Link, reader: RequestReader) -> None:
        self._link = link
        self._reader = reader

    def read(self, key: str) -> bytes | None:
        """See ``EmbeddingHome``; what isn't told in time isn't there.

        Raises:
            StopRequested: The present request isn't wanted any more.
        """
        answer = self._reader.ask({"say": "embedding?", "key": key}, key)
        return None if answer is None else answer["data"]

    def write(self, key: str, data: bytes) -> None:
        """See ``EmbeddingHome``; the other end writes, and tells of what can't be written."""
        self._link.send({"say": "embedding", "key": key, "data": data})


def main() -> None:
    """Be a worker process: carry out requests until no more can come."""
    asks = getattr(signal, "SIGUSR1", signal.SIGTERM)
    for number in (*STOPPING, asks):
        signal.signal(number, signal.SIG_IGN)
    serve(Channel())


def serve(link: Link) -> None:
    """Carry out requests for ever.

    Args:
        link: Where they come from, and answers go.
    """
    reader = RequestReader(link)
    given = reader.next_document()
    warm_up = None if given["warm_up"] is None else Job.from_document(given["warm_up"])
    folder = given["embeddings_dir"]
    embeddings: EmbeddingHome | None = None if folder is None else EmbeddingFiles(Path(folder))
    if given["asks_embeddings"]:
        embeddings = AskedEmbeddings(link, reader)
    share = given["memory_share"]

    def tell(event: Event) -> None:
        link.send({"say": "event", "name": event.name, "values": asdict(event)})

    runner = JobRunner(tell, warm_up, embeddings, share)
    folders = [HeldFolder.from_document(one).of_process(os.getpid()) for one in given["held"]]
    with held(folders):
        while True:
            _send(link, runner.run(reader.next_request(), reader.check))


def _send(link: Link, answer: Answer) -> None:
    about = {"number": answer.number}
    match answer:
        case RenderResult():
            data = {} if answer.file is None else {"data": answer.file.data}
            told = {**about, "say": "result", "result": answer.to_document(), **data}
            link.send(told, answer.frames)
        case PreviewResult():
            told = {**about, "say": "preview", "elapsed_s": answer.elapsed_s}
            link.send(told, answer.frames)
        case RenderFailure():
            error = answer.error
            is_ours = isinstance(error, FlowBlendError)
            link.send(
                {
                    **about,
                    "say": "failure",
                    "kind": answer.kind,
                    "error": type(error).__name__,
                    "text": str(error),
                    "exit_code": getattr(error, "exit_code", 2 if is_ours else 1),
                }
            )


if __name__ == "__main__":
    main()
