"""PlainReporter and JsonReporter: a run as lines on a stream, for logs, pipes and programs."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TextIO

from flowblend_cli.console.lines import (
    SAID_WHEN_VERBOSE,
    SkippedJobs,
    one_line,
    safe_lines,
)
from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobSkipped,
    JsonEvent,
    Message,
)
from flowblend_cli.text import clock

if TYPE_CHECKING:
    from flowblend_cli.planning.run_progress import RunProgress


class Lines:
    """A stream of lines that may fail at any time without stopping the render.

    Args:
        stream: Standard output or error; None where it was closed before the program started.
        name: Its name in the one line that tells of its failure.
        complaints: Where that line goes; None to fail in silence.
    """

    def __init__(self, stream: TextIO | None, name: str, complaints: Lines | None = None) -> None:
        self._stream = stream
        self._name = name
        self._complaints = complaints

    def write(self, line: str) -> None:
        """Write one line at once, or, when that fails, say so once and write no more."""
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = line.encode(encoding, "backslashreplace").decode(encoding)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)
        except RuntimeError:  # a signal's handler spoke in the middle of another line
            return

    def _give_up(self, error: Exception) -> None:
        stream, self._stream = self._stream, None
        # What is still buffered would fail again at exit and turn the exit code into 120.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, stream.fileno())  # type: ignore[union-attr]
            os.close(null)
        if self._complaints is not None:
            reason = getattr(error, "strerror", None) or str(error)
            self._complaints.write(
                f"error: {self._name} can't be written ({reason}): the batch goes on without it"
            )


class JsonReporter:
    """Writes each event of the JSON stream as one line; see ``events.JsonEvent``."""

    def __init__(self, out: Lines) -> None:
        self._out = out

    def __call__(self, event: Event) -> None:
        """Write the event's line, if it has one."""
        if isinstance(event, JsonEvent):
            self._out.write(event.to_json())


class PlainReporter:
    """Writes one line per finished job, without colours or cursor movement.

    Args:
        results: Where finished jobs and the summary go.
        problems: Where failures and messages go.
        verbosity: -1 errors only, 0 usual, 1 and more adds what starts, loads and was used.
        progress: How far the run is, for the ``[3/12, 4:05 left]`` before each line.
    """

    def __init__(
        self, results: Lines, problems: Lines, verbosity: int, progress: RunProgress
    ) -> None:
        self._results = results
        self._problems = problems
        self._verbosity = verbosity
        self._progress = progress
        self._skipped_jobs = SkippedJobs(all_named=verbosity > 0)

    def __call__(self, event: Event) -> None:
        """Write the event's line, if it has one at this verbosity."""
        if isinstance(event, Message):
            if event.is_error or event.is_answer or self._verbosity >= 0:
                self._problems.write(safe_lines(event.text))
        elif isinstance(event, JobFailed):
            self._problems.write(one_line(event, verbose=self._verbosity > 0))
        elif isinstance(event, JsonEvent):
            self._write(event)

    def _write(self, event: JsonEvent) -> None:
        if self._verbosity < (1 if isinstance(event, SAID_WHEN_VERBOSE) else 0):
            return
        if self._skipped_jobs.hides(event):
            return
        if not isinstance(event, JobSkipped) and (told := self._skipped_jobs.summary()):
            self._results.write(told)
        line = one_line(event, verbose=self._verbosity > 0)
        if isinstance(event, JobDone | JobSkipped | JobDropped):
            progress = self._progress
            left = progress.left_s() if progress.remaining else None
            told = "" if left is None else f", {clock(left)} left"
            line = f"[{progress.ended}/{progress.total}{told}] {line}"
        self._results.write(line)
