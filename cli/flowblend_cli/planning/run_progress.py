"""RunProgress: how far a run is, counted from its events, for everybody who asks.

The exit code, ``--max-jobs``, ``--max-time``, the display, the log and ``flowblend status`` all
read the same counts and the same estimate of the time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowblend_cli.events import (
    Event,
    JobAssigned,
    JobDone,
    JobDropped,
    JobEnded,
    JobFailed,
    JobRendered,
    JobReturned,
    JobsAdded,
    JobSkipped,
    JobStarted,
    ModelLoaded,
    RunEnded,
    RunStarted,
    StepStarted,
)
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.estimates import Estimates, Speeds
from flowblend_cli.planning.workloads import works_of
from flowblend_cli.text import clock

_SECONDS_BETWEEN = 1.0
_FEW_JOBS = 100  # under way; the time left of more is worked out more rarely


@dataclass
class JobProgress:
    """How far a job is that is under way.

    Args:
        started: Its event; None before its first step.
        step: Index of the present step.
        total: Number of its steps.
        role: The denoiser that runs the present step.
        ran: One letter for each step that has begun, in an earlier run too.
        step_began: When the present step began.
        longest_step_s: Seconds of its longest step so far.
        is_rendered: Whether its frames are here, and only its file is to come.
    """

    started: JobStarted | None = None
    step: int = 0
    total: int = 0
    role: str = ""
    ran: str = ""
    step_began: float = 0.0
    longest_step_s: float = 0.0
    is_rendered: bool = False

    @property
    def is_sampling(self) -> bool:
        """Whether its steps run now."""
        return self.started is not None and not self.is_rendered

    def start(self, event: JobStarted, now: float) -> None:
        """Note that its first step comes next."""
        self.started, self.total = event, event.num_inference_steps
        self.step, self.role = event.resumed_at, ""
        self.ran = event.denoisers[: event.resumed_at]
        self.step_began, self.longest_step_s, self.is_rendered = now, 0.0, False

    def begin_step(self, event: StepStarted, now: float) -> None:
        """Note that a step starts, and how long the one before it took.

        The first step doesn't count where others are known: it holds what happens once.
        """
        if event.step > 0:
            took = now - self.step_began
            self.longest_step_s = took if event.step <= 2 else max(self.longest_step_s, took)
        self.step, self.total, self.role = event.step, event.total, event.role
        self.ran = self.ran[: event.step] + event.role[:1].upper()
        self.step_began = now


class RunProgress:
    """A reporter that counts and estimates the time left; it is told each event before any other.

    Args:
        batch: The jobs.
        now: A clock in seconds, which never jumps.
    """

    def __init__(self, batch: Batch, now: Callable[[], float] = time.monotonic) -> None:
        self._batch = batch
        self.now = now
        self._began = now()
        self.total = len(batch.jobs)
        self._slots = 1
        self._expected: tuple[str, ...] = ()
        self.rendered = self.skipped = self.failed = self.added = 0
        self.dropped: list[str] = []
        self.done: set[str] = set()
        self._ended: set[str] = set()
        self.under_way: dict[str, JobProgress] = {}
        self._estimates: Estimates | None = None
        self._learned: Any = None
        self._left: tuple[float | None, float] = (None, self._began)  # as of when
        self._told = self._began - _SECONDS_BETWEEN

    @property
    def ended(self) -> int:
        """Jobs that are done, failed, or given up."""
        return len(self._ended)

    @property
    def remaining(self) -> int:
        """Jobs that are neither done, nor failed, nor given up."""
        return max(0, self.total - self.ended)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self.now() - self._began

    @property
    def sampling(self) -> dict[str, JobProgress]:
        """The jobs whose steps run now, by id, in the order of their start; for any thread."""
        under_way = self.under_way.copy()  # at once: another thread may add to it meanwhile
        return {job: one for job, one in under_way.items() if one.is_sampling}

    def __call__(self, event: Event) -> None:
        """Count an event."""
        now = self.now()
        match event:
            case RunStarted():
                self._slots, self._expected = max(1, event.slots), event.expected
            case JobAssigned():
                self.under_way.setdefault(event.job, JobProgress())
            case JobStarted():
                self.under_way.setdefault(event.job, JobProgress()).start(event, now)
            case StepStarted():
                self.under_way.setdefault(event.job, JobProgress()).begin_step(event, now)
            case JobRendered() if event.job in self.under_way:
                self.under_way[event.job].is_rendered = True
            case JobReturned():
                self.under_way.pop(event.job, None)
            case RunEnded():
                self.under_way.clear()
            case JobsAdded():
                self.total += event.jobs
                self.added += event.jobs
            case JobDone() | JobSkipped() | JobDropped() | JobFailed():
                self._end(event)
        self._learn(event, now)

    def recall(self, learned: Any) -> None:
        """Begin with the speeds that an earlier run on this machine learned, see ``learned``."""
        self._learned = learned

    @property
    def learned(self) -> Any:
        """What is known of speeds, as plain JSON values."""
        if self._estimates is None:
            return self._learned
        return self._estimates.speeds.to_document()

    def remaining_s(self) -> float | None:
        """Seconds until all jobs are done; None before anything is known. For the run's thread."""
        return None if self._estimates is None else self._estimates.remaining_s(self.now())

    def left_s(self) -> float | None:
        """``remaining_s`` as of the last event, less what has passed since; for any thread."""
        left, told = self._left
        return None if left is None else max(0.0, left - (self.now() - told))

    def seconds_of(self, job: str) -> float | None:
        """Seconds that one job will take; None before anything is known."""
        return self._begun().seconds_of(job)

    def amount_of(self, job: Job) -> float:
        """How much a job asks for beside others of this batch, in FLOPs or pixels."""
        return self._begun().amount_of(job.id)

    def line(self) -> str:
        """Say how far the run is, and how long the rest will take, in one line; for any thread."""
        done = f"{self.rendered} done, {self.skipped} already there, {self.failed} failed"
        parts = [f"status: {done}, {self.remaining} remaining"]
        parts += [
            f"{job} at step {one.step + 1} of {one.total}" for job, one in self.sampling.items()
        ]
        left = self.left_s()
        told = "time left unknown" if left is None else f"about {clock(left)} left"
        return "; ".join([*parts, f"{clock(self.elapsed_s)} elapsed, {told}"])

    def _end(self, event: JobEnded) -> None:
        self._ended.add(event.job)
        self.under_way.pop(event.job, None)
        self.rendered += isinstance(event, JobDone)
        self.skipped += isinstance(event, JobSkipped)
        self.failed += isinstance(event, JobFailed)
        if isinstance(event, JobDropped):
            self.dropped.append(event.job)
        elif not isinstance(event, JobFailed):
            self.done.add(event.job)

    def _begun(self) -> Estimates:
        """The estimates, begun where they are first asked for: a finished batch needs none."""
        if self._estimates is None:
            estimates = Estimates(works_of(self._batch), Speeds(), self._slots)
            estimates.speeds.recall(self._learned)
            estimates.expect(self._expected, finished=(job.id for job in self._batch.jobs))
            estimates.grow(self.added)
            for job in self._ended:
                estimates.ended(job, self.now(), rendered=False)
            self._estimates = estimates
        return self._estimates

    def _learn(self, event: Event, now: float) -> None:
        """Pass an event on to the estimates; steps change the time left at most once a second.

        So does any event where hundreds of jobs are under way.
        """
        if isinstance(event, ModelLoaded | JobStarted):
            self._begun()
        many = len(self.under_way) / _FEW_JOBS
        is_due = now - self._told >= _SECONDS_BETWEEN * max(1.0, many) or (
            many < 1 and not isinstance(event, StepStarted)
        )
        if self._estimates is not None and tell_estimates(self._estimates, event, now) and is_due:
            self._told = now
            self._left = self._estimates.remaining_s(now), now


def tell_estimates(estimates: Estimates, event: Event, now: float) -> bool:
    """Tell estimates of an event.

    Args:
        estimates: The estimates.
        event: What happened.
        now: When, in seconds of the estimates' clock.

    Returns:
        Whether the event means anything to them.
    """
    match event:
        case ModelLoaded():
            estimates.loaded()
        case JobStarted():
            estimates.started(event.job, now)
        case StepStarted():
            estimates.step(event.job, event.step, now)
        case JobRendered():
            estimates.rendered(event.job, now)
        case JobReturned():
            estimates.returned(event.job)
        case JobsAdded():
            estimates.grow(event.jobs)
        case JobDone() | JobSkipped() | JobDropped() | JobFailed():
            estimates.ended(event.job, now, rendered=isinstance(event, JobDone))
        case _:
            return False
    return True
