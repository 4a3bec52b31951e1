"""When a run is to stop by itself: a job failed, enough were rendered, or the time is nearly up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from flowblend_cli.events import Event, JobDone
from flowblend_cli.jobs import Job
from flowblend_cli.options import RunOptions
from flowblend_cli.records import read_record
from flowblend_cli.stopping import StopRequested
from flowblend_cli.tally import Tally, clock
from flowblend_cli.text import count

# By which an estimate may be wrong.
MARGIN = 1.1
_RECORDS_READ = 200


class LimitReached(StopRequested):
    """The time is nearly up in the middle of a job, which stops between two of its steps."""


class Pace:
    """How long jobs take, told from those that are done.

    Args:
        recorded: Jobs of former runs, each with its seconds.
    """

    def __init__(self, recorded: Iterable[tuple[Job, float]] = ()) -> None:
        self._recorded: dict[Any, list[tuple[float, float]]] = {}
        self._seen: dict[Any, list[tuple[float, float]]] = {}
        for job, seconds in recorded:
            self._recorded.setdefault(_kind(job), []).append((_size(job), seconds))

    def note(self, job: Job, seconds: float) -> None:
        """Note how long a job took."""
        self._seen.setdefault(_kind(job), []).append((_size(job), seconds))

    def estimate_s(self, job: Job) -> float | None:
        """Seconds that a job will take; None where no job tells.

        Jobs of its own kind (models, stages, sizes) tell first, those of this run before those of
        former ones; then any other job, in proportion to its steps and pixels.
        """
        kind = _kind(job)
        for known in (self._seen, self._recorded):
            if kind in known:
                return median(seconds for _, seconds in known[kind])
        for known in (self._seen, self._recorded):
            rates = [seconds / size for some in known.values() for size, seconds in some if size]
            if rates:
                return median(rates) * _size(job)
        return None


class Limits(Tally):
    """Decides whether a run goes on, from what it has done: give it to the run as a reporter.

    Args:
        options: When to stop.
        jobs: The batch's jobs, and those that may follow.
        output_dir: The folder whose records tell how long jobs took.
        total: Jobs in the batch.
        now: A clock, in seconds.
    """

    def __init__(
        self,
        options: RunOptions,
        jobs: Iterable[Job],
        output_dir: Path,
        total: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, now)
        self._options = options
        self._jobs = {job.id: job for job in jobs}
        self._output_dir = output_dir
        self._deadline = None if options.max_time_s is None else now() + options.max_time_s
        self._pace: Pace | None = None
        self._is_late = False

    @property
    def pace(self) -> Pace:
        """How long jobs take; records are read when somebody asks first."""
        if self._pace is None:
            self._pace = Pace(_recorded(self._jobs.values(), self._output_dir))
        return self._pace

    def event(self, event: Event) -> None:
        """Count the event; a finished job tells how long others will take."""
        super().event(event)
        if isinstance(event, JobDone) and event.job in self._jobs:
            self.pace.note(self._jobs[event.job], event.elapsed_s)

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
        self._jobs[job.id] = job
        if self.reached:
            return False
        if self._deadline is not None:
            needs = (self.pace.estimate_s(job) or 0.0) * MARGIN
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

    def left_s(self) -> float | None:
        """Seconds that the remaining jobs will take; None where nothing tells."""
        left = [job for name, job in self._jobs.items() if name not in self.ended]
        each = [self.pace.estimate_s(job) for job in left]
        known = [seconds for seconds in each if seconds is not None]
        if not known:
            return None
        spent = sum(self._now() - began for began in self.under_way.values())
        return max(0.0, sum(known) * self.remaining / len(known) - spent)

    def line(self) -> str:
        """Say how far the run is, and how long the rest will take."""
        left = self.left_s()
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


def _recorded(jobs: Iterable[Job], output_dir: Path) -> Iterable[tuple[Job, float]]:
    """Jobs of which a former run has written how long they took, some of them if there are many."""
    found = 0
    for job in jobs:
        record = read_record(output_dir, job.id)
        if record is not None and record.elapsed_s:
            yield job, median(record.elapsed_s)
            found += 1
        if found == _RECORDS_READ:
            return


def _kind(job: Job) -> Any:
    """What jobs have in common that take equally long."""
    return (job.model, job.stages, job.arguments, job.sampling.scheduler, job.output.scale)


def _size(job: Job) -> float:
    pixels = [job.argument(name, 1) for name in ("height", "width", "num_frames")]
    return float(job.num_inference_steps * pixels[0] * pixels[1] * pixels[2])
