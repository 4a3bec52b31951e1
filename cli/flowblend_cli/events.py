"""Events: everything that a run tells, as frozen values; and reporters, which are told them.

``--json`` prints those of ``JsonEvent`` as one line each. That stream is versioned: ``v`` rises
when a key changes its meaning or goes away; keys and events may be added without that. ``summary``
is always the last line. The other events are for displays, counts and the run's state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar, TypeVar

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
        worker: The worker that does it, such as ``"cuda:1"``; empty where there is one alone.
    """

    name: ClassVar[str] = "job_started"
    job: str
    scene: str
    seed: int
    num_inference_steps: int
    denoisers: str
    prompt: str
    resumed_at: int = 0
    worker: str = ""


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
        worker: The worker that did it, such as ``"cuda:1"``; empty where there is one alone.
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
    worker: str = ""


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
        worker: The worker that failed at it, such as ``"cuda:1"``; empty where there is one alone.
    """

    name: ClassVar[str] = "job_failed"
    job: str
    scene: str
    seed: int
    error: str
    worker: str = ""


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


@dataclass(frozen=True)
class RunStarted(_Event):
    """A run holds its output folder, and begins.

    Args:
        jobs: Jobs in the batch, those already done included.
        expected: Ids of the jobs that have no file yet.
        slots: Jobs that may be under way at once.
    """

    name: ClassVar[str] = "run_started"
    jobs: int
    expected: tuple[str, ...] = ()
    slots: int = 1


@dataclass(frozen=True)
class RunEnded(_Event):
    """Nothing more is told of this run: the last event of all, whatever happened."""

    name: ClassVar[str] = "run_ended"


@dataclass(frozen=True)
class JobAssigned(_Event):
    """A job was handed to an executor."""

    name: ClassVar[str] = "job_assigned"
    job: str


@dataclass(frozen=True)
class StepStarted(_Event):
    """A step of a job begins.

    Args:
        job: Id of the job.
        step: Index of the step, from 0.
        total: Number of steps of the job.
        role: The denoiser that runs it, such as ``"large"``.
    """

    name: ClassVar[str] = "step_started"
    job: str
    step: int
    total: int
    role: str


@dataclass(frozen=True)
class JobRendered(_Event):
    """A job's frames are here; its file comes next."""

    name: ClassVar[str] = "job_rendered"
    job: str


@dataclass(frozen=True)
class JobReturned(_Event):
    """A job came back from its executor unfinished, because the run stops: it remains."""

    name: ClassVar[str] = "job_returned"
    job: str


@dataclass(frozen=True)
class JobsAdded(_Event):
    """The batch has further jobs, which measurements or people asked for.

    Args:
        jobs: How many.
    """

    name: ClassVar[str] = "jobs_added"
    jobs: int


@dataclass(frozen=True)
class Waiting(_Event):
    """The run waits for something while no job renders.

    Args:
        text: What it waits for; empty when it goes on.
    """

    name: ClassVar[str] = "waiting"
    text: str


@dataclass(frozen=True)
class Message(_Event):
    """Something else that people should read, on stderr.

    Args:
        text: The message, one or more lines.
        is_error: Whether it is said under ``-q`` too.
        is_answer: Whether somebody asked for it just now; it is said under ``-q`` too, and it is no
            error.
        job: Id of the job that it is about; empty for none.
    """

    name: ClassVar[str] = "message"
    text: str
    is_error: bool = False
    is_answer: bool = False
    job: str = ""


JsonEvent = (
    ModelLoaded | JobStarted | JobDone | JobSkipped | JobMeasured | JobDropped | JobFailed | Summary
)
JobEnded = JobDone | JobSkipped | JobDropped | JobFailed
Event = (
    JsonEvent
    | RunStarted
    | RunEnded
    | JobAssigned
    | StepStarted
    | JobRendered
    | JobReturned
    | JobsAdded
    | Waiting
    | Message
)
Reporter = Callable[[Event], None]
_E = TypeVar("_E", bound=_Event)


def chain(reporters: Iterable[Reporter]) -> Reporter:
    """Make one reporter of several, which are told the same events in this order."""
    listed = list(reporters)

    def tell_all(event: Event) -> None:
        for reporter in listed:
            reporter(event)

    return tell_all


class CapturedEvents(list[Event]):
    """A reporter that keeps every event, in order; for tests and for programs that ask later."""

    def __call__(self, event: Event) -> None:
        """Keep an event."""
        self.append(event)

    def of(self, kind: type[_E]) -> list[_E]:
        """Those of one kind."""
        return [event for event in self if isinstance(event, kind)]

    @property
    def messages(self) -> list[str]:
        """The texts of all messages."""
        return [message.text for message in self.of(Message)]


def captured_events() -> CapturedEvents:
    """Make a reporter that keeps every event.

    Example:
        ``told = captured_events(); BatchRun(batch, told).run(); told.of(JobDone)``
    """
    return CapturedEvents()
