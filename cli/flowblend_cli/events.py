"""What happens while a batch renders, as values that print as one JSON line each.

The stream is versioned: ``v`` rises when a key changes its meaning or goes away; keys and events
may be added without that. ``summary`` is always the last line.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import ClassVar, Protocol, Self

EVENT_VERSION = 1


@dataclass(frozen=True)
class _Event:
    """What every event can do: print itself as a line."""

    name: ClassVar[str]

    def to_json(self) -> str:
        """Write the event as one line of ASCII JSON, ``v`` and ``event`` first, no newline."""
        return json.dumps({"v": EVENT_VERSION, "event": self.name, **asdict(self)})


@dataclass(frozen=True)
class ModelLoaded(_Event):
    """The denoisers and their companions are in memory; again where the process was replaced.

    Args:
        pipeline: The pipeline as the recipe names it.
        elapsed_s: Seconds that loading took; no job's ``elapsed_s`` includes them.
    """

    name: ClassVar[str] = "model_loaded"
    pipeline: str
    elapsed_s: float


@dataclass(frozen=True)
class JobStarted(_Event):
    """A job takes its first step next; again where its process died and a new one begins it.

    Args:
        job: Id of the job, unique in its batch.
        scene: Name of the scene that it comes from.
        seed: Seed of its noise, as drawn where the recipe says 0.
        num_inference_steps: Steps of its trajectory.
        denoisers: The denoiser planned for each step, one letter a step, such as ``"LLSSL"``.
        prompt: Its prompt, as the text encoder reads it.
        resumed_at: Index of that first step: 0, or that at which an interrupted run left off.
    """

    name: ClassVar[str] = "job_started"
    job: str
    scene: str
    seed: int
    num_inference_steps: int
    denoisers: str
    prompt: str
    resumed_at: int = 0


@dataclass(frozen=True)
class JobDone(_Event):
    """A job's file is complete and has its final name.

    Args:
        job: Id of the job.
        scene: Name of the scene that it comes from.
        seed: Seed of its noise.
        num_inference_steps: Steps of its trajectory.
        path: The file, absolute.
        elapsed_s: Seconds for sampling, decoding and publishing, without loading models; the
            median where the job was rendered several times.
        denoisers: The denoiser that ran each step, one letter a step.
        peak_rss_bytes: Most main memory during the job, in bytes; where the system can't tell
            that, most that the process has held so far.
        peak_vram_bytes: Most accelerator memory during the job, in bytes; None on a CPU.
        pixels_sha256: Hash of the uint8 frames before scaling and encoding.
    """

    name: ClassVar[str] = "job_done"
    job: str
    scene: str
    seed: int
    num_inference_steps: int
    path: str
    elapsed_s: float
    denoisers: str
    peak_rss_bytes: int
    peak_vram_bytes: int | None
    pixels_sha256: str


@dataclass(frozen=True)
class JobSkipped(_Event):
    """A job's file was there already, complete and made from the same job.

    Args:
        job: Id of the job.
        scene: Name of the scene that it comes from.
        seed: Seed recorded in the file.
        path: The file, absolute.
    """

    name: ClassVar[str] = "job_skipped"
    job: str
    scene: str
    seed: int
    path: str


@dataclass(frozen=True)
class JobMeasured(_Event):
    """A finished job was measured; comes after its ``job_done``, while the next one renders.

    Args:
        job: Id of the job.
        scene: Name of the scene that it comes from.
        metrics: Values by name, see ``flowblend_plugin.metrics``.
        score: Its score, 0 to 1; None where the metrics don't give one.
    """

    name: ClassVar[str] = "job_measured"
    job: str
    scene: str
    metrics: dict[str, float]
    score: float | None


@dataclass(frozen=True)
class JobDropped(_Event):
    """A draft isn't rendered: its first steps didn't look promising beside the others'.

    Args:
        job: Id of the job.
        scene: Name of the scene that it comes from.
        seed: Seed of its noise.
        reason: Why, in words.
        score: Score of what its first steps led to.
    """

    name: ClassVar[str] = "job_dropped"
    job: str
    scene: str
    seed: int
    reason: str
    score: float


@dataclass(frozen=True)
class JobFailed(_Event):
    """A job ended without a file; the batch goes on where it can.

    Args:
        job: Id of the job.
        scene: Name of the scene that it comes from.
        seed: Seed of its noise.
        error: What went wrong, and what to do.
    """

    name: ClassVar[str] = "job_failed"
    job: str
    scene: str
    seed: int
    error: str


@dataclass(frozen=True)
class Summary(_Event):
    """The batch is over; always the last event, also after an interruption.

    Args:
        rendered: Jobs whose file was made by this run.
        skipped: Jobs whose file was there already.
        failed: Jobs that ended without a file.
        elapsed_s: Seconds of the whole run, loading included.
        remaining: Jobs that are neither done nor failed, because the run stopped before them.
    """

    name: ClassVar[str] = "summary"
    rendered: int
    skipped: int
    failed: int
    elapsed_s: float
    remaining: int = 0


Event = (
    ModelLoaded | JobStarted | JobDone | JobSkipped | JobMeasured | JobDropped | JobFailed | Summary
)


class Reporter(Protocol):
    """Where a running batch tells what it does; a context manager around the run."""

    def __enter__(self) -> Self:
        """Start showing."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing, and leave the terminal as it was."""
        ...

    def event(self, event: Event) -> None:
        """Tell what happened."""
        ...

    def step(self, step: int, total: int, role: str) -> None:
        """Tell that a step starts.

        Args:
            step: Its index in the current job, from 0.
            total: Number of steps of the job.
            role: The denoiser that runs it, such as ``"large"``.
        """
        ...

    def message(self, text: str, *, error: bool = False) -> None:
        """Say something else on stderr; only errors are said under ``-q``."""
        ...

    def answer(self, text: str) -> None:
        """Say what somebody asked for just now, however little is said otherwise."""
        ...

    def grow(self, jobs: int) -> None:
        """Tell that the batch has so many more jobs than it began with."""
        ...

    def waiting(self, text: str) -> None:
        """Tell what the batch waits for, while no job renders; empty when it goes on."""
        ...

    def estimate(self, seconds: float | None) -> None:
        """Tell how many seconds the jobs left will take; None where that isn't known."""
        ...


