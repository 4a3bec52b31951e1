"""Limits: decides when a run stops by itself, for the batch loop.

A run stops because a job failed (``--fail-fast``), enough jobs were rendered (``--max-jobs``), or
the time is nearly up (``--max-time``).
"""

from __future__ import annotations

from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import StopRequested
from flowblend_cli.jobs import Job
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.text import clock, count

# By which an estimate may be wrong.
MARGIN = 1.1


class LimitReached(StopRequested):
    """The time is up while the run waits for something else than a step."""


class Limits:
    """Decides whether a run goes on, from how far it is.

    Args:
        options: When to stop.
        progress: How far the run is, and how long its jobs take.
    """

    def __init__(self, options: RunOptions, progress: RunProgress) -> None:
        self._options = options
        self._progress = progress
        began = progress.now()
        self._deadline = None if options.max_time_s is None else began + options.max_time_s
        self._is_late = False
        self._needs_s = 0.0

    @property
    def reached(self) -> str:
        """The limit that keeps further jobs from being rendered, in words; empty for none."""
        most, progress = self._options.max_jobs, self._progress
        if self._options.fail_fast and progress.failed:
            return "stopped at the first job that failed (--fail-fast)"
        if most is not None and progress.rendered + len(progress.under_way) >= most:
            return f"stopped after {count(most, 'rendered job')} (--max-jobs)"
        if self._is_late:
            return "stopped before the time was up (--max-time)"
        return ""

    def may_start(self, job: Job) -> bool:
        """Whether a job may be rendered now; once one may not, no later one may.

        A job may start where an estimate says that it ends in time, or where nothing is known yet.
        """
        if self.reached:
            return False
        if self._deadline is not None:
            self._needs_s = (self._progress.seconds_of(job.id) or 0.0) * MARGIN
            self._is_late = self._progress.now() + self._needs_s >= self._deadline
        return not self._is_late

    @property
    def may_free(self) -> bool:
        """Whether a job that may not start now may start later, since one under way may fail."""
        most, progress = self._options.max_jobs, self._progress
        if self._is_late or (self._options.fail_fast and progress.failed) or most is None:
            return False
        return progress.rendered < most and bool(progress.under_way)

    def check_time(self) -> None:
        """See whether the time is up.

        Raises:
            LimitReached: It is.
        """
        if not self.has_time():
            raise LimitReached

    def has_time(self) -> bool:
        """Whether every job under way has time for another step; once not, no job starts."""
        if self._deadline is None:
            return True
        steps = [one.longest_step_s for one in self._progress.sampling.values()]
        self._is_late |= self._progress.now() + max(steps, default=0.0) >= self._deadline
        return not self._is_late

    def _too_short(self, remaining: int) -> str:
        """Why the same command may end like this again, and what to do."""
        options, needs = self._options, self._needs_s
        jobs = f"{count(remaining, 'job')} {'remains' if remaining == 1 else 'remain'}"
        if options.checkpoint_every:
            return f"{jobs}, and the same command goes on where this one stopped"
        about = f", and one takes about {clock(needs)}" if needs else ""
        return (
            f"{jobs}{about}: give more than --max-time {options.max_time_s:g}s, or add "
            "--checkpoint-every 5, by which the next run goes on where this one stopped"
        )

    def stop_reason(self) -> str:
        """What a run that a limit has stopped says at its end; empty where nothing remains."""
        remaining = self._progress.remaining
        if not self.reached or not remaining:
            return ""
        remain = "remains" if remaining == 1 else "remain"
        if self._is_late and not self._progress.rendered:
            return f"{self.reached}: no job was rendered, {self._too_short(remaining)}"
        return (
            f"{self.reached}: {count(remaining, 'job')} {remain}, and the same command goes on "
            "with them"
        )
