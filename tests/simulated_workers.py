"""Workers that render by noise, and die, answer late, twice, or with another job's answer."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

from noise_executor import render_of

from flowblend_cli.engine.executors.base import (
    Answer,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.encoding import with_file
from flowblend_cli.engine.executors.pool import WorkerPool
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile, CheckpointHeader
from flowblend_cli.errors import DeviceFailedError, StopRequested, WorkerDiedError
from flowblend_cli.events import Event
from flowblend_cli.jobs import ModelSpec

Deed = Literal["answer", "late", "twice", "another", "die", "store", "fail", "damage"]
DEEDS: tuple[Deed, ...] = (
    "answer", "answer", "late", "twice", "another", "die", "store", "fail", "damage",
)  # fmt: skip
End = Literal["kill", "stop"]
SHAPE = (1, 64, 64, 3)


class DriverKilledError(BaseException):
    """The driver is no more."""


class SimulatedWorker:
    """A worker of one slot, whose deeds are told by whoever simulates.

    Args:
        name: Its name.
        next_deed: What it does with its next request.
    """

    slots = 1

    def __init__(self, name: str, next_deed: Callable[[], Deed]) -> None:
        self.name = name
        self._next_deed = next_deed
        self._deed: Deed = "answer"
        self._request: RenderRequest | None = None
        self._answers: deque[Answer] = deque()
        self._former: list[Answer] = []
        self._polls = 0
        self._is_stopping = False
        self.is_gone = False

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        assert self._request is None
        assert not self.is_gone
        kept = request.checkpoint
        state = None if kept is None else kept.read()
        if kept is not None and state is not None:  # what is there is gone on with
            assert (state[0].seed, state[0].job_key) == (request.seed, kept.job_key)
        self._request, self._deed, self._polls = request, self._next_deed(), 0
        self._is_stopping = False

    def poll(self, timeout_s: float) -> Answer | Event | None:
        self._polls += 1
        if self._answers:
            return self._answers.popleft()
        if self._request is None or (self._deed == "late" and self._polls < 4):
            return None
        request = self._request
        if self._is_stopping:
            self._request = None
            return RenderFailure(request.number, StopRequested(), "stopped")
        if self._deed == "another" and self._former:
            self._deed = "answer"
            return self._former[-1]
        self._request = None
        if self._deed in ("die", "store"):
            if self._deed == "store" and request.checkpoint is not None:
                store(request.checkpoint, request)
            self.is_gone = True
            return RenderFailure(request.number, WorkerDiedError(f"{self.name} is lost"))
        if self._deed == "fail":
            self.is_gone = True
            return RenderFailure(request.number, DeviceFailedError(f"{self.name} failed"))
        answer = self._render(request)
        self._former.append(answer)
        if self._deed == "twice":
            self._answers.append(answer)
        return answer

    def _render(self, request: RenderRequest) -> RenderResult:
        answer = render_of(request.seed, SHAPE, request.number)
        if request.file is None:
            return answer
        answer = with_file(answer, request, request.file)
        if self._deed != "damage" or answer.file is None:
            return answer
        data = answer.file.data
        middle = len(data) // 2
        damaged = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return replace(answer, file=replace(answer.file, data=damaged))

    def models_in_memory(self) -> Collection[ModelSpec]:
        return ()

    def stop(self) -> None:
        self._is_stopping = True

    def close(self) -> None:
        self._request = None


class SimulatedCluster(WorkerPool):
    """A pool whose lost workers are replaced, and whose driver may be killed or stopped.

    Args:
        number: How many workers it has.
        next_deed: What a worker does with its next request.
        ends: How the driver ends at the next poll, if it does.
    """

    def __init__(
        self, number: int, next_deed: Callable[[], Deed], ends: Callable[[], End | None]
    ) -> None:
        super().__init__([], threading.Event())
        self._number, self._next_deed, self._ends = number, next_deed, ends
        self._started = 0

    @property
    def slots(self) -> int:
        return len(self.names)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        end = self._ends()
        if end == "kill":
            raise DriverKilledError
        if end == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        while len(self._workers) < self._number:
            self._started += 1
            name = f"worker {self._started}"
            self._workers[name] = SimulatedWorker(name, self._next_deed)
        return super().poll(0.0)

    def _is_there_another(self, task: object) -> bool:
        return True


def store(kept: CheckpointFile, request: RenderRequest) -> None:
    """Leave a state behind, as a worker does that is lost later."""
    total = request.job.num_inference_steps
    header = CheckpointHeader(
        kept.job_key, request.seed, 1, total, {}, elapsed_s=1.0, step_s=(1.0,), roles=("large",)
    )
    told = json.dumps({"__metadata__": header.to_metadata()}, separators=(",", ":")).encode()
    kept.write(len(told).to_bytes(8, "little") + told)
