"""What a run is doing, kept in ``DIR/.flowblend/runs`` for ``flowblend status`` to read.

It is written at most once a second and where a job begins or ends, whole or not at all, without
waiting for the disk; a file that can't be written is said once and costs nothing else.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flowblend_cli.artifacts.records import is_number, read_json, run_path, write_json
from flowblend_cli.errors import OutputError
from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobSkipped,
    JobStarted,
    ModelLoaded,
    Reporter,
    Summary,
)
from flowblend_cli.jobs import Batch
from flowblend_cli.planning.estimates import Estimates, Speeds
from flowblend_cli.planning.workloads import works_of
from flowblend_cli.text import utc_now
from flowblend_cli.utils.process import process_mark

STATE_VERSION = 1
_ABSENT = object()
_SECONDS_BETWEEN = 1.0
_KINDS: dict[str, tuple[type, ...]] = {
    "recipe": (str,), "command": (list,), "folder": (str,), "jobs": (int,), "started": (str,),
    "process": (dict,), "ended": (str, type(None)), "elapsed_s": (int, float),
    "clock_s": (int, float), "rendered": (int,), "skipped": (int,), "added": (int,),
    "added_done": (int,), "dropped": (list,), "failed": (dict,), "present": (dict, type(None)),
    "waiting": (str,), "error": (str,), "remaining_s": (int, float, type(None)),
}  # fmt: skip


@dataclass
class _Counts:
    rendered: int = 0
    skipped: int = 0
    added: int = 0
    added_done: int = 0
    dropped: list[str] = field(default_factory=list)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)


class RunState:
    """A reporter that keeps what it is told on the disk, and tells the next one how long it takes.

    Args:
        inner: The reporter that people and programs read.
        batch: The jobs.
        command: The command line that goes on with this batch.
        clock: Seconds that never jump.
    """

    def __init__(
        self,
        inner: Reporter,
        batch: Batch,
        command: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._batch = batch
        self._path = run_path(batch.output_dir, batch.recipe_name)
        self._clock = clock
        self._began = clock()
        self._fixed = {
            "v": STATE_VERSION,
            "recipe": batch.recipe_name,
            "command": list(command),
            "folder": os.getcwd(),
            "jobs": len(batch.jobs),
            "started": utc_now(),
            "process": process_mark(os.getpid()),
        }
        self._ids = {job.id for job in batch.jobs}
        self._counts = _Counts()
        self._present: dict[str, Any] | None = None
        self._waiting = self._error = ""
        self._ended: str | None = None
        self._estimates: Estimates | None = None
        self._expected: list[str] = []
        self._learned: Any = None
        self._left: tuple[float | None, float] = (None, self._began)  # as told last, and when
        self._written = -_SECONDS_BETWEEN
        self._is_broken = False

    def __enter__(self) -> Self:
        """Begin where earlier runs ended: with the jobs that failed then, and what was learned."""
        self._inner.__enter__()
        former = read_state(self._path)
        known = self._ids | {job.id for job in self._batch.reserve}
        failures = former.get("failed", {})
        self._counts.failed = {job: told for job, told in failures.items() if job in known}
        if former.get("process", {}).get("host") == platform.node():
            self._learned = former.get("learned")
        there = present_files(self._batch.output_dir)
        self._expected = [job.id for job in self._batch.jobs if job.filename not in there]
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep how the run ended."""
        self._present, self._waiting = None, ""
        self._write()
        self._inner.__exit__(kind, error, trace)

    def event(self, event: Event) -> None:
        """Keep what happened, and pass it on together with what it says of the time left."""
        now = self._clock()
        self._learn(event, now)
        counts = self._counts
        match event:
            case JobStarted():
                self._present = {
                    "job": event.job, "scene": event.scene, "step": 0,
                    "num_inference_steps": event.num_inference_steps, "role": "",
                }  # fmt: skip
            case JobDone() | JobSkipped():
                counts.rendered += isinstance(event, JobDone)
                counts.skipped += isinstance(event, JobSkipped)
                counts.added_done += event.job not in self._ids
                counts.failed.pop(event.job, None)
            case JobFailed():
                counts.failed[event.job] = {
                    "scene": event.scene, "seed": event.seed, "error": event.error, "at": utc_now(),
                }  # fmt: skip
            case JobDropped():
                counts.dropped.append(event.job)
            case Summary():
                self._ended = utc_now()
        if isinstance(event, JobDone | JobFailed | JobDropped):
            self._forget(event.job)
        self._tell(now)
        self._inner.event(event)
        is_minor = isinstance(event, JobSkipped)
        if not is_minor or now - self._written >= _SECONDS_BETWEEN:
            self._write()

    def step(self, step: int, total: int, role: str) -> None:
        """Keep which step runs, and pass it on."""
        now = self._clock()
        if self._estimates is not None:
            self._estimates.step(step, now)
        if self._present is not None:
            self._present |= {"step": step + 1, "num_inference_steps": total, "role": role}
        if now - self._written >= _SECONDS_BETWEEN:
            self._tell(now)
            self._write()
        self._inner.step(step, total, role)

    def message(self, text: str, *, error: bool = False) -> None:
        """Keep the last error, and pass the message on."""
        if error:
            self._error = text
        self._inner.message(text, error=error)

    def answer(self, text: str) -> None:
        """Pass the answer on: it is no error that is to be kept."""
        self._inner.answer(text)

    def grow(self, jobs: int) -> None:
        """Count on further jobs."""
        self._counts.added += jobs
        if self._estimates is not None:
            self._estimates.grow(jobs)
        self._inner.grow(jobs)

    def waiting(self, text: str) -> None:
        """Keep what is waited for, and pass it on."""
        self._waiting = text
        self._write()
        self._inner.waiting(text)

    def estimate(self, seconds: float | None) -> None:
        """Pass an estimate on."""
        self._inner.estimate(seconds)

    def remaining_s(self) -> float | None:
        """Seconds until all jobs are done; None before anything is known."""
        return None if self._estimates is None else self._estimates.remaining_s(self._clock())

    def left_s(self) -> float | None:
        """The same as it was told last, less what has passed since; for any thread."""
        left, told = self._left
        return None if left is None else max(0.0, left - (self._clock() - told))

    def seconds_of(self, job_id: str) -> float | None:
        """Seconds that one job will take; None before anything is known."""
        return self._begun().seconds_of(job_id)

    def _begun(self) -> Estimates:
        """The estimates, begun where somebody asks first: where all is done already, nobody does.

        Only ``left_s`` may be asked by another thread than that of the run.
        """
        if self._estimates is None:
            self._estimates = Estimates(works_of(self._batch), Speeds())
            self._estimates.speeds.recall(self._learned)
            self._estimates.expect(self._expected)
            self._estimates.grow(self._counts.added)
        return self._estimates

    def _learn(self, event: Event, now: float) -> None:
        if isinstance(event, ModelLoaded | JobStarted):
            self._begun()
        if self._estimates is None:
            return
        match event:
            case ModelLoaded():
                self._estimates.loaded()
            case JobStarted():
                self._estimates.started(event.job, now)
            case JobDone() | JobSkipped() | JobDropped() | JobFailed():
                self._estimates.ended(event.job, now, rendered=isinstance(event, JobDone))

    def _forget(self, job: str) -> None:
        if self._present is not None and self._present["job"] == job:
            self._present = None

    def _tell(self, now: float) -> None:
        if self._estimates is not None:
            self._left = self._estimates.remaining_s(now), now
            self._inner.estimate(self._left[0])

    def _write(self) -> None:
        now = self._clock()
        self._written = now
        if self._is_broken:
            return
        if self._estimates is not None:
            self._learned = self._estimates.speeds.to_document()
        counts = self._counts
        document = {
            **self._fixed,
            "ended": self._ended,
            "elapsed_s": round(now - self._began, 3),
            "clock_s": round(time.monotonic(), 3),
            "rendered": counts.rendered,
            "skipped": counts.skipped,
            "added": counts.added,
            "added_done": counts.added_done,
            "dropped": counts.dropped,
            "failed": counts.failed,
            "present": self._present,
            "waiting": self._waiting,
            "error": self._error,
            "remaining_s": self.remaining_s(),
            "learned": self._learned,
        }
        try:
            write_json(self._path, document, durable=False)
        except (OutputError, ValueError) as error:
            self._is_broken = True
            self._inner.message(
                f"flowblend status will not see this run: {error}".split(": nothing was")[0]
            )


def present_files(folder: Path) -> set[str]:
    """Names of the files in a folder; none where it can't be read."""
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def read_state(path: Path) -> dict[str, Any]:
    """A run's state with what it should hold, or nothing where the file isn't sound."""
    state = read_json(path)
    if state is None or state.get("v") != STATE_VERSION:
        return {}
    sound = all(isinstance(state.get(name, _ABSENT), kinds) for name, kinds in _KINDS.items())
    numbers = [value for name in _KINDS if type(value := state.get(name)) in (int, float)]
    sound = sound and all(map(is_number, numbers))
    failures = state["failed"].values() if sound else ()
    return state if sound and all(isinstance(told, dict) for told in failures) else {}
