"""Measurer: has clips measured by a worker process, for the study of a run.

Requests are handed over in the background, so that the denoiser never waits for a measurement,
unless more than ``WAITING_BYTES`` of frames wait for theirs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from flowblend_cli.errors import WorkerDiedError
from flowblend_cli.utils.worker_process import POLL_S, WorkerProcess

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

MODULE = "flowblend_cli.engine.followup.measure_worker"
WAITING_BYTES = 2**30
PATIENCE_S = 1800
_TRIES = 2
# One thread, on the processor alone: the rest of the machine is the denoiser's.
_LIMITS = {
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}


@dataclass(frozen=True)
class FinishedFile:
    """A job's file, for frames that are no longer in memory.

    Args:
        job: Id of the job.
        path: Its file.
        scale: Whole-number enlargement of the file.
    """

    job: str
    path: str
    scale: int


@dataclass(frozen=True)
class Request:
    """What is to be measured of one job.

    Args:
        job: Id of the job.
        names: Metrics; None for the default ones that suit.
        tracks: Whether to follow points through the clip, too.
        is_reference: Whether others will be compared with it.
        reference: What it is compared with.
        file: Where the frames come from, if they aren't handed over.
        kind: ``"clip"``: the finished clip. ``"preview"``: what a draft's first steps lead to.
    """

    job: str
    names: tuple[str, ...] | None = None
    tracks: bool = False
    is_reference: bool = False
    reference: FinishedFile | None = None
    file: FinishedFile | None = None
    kind: Literal["clip", "preview"] = "clip"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one job.

    Args:
        job: Id of the job.
        metrics: Values by name; after an error, those that could be measured all the same.
        tracks: Paths of points, see ``JobRecord``.
        on_file: Whether decoded files took part.
        error: Why there is nothing, or not all, in words; empty if all is there.
        kind: Kind of the request.
    """

    job: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tracks: tuple[Any, ...] = ()
    on_file: bool = False
    error: str = ""
    kind: Literal["clip", "preview"] = "clip"


class Measurer:
    """Measures in a worker process that starts with the first request, and ends with ``close``.

    The process ends by itself when this one is killed. One that dies is started once more for the
    clip that it died at.
    """

    def __init__(self) -> None:
        self._worker: WorkerProcess | None = None
        self._unanswered: deque[tuple[Request, Frames | None]] = deque()
        self._answers: deque[Measurement] = deque()
        self._tries = 0
        self._heard = 0.0

    @property
    def outstanding(self) -> int:
        """Requests whose answers weren't taken yet."""
        return len(self._unanswered) + len(self._answers)

    def submit(self, request: Request, frames: Frames | None, check: Callable[[], None]) -> None:
        """Ask for a job to be measured.

        Args:
            request: What of it.
            frames: Its pixels, (T, H, W, 3), uint8; None to decode the request's file.
            check: Called again and again while this waits for memory; may raise.
        """
        size = 0 if frames is None else frames.nbytes
        while self._waiting_bytes and self._waiting_bytes + size > WAITING_BYTES:
            check()
            self._receive(POLL_S)
        if not self._unanswered:
            self._heard = time.monotonic()
        self._unanswered.append((request, frames))
        if self._worker is not None:
            self._worker.send(asdict(request), frames)
        else:
            self._start()

    def answer(self, timeout_s: float = 0.0) -> Measurement | None:
        """The next measurement that is done; None where there is none within so many seconds."""
        deadline = time.monotonic() + timeout_s
        while not self._answers and self._unanswered:
            self._receive(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                break
        return self._answers.popleft() if self._answers else None

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    @property
    def _waiting_bytes(self) -> int:
        return sum(frames.nbytes for _, frames in self._unanswered if frames is not None)

    def _start(self) -> None:
        """Start a process, and hand it everything that waits for an answer."""
        self._heard = time.monotonic()
        while self._unanswered:
            self._tries += 1
            try:
                self._worker = WorkerProcess(MODULE, "measuring", _LIMITS)
            except (WorkerDiedError, RuntimeError) as error:  # no process, or no thread
                self._give_up(str(error))
                continue
            for request, frames in self._unanswered:
                self._worker.send(asdict(request), frames)
            return

    def _receive(self, timeout_s: float) -> None:
        if self._worker is None:
            self._start()
        if self._worker is None:
            return
        try:
            found = self._worker.receive(timeout_s)
            if found is None and time.monotonic() - self._heard > PATIENCE_S:
                self._worker.end()
        except WorkerDiedError as error:
            self.close()
            if self._tries >= _TRIES:
                self._give_up(str(error))
            self._start()
            return
        if found is not None:
            self._heard, self._tries = time.monotonic(), 0
            request, _ = self._unanswered.popleft()
            self._answers.append(_measurement(request, found))

    def _give_up(self, error: str) -> None:
        """Answer for the clip whose turn it was: it can't be measured."""
        request, _ = self._unanswered.popleft()
        self._answers.append(Measurement(request.job, error=error, kind=request.kind))
        self._tries = 0


def _measurement(request: Request, answer: dict[str, Any]) -> Measurement:
    job, kind = request.job, request.kind
    if "error" in answer:
        return Measurement(job, error=answer["error"], kind=kind)
    tracks, missing = tuple(answer["tracks"]), answer["missing"]
    return Measurement(job, answer["metrics"], tracks, answer["on_file"], missing, kind)
