"""Reporters for streams: plain lines, and JSON lines."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO

from flowblend_cli.console.lines import SAID_WHEN_VERBOSE, Skips, one_line, safe_lines
from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobSkipped,
    Silent,
)
from flowblend_cli.text import clock


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


class JsonReporter(Silent):
    """Each event as one JSON line."""

    def __init__(self, out: Lines) -> None:
        self._out = out

    def event(self, event: Event) -> None:
        """Write the event's line."""
        self._out.write(event.to_json())


class PlainReporter(Silent):
    """One line per finished job, without colours or cursor movement: for logs, mails and pipes.

    Args:
        results: Where finished jobs and the summary go.
        problems: Where failures and messages go.
        verbosity: -1 errors only, 0 usual, 1 and more adds what starts, loads and was used.
        total_jobs: Jobs in the batch, for the ``[3/12]`` before each line.
    """

    def __init__(self, results: Lines, problems: Lines, verbosity: int, total_jobs: int) -> None:
        self._results = results
        self._problems = problems
        self._verbosity = verbosity
        self._total = total_jobs
        self._ended = 0
        self._skips = Skips(all_named=verbosity > 0)
        self._left_s: float | None = None

    def event(self, event: Event) -> None:
        """Write the event's line, if it has one at this verbosity."""
        if isinstance(event, JobDone | JobSkipped | JobDropped | JobFailed):
            self._ended += 1
        if isinstance(event, JobFailed):
            self._problems.write(one_line(event, verbose=self._verbosity > 0))
            return
        if self._verbosity < (1 if isinstance(event, SAID_WHEN_VERBOSE) else 0):
            return
        if self._skips.withholds(event):
            return
        if not isinstance(event, JobSkipped) and (told := self._skips.ended()):
            self._results.write(told)
        line = one_line(event, verbose=self._verbosity > 0)
        if isinstance(event, JobDone | JobSkipped | JobDropped):
            is_known = self._left_s is not None and self._ended < self._total
            left = f", {clock(self._left_s or 0.0)} left" if is_known else ""
            line = f"[{self._ended}/{self._total}{left}] {line}"
        self._results.write(line)

    def message(self, text: str, *, error: bool = False) -> None:
        """Write a message among the problems."""
        if error or self._verbosity >= 0:
            self._problems.write(safe_lines(text))

    def grow(self, jobs: int) -> None:
        """Count on further jobs."""
        self._total += jobs

    def estimate(self, seconds: float | None) -> None:
        """Show it with the next finished job."""
        self._left_s = seconds
