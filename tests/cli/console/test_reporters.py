"""What people and programs see of a batch: on terminals, in pipes, and when a stream breaks."""

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

import pytest
from rich.console import Console

from flowblend_cli.console.factory import make_reporter
from flowblend_cli.console.lines import count_runs, one_line
from flowblend_cli.console.live import BatchClock, LiveReporter, step_bar
from flowblend_cli.console.plain import Lines, PlainReporter
from flowblend_cli.events import (
    JobDone,
    JobDropped,
    JobFailed,
    JobSkipped,
    JobStarted,
    ModelLoaded,
    Summary,
)
from flowblend_cli.text import clock

HOSTILE = "a [/b] [bold]cat[/bold] :smile: \x1b[31mred\x1b]52;c;aGk=\x07 \u202e \x9b2J\nnext"

SCRIPT = """
import sys, time
from flowblend_cli.events import *
from flowblend_cli.progress import make_reporter

json, verbosity = "--json" in sys.argv, sys.argv.count("-v") - sys.argv.count("-q")
hostile = {hostile!r}
with make_reporter(json=json, verbosity=verbosity, total_jobs=3) as reporter:
    reporter.event(ModelLoaded("sprites", 2.0))
    for name in ("one", "two"):
        reporter.event(JobStarted(name, "s", 1, 4, "LLSS", hostile))
        for index, role in enumerate(("large", "large", "small", "small")):
            reporter.step(index, 4, role)
            time.sleep(0.07 if sys.stderr and sys.stderr.isatty() else 0)
        path, digest = "/out/" + name, "ab" * 32
        reporter.event(JobDone(name, "s", 1, 4, path, 1.0, "LLSS", 2**30, None, digest))
    reporter.message("a warning")
    reporter.event(JobFailed("three", "s", 1, "out of paint\\nbuy some"))
    reporter.event(Summary(2, 0, 1, 3.0))
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
        "[1/3] done one in 1.0 s (2L 2S): /out/one",
        "[2/3] done two in 1.0 s (2L 2S): /out/two",
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


def test_the_live_display_stops_also_after_an_exception() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), LiveReporter(stream, 0, 1):
        raise KeyboardInterrupt

    assert stream.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in stream.getvalue()


def test_the_step_bar_shows_capitals_for_steps_that_started() -> None:
    assert step_bar("LLS", "LLSSL", 40).plain == "LLSsl"
    assert step_bar("", "LLSSL", 40).plain == "llssl"


def test_a_long_trajectory_fits_the_terminal() -> None:
    assert len(step_bar("L" * 20, "L" * 200, 60).plain) <= 60


def drawn(reporter: LiveReporter) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(reporter.render())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_step_line_names_the_denoiser_that_runs() -> None:
    reporter = LiveReporter(io.StringIO(), 0, 2)
    reporter.event(JobStarted("a", "s", 1, 4, "LLSS", "p"))
    assert "llss  step 0/4 waiting" in drawn(reporter)

    for index, role in enumerate(("large", "large", "small")):
        reporter.step(index, 4, role)

    assert "LLSs  step 3/4 small" in drawn(reporter)
    assert "0/2 jobs" in drawn(reporter)


def test_a_job_whose_plan_is_unknown_is_drawn() -> None:
    reporter = LiveReporter(io.StringIO(), 0, 1)
    reporter.event(JobStarted("a", "s", 1, 3, "", "p"))

    assert "???  step 0/3 waiting" in drawn(reporter)


def test_remaining_time_is_unknown_until_something_is_done_and_skips_count_for_nothing() -> None:
    batch = BatchClock(4)
    batch.end_job(skipped=True)
    assert batch.remaining_s() is None

    batch.start()
    assert batch.remaining_s() is None
    batch.fraction = 0.5
    assert batch.remaining_s() == pytest.approx(0, abs=1)


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
    with make_reporter(json=True, verbosity=0, total_jobs=1) as reporter:
        reporter.event(Summary(0, 1, 0, 0.0))

    captured = capsys.readouterr()
    assert json.loads(captured.out)["event"] == "summary"
    assert "1 already there" in captured.err


@pytest.mark.parametrize("verbosity", [0, 1])
def test_many_jobs_that_are_already_there_are_a_number_unless_all_is_asked_for(
    verbosity: int,
) -> None:
    out = io.StringIO()
    reporter = PlainReporter(Lines(out, "out"), Lines(None, ""), verbosity, 24)
    for number in range(22):
        reporter.event(JobSkipped(f"job{number}", "scene", 1, f"/out/job{number}"))
    reporter.event(JobDropped("other", "scene", 1, "no", 0.1))
    reporter.event(JobSkipped("last", "scene", 1, "/out/last"))
    reporter.event(Summary(0, 23, 0, 1.0))

    told = out.getvalue().splitlines()
    assert told[:10] == [f"[{n + 1}/24] already there job{n}: /out/job{n}" for n in range(10)]
    further = [f"[{n + 1}/24] already there job{n}: /out/job{n}" for n in range(10, 22)]
    assert told[10:-3] == (further if verbosity else ["12 further jobs already there"])
    assert told[-3:-1] == ["[23/24] dropped other: no", "[24/24] already there last: /out/last"]
