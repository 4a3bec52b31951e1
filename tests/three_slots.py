"""An executor of three slots that answers out of order, late, and twice."""

from __future__ import annotations

from collections.abc import Collection

from flowblend_cli.engine.executors.base import Answer, Executor, RenderFailure, RenderRequest
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event
from flowblend_cli.jobs import ModelSpec

LATE = 3  # polls that a first answer of several is held back for


class ThreeSlots:
    """Renders by another executor, and makes trouble with its answers.

    The newest request is rendered first. An answer is held back until another one overtakes it, or
    for some polls. Each answer comes twice.

    Args:
        inner: Renders, one request at a time.
        lost: Numbers of requests that are never answered.
    """

    slots = 3

    def __init__(self, inner: Executor, lost: Collection[int] = ()) -> None:
        self._inner = inner
        self._lost = lost
        self._waiting: list[RenderRequest] = []
        self._rendering: RenderRequest | None = None
        self._held: list[Answer] = []
        self._twice: list[Answer] = []
        self._idle = 0
        self._is_stopping = False
        self.most = 0

    @property
    def under_way(self) -> int:
        return len(self._waiting) + len(self._held) + (self._rendering is not None)

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        self._is_stopping = False
        self._waiting.append(request)
        self.most = max(self.most, self.under_way)
        assert self.under_way <= self.slots

    def poll(self, timeout_s: float) -> Answer | Event | None:
        if self._twice:
            return self._twice.pop()
        if self._rendering is None and self._waiting:
            request = self._waiting.pop()
            if self._is_stopping:
                self._hold(RenderFailure(request.number, StopRequested(), "stopped"))
            else:
                self._rendering = request
                self._inner.submit(request)
        if self._rendering is not None:
            found = self._inner.poll(timeout_s)
            if found is None or not hasattr(found, "number"):
                return found
            self._rendering = None
            self._hold(found)
        self._idle += 1
        if len(self._held) > 1 or (self._held and self._idle > LATE):
            self._idle = 0
            answer = self._held.pop()  # the one that came last
            self._twice.append(answer)
            return answer
        return None

    def _hold(self, answer: Answer) -> None:
        if answer.number not in self._lost:
            self._held.append(answer)

    def models_in_memory(self) -> Collection[ModelSpec]:
        return self._inner.models_in_memory()

    def stop(self) -> None:
        self._is_stopping = True
        self._inner.stop()

    def close(self) -> None:
        self._waiting, self._held = [], []
        self._inner.close()
