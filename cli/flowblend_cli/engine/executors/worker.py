"""Worker process that renders, at the other end of ``ChildProcessExecutor``.

``python -m flowblend_cli.engine.executors.worker`` is handed documents, see ``child_process``, and
carries them out one after the other. It ends by itself where no more can come, also in the middle
of a step: whoever started it is gone. Signals are left to that one.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from dataclasses import asdict
from pathlib import Path

from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.signals import STOPPING
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event
from flowblend_cli.jobs import Job
from flowblend_cli.utils.folders import HeldFolder, held
from flowblend_cli.utils.worker_process import Channel, Document
from flowblend_plugin.errors import FlowBlendError


class RequestReader:
    """What is to be done, read by a thread, so that a stop or the end is seen in a step too.

    Args:
        channel: Where it comes from.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self._stopped = self._present = -1
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def next_document(self) -> Document:
        """Wait for the next document that isn't a stop."""
        return self._waiting.get()

    def next_request(self) -> RenderRequest:
        """Wait for the next request."""
        request = RenderRequest.from_document(self.next_document()["request"])
        self._present = request.number
        return request

    def check(self) -> None:
        """Raise if the present request isn't wanted any more.

        Raises:
            StopRequested: It isn't.
        """
        if self._stopped == self._present:
            raise StopRequested

    def _read(self) -> None:
        while (document := self._channel.receive()) is not None:
            if document["do"] == "stop":
                self._stopped = document["number"]
            else:
                self._waiting.put(document)
        os._exit(0)


def main() -> None:
    """Carry out requests until no more can come."""
    asks = getattr(signal, "SIGUSR1", signal.SIGTERM)
    for number in (*STOPPING, asks):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel()
    reader = RequestReader(channel)
    given = reader.next_document()
    warm_up = None if given["warm_up"] is None else Job.from_document(given["warm_up"])
    folder = None if given["embeddings_dir"] is None else Path(given["embeddings_dir"])
    share = given["memory_share"]

    def tell(event: Event) -> None:
        channel.send({"say": "event", "name": event.name, "values": asdict(event)})

    runner = JobRunner(tell, warm_up, folder, share)
    folders = [HeldFolder.from_document(one).of_process(os.getpid()) for one in given["held"]]
    with held(folders):
        while True:
            _send(channel, runner.run(reader.next_request(), reader.check))


def _send(channel: Channel, answer: Answer) -> None:
    match answer:
        case RenderResult():
            channel.send({"say": "result", "result": answer.to_document()}, answer.frames)
        case PreviewResult():
            channel.send({"say": "preview", "elapsed_s": answer.elapsed_s}, answer.frames)
        case RenderFailure():
            error = answer.error
            is_ours = isinstance(error, FlowBlendError)
            channel.send(
                {
                    "say": "failure",
                    "kind": answer.kind,
                    "error": type(error).__name__,
                    "text": str(error),
                    "exit_code": getattr(error, "exit_code", 2 if is_ours else 1),
                }
            )


if __name__ == "__main__":
    main()
