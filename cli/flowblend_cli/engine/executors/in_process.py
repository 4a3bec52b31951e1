"""InProcessExecutor: renders in a thread of this process, one request at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection
from pathlib import Path

from flowblend_cli.engine.executors.base import Answer, RenderRequest
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event
from flowblend_cli.jobs import Job, ModelSpec

_LAST_STEP_S = 10.0


class InProcessExecutor:
    """An ``Executor`` for Python callers and tests: what dies here takes this process along.

    Args:
        warm_up: See ``JobRunner``.
        embeddings_dir: Output folder in which encoded prompts are kept; None keeps none.
    """

    slots = 1

    def __init__(self, warm_up: Job | None = None, embeddings_dir: Path | None = None) -> None:
        self._told: queue.SimpleQueue[Answer | Event | BaseException] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[RenderRequest | None] = queue.SimpleQueue()
        home = None if embeddings_dir is None else EmbeddingFiles(embeddings_dir)
        self._runner = JobRunner(self._told.put, warm_up, home)
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def expect(self, jobs: int) -> None:
        """See ``Executor``; nothing is made of it."""

    def submit(self, request: RenderRequest) -> None:
        """See ``Executor``."""
        self._is_stopping.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rendering", daemon=True)
            self._thread.start()
        self._requests.put(request)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """See ``Executor``."""
        try:
            told = self._told.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(told, BaseException):
            raise told
        return told

    def models_in_memory(self) -> Collection[ModelSpec]:
        """See ``Executor``."""
        model = self._runner.model
        return () if model is None else (model,)

    def stop(self) -> None:
        """See ``Executor``; loading isn't interrupted."""
        self._is_stopping.set()

    def close(self) -> None:
        """See ``Executor``; a step that runs is waited for."""
        self._is_stopping.set()
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join(_LAST_STEP_S)
        self._runner.close()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                self._told.put(self._runner.run(request, self._check))
            except BaseException as error:  # noqa: BLE001 - raised where the run is polled
                self._told.put(error)

    def _check(self) -> None:
        if self._is_stopping.is_set():
            raise StopRequested
