"""WorkerPool: several workers as one executor, each with its models in memory.

A worker is an ``Executor`` of one slot that has a name: a process on a GPU, or one on another
machine. What is decided here is who gets which request, and what becomes of one whose worker can't
go on; everything else the loop and the workers do as if there were one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from flowblend_cli.engine.executors.base import (
    Answer,
    Executor,
    RenderFailure,
    RenderRequest,
)
from flowblend_cli.errors import (
    DeviceFailedError,
    DeviceLostError,
    StopRequested,
)
from flowblend_cli.events import Event, JobStarted, Message
from flowblend_cli.jobs import ModelSpec

# How often all workers are asked, also those whose threads rang for nothing.
_ROUND_S = 0.1
# A job is tried on so many further workers before it is its own fault.
MOST_MOVES = 2
# Errors that tell of the worker at least as much as of the job.
OF_THE_WORKER = (DeviceFailedError, DeviceLostError)


class Heard(threading.Event):
    """An event that knows who set it, so that of a thousand workers only those are asked."""

    def __init__(self) -> None:
        super().__init__()
        self._names: deque[str] = deque()

    def by(self, name: str) -> Callable[[], None]:
        """What a worker's thread calls where the worker's ``poll`` may have something."""

        def heard() -> None:
            self._names.append(name)
            self.set()

        return heard

    def taken(self) -> list[str]:
        """Who has called since this was asked the last time, each once."""
        self.clear()  # first: who calls from now on sets it again
        names: dict[str, None] = {}
        while self._names:
            names[self._names.popleft()] = None
        return [*names]


class Worker(Executor, Protocol):
    """An executor of one slot."""

    @property
    def name(self) -> str:
        """What events call it."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether it will never take a request again."""
        ...


@dataclass
class Task:
    """A request under way, and the workers that failed at it."""

    request: RenderRequest
    failed: dict[str, BaseException] = field(default_factory=dict)


