"""Reporters: what people and programs see of a run, on terminals, in pipes, on broken streams."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from flowblend_cli.artifacts.records import run_path
from flowblend_cli.console.factory import make_reporter
from flowblend_cli.console.lines import count_runs, one_line
from flowblend_cli.console.live import MOST_SHOWN, LiveReporter, step_bar
from flowblend_cli.console.log_file import LogFile
from flowblend_cli.console.plain import Lines, PlainReporter
from flowblend_cli.console.run_state import RunState
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobRendered,
    JobsAdded,
    JobSkipped,
    JobStarted,
    ModelLoaded,
    Reporter,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    captured_events,
    chain,
)
from flowblend_cli.jobs import Batch
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.text import clock
from flowblend_cli.utils.json_files import read_json
from tests.faults import drawn
from tests.rendered import a_job

HOSTILE = "a [/b] [bold]cat[/bold] :smile: \x1b[31mred\x1b]52;c;aGk=\x07 \u202e \x9b2J\nnext"

SCRIPT = """
import sys, time
from pathlib import Path
from flowblend_cli.console.factory import make_reporter
from flowblend_cli.events import *
from flowblend_cli.jobs import Batch
from flowblend_cli.planning.run_progress import RunProgress
from tests.rendered import a_job

json, verbosity = "--json" in sys.argv, sys.argv.count("-v") - sys.argv.count("-q")
hostile = {hostile!r}
jobs = tuple(a_job(name, steps=4) for name in ("one", "two", "three"))
progress = RunProgress(Batch("study", Path("out"), jobs, (), Path("study.toml")))
tell = chain([progress, make_reporter(progress, json=json, verbosity=verbosity)])
tell(RunStarted(3, ("one", "two", "three")))
tell(ModelLoaded("sprites", 2.0))
for name in ("one", "two"):
    tell(JobAssigned(name))
    tell(JobStarted(name, "s", 1, 4, "LLSS", hostile))
    for index, role in enumerate(("large", "large", "small", "small")):
        tell(StepStarted(name, index, 4, role))
        time.sleep(0.07 if sys.stderr and sys.stderr.isatty() else 0)
    path, digest = "/out/" + name, "ab" * 32
    tell(JobRendered(name))
    tell(JobDone(name, "s", 1, 4, path, 1.0, "LLSS", 2**30, None, digest))
