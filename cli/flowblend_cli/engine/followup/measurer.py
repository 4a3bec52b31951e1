"""Clips on their way to being measured: handed to a process of our own, answered when it is done.

A thread hands over one clip after the other, so that the denoiser never waits for a measurement,
unless more than ``WAITING_BYTES`` of frames wait for theirs.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from flowblend_cli.utils.worker_process import worker_environment, write_frames

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

MODULE = "flowblend_cli.engine.followup.measure_worker"
WAITING_BYTES = 2**30
PATIENCE_S = 1800
_TRIES = 2
_POLL_S = 0.1
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
    """

    job: str
    names: tuple[str, ...] | None = None
    tracks: bool = False
    is_reference: bool = False
    reference: FinishedFile | None = None
    file: FinishedFile | None = None


@dataclass(frozen=True)
class Measurement:
    """What was measured of one job.

    Args:
        job: Id of the job.
        metrics: Values by name; after an error, those that could be measured all the same.
        tracks: Paths of points, see ``JobRecord``.
        on_file: Whether decoded files took part.
        error: Why there is nothing, or not all, in words; empty if all is there.
    """

    job: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tracks: tuple[Any, ...] = ()
    on_file: bool = False
    error: str = ""


class Measurer:
    """Measures in a process that starts with the first request, and ends with ``close``.

    The process has a session of its own, so that Ctrl-C on a terminal reaches this one only, and
    ends by itself when this one is killed.
    """

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Request, Frames | None] | None] = (
            queue.SimpleQueue()
        )
        self._answers: queue.SimpleQueue[Measurement] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self._is_closing = False
        self.outstanding = 0

    def submit(self, request: Request, frames: Frames | None, check: Callable[[], None]) -> None:
        """Ask for a job to be measured.

        Args:
            request: What of it.
            frames: Its pixels, (T, H, W, 3), uint8; None to decode the request's file.
            check: Called again and again while this waits for memory; may raise.
        """
        size = 0 if frames is None else frames.nbytes
        with self._changed:
            while self._waiting_bytes and self._waiting_bytes + size > WAITING_BYTES:
                self._changed.wait(_POLL_S)
                check()
            self._waiting_bytes += size
        self.outstanding += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="measuring", daemon=True)
            self._thread.start()
        self._requests.put((request, frames))

    def answer(self, timeout_s: float = 0.0) -> Measurement | None:
        """The next measurement that is done; None where there is none within so many seconds."""
        try:
            found = (
                self._answers.get(timeout=timeout_s) if timeout_s else self._answers.get_nowait()
            )
        except queue.Empty:
            return None
        self.outstanding -= 1
        return found

    def close(self) -> None:
        """End the process, whatever it does."""
        self._is_closing = True
        self._requests.put(None)
        self._end_process()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _work(self) -> None:
        while (item := self._requests.get()) is not None and not self._is_closing:
            request, frames = item
            self._answers.put(self._ask(request, frames))
            with self._changed:
                self._waiting_bytes -= 0 if frames is None else frames.nbytes
                self._changed.notify()
            del item, frames
        self._end_process()

    def _ask(self, request: Request, frames: Frames | None) -> Measurement:
        """Hand over one clip and wait; a process that dies is started once more for it."""
        error = ""
        for _ in range(_TRIES):
            if self._is_closing:
                break
            try:
                answer = self._exchange(request, frames)
            except Exception as problem:  # noqa: BLE001 - whoever waits for it must get an answer
                error = f"the measuring process can't be used ({problem})"
                self._end_process()
                continue
            if answer is None:
                code = self._end_process()
                error = f"the measuring process ended with code {code}"
                continue
            if "error" in answer:
                return Measurement(request.job, error=answer["error"])
            tracks, on_file = tuple(answer["tracks"]), answer["on_file"]
            missing = answer["missing"]
            return Measurement(request.job, answer["metrics"], tracks, on_file, missing)
        return Measurement(request.job, error=error)

    def _exchange(self, request: Request, frames: Frames | None) -> dict[str, Any] | None:
        """Write a request, read its answer; None if the process ended instead."""
        if self._process is None:
            self._process = _start()
            if self._is_closing:  # and looked for a process before this one was there
                return None
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        patience = threading.Timer(PATIENCE_S, process.kill)
        patience.daemon = True
        patience.start()
        try:
            process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            if frames is not None:
                write_frames(process.stdin, frames)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            return None
        finally:
            patience.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def _end_process(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()
        return code


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**worker_environment(), **_LIMITS},
    )
