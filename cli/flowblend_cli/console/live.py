"""LiveReporter: the display on a terminal, with the jobs under way, their steps, and the batch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowblend_cli.console.lines import SAID_WHEN_VERBOSE, SkippedJobs, one_line, safe_lines
from flowblend_cli.events import (
    Event,
    JobFailed,
    JobSkipped,
    JobStarted,
    JsonEvent,
    Message,
    RunEnded,
    RunStarted,
    Waiting,
)
from flowblend_cli.text import clock, count, printable

if TYPE_CHECKING:
    from flowblend_cli.planning.run_progress import JobProgress, RunProgress

# So many jobs under way are shown, with two lines each; twice as many where each has one line.
MOST_SHOWN = 8
_NAME_WIDTH = 24
REFRESHES_PER_SECOND = 8
_STYLES = {"L": "bold cyan", "S": "bold magenta", "E": "green"}


class LiveReporter:
    """Shows moving lines at the bottom of a terminal, and leaves each finished job above them.

    Everything that comes from a recipe is printed as text, never as rich's markup, and stripped of
    what a terminal would obey.

    Args:
        stream: The terminal.
        verbosity: 0 usual, 1 and more adds what loads, seeds and memory.
        progress: How far the run is.
    """

    def __init__(self, stream: TextIO, verbosity: int, progress: RunProgress) -> None:
        self._console = Console(
            file=_Unbreakable(stream),  # type: ignore[arg-type]
            force_terminal=True,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._verbose = verbosity > 0
        self._progress = progress
        self._skipped_jobs = SkippedJobs(all_named=self._verbose)
        self._waits_for = ""
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )

    def __call__(self, event: Event) -> None:
        """Show an event: as a line above, or in the moving lines."""
        match event:
            case RunStarted():
                self._live.start()
            case RunEnded():
                self._live.stop()  # gives the cursor back
            case Message():
                is_alarming = event.is_error or event.is_answer
                self._print(safe_lines(event.text), "bold red" if is_alarming else "yellow")
            case Waiting():
                self._waits_for = event.text
            case JobStarted():
                self._live.refresh()
        if isinstance(event, JsonEvent) and not isinstance(event, JobStarted):
            self._write(event)

    def _write(self, event: JsonEvent) -> None:
        if self._skipped_jobs.hides(event):
            return
        if not isinstance(event, JobSkipped) and (told := self._skipped_jobs.summary()):
            self._print(told)
        if self._verbose or not isinstance(event, SAID_WHEN_VERBOSE):
            style = "bold red" if isinstance(event, JobFailed) else ""
            self._print(one_line(event, verbose=self._verbose), style)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def render(self) -> RenderableType:
        """Draw the moving lines as they are now."""
        lines: list[RenderableType] = []
        sampling = [*self._progress.sampling.values()]
        has_workers = any(one.started and one.started.worker for one in sampling)
        most = MOST_SHOWN * (2 if has_workers else 1)
        for one in sampling[:most]:
            lines += self._job_lines(one)
        if len(sampling) > most:
            lines.append(_cut(f"and {count(len(sampling) - most, 'further job')}"))
        if self._waits_for:
            lines.append(_cut(self._waits_for))
        lines.append(self._batch_line())
        return Group(*lines)

    def _job_lines(self, job: JobProgress) -> list[RenderableType]:
        """Two lines of a job; one where several workers have one each."""
        assert job.started is not None
        name, prompt = printable(job.started.job), printable(job.started.prompt)
        worker = printable(job.started.worker)
        if not worker:
            return [_cut(f"{name}  {prompt}"), self._step_line(job, job.started, 30)]
        narrow = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
        before = f"{worker}  {narrow:{_NAME_WIDTH}}  "
        line = _cut(before)
        line.append_text(self._step_line(job, job.started, 30 + len(before)))
        return [line]

    def _step_line(self, job: JobProgress, started: JobStarted, taken: int) -> Text:
        total = started.num_inference_steps
        planned = started.denoisers or "?" * total
        width = max(10, self._console.width - taken)
        line = step_bar(job.ran, planned, width)
        line.append(f"  step {len(job.ran)}/{total} {job.role or 'waiting'}")
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _batch_line(self) -> Table:
        progress = self._progress
        table = Table.grid(padding=(0, 1))
        left = progress.left_s()
        times = f"{clock(progress.elapsed_s)} elapsed"
        if left is not None:
            times += f", {clock(left)} left"
        fraction = sum(one.step / max(one.total, 1) for one in progress.sampling.values())
        table.add_row(
            Text(f"{progress.ended}/{progress.total} jobs"),
            ProgressBar(
                total=max(progress.total, 1), completed=progress.ended + fraction, width=24
            ),
            Text(times),
        )
        return table


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