tell(Message("a warning"))
tell(JobFailed("three", "s", 1, "out of paint\\nbuy some"))
tell(Summary(2, 0, 1, 3.0))
tell(RunEnded())
sys.exit(7)
"""


def environment(**more: str) -> dict[str, str]:
    paths = [*filter(None, sys.path), os.getcwd()]
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm", **more}


def command(*options: str) -> list[str]:
    script = textwrap.dedent(SCRIPT).replace("{hostile!r}", repr(HOSTILE))
    return [sys.executable, "-c", script, *options]


def in_pipes(*options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), capture_output=True, text=True, env=environment(**more), check=False
    )


def on_a_terminal(*options: str, **more: str) -> tuple[str, str]:
    """Run with stderr on a pseudo-terminal; give back stdout and what the terminal got."""
    main, secondary = pty.openpty()
    process = subprocess.Popen(
        command(*options), stdout=subprocess.PIPE, stderr=secondary, env=environment(**more)
    )
    os.close(secondary)
    seen = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(main)
    out, _ = process.communicate()
    assert process.returncode == 7
    return out.decode(), seen.decode()


def test_a_pipe_gets_one_plain_line_per_job_and_errors_go_to_stderr() -> None:
    done = in_pipes()

    assert done.stdout.splitlines() == [
        "[1/3, 0:00 left] done one in 1.0 s (2L 2S): /out/one",
        "[2/3, 0:00 left] done two in 1.0 s (2L 2S): /out/two",
        "2 rendered, 0 already there, 1 failed in 3.0 s",
    ]
    assert done.stderr.splitlines() == ["a warning", "error: three: out of paint", "buy some"]


def test_json_lines_go_to_stdout_and_the_plain_lines_to_stderr() -> None:
    done = in_pipes("--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == [
        "model_loaded",
        *["job_started", "job_done"] * 2,
        "job_failed",
        "summary",
    ]
    assert events[1]["prompt"] == HOSTILE
    assert "done one" in done.stderr


def test_quiet_says_errors_only() -> None:
    done = in_pipes("-q")

    assert done.stdout == ""
    assert done.stderr.splitlines() == ["error: three: out of paint", "buy some"]


def test_verbose_adds_what_starts_and_what_was_used() -> None:
    done = in_pipes("-v")

    assert "loaded sprites in 2.0 s" in done.stdout
    assert "started one (seed 1, 2L 2S): a [/b]" in done.stdout
    assert "[seed 1, 1.00 GiB of memory, pixels abababababab]" in done.stdout


def test_lines_outside_a_terminal_hold_no_control_characters_in_any_locale() -> None:
    done = in_pipes("-v", LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii")

    assert done.returncode == 7
    for text in (done.stdout, done.stderr):
        assert text.isascii()
        assert not re.search(r"[^\n\x20-\x7e]", text)


def test_a_terminal_shows_prompt_steps_denoiser_and_batch() -> None:
    _, seen = on_a_terminal(NO_COLOR="1", COLUMNS="100")

    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "a [/b] [bold]cat[/bold] :smile:" in seen
    assert re.search(r"[Ll]{2}[Ss]{2}  step [0-4]/4 (waiting|large|small)", seen)
    assert "elapsed" in seen
    assert "left" in seen
    assert "done one in 1.0 s" in seen


def test_nothing_in_a_prompt_reaches_the_terminal_as_a_command() -> None:
    _, seen = on_a_terminal("-v")

    assert "\x1b]52" not in seen
    assert "\x07" not in seen
    assert "\x1b[31mred" not in seen
    assert "\u202e" not in seen
    assert "\x9b" not in seen


def test_no_color_leaves_out_colours() -> None:
    _, plain = on_a_terminal(NO_COLOR="1")
    _, coloured = on_a_terminal()

    assert "\x1b[1;36m" in coloured
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    out, seen = on_a_terminal(TERM="dumb")

    assert "\x1b" not in seen
    assert "done one" in out


def test_a_piped_stdout_gets_its_lines_beside_the_live_display() -> None:
    out, seen = on_a_terminal()

    assert out.count("done ") == 2
    assert "\x1b" not in out
    assert "\x1b[?25h" in seen  # the cursor is back


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_device_behind_stdout_costs_one_error_line_and_nothing_else(
    options: list[str],
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*options),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )

    assert done.returncode == 7
    assert done.stderr.count("standard output can't be written (No space left on device)") == 1
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_went_away_costs_one_error_line_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("--json"),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
    )
    os.close(writer)

    assert done.returncode == 7
    assert done.stderr.count("standard output can't be written (Broken pipe)") == 1


def test_streams_that_were_closed_before_the_start_are_survived() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command("--json")],
        env=environment(),
        check=False,
    )

    assert done.returncode == 7


class BrokenExecutor(drawn.DrawnFramesExecutor):
    def poll(self, timeout_s: float) -> NoReturn:
        raise KeyboardInterrupt


def test_the_live_display_stops_also_after_an_exception(tmp_path: Path) -> None:
    stream = io.StringIO()
    batch = drawn.load(drawn.write_recipe(tmp_path, 1))
    progress = RunProgress(batch)
    run = BatchRun(
        batch, LiveReporter(stream, 0, progress), progress=progress, executor=BrokenExecutor()
    )
    with pytest.raises(KeyboardInterrupt):
        run.run()

    hidden, shown = stream.getvalue().rfind("\x1b[?25l"), stream.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


def test_the_step_bar_shows_capitals_for_steps_that_started() -> None:
    assert step_bar("LLS", "LLSSL", 40).plain == "LLSsl"
    assert step_bar("", "LLSSL", 40).plain == "llssl"


def test_a_long_trajectory_fits_the_terminal() -> None:
    assert len(step_bar("L" * 20, "L" * 200, 60).plain) <= 60


def batch_of(*names: str, folder: Path = Path("out")) -> Batch:
    jobs = tuple(a_job(name, steps=4) for name in names)
    return Batch("study", folder, jobs, (), folder / "study.toml")


def live(*names: str) -> tuple[Reporter, LiveReporter]:
    """A display of a run that hasn't begun, so that nothing moves, and who is told of the run."""
    progress = RunProgress(batch_of(*names))
    reporter = LiveReporter(io.StringIO(), 0, progress)
    return chain([progress, reporter]), reporter


def picture_of(reporter: LiveReporter) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(reporter.render())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_step_line_names_the_denoiser_that_runs() -> None:
    tell, reporter = live("a", "b")
    tell(JobStarted("a", "s", 1, 4, "LLSS", "p"))
    assert "llss  step 0/4 waiting" in picture_of(reporter)

    for index, role in enumerate(("large", "large", "small")):
        tell(StepStarted("a", index, 4, role))

    assert "LLSs  step 3/4 small" in picture_of(reporter)
    assert "0/2 jobs" in picture_of(reporter)