class WorkerPool:
    """An ``Executor`` of as many slots as it has workers that work.

    A worker whose device fails at a request is set aside, and the request goes to another one, at
    most twice. Where one of those manages it, the first one is left out from then on. Where none
    does, the request is at fault: it fails alone, and the workers take others.

    Args:
        workers: The workers; their names differ.
        heard: Set by a worker's thread where its ``poll`` may have something; a plain event has all
            workers asked every time.
        note: What people are told first; empty for nothing.
    """

    def __init__(self, workers: Sequence[Worker], heard: threading.Event, note: str = "") -> None:
        self._workers = {worker.name: worker for worker in workers}
        self._heard = heard
        self._busy: dict[str, Task] = {}
        self._aside: dict[str, int] = {}  # the request at which each of these failed
        self._waiting: deque[Task] = deque()  # for another worker
        self._told: deque[Answer | Event] = deque([Message(note)] if note else [])
        self._is_stopping = False
        self._round_at = 0.0

    @property
    def slots(self) -> int:
        """See ``Executor``; fewer where workers are left out."""
        return max(1, self._ready)

    @property
    def _ready(self) -> int:
        """How many workers take requests."""
        return len(self._workers) - len(self._aside)

    @property
    def names(self) -> tuple[str, ...]:
        """The workers that take requests."""
        return tuple(name for name in self._workers if name not in self._aside)

    def expect(self, jobs: int) -> None:
        """See ``Executor``."""

    def submit(self, request: RenderRequest) -> None:
        """See ``Executor``; a free worker that has the models takes it, if there is one."""
        self._is_stopping = False
        self._waiting.append(Task(request))
        self._hand_out()

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """See ``Executor``."""
        until = time.monotonic() + timeout_s
        while not self._told:
            for name in self._news():
                while name in self._busy and (found := self._workers[name].poll(0.0)) is not None:
                    self._take(name, found)
                self._bury(name)
            self._hand_out()
            if self._told:
                return self._told.popleft()
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._heard.wait(left)
        return self._told.popleft()

    def models_in_memory(self) -> Collection[ModelSpec]:
        """See ``Executor``; those of workers that are free."""
        free = (self._workers[name] for name in self._free())
        return [model for worker in free for model in worker.models_in_memory()]

    def stop(self) -> None:
        """See ``Executor``."""
        self._is_stopping = True
        for name in self._busy:
            self._workers[name].stop()
        self._hand_out()

    def close(self) -> None:
        """See ``Executor``."""
        for worker in self._workers.values():
            worker.close()

    def _news(self) -> list[str]:
        """The workers to ask: those that were heard, and now and then all."""
        now = time.monotonic()
        if isinstance(self._heard, Heard):
            names = self._heard.taken()
            if now - self._round_at < _ROUND_S:
                return names
        else:
            self._heard.clear()
        self._round_at = now
        return [*self._workers]

    def _bury(self, name: str) -> None:
        """Forget a worker if it was lost while it had nothing to do."""
        if name in self._busy or name not in self._workers or not self._workers[name].is_gone:
            return
        self._workers.pop(name).close()
        self._aside.pop(name, None)
        self._told.append(Message(f"{name} is lost; it had no job"))

    def _free(self) -> list[str]:
        if len(self._busy) >= self._ready:
            return []
        return [
            name
            for name, one in self._workers.items()
            if name not in self._busy and name not in self._aside and not one.is_gone
        ]

    def _hand_out(self) -> None:
        """Give what waits to whoever is free."""
        while self._waiting and self._is_stopping:
            number = self._waiting.popleft().request.number
            self._told.append(RenderFailure(number, StopRequested(), "stopped"))
        free = self._free() if self._waiting else []
        for task in [*self._waiting] if free else ():
            others = [name for name in free if self._may_take(name, task)]
            if others:
                model = task.request.job.model
                name = min(others, key=lambda name: self._suits(self._workers[name], model))
                free.remove(name)
                self._waiting.remove(task)
                self._busy[name] = task
                self._workers[name].submit(task.request)

    def _may_take(self, name: str, task: Task) -> bool:
        """Whether a worker may be given a request, as far as it has failed before."""
        return name not in task.failed

    @staticmethod
    def _suits(worker: Worker, model: ModelSpec) -> int:
        """0 for a worker with these models, 1 for one with none, 2 for one with others."""
        loaded = worker.models_in_memory()
        return 0 if model in loaded else 2 if loaded else 1

    def _take(self, name: str, found: Answer | Event) -> None:
        """Pass on what a worker tells, or give its request to another one."""
        if not isinstance(found, Answer):
            self._told.append(
                replace(found, worker=name) if isinstance(found, JobStarted) else found
            )
            return
        if name not in self._busy or self._busy[name].request.number != found.number:
            return  # of a request that this worker had before, and somebody else has now
        task = self._busy.pop(name)
        is_gone = self._workers[name].is_gone
        if is_gone:
            self._workers.pop(name).close()
        if (
            not isinstance(found, RenderFailure)
            or found.kind == "stopped"
            or not (is_gone or isinstance(found.error, OF_THE_WORKER))
        ):
            self._leave_out(task)
            self._told.append(replace(found, worker=name))
            return
        task.failed[name] = found.error
        if not is_gone:
            self._aside[name] = found.number
        if len(task.failed) <= MOST_MOVES and self._is_there_another(task):
            self._waiting.append(task)
            self._told.append(
                Message(f"{name} failed at {task.request.job.id}, which goes to another worker: "
                        f"{found.error}", is_error=True)
            )  # fmt: skip
            return
        for other in task.failed:  # all of them failed at it: it's not theirs
            self._aside.pop(other, None)
        self._told.append(replace(found, worker=name))

    def _is_there_another(self, task: Task) -> bool:
        """Whether a worker is there, or to come, that hasn't failed at a request."""
        return any(name not in task.failed for name in self.names)

    def _leave_out(self, task: Task) -> None:
        """Leave out for good the workers that failed at what another one managed."""
        for name, error in task.failed.items():
            if name not in self._workers:
                continue  # it is gone
            self._aside.pop(name, None)
            self._workers.pop(name).close()
            self._told.append(Message(f"{name} is left out from now on: {error}", is_error=True))
