"""The live display on a terminal: the current job, its steps by denoiser, and the batch."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowblend_cli.console.lines import SAID_WHEN_VERBOSE, Skips, one_line, safe_lines
from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobSkipped,
    JobStarted,
    Silent,
)
from flowblend_cli.text import clock, printable
from flowblend_plugin.stages import LETTERS

REFRESHES_PER_SECOND = 8
_STYLES = {"L": "bold cyan", "S": "bold magenta", "E": "green"}


class LiveReporter(Silent):
    """Three moving lines at the bottom of a terminal, with each finished job left above them.

    Everything that comes from a recipe is printed as text, never as rich's markup, and stripped of
    what a terminal would obey.

    Args:
        stream: The terminal.
        verbosity: 0 usual, 1 and more adds what loads, seeds and memory.
        total_jobs: Jobs in the batch.
    """

    def __init__(self, stream: TextIO, verbosity: int, total_jobs: int) -> None:
        self._console = Console(
            file=_Unbreakable(stream),  # type: ignore[arg-type]
            force_terminal=True,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._verbose = verbosity > 0
        self._skips = Skips(all_named=self._verbose)
        self._batch = BatchClock(total_jobs)
        self._job: JobStarted | None = None
        self._ran = ""
        self._waits_for = ""
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        """Start the display."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clear the display and give the cursor back."""
        self._live.stop()

    def event(self, event: Event) -> None:
        """Show the event: as a line above, or in the moving lines."""
        if isinstance(event, JobStarted):
            self._job, self._ran = event, ""
            self._batch.start()
            self._live.refresh()
            return
        if isinstance(event, JobDone | JobSkipped | JobDropped | JobFailed):
            is_present = self._job is None or self._job.job == event.job
            if is_present:
                self._job, self._ran = None, ""
            self._batch.end_job(
                is_present=is_present, skipped=isinstance(event, JobSkipped | JobDropped)
            )
        if self._skips.withholds(event):
            return
        if not isinstance(event, JobSkipped) and (told := self._skips.ended()):
            self._print(told)
        if self._verbose or not isinstance(event, SAID_WHEN_VERBOSE):
            style = "bold red" if isinstance(event, JobFailed) else ""
            self._print(one_line(event, verbose=self._verbose), style)

    def step(self, step: int, total: int, role: str) -> None:
        """Move the step bar."""
        self._ran = self._ran[:step] + role[:1].upper()
        self._batch.fraction = step / max(total, 1)

    def message(self, text: str, *, error: bool = False) -> None:
        """Print a message above the moving lines."""
        self._print(safe_lines(text), "bold red" if error else "yellow")

    def grow(self, jobs: int) -> None:
        """Count on further jobs."""
        self._batch.total += jobs

    def waiting(self, text: str) -> None:
        """Show what is waited for among the moving lines."""
        self._waits_for = text

    def estimate(self, seconds: float | None) -> None:
        """Count down from it."""
        self._batch.expect(seconds)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def render(self) -> RenderableType:
        """Draw the moving lines as they are now."""
        lines: list[RenderableType] = []
        job = self._job
        if job is not None:
            lines.append(_cut(f"{printable(job.job)}  {printable(job.prompt)}"))
            lines.append(self._step_line(job))
        if self._waits_for:
            lines.append(_cut(self._waits_for))
        lines.append(self._batch_line())
        return Group(*lines)

    def _step_line(self, job: JobStarted) -> Text:
        total = job.num_inference_steps
        planned = job.denoisers or "?" * total
        width = max(10, self._console.width - 30)
        line = step_bar(self._ran, planned, width)
        role = LETTERS.get(self._ran[-1:], self._ran[-1:] or "waiting")
        line.append(f"  step {len(self._ran)}/{total} {role}")
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _batch_line(self) -> Table:
        batch = self._batch
        table = Table.grid(padding=(0, 1))
        left = batch.remaining_s()
        times = f"{clock(batch.elapsed_s())} elapsed"
        if left is not None:
            times += f", {clock(left)} left"
        table.add_row(
            Text(f"{batch.ended}/{batch.total} jobs"),
            ProgressBar(
                total=max(batch.total, 1), completed=batch.ended + batch.fraction, width=24
            ),
            Text(times),
        )
        return table


class BatchClock:
    """How far a batch is, how long it has taken, and how long it may still take.

    Args:
        total: Jobs in the batch.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.ended = 0
        self.fraction = 0.0
        self._skipped = 0
        self._born = time.monotonic()
        self._first_start: float | None = None
        self._ends: float | None = None

    def expect(self, remaining_s: float | None) -> None:
        """Note how long the jobs left are said to take; None where nobody can tell."""
        self._ends = None if remaining_s is None else time.monotonic() + remaining_s

    def start(self) -> None:
        """Note that a job starts."""
        self.fraction = 0.0
        if self._first_start is None:
            self._first_start = time.monotonic()

    def end_job(self, *, skipped: bool, is_present: bool = True) -> None:
        """Note that a job is over: the present one, or one before it, whose file is there now."""
        self.ended += 1
        self.fraction = 0.0 if is_present else self.fraction
        self._skipped += skipped

    def elapsed_s(self) -> float:
        """Seconds since the batch started."""
        return time.monotonic() - self._born

    def remaining_s(self) -> float | None:
        """Seconds that the jobs left will take, as said, or at the pace so far; None if unknown."""
        if self._ends is not None:
            return max(0.0, self._ends - time.monotonic())
        done = self.ended - self._skipped + self.fraction
        if self._first_start is None or done <= 0:
            return None
        pace = (time.monotonic() - self._first_start) / done
        return pace * max(0.0, self.total - self.ended - self.fraction)


class _Unbreakable:
    """A terminal that may hang up: writing to it then does nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def step_bar(ran: str, planned: str, width: int) -> Text:
    """Draw one letter a step: capital for a step that has started, small for one to come.

    Args:
        ran: Letters of the steps that have started.
        planned: Letters of all steps.
        width: Columns to use at most; longer trajectories show every second step, third step, ...
    """
    text = Text()
    stride = -(-len(planned) // width) or 1
    for index in range(0, len(planned), stride):
        letter = ran[index] if index < len(ran) else planned[index]
        if index < len(ran):
            text.append(letter.upper(), style=_STYLES.get(letter.upper(), "bold"))
        else:
            text.append(letter.lower(), style="dim")
    return text


def _cut(line: str) -> Text:
    return Text(line, no_wrap=True, overflow="ellipsis")
