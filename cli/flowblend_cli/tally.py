"""What a run has done so far, counted from its events; SIGUSR1 asks for it in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from flowblend_cli.events import Event, JobDone, JobDropped, JobFailed, JobSkipped, JobStarted
from flowblend_cli.progress import Silent
from flowblend_cli.text import clock

_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)
_THE_END = b"\0"  # no signal has this number


class Tally(Silent):
    """A reporter that counts.

    Args:
        total: Jobs in the batch.
        now: A clock, in seconds.
    """

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = now()
        self._total = total
        self.rendered = self.skipped = self.failed = 0
        self.ended: set[str] = set()
        self.under_way: dict[str, float] = {}  # when each job began that has no end yet
        self._present: JobStarted | None = None
        self._step = 0
        self._step_began = self._began
        self._longest_step_s = 0.0

    @property
    def remaining(self) -> int:
        """Jobs that are neither done, nor failed, nor given up."""
        return max(0, self._total - len(self.ended))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._began

    @property
    def step_s(self) -> float:
        """Seconds that the present job's next step may take, as its longest; 0 where none is known.

        The first step isn't asked where others are known: it holds what happens once.
        """
        return self._longest_step_s if self._present is not None else 0.0

    def event(self, event: Event) -> None:
        """Count the event."""
        if isinstance(event, JobStarted):
            self._present, self._step = event, 0
            self._longest_step_s, self._step_began = 0.0, self._now()
            self.under_way.setdefault(event.job, self._now())
        if isinstance(event, JobDone | JobSkipped | JobDropped | JobFailed):
            self.ended.add(event.job)
            self.under_way.pop(event.job, None)
            self.rendered += isinstance(event, JobDone)
            self.skipped += isinstance(event, JobSkipped)
            self.failed += isinstance(event, JobFailed)
            if self._present is not None and self._present.job == event.job:
                self._present = None

    def step(self, step: int, total: int, role: str) -> None:
        """Note that a step starts, and how long the one before it took."""
        now = self._now()
        if step > 0:
            took = now - self._step_began
            self._longest_step_s = took if step <= 2 else max(self._longest_step_s, took)
        self._step, self._step_began = step, now

    def grow(self, jobs: int) -> None:
        """Count on further jobs."""
        self._total += jobs

    def idle(self) -> None:
        """Note that the present job was given up without an end: it remains."""
        if self._present is not None:
            self.under_way.pop(self._present.job, None)
        self._present = None

    def line(self) -> str:
        """Say how far the run is, in one line."""
        done = f"{self.rendered} done, {self.skipped} already there, {self.failed} failed"
        parts = [f"status: {done}, {self.remaining} remaining"]
        job = self._present
        if job is not None:
            parts.append(f"{job.job} at step {self._step + 1} of {job.num_inference_steps}")
        return "; ".join([*parts, f"{clock(self.elapsed_s)} elapsed"])


class StatusSignal:
    """Answers SIGUSR1 while a batch runs; a context manager that does nothing where there is none.

    The signal's handler does nothing: the interpreter writes the signal's number into a pipe at
    once, even in the middle of a long computation, and a thread that waits there answers. So the
    render isn't held up, and no lock can be wanted twice.

    Args:
        answer: Called in that thread, once a signal.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> StatusSignal:
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return self
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._listen, args=(reading, _SIGNAL), daemon=True)
        thread.start()
        former_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        former = signal.signal(_SIGNAL, _nothing)
        signal.siginterrupt(_SIGNAL, False)  # what the system does for the render goes on
        self._undo.callback(os.close, reading)
        self._undo.callback(os.close, writing)
        self._undo.callback(thread.join)
        self._undo.callback(os.write, writing, _THE_END)
        self._undo.callback(signal.set_wakeup_fd, former_pipe)
        self._undo.callback(signal.signal, _SIGNAL, former or signal.SIG_DFL)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _listen(self, pipe: int, number: int) -> None:
        while (read := os.read(pipe, 1)) not in (b"", _THE_END):
            if read[0] == number:
                self._answer()


def _nothing(*_: Any) -> None:
    """A handler, without which the signal would end the process."""
