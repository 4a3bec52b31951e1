"""ProbeBar: progress of a probe on stderr, a bar on a terminal and a line a prompt elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from flowblend_cli.console.factory import is_terminal
from flowblend_cli.console.lines import safe_lines
from flowblend_cli.console.plain import Lines
from flowblend_cli.jobs import Job
from flowblend_cli.text import shorten


@dataclass(frozen=True)
class ProbeRun:
    """One run of the pipeline.

    Args:
        prompt: Number of its prompt, from 1.
        of: Number of prompts that are run for the same.
        what: ``"velocities"`` or ``"sensitivities"``.
        job: What is run.
        start: First step that the large denoiser computes.
        is_last: Whether it is the prompt's last one of its kind.
    """

    prompt: int
    of: int
    what: str
    job: Job
    start: int = 0
    is_last: bool = True


def runs_of(
    jobs: Sequence[Job], sensitivity_prompts: int, positions: Sequence[int]
) -> Iterator[ProbeRun]:
    """Every run of a probe, in order."""
    for number, job in enumerate(jobs, 1):
        yield ProbeRun(number, len(jobs), "velocities", job)
    asked = jobs[:sensitivity_prompts]
    for number, job in enumerate(asked, 1):
        yield ProbeRun(number, len(asked), "sensitivities", job, 0, False)
        for position in positions:
            is_last = position == positions[-1]
            yield ProbeRun(number, len(asked), "sensitivities", job, position, is_last)


class ProbeBar:
    """The progress of a probe, as a context manager.

    Args:
        runs: Its runs, in order.
        quiet: Show nothing but messages.
    """

    def __init__(self, runs: Sequence[ProbeRun], *, quiet: bool) -> None:
        self._runs = runs
        self._quiet = quiet
        self._errors = Lines(sys.stderr, "standard error")
        self._done = 0
        self._work = 0.0
        self._began = time.monotonic()
        self._bar: Any = None
        if not quiet and is_terminal(sys.stderr) and os.environ.get("TERM", "") not in (
            "dumb", "unknown",
        ):  # fmt: skip
            self._bar = _bar(sum(map(_work, runs)))

    def __enter__(self) -> Self:
        """Start showing."""
        if self._bar is not None:
            self._bar.start()
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def message(self, text: str) -> None:
        """Show a message."""
        if self._bar is not None:
            self._bar.console.print(safe_lines(text), markup=False, highlight=False)
        else:
            self._errors.write(safe_lines(text))

    def step(self, index: int) -> None:
        """Note that a step of the present run is done."""
        if self._done < len(self._runs):
            run = self._runs[self._done]
            part = (index + 1 - run.start) / (run.job.num_inference_steps - run.start)
            self._show(_work(run) * min(1.0, max(0.0, part)))

    def run_done(self) -> None:
        """Note that the present run is done."""
        run = self._runs[self._done]
        self._done += 1
        self._work += _work(run)
        self._show()
        if run.is_last and not self._quiet:
            seconds = time.monotonic() - self._began
            self._began = time.monotonic()
            prompt = f"{shorten(run.job.prompt)} (seed {run.job.seed})"
            self.message(f"[{run.prompt}/{run.of}] {run.what} in {seconds:.1f} s: {prompt}")

    def _show(self, part: float = 0.0) -> None:
        if self._bar is not None and self._done < len(self._runs):
            run = self._runs[self._done]
            label = f"{run.what} {run.prompt}/{run.of}"
            self._bar.update(0, completed=self._work + part, description=label)


def _work(run: ProbeRun) -> float:
    return float(run.job.num_inference_steps - run.start)


def _bar(total: float) -> Any:
    """A bar of rich, which is imported only where there is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    console = Console(file=sys.stderr)
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
    bar.add_task("loading", total=total)
    return bar
