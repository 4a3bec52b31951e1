"""What a person, a log or a program sees of a running batch.

stdout carries results: JSON lines with ``--json``, otherwise one plain line per job, unless it is
the terminal that already shows the progress. stderr carries everything else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobMeasured,
    JobSkipped,
    JobStarted,
    ModelLoaded,
    Summary,
)
from flowblend_cli.skips import Skips
from flowblend_cli.text import clock, printable

QUIET = -1
SAID_WHEN_VERBOSE = (JobStarted, ModelLoaded, JobMeasured)


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


def make_reporter(
    *, json: bool, verbosity: int, total_jobs: int, log: Lines | None = None
) -> Reporter:
    """Choose how to show a batch on the streams of this process.

    Args:
        json: JSON lines on stdout; people then read stderr.
        verbosity: -1 errors only, 0 usual, 1 and more adds detail.
        total_jobs: Jobs in the batch, those already done included.
        log: Where plain lines with detail go besides, however little is said here.

    Returns:
        A reporter with a live display where stderr is a capable terminal, with plain lines
        elsewhere.
    """
    errors = Lines(sys.stderr, "standard error")
    out = Lines(sys.stdout, "standard output", complaints=errors)
    out_is_terminal = is_terminal(sys.stdout)
    live = (
        verbosity > QUIET
        and is_terminal(sys.stderr)
        and os.environ.get("TERM", "") not in ("dumb", "unknown")
        and not (json and out_is_terminal)
    )
    chosen: list[Reporter] = [JsonReporter(out)] if json else []
    logging = None if log is None else PlainReporter(log, log, 1, total_jobs)
    if not live:
        results = errors if json else out
        return Reporters([*chosen, PlainReporter(results, errors, verbosity, total_jobs)], logging)
    from flowblend_cli.console.live import LiveReporter  # rich: only where there is a terminal

    if not json and not out_is_terminal:
        chosen.append(PlainReporter(out, Lines(None, ""), verbosity, total_jobs))
    return Reporters([*chosen, LiveReporter(sys.stderr, verbosity, total_jobs)], logging)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person may be looking at the stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def one_line(event: Event, *, verbose: bool = False) -> str:
    """Say an event in one line for people, harmless to any terminal.

    Args:
        event: Any event.
        verbose: Add the seed, the pixels' hash and the memory used to a finished job.
    """
    match event:
        case JobDone():
            line = (
                f"done {printable(event.job)} in {event.elapsed_s:.1f} s "
                f"({count_runs(event.denoisers)}): {printable(event.path)}"
            )
            return line + _details(event) if verbose else line
        case JobSkipped():
            return f"already there {printable(event.job)}: {printable(event.path)}"
        case JobMeasured():
            score = "no score" if event.score is None else f"score {event.score:.3f}"
            values = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            return f"measured {printable(event.job)}: {score} ({printable(values)})"
        case JobDropped():
            return f"dropped {printable(event.job)}: {printable(event.reason)}"
        case JobFailed():
            return f"error: {printable(event.job)}: {safe_lines(event.error)}"
        case JobStarted():
            return (
                f"started {printable(event.job)} (seed {event.seed}, "
                f"{count_runs(event.denoisers)}): {printable(event.prompt)}"
            )
        case ModelLoaded():
            return f"loaded {printable(event.pipeline)} in {event.elapsed_s:.1f} s"
        case Summary():
            remaining = f", {event.remaining} remaining" if event.remaining else ""
            return (
                f"{event.rendered} rendered, {event.skipped} already there, {event.failed} failed"
                f"{remaining} in {event.elapsed_s:.1f} s"
            )


def _details(event: JobDone) -> str:
    vram = event.peak_vram_bytes
    memory = f"{event.peak_rss_bytes / 2**30:.2f} GiB of memory"
    if vram is not None:
        memory += f", {vram / 2**30:.2f} GiB of GPU memory"
    return f" [seed {event.seed}, {memory}, pixels {event.pixels_sha256[:12]}]"


def count_runs(denoisers: str) -> str:
    """Abbreviate a denoiser string by its runs: ``"LLLLSSL"`` becomes ``"4L 2S 1L"``."""
    return " ".join(f"{len(list(run))}{letter}" for letter, run in itertools.groupby(denoisers))


def safe_lines(text: str) -> str:
    """Make a message of several lines harmless to a terminal, keeping its lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
