"""LogFile: a log that is moved, can't be written, or is told of hostile texts."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowblend_cli.console.factory import make_reporter
from flowblend_cli.console.log_file import LogFile
from flowblend_cli.console.plain import Lines
from flowblend_cli.events import (
    JobDone,
    JobFailed,
    Message,
    RunEnded,
    RunStarted,
    Summary,
    chain,
)
from flowblend_cli.jobs import Batch
from flowblend_cli.main import main
from flowblend_cli.planning.run_progress import RunProgress
from tests.naughty import NAUGHTY, SURROGATES
from tests.rendered import a_job

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")
DONE = JobDone("clip", "s", 1, 4, "/p", 1.0, "LLSL", 2**30, None, "ab" * 32)


class Spoken(io.StringIO):
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def said() -> Spoken:
    return Spoken()


def opened(path: Path, said: Spoken) -> LogFile:
    return LogFile(path, Lines(said, "standard error"))


def logged(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    assert all(STAMP.match(line) for line in lines)
    return [STAMP.sub("", line, count=1) for line in lines]


def test_a_log_has_all_detail_under_quiet_and_a_line_for_each_line(
    tmp_path: Path, said: Spoken, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "night.log"
    jobs = (a_job("clip"), a_job("other"))
    progress = RunProgress(Batch("study", tmp_path, jobs, (), tmp_path / "study.toml"))
    shown = make_reporter(progress, json=True, verbosity=-1, log=opened(path, said))
    tell = chain([progress, shown])
    tell(RunStarted(2, ("clip", "other")))
    tell(Message("a hint\nof two lines"))
    tell(DONE)
    tell(JobFailed("other", "s", 1, "no paint\nbuy some"))
    tell(Summary(1, 0, 1, 3.0))
    tell(RunEnded())

    assert logged(path) == [
        "a hint",
        "of two lines",
        "[1/2] done clip in 1.0 s (2L 1S 1L): /p [seed 1, 1.00 GiB of memory, pixels abababababab]",
        "error: other: no paint",
        "buy some",
        "1 rendered, 0 already there, 1 failed in 3.0 s",
    ]
    assert "a hint" not in capsys.readouterr().err


def test_a_log_that_is_moved_or_deleted_is_begun_anew(tmp_path: Path, said: Spoken) -> None:
    path = tmp_path / "night.log"
    log = opened(path, said)
    log.write("one")
    path.rename(tmp_path / "night.log.1")
    log.write("two")
    path.unlink()
    log.write("three")
    log.close()

    assert logged(tmp_path / "night.log.1") == ["one"]
    assert logged(path) == ["three"]
    assert said.lines() == []


def test_a_log_is_added_to(tmp_path: Path, said: Spoken) -> None:
    for text in ("one", "two"):
        log = opened(tmp_path / "night.log", said)
        log.write(text)
        log.close()

    assert logged(tmp_path / "night.log") == ["one", "two"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/dev/full", "No space left"), ("{}/missing/x.log", "No such file"), ("{}", "directory")],
)
def test_a_log_that_cannot_be_written_is_said_once(
    path: str, reason: str, tmp_path: Path, said: Spoken
) -> None:
    log = opened(Path(path.format(tmp_path)), said)
    for text in ("one", "two", "three"):
        log.write(text)
    log.close()

    (line,) = said.lines()
    assert line.startswith("error: the log ")
    assert reason in line


def test_a_pipe_that_nobody_reads_is_said_once_and_waited_for_never(
    tmp_path: Path, said: Spoken
) -> None:
    os.mkfifo(tmp_path / "pipe")
    log = opened(tmp_path / "pipe", said)
    log.write("one")
    log.write("two")
    log.close()

    (line,) = said.lines()
    assert "can't be written" in line


def test_a_log_goes_on_once_its_folder_is_back(tmp_path: Path, said: Spoken) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    log = opened(folder / "night.log", said)
    log.write("one")
    shutil.rmtree(folder)
    log.write("two")
    folder.mkdir()
    log.write("three")
    log.close()

    assert logged(folder / "night.log") == ["three"]
    assert len(said.lines()) == 1


@pytest.mark.parametrize("text", (NAUGHTY | SURROGATES).values(), ids=NAUGHTY | SURROGATES)
def test_nothing_in_a_log_controls_the_terminal_that_shows_it(
    text: str, tmp_path: Path, said: Spoken
) -> None:
    log = opened(tmp_path / "night.log", said)
    log.write(text)
    log.close()

    lines = (tmp_path / "night.log").read_text("utf-8").split("\n")
    assert len(lines) == text.count("\n") + 2
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(lines))


def test_an_error_of_the_recipe_stands_in_the_log_too(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text('[recipe]\nnam = "x"\n', "utf-8")
    log = tmp_path / "night.log"
    result = CliRunner().invoke(main, ["render", str(recipe), "--log-file", str(log)])

    assert result.exit_code == 2
    told = logged(log)
    assert any(f"{recipe}:2:1: recipe.nam: unknown key" in line for line in told)
    assert len(told) == len(result.stderr.splitlines())
