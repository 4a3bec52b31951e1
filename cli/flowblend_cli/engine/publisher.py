"""Publisher: encodes, writes and checks finished clips on a thread, beside the next render.

What a worker encoded is only checked, written and named.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.engine.executors.base import RenderResult
from flowblend_cli.engine.executors.encoding import check_file, document_of, encode
from flowblend_cli.errors import OutputError
from flowblend_cli.jobs import Job
from flowblend_cli.models.identity import Identity
from flowblend_cli.utils.files import publish, remove, temporary_path
from flowblend_cli.utils.worker_process import POLL_S

WAITING_CLIPS = 2
WAITING_BYTES = 2**30
_LAST_WORDS_S = 2.0


@dataclass(frozen=True)
class Pending:
    """A job and where its file goes.

    Args:
        job: The job.
        path: Its final file.
        key: Its job key.
        identity: The models that the key covers.
    """

    job: Job
    path: Path
    key: str
    identity: Identity


@dataclass(frozen=True)
class Publication:
    """A render whose file is there, or can't be.

    Args:
        pending: The job.
        render: What it gave.
        elapsed_s: Seconds that encoding, wherever, and writing and checking took.
        error: Why there is no file; None if it is there.
    """

    pending: Pending
    render: RenderResult
    elapsed_s: float
    error: Exception | None = None

    @property
    def record(self) -> JobRecord:
        """What is kept of the render beside the file."""
        job, render = self.pending.job, self.render
        return JobRecord(
            job=job.id,
            recipe=job.recipe,
            pixels_sha256=render.pixels_sha256,
            elapsed_s=(round(render.elapsed_s + self.elapsed_s, 3),),
            pixels=(render.pixels_sha256,),
            step_s=render.step_s,
            peak_rss_bytes=render.peak_rss_bytes,
            peak_vram_bytes=render.peak_vram_bytes,
        )


class Publisher:
    """Publishes renders in the order in which they come; its thread starts with the first one.

    ``room`` is how many may wait for it; fewer where they are large.

    Args:
        recipe_dir: Folder that model folders are relative to, for the files' documents.
    """

    def __init__(self, recipe_dir: Path) -> None:
        self._recipe_dir = recipe_dir
        self._waiting: queue.SimpleQueue[tuple[Pending, RenderResult] | None] = queue.SimpleQueue()
        self._published: queue.SimpleQueue[Publication] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()
        self._is_over = False
        self._present: Path | None = None
        self._bytes = 0
        self.outstanding = 0
        self.room = WAITING_CLIPS

    def submit(self, pending: Pending, render: RenderResult, take: Callable[[float], None]) -> None:
        """Have a render published.

        Args:
            pending: Its job.
            render: The render.
            take: Called while this waits for others to be published first; takes what
                ``published`` has within so many seconds.
        """
        size = render.nbytes
        while self.outstanding and (
            self.outstanding > self.room or self._bytes + size > WAITING_BYTES
        ):
            take(POLL_S)
        self._bytes += size
        self.outstanding += 1
        self._begin(pending, render)

    def published(self, timeout_s: float = 0.0) -> Publication | None:
        """The next render that is published, or can't be; None where none is within the time."""
        done = self._finished(timeout_s)
        if done is None:
            return None
        self.outstanding -= 1
        self._bytes -= done.render.nbytes
        return done

    def _begin(self, pending: Pending, render: RenderResult) -> None:
        """Let a render wait for the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="publishing", daemon=True)
            self._thread.start()
        self._waiting.put((pending, render))

    def _finished(self, timeout_s: float) -> Publication | None:
        """What the thread has done next; None where that takes longer."""
        try:
            if timeout_s:
                return self._published.get(timeout=timeout_s)
            return self._published.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Write nothing from now on; what is nearly there has some moments to get its name."""
        self._waiting.put(None)
        if self._thread is None:
            return
        self._thread.join(_LAST_WORDS_S)
        self._is_over = True
        if self._thread.is_alive() and not self._writing.acquire(blocking=False):
            assert self._present is not None
            with contextlib.suppress(OSError):  # the thread won't live to remove it
                remove(temporary_path(self._present))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            file = item[1].file
            began = time.monotonic() - (0.0 if file is None else file.elapsed_s)
            error = None
            try:
                self._publish(*item)
            except Exception as problem:  # noqa: BLE001 - told where the batch is carried on
                error = problem
            self._published.put(Publication(*item, time.monotonic() - began, error))
            del item, file

    def _publish(self, pending: Pending, render: RenderResult) -> None:
        job, path, source = pending.job, pending.path, str(self._recipe_dir)
        document = document_of(job, pending.key, pending.identity, source, render)
        if render.file is not None:
            encoded = render.file.data, check_file(render.file, path.name, job, document)
        else:
            assert render.frames is not None
            encoded = encode(render.frames, path.name, job, document)
        with self._writing:
            if self._is_over:
                raise OutputError(f"{path}: wasn't written, since the run was ended")
            self._present = path
            publish(path, *encoded)
