"""ChildProcessExecutor: renders in a worker process, which may die without taking the run along.

The worker is handed documents: ``begin`` (warm_up, embeddings_dir, asks_embeddings, held) first,
then ``run`` (request), one at a time; ``stop`` (number) ends a request after its present step. It
sends ``event`` (name, values) and, last of each request, ``result``, ``preview`` or ``failure``
with its number. Frames, or the bytes of a file (``data``), follow the first two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, get_args

from flowblend_cli import errors
from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.errors import (
    DeviceFailedError,
    DeviceLostError,
    RecipeError,
    RemoteError,
    StopRequested,
    WorkerDiedError,
)
from flowblend_cli.events import Event, Message, ModelLoaded
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.utils.devices import Device
from flowblend_cli.utils.folders import held_folders
from flowblend_cli.utils.worker_process import Document, WorkerProcess
from flowblend_plugin.errors import FlowBlendError

MODULE = "flowblend_cli.engine.executors.worker"
_TRIES = 2  # of loading, and of the job once its models are loaded
_LOADING_S = 600.0  # that loading may take at least before its process is given up
_EVENTS = {event.name: event for event in get_args(Event)}


class Process(Protocol):
    """A process that carries requests out: ``WorkerProcess``, or one on another machine."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be handed documents."""
        ...

    def send(self, document: Document) -> None:
        """Hand it a document; one that is gone is noticed by ``receive``."""
        ...

    def receive(self, timeout_s: float) -> Document | None:
        """The next document that it sent; None where it sends none within the time.

        Raises:
            WorkerDiedError: It sends nothing more.
        """
        ...

    def end(self) -> object:
        """End it at once."""
        ...