def test_a_job_that_goes_on_in_the_middle_is_drawn_with_the_steps_that_it_has() -> None:
    tell, reporter = live("a")
    tell(JobStarted("a", "s", 1, 4, "LLSS", "p", resumed_at=2))
    assert "LLss  step 2/4 waiting" in picture_of(reporter)

    tell(StepStarted("a", 2, 4, "small"))
    assert "LLSs  step 3/4 small" in picture_of(reporter)


def test_a_job_whose_plan_is_unknown_is_drawn() -> None:
    tell, reporter = live("a")
    tell(JobStarted("a", "s", 1, 3, "", "p"))

    assert "???  step 0/3 waiting" in picture_of(reporter)


def test_every_job_under_way_has_its_lines() -> None:
    tell, reporter = live("a", "b", "c", "d")
    for number, name in enumerate("abc", 1):
        tell(JobStarted(name, "s", 1, 4, "LLSS", f"prompt of {name}"))
        for index in range(number):
            tell(StepStarted(name, index, 4, "large"))

    assert [line.split("  ")[:2] for line in picture_of(reporter).splitlines()[:-1]] == [
        ["a", "prompt of a"], ["Llss", "step 1/4 large"],
        ["b", "prompt of b"], ["LLss", "step 2/4 large"],
        ["c", "prompt of c"], ["LLLs", "step 3/4 large"],
    ]  # fmt: skip

    tell(JobRendered("b"))
    tell(JobFailed("a", "s", 1, "out of paint"))
    assert "prompt of c" in picture_of(reporter)
    assert "prompt of a" not in picture_of(reporter)
    assert "prompt of b" not in picture_of(reporter)
    assert "1/4 jobs" in picture_of(reporter)


@pytest.mark.parametrize(
    ("more", "told"), [(0, ""), (1, "and 1 further job"), (3, "and 3 further jobs")]
)
def test_more_jobs_under_way_than_fit_are_a_number(more: int, told: str) -> None:
    names = [f"job{number}" for number in range(MOST_SHOWN + more)]
    tell, reporter = live(*names)
    for name in names:
        tell(JobStarted(name, "s", 1, 4, "LLSS", "p"))

    drawn_lines = picture_of(reporter).splitlines()
    assert len(drawn_lines) == 2 * MOST_SHOWN + bool(more) + 1
    assert [line.split()[0] for line in drawn_lines[: 2 * MOST_SHOWN : 2]] == names[:MOST_SHOWN]
    assert ("further" in picture_of(reporter)) == bool(more)
    assert told in picture_of(reporter)


