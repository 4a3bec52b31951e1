"""one_line: an event as a line for people; SkippedJobs: one line for many skipped jobs."""

from __future__ import annotations

import itertools

from flowblend_cli.events import (
    JobDone,
    JobDropped,
    JobFailed,
    JobMeasured,
    JobSkipped,
    JobStarted,
    JsonEvent,
    ModelLoaded,
    Summary,
)
from flowblend_cli.text import count, printable

NAMED = 10
SAID_WHEN_VERBOSE = (JobStarted, ModelLoaded, JobMeasured)


class SkippedJobs:
    """Counts skipped jobs that come one after the other, and hides all but the first ones.

    Args:
        all_named: Whether every one of them has a line of its own.
    """

    def __init__(self, *, all_named: bool = False) -> None:
        self._all_named = all_named
        self._in_a_row = 0

    def hides(self, event: JsonEvent) -> bool:
        """Whether an event gets no line, because ``NAMED`` skipped jobs stand before it."""
        if not isinstance(event, JobSkipped) or self._all_named:
            return False
        self._in_a_row += 1
        return self._in_a_row > NAMED

    def summary(self) -> str:
        """The line that stands for the hidden ones, before a line of another kind; may be empty."""
        hidden, self._in_a_row = self._in_a_row - NAMED, 0
        return f"{count(hidden, 'further job')} already there" if hidden > 0 else ""


def one_line(event: JsonEvent, *, verbose: bool = False) -> str:
    """Say an event in one line for people, harmless to any terminal.

    Args:
        event: The event.
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