class ChildProcessExecutor:
    """An ``Executor`` with a worker process, which is started where there is none.

    A request whose process died, or lost its device, is begun once more in a new one. So is one
    that tells nothing for too long.

    Args:
        warm_up: See ``JobRunner``.
        embeddings_dir: Output folder in which encoded prompts are kept; None keeps none.
        device: The device that its process is held to; None leaves it all.
        on_told: Called by a thread where ``poll`` may have something.
        patience_s: Seconds after which a request that tells nothing loses its process, at least ten
            minutes while its models are loaded; None waits for ever.
    """

    slots = 1
    is_gone = False

    def __init__(
        self,
        warm_up: Job | None = None,
        embeddings_dir: Path | None = None,
        device: Device | None = None,
        on_told: Callable[[], None] | None = None,
        patience_s: float | None = None,
    ) -> None:
        self._patience_s = patience_s
        self._heard_at = 0.0
        self.name = "" if device is None else device.name
        self._environment = {} if device is None else device.environment()
        self._on_told = on_told
        self._begin = {
            "do": "begin",
            "warm_up": None if warm_up is None else warm_up.to_document(),
            "embeddings_dir": None if embeddings_dir is None else str(embeddings_dir),
            "asks_embeddings": False,
            "memory_share": device.share if device is not None and device.kind == "cuda" else 1,
        }
        self._worker: Process | None = None
        self._model: ModelSpec | None = None
        self._request: RenderRequest | None = None
        self._died: FlowBlendError | None = None  # of what, where the request isn't begun again yet
        self._deaths = {"loading": 0, "job": 0}
        self._phase = "loading"  # in which the last one died
        self._is_stopping = False

    def expect(self, jobs: int) -> None:
        """See ``Executor``; nothing is made of it."""

    def submit(self, request: RenderRequest) -> None:
        """See ``Executor``."""
        self._request = request
        self._is_stopping, self._deaths = False, {"loading": 0, "job": 0}
        self._start(request)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """See ``Executor``."""
        request = self._request
        if request is None:
            return None
        is_unused = self._is_stopping and not self._is_loaded
        document = None
        if self._died is None and self._worker is not None:
            try:
                document = self._worker.receive(0.0 if is_unused else timeout_s)
            except WorkerDiedError as error:
                self._lose_process(error)
                return None  # a signal to all of a service's processes may have ended this one
        if document is not None:
            self._heard_at = time.monotonic()
            is_late = document.get("number", request.number) != request.number
            return None if is_late else self._heard(request, document)
        if self._is_silent:
            silent_s = time.monotonic() - self._heard_at
            self._lose_process(
                WorkerDiedError(f"the {self._called} process told nothing for {silent_s:.0f} s")
            )
            return None
        if is_unused or (self._is_stopping and self._died is not None):
            self._end_process()  # nothing of the job is lost
            return self._answer(RenderFailure(request.number, StopRequested(), "stopped"))
        return None if self._died is None else self._try_again(request, self._died)

    def models_in_memory(self) -> Collection[ModelSpec]:
        """See ``Executor``."""
        return () if self._model is None else (self._model,)

    def stop(self) -> None:
        """See ``Executor``; where models are being loaded, the process is ended at once."""
        self._is_stopping = True
        if self._worker is not None and self._request is not None:
            self._worker.send({"do": "stop", "number": self._request.number})

    def close(self) -> None:
        """See ``Executor``."""
        self._request = None
        self._end_process()

    def _sent_beside(self, request: RenderRequest) -> Document:
        """What goes along with a request, where the other end doesn't see this one's files."""
        return {}

    def _start_process(self) -> Process:
        """Start a process.

        Raises:
            WorkerDiedError: It can't be started.
        """
        return WorkerProcess(MODULE, self._called, self._environment, on_document=self._on_told)

    @property
    def _called(self) -> str:
        return f"{self.name} render".strip()

    @property
    def _is_silent(self) -> bool:
        if self._patience_s is None or self._died is not None:
            return False
        patience_s = self._patience_s if self._is_loaded else max(self._patience_s, _LOADING_S)
        return time.monotonic() - self._heard_at > patience_s

    @property
    def _is_loaded(self) -> bool:
        return self._request is not None and self._model == self._request.models.spec

    def _start(self, request: RenderRequest) -> None:
        if self._worker is not None and not self._worker.is_alive:
            self._end_process()
        if self._worker is None:
            try:
                self._worker = self._start_process()
            except WorkerDiedError as error:
                self._lose_process(error)
                return
            held = [asdict(folder) for folder in held_folders()]
            self._worker.send({**self._begin, "held": held})
        if not self._is_loaded:
            self._model = None
        self._heard_at = time.monotonic()
        beside = self._sent_beside(request)
        self._worker.send({"do": "run", "request": request.to_document(), **beside})

    def _end_process(self) -> None:
        worker, self._worker, self._model = self._worker, None, None
        if worker is not None:
            worker.end()

    def _lose_process(self, error: FlowBlendError) -> None:
        self._died = error
        self._phase = "job" if self._is_loaded else "loading"
        self._deaths[self._phase] += 1
        self._end_process()

    def _try_again(self, request: RenderRequest, error: FlowBlendError) -> Answer | Event:
        """Begin a request once more in a new process, or give it up."""
        self._died = None
        was_loading = self._phase == "loading"
        if self._deaths[self._phase] < _TRIES:
            what = "loading" if was_loading else request.job.id
            self._start(request)
            return Message(f"{error}: {what} begins again in a new process", is_error=True)
        if isinstance(error, DeviceFailedError):
            kind: Any = "models" if was_loading else "job"
            return self._answer(RenderFailure(request.number, error, kind))
        if was_loading:
            lost = DeviceLostError(
                f"model {request.models.spec.pipeline!r} can't be loaded: {error}, twice; free "
                "memory, or run flowblend doctor"
            )
            return self._answer(RenderFailure(request.number, lost, "models"))
        died = WorkerDiedError(
            f"{error}, twice, while it worked at this job, which is given up: fewer frames or a "
            "smaller size need less memory, flowblend doctor looks at the machine"
        )
        return self._answer(RenderFailure(request.number, died))

    def _heard(self, request: RenderRequest, document: Document) -> Answer | Event | None:
        match document["say"]:
            case "event":
                event: Event = _EVENTS[document["name"]](**document["values"])
                if isinstance(event, ModelLoaded):
                    self._model = request.models.spec
                return event
            case "result":
                frames, data = document.get("frames"), document.get("data")
                return self._answer(RenderResult.from_document(document["result"], frames, data))
            case "preview":
                elapsed_s = document["elapsed_s"]
                frames = document["frames"]
                return self._answer(PreviewResult(request.number, frames, elapsed_s))
        error = _error(document)
        if document["kind"] == "stopped":
            error = StopRequested()
        elif isinstance(error, DeviceFailedError):
            self._lose_process(error)
            return None
        return self._answer(RenderFailure(request.number, error, document["kind"]))

    def _answer(self, answer: Answer) -> Answer:
        self._request, self._died = None, None
        return answer


def _error(document: Document) -> BaseException:
    """What went wrong in the worker, as if it had gone wrong here."""
    kind = getattr(errors, document["error"], None)
    if isinstance(kind, type) and issubclass(kind, FlowBlendError) and kind is not RecipeError:
        return kind(document["text"])
    return RemoteError(document["error"], document["text"], document["exit_code"])
