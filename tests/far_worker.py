"""A worker process that is handed the files that it lacks over standard input, as JSON."""

from __future__ import annotations

import base64
import queue
import threading

from flowblend_cli.engine.executors.input_store import WorkerInputs
from flowblend_cli.engine.executors.worker import serve
from flowblend_cli.utils.worker_process import Channel, Document


class FarChannel(Channel):
    def __init__(self) -> None:
        super().__init__()
        self._inputs = WorkerInputs(self.send)
        self._waiting: queue.SimpleQueue[Document | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> Document | None:
        while (document := self._waiting.get()) is not None:
            if (ready := self._inputs.ready(document)) is not None:
                return ready
        return None

    def _read(self) -> None:
        while (document := super().receive()) is not None:
            if document["do"] == "give":
                data = document["data"]
                piece = None if data is None else base64.b64decode(data)
                self._inputs.give(document["sha256"], document["piece"], piece)
            else:
                self._waiting.put(document)
        self._waiting.put(None)


if __name__ == "__main__":
    serve(FarChannel())