class Silent:
    """A reporter that says nothing; the base of those that say something."""

    def __enter__(self) -> Self:
        """Start showing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""

    def event(self, event: Event) -> None:
        """Ignore the event."""

    def step(self, step: int, total: int, role: str) -> None:
        """Ignore the step."""

    def message(self, text: str, *, error: bool = False) -> None:
        """Ignore the message."""

    def answer(self, text: str) -> None:
        """Say it as loud as an error."""
        self.message(text, error=True)

    def grow(self, jobs: int) -> None:
        """Ignore the further jobs."""

    def waiting(self, text: str) -> None:
        """Ignore what is waited for."""

    def estimate(self, seconds: float | None) -> None:
        """Ignore the estimate."""


class Reporters(Silent):
    """Several reporters told the same things.

    Args:
        reporters: All of them; the last one talks to people, and gets the messages.
        log: One more, which gets everything.
    """

    def __init__(self, reporters: Sequence[Reporter], log: Reporter | None = None) -> None:
        self._talking = (reporters[-1], *([] if log is None else [log]))
        self._reporters = (*reporters, *self._talking[1:])
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start all of them."""
        with contextlib.ExitStack() as stack:
            for reporter in self._reporters:
                stack.enter_context(reporter)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all of them."""
        self._stack.close()

    def event(self, event: Event) -> None:
        """Pass the event on."""
        for reporter in self._reporters:
            reporter.event(event)

    def step(self, step: int, total: int, role: str) -> None:
        """Pass the step on."""
        for reporter in self._reporters:
            reporter.step(step, total, role)

    def message(self, text: str, *, error: bool = False) -> None:
        """Pass the message on to the one that talks to people, and to the log."""
        for reporter in self._talking:
            reporter.message(text, error=error)

    def answer(self, text: str) -> None:
        """Pass the answer on, likewise."""
        for reporter in self._talking:
            reporter.answer(text)

    def grow(self, jobs: int) -> None:
        """Pass the further jobs on."""
        for reporter in self._reporters:
            reporter.grow(jobs)

    def waiting(self, text: str) -> None:
        """Pass what is waited for on."""
        for reporter in self._reporters:
            reporter.waiting(text)

    def estimate(self, seconds: float | None) -> None:
        """Pass the estimate on."""
        for reporter in self._reporters:
            reporter.estimate(seconds)