class Shown:
    """One run, on a clock of its own, that everything shows which shows runs.

    Args:
        folder: Its output folder.
        names: Ids of its jobs.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.now = 100.0
        batch = batch_of(*names, folder=folder)
        self.progress = RunProgress(batch, lambda: self.now)
        self._state = run_path(folder, "study")
        self._plain, self._log = io.StringIO(), folder / "night.log"
        self._live = LiveReporter(io.StringIO(), 0, self.progress)
        nowhere = Lines(None, "")
        log = LogFile(self._log, nowhere)
        shown: list[Reporter] = [
            PlainReporter(Lines(self._plain, "out"), nowhere, 0, self.progress),
            PlainReporter(log, log, 1, self.progress),
            self._live,
        ]
        state = RunState(self.progress, batch, ["flowblend"], chain(shown))
        self._tell = chain([self.progress, state, *shown])

    def tell(self, event: Event, seconds: float = 0.0) -> None:
        """Tell of something that has taken so long."""
        self.now += seconds
        self._tell(event)

    def render(self, name: str) -> None:
        """A job of four steps of 2 s."""
        self.tell(JobStarted(name, "s", 1, 4, "LLLL", "p"))
        for index in range(4):
            self.tell(StepStarted(name, index, 4, "large"), 2.0 if index else 0.0)
        self.tell(JobRendered(name), 2.0)
        self.tell(JobDone(name, "s", 1, 4, f"/out/{name}", 8.0, "LLLL", 1, None, "ab" * 32))

    @property
    def plain_lines(self) -> list[str]:
        """What a pipe got."""
        return self._plain.getvalue().splitlines()

    def found(self) -> dict[str, tuple[str, str | None]]:
        """What each shows of the jobs that are over, and of the time left."""
        picture = picture_of(self._live)
        lines = [self.plain_lines[-1], self._log.read_text().splitlines()[-1]]
        state = read_json(self._state)
        assert state is not None
        ended = state["rendered"] + state["skipped"] + len(state["failed"]) + len(state["dropped"])
        left = state["remaining_s"]
        found = {
            "progress": (f"{self.progress.ended}/{self.progress.total}", self.progress.left_s()),
            "state": (f"{ended}/{state['jobs'] + state['added']}", left),
        }
        told = {who: (jobs, None if s is None else clock(s)) for who, (jobs, s) in found.items()}
        told["live"] = _read(r"(\d+/\d+) jobs.* elapsed(?:, ([\d:]+) left)?", picture)
        for who, line in zip(("plain", "log"), lines, strict=True):
            told[who] = _read(r"\[(\d+/\d+)(?:, ([\d:]+) left)?\]", line)
        return told


def _read(pattern: str, text: str) -> tuple[str, str | None]:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1], match[2]


def test_display_lines_log_and_state_show_the_same_progress(tmp_path: Path) -> None:
    run = Shown(tmp_path, "one", "two", "three", "four", "five")
    run.tell(RunStarted(5, ("two", "three", "four", "five")))
    run.tell(JobSkipped("one", "s", 1, "/out/one"), 1.0)
    assert set(run.found().values()) == {("1/5", None)}  # nothing was rendered: nobody guesses

    run.tell(ModelLoaded("sprites", 3.0))
    run.render("two")
    assert set(run.found().values()) == {("2/5", "0:24")}

    run.tell(JobsAdded(1))
    run.tell(JobDropped("three", "s", 1, "no promise", 0.1))
    run.render("four")
    assert set(run.found().values()) == {("4/6", "0:16")}
    run.tell(RunEnded())


def test_every_line_of_a_run_has_the_time_left_but_the_last(tmp_path: Path) -> None:
    run = Shown(tmp_path, "one", "two")
    run.tell(RunStarted(2, ("one", "two")))
    for name in ("one", "two"):
        run.render(name)
    run.tell(RunEnded())

    lines = run.plain_lines
    assert [line.split(" done ")[0] for line in lines] == ["[1/2, 0:08 left]", "[2/2]"]


def test_a_finished_job_is_told_while_the_next_one_renders(tmp_path: Path) -> None:
    batch = drawn.load(drawn.write_recipe(tmp_path, 2))
    told = captured_events()
    BatchRun(batch, told, executor=drawn.DrawnFramesExecutor(step_s=0.3)).run()

    first, second = (job.id for job in batch.jobs)
    steps = [at for at, event in enumerate(told) if isinstance(event, StepStarted)]
    done = next(at for at, event in enumerate(told) if isinstance(event, JobDone))
    assert (told[done].job, told[steps[-1]].job) == (first, second)
    assert done < steps[-1]


def test_durations_and_runs_are_short() -> None:
    assert [clock(5), clock(75), clock(3725)] == ["0:05", "1:15", "1:02:05"]
    assert count_runs("LLLLSSL") == "4L 2S 1L"
    assert count_runs("") == ""


def test_each_event_is_one_harmless_line() -> None:
    for event in (
        ModelLoaded(HOSTILE, 1.0),
        JobStarted(HOSTILE, "s", 1, 1, "L", HOSTILE),
        JobDone(HOSTILE, "s", 1, 1, HOSTILE, 1.0, "L", 1, 2**31, "ab"),
        JobSkipped(HOSTILE, "s", 1, HOSTILE),
        Summary(1, 1, 1, 1.0),
    ):
        line = one_line(event, verbose=True)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", line)
    assert one_line(JobFailed("a", "s", 1, "x\x1b\ny")) == "error: a: x\\x1b\ny"


def test_a_reporter_in_this_process_writes_where_stdout_is_now(
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_reporter(RunProgress(batch_of("a")), json=True, verbosity=0)(Summary(0, 1, 0, 0.0))

    captured = capsys.readouterr()
    assert json.loads(captured.out)["event"] == "summary"
    assert "1 already there" in captured.err


@pytest.mark.parametrize("verbosity", [0, 1])
def test_many_jobs_that_are_already_there_are_a_number_unless_all_is_asked_for(
    verbosity: int,
) -> None:
    out = io.StringIO()
    progress = RunProgress(batch_of(*(f"job{number}" for number in range(24))))
    tell = chain([progress, PlainReporter(Lines(out, "out"), Lines(None, ""), verbosity, progress)])
    for number in range(22):
        tell(JobSkipped(f"job{number}", "scene", 1, f"/out/job{number}"))
    tell(JobDropped("other", "scene", 1, "no", 0.1))
    tell(JobSkipped("last", "scene", 1, "/out/last"))
    tell(Summary(0, 23, 0, 1.0))

    told = out.getvalue().splitlines()
    assert told[:10] == [f"[{n + 1}/24] already there job{n}: /out/job{n}" for n in range(10)]
    further = [f"[{n + 1}/24] already there job{n}: /out/job{n}" for n in range(10, 22)]
    assert told[10:-3] == (further if verbosity else ["12 further jobs already there"])
    assert told[-3:-1] == ["[23/24] dropped other: no", "[24/24] already there last: /out/last"]
