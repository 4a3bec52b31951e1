"""What killed runs left is removed, and nothing else; a folder that others change is let go."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowblend_cli.console.factory import make_reporter
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.output_folder import LOCK_NAME, output_lock, sweep
from flowblend_cli.errors import LockedError, OutputError
from flowblend_cli.events import Event, JobRendered, chain
from flowblend_cli.main import main
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.utils.files import publish
from flowblend_cli.utils.folders import held_folders
from tests.faults import drawn


def test_only_our_own_temporary_files_are_removed(tmp_path: Path) -> None:
    final, folder = tmp_path / "clip.mp4", tmp_path / ".flowblend" / "jobs"
    folder.mkdir(parents=True)
    ours = [tmp_path / "clip.mp4.tmp", folder / "clip.json.tmp"]
    kept = [tmp_path / "other.mp4.tmp", folder / "clip.json"]
    for path in (*ours, *kept):
        path.touch()
    sweep(tmp_path, [final])
    assert [path.exists() for path in (*ours, *kept)] == [False, False, True, True]


def test_nothing_is_removed_through_a_link_in_place_of_the_records_folder(tmp_path: Path) -> None:
    victim, output_dir = tmp_path / "victim", tmp_path / "out"
    (victim / "deep").mkdir(parents=True)
    output_dir.mkdir()
    theirs = [victim / "a.tmp", victim / "deep" / "b.tmp"]
    for path in theirs:
        path.touch()
    (output_dir / ".flowblend").symlink_to(victim)
    sweep(output_dir, [])
    assert all(path.exists() for path in theirs)


# A run, whose frames are drawn, in a folder that others change meanwhile.


def lost(folder: Path) -> None:
    (folder / LOCK_NAME).unlink()


def taken(folder: Path) -> None:
    (folder / LOCK_NAME).unlink()
    (folder / LOCK_NAME).touch()


def linked(folder: Path) -> None:
    folder.rename(folder.parent / "former")
    folder.symlink_to(folder.parent / "victim")


def linked_to_itself(folder: Path) -> None:
    folder.rename(folder.parent / "former")
    folder.symlink_to(folder.parent / "former")


def moved(folder: Path) -> None:
    folder.rename(folder.parent / "former")


def replaced(folder: Path) -> None:
    folder.rename(folder.parent / "former")
    folder.mkdir()


@pytest.mark.parametrize("change", [lost, taken, linked, linked_to_itself, moved, replaced])
def test_a_folder_that_is_no_longer_held_ends_the_run_and_nothing_lands_elsewhere(
    tmp_path: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = drawn.load(drawn.write_recipe(tmp_path, 3))
    (tmp_path / "victim").mkdir()
    out = batch.output_dir
    seen: list[set[Path]] = []

    def meddle(event: Event) -> None:
        if isinstance(event, JobRendered) and not seen:
            change(out)
            seen.append(set(tmp_path.rglob("*")))

    progress = RunProgress(batch)
    reporter = chain([meddle, make_reporter(progress, json=False, verbosity=-1)])
    executor = drawn.DrawnFramesExecutor()
    code = BatchRun(batch, reporter, overrides=(), progress=progress, executor=executor).run()

    assert code == 4
    assert set(tmp_path.rglob("*")) == seen[0]
    assert not list((tmp_path / "victim").iterdir())
    assert "nothing more is written" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".flowblend", ".flowblend/jobs", ".flowblend/runs"])
def test_a_link_inside_the_folder_is_not_written_through(tmp_path: Path, name: str) -> None:
    batch = drawn.load(drawn.write_recipe(tmp_path, 1))
    victim = tmp_path / "victim"
    (victim / "jobs").mkdir(parents=True)
    (batch.output_dir / name).parent.mkdir(parents=True)
    (batch.output_dir / name).symlink_to(victim)
    drawn.run(batch)
    assert [path.name for path in victim.rglob("*")] == ["jobs"]


def test_a_folder_that_a_run_holds_is_refused_to_others(tmp_path: Path) -> None:
    with output_lock(tmp_path), pytest.raises(LockedError), output_lock(tmp_path):
        pass


def test_a_lock_is_free_again_after_the_run(tmp_path: Path) -> None:
    for _ in range(2):
        with output_lock(tmp_path):
            publish(tmp_path / "clip.mp4", b"x")
    publish(tmp_path / "clip.mp4", b"y")
    assert (tmp_path / "clip.mp4").read_bytes() == b"y"


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_huge(path: Path) -> None:
    os.truncate(path, 20 * 2**30)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Whatever waits for a pipe's other end fails instead."""
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("change", [as_pipe, as_endless, as_huge])
def test_no_file_of_a_folder_keeps_a_command_busy(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    batch = drawn.load(drawn.write_recipe(tmp_path, 2))
    out = batch.output_dir
    assert drawn.run(batch)[0] == 0
    for command in ("report", "review"):
        assert CliRunner().invoke(main, [command, str(out)]).exit_code == 0
    before = {path: path.read_bytes() for path in out.glob("*.mp4")}
    for path in [*(out / ".flowblend").rglob("*"), *(out / "review").glob("*.html")]:
        if path.is_file():
            change(path)
    for command in ("status", "report", "review"):
        told = CliRunner().invoke(main, [command, str(out)])
        assert told.exit_code in (0, 2, 4)
        assert told.exception is None or isinstance(told.exception, SystemExit)
    code, rendered = drawn.run(batch)

    assert (code, rendered) == (0, [])
    assert {path: path.read_bytes() for path in before} == before
    change(min(before))
    assert drawn.run(batch)[0] in (0, 1)
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0


@pytest.mark.parametrize(
    "name",
    ["review", "review/clips", "review/index.html", ".flowblend/reviews", "report.html",
     "report.json"],
)  # fmt: skip
def test_what_is_written_of_finished_clips_goes_through_no_link_either(
    tmp_path: Path, name: str
) -> None:
    batch = drawn.load(drawn.write_recipe(tmp_path, 2))
    out, victim = batch.output_dir, tmp_path / "victim"
    drawn.run(batch)
    if "." in name.rpartition("/")[2].lstrip("."):
        victim.write_text("flowblend report")
    else:
        victim.mkdir()
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(victim)
    command = "report" if name.startswith("report") else "review"
    told = CliRunner().invoke(main, [command, str(out)])

    assert told.exit_code in (2, 4)
    assert isinstance(told.exception, SystemExit)
    assert name.rpartition("/")[2] in told.stderr
    assert (out / name).is_symlink()
    assert (
        victim.read_text() == "flowblend report" if victim.is_file() else not any(victim.iterdir())
    )


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_locks_nothing_is_refused_and_never_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def flock(lock: int, how: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    refused = pytest.raises(OutputError, match=r"can't be used for output .*choose another")
    with refused, output_lock(tmp_path):
        pytest.fail("it counts as held")
    assert len(os.listdir("/proc/self/fd")) == before
    assert held_folders() == []
