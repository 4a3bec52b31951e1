"""When a run is to stop by itself: a job failed, enough were rendered, or the time is nearly up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobSkipped,
    JobStarted,
    Silent,
)
from flowblend_cli.jobs import Job
from flowblend_cli.text import clock, count

# By which an estimate may be wrong.
MARGIN = 1.1


class LimitReached(StopRequested):
    """The time is nearly up in the middle of a job, which stops between two of its steps."""


class Timing(Protocol):
    """How long jobs take, told by whoever learns it: ``runstate.RunState``."""

    def seconds_of(self, job_id: str) -> float | None:
        """Seconds that one job will take; None before anything is known."""
        ...

    def left_s(self) -> float | None:
        """Seconds until all jobs are done, asked in any thread; None before anything is known."""
        ...


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


class Limits(Tally):
    """Decides whether a run goes on, from what it has done: give it to the run as a reporter.

    Args:
        options: When to stop.
        total: Jobs in the batch.
        timing: Tells how long jobs take; None where nobody knows.
        now: A clock, in seconds.
    """

    def __init__(
        self,
        options: RunOptions,
        total: int,
        timing: Timing | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, now)
        self._options = options
        self._timing = timing
        self._deadline = None if options.max_time_s is None else now() + options.max_time_s
        self._is_late = False

    @property
    def reached(self) -> str:
        """The limit that keeps further jobs from being rendered, in words; empty for none."""
        most = self._options.max_jobs
        if self._options.fail_fast and self.failed:
            return "stopped at the first job that failed (--fail-fast)"
        if most is not None and self.rendered + len(self.under_way) >= most:
            return f"stopped after {count(most, 'rendered job')} (--max-jobs)"
        if self._is_late:
            return "stopped before the time was up (--max-time)"
        return ""

    def lets(self, job: Job) -> bool:
        """Whether a job may be rendered now; once one may not, no later one may.

        A job is let through where, by an estimate, it ends in time, or where nothing is known yet.
        """
        if self.reached:
            return False
        if self._deadline is not None:
            takes = self._timing.seconds_of(job.id) if self._timing is not None else None
            needs = (takes or 0.0) * MARGIN
            self._is_late = self._now() + needs >= self._deadline
        return not self._is_late

    def check(self) -> None:
        """See whether there is time for another step; called after every step.

        Raises:
            LimitReached: There isn't.
        """
        if self._deadline is not None and self._now() + self.step_s >= self._deadline:
            self._is_late = True
            self.idle()
            raise LimitReached

    def line(self) -> str:
        """Say how far the run is, and how long the rest will take."""
        left = self._timing.left_s() if self._timing is not None else None
        return f"{super().line()}, " + (
            "time left unknown" if left is None else f"about {clock(left)} left"
        )

    def told(self) -> str:
        """What a run that a limit has stopped says at its end; empty where nothing remains."""
        if not self.reached or not self.remaining:
            return ""
        remain = "remains" if self.remaining == 1 else "remain"
        return (
            f"{self.reached}: {count(self.remaining, 'job')} {remain}, and the same command "
            "goes on with them"
        )
