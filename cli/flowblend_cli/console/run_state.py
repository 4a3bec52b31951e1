"""RunState: what a run is doing, kept in ``DIR/.flowblend/runs`` for ``flowblend status`` to read.

The file is written where a job begins or ends, and at most once a second beside that; whole or not
at all, and without waiting for the disk. Where it can't be written, the run says so once and goes
on.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.artifacts.records import read_checked, run_path, write_json
from flowblend_cli.errors import OutputError
from flowblend_cli.events import (
    Event,
    JobAssigned,
    JobDone,
    JobFailed,
    JobSkipped,
    Message,
    Reporter,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    Waiting,
)
from flowblend_cli.jobs import Batch
from flowblend_cli.text import utc_now
from flowblend_cli.utils.process import process_mark

if TYPE_CHECKING:
    from flowblend_cli.planning.run_progress import JobProgress, RunProgress

STATE_VERSION = 1
_SECONDS_BETWEEN = 1.0


class RunState:
    """A reporter that keeps how far a run is on the disk.

    Args:
        progress: How far the run is; it must be told each event before this reporter. It begins
            with the speeds that the last run on this machine learned.
        batch: The jobs.
        command: The command line that goes on with this batch.
        complain: Told once if the state can't be written.
    """

    def __init__(
        self, progress: RunProgress, batch: Batch, command: Sequence[str], complain: Reporter
    ) -> None:
        self._progress = progress
        self._complain = complain
        self._path = run_path(batch.output_dir, batch.recipe_name)
        self._fixed = {
            "v": STATE_VERSION,
            "recipe": batch.recipe_name,
            "command": list(command),
            "folder": os.getcwd(),
            "output_dir": os.path.abspath(batch.output_dir),
            "jobs": len(batch.jobs),
            "started": utc_now(),
            "process": process_mark(os.getpid()),
        }
        self._ids = {job.id for job in batch.jobs}
        self._known = self._ids | {job.id for job in batch.reserve}
        self._failed: dict[str, dict[str, Any]] = {}
        self._waiting = self._error = ""
        self._ended: str | None = None
        self._written = -_SECONDS_BETWEEN
        self._is_broken = False

    def __call__(self, event: Event) -> None:
        """Keep what happened; steps and skipped jobs at most once a second."""
        match event:
            case RunStarted():
                self._begin()
            case JobDone() | JobSkipped():
                self._failed.pop(event.job, None)
            case JobFailed():
                self._failed[event.job] = {
                    "scene": event.scene, "seed": event.seed, "error": event.error, "at": utc_now(),
                }  # fmt: skip
            case Waiting():
                self._waiting = event.text
            case Message():
                self._error = event.text if event.is_error else self._error
                return
            case Summary():
                self._ended = utc_now()
            case RunEnded():
                self._waiting = ""
        is_minor = isinstance(event, JobSkipped | JobAssigned | StepStarted)
        if not is_minor or self._progress.now() - self._written >= _SECONDS_BETWEEN:
            self._write()

    def _begin(self) -> None:
        """Begin where the last run ended: with the jobs that failed, and the speeds it learned."""
        former = read_state(self._path)
        failures = former.get("failed", {})
        self._failed = {job: told for job, told in failures.items() if job in self._known}
        if former.get("process", {}).get("host") == platform.node():
            self._progress.recall(former.get("learned"))

    def _write(self) -> None:
        progress = self._progress
        self._written = progress.now()
        if self._is_broken:
            return
        under_way = [_present(one) for one in progress.sampling.values()]
        document = {
            **self._fixed,
            "ended": self._ended,
            "elapsed_s": round(progress.elapsed_s, 3),
            "clock_s": round(time.monotonic(), 3),
            "rendered": progress.rendered,
            "skipped": progress.skipped,
            "added": progress.added,
            "added_done": len(progress.done - self._ids),
            "dropped": progress.dropped,
            "failed": self._failed,
            "present": under_way[0] if under_way else None,
            "under_way": under_way,
            "waiting": self._waiting,
            "error": self._error,
            "remaining_s": progress.remaining_s(),
            "learned": progress.learned,
        }
        try:
            write_json(self._path, document, durable=False)
        except (OutputError, ValueError) as error:
            self._is_broken = True
            told = f"flowblend status will not see this run: {error}".split(": nothing was")[0]
            self._complain(Message(told))


def _present(job: JobProgress) -> dict[str, Any]:
    assert job.started is not None
    return {
        "job": job.started.job,
        "scene": job.started.scene,
        "step": job.step + 1 if job.ran else 0,
        "num_inference_steps": job.total,
        "role": job.role,
        "worker": job.started.worker,
    }


def read_state(path: Path, warn: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Read a run's state; empty where the file isn't there or doesn't hold what it should.

    Args:
        path: The file.
        warn: Called with what is wrong with it.
    """
    from flowblend_cli.artifacts.schema.records import RunStateDocument

    return read_checked(path, RunStateDocument, warn) or {}
