"""Leases: of runs that all get the lock, one publishes, and none waits for the dead for ever."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.engine import lease as lease_module
from flowblend_cli.engine import output_folder
from flowblend_cli.engine.lease import Lease
from flowblend_cli.engine.output_folder import LOCKS, Claim, output_lock
from flowblend_cli.errors import LockedError, OutputError
from flowblend_cli.jobs import Shard
from flowblend_cli.utils import files
from flowblend_cli.utils.files import publish
from tests.faults import drawn

ROOT = Path(__file__).resolve().parents[3]
JOBS = 6
LEASE_S = 1.2  # a busy machine may stop a process for a while


class Run:
    """A run of drawn frames in a process of its own, which every lock is given to."""

    def __init__(self, recipe: Path, *options: str) -> None:
        words = [sys.executable, "-m", "tests.faults.lone_run", str(recipe), "--without-locks"]
        self.process = subprocess.Popen(
            [*words, "--lease", str(LEASE_S), *options], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.told: list[dict[str, Any]] = []

    def wait_for(self, event: str, job: str = "") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))
            if self.told[-1]["event"] == event and job in self.told[-1].get("job", ""):
                return
        raise AssertionError(f"it ended without {event}: {self.told}")

    def wait_until_stopped(self) -> None:
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def end(self) -> int:
        out, _ = self.process.communicate(timeout=60)
        self.told += map(json.loads, out.splitlines())
        return self.process.returncode

    def jobs(self, event: str) -> list[str]:
        return [one["job"] for one in self.told if one["event"] == event]

    @property
    def words(self) -> str:
        return "\n".join(one["text"] for one in self.told if "text" in one)


@contextmanager
def running(recipe: Path, *options: str) -> Iterator[Run]:
    run = Run(recipe, *options)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        assert run.process.stdout is not None
        run.process.stdout.close()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return drawn.write_recipe(tmp_path, JOBS)


def assert_all_is_there_once(recipe: Path, *runs: Run) -> None:
    batch = drawn.load(recipe)
    done = Counter(job for run in runs for job in run.jobs("job_done"))
    assert done == Counter(job.id for job in batch.jobs)
    for job in batch.jobs:
        assert inspect_final(batch.path_of(job)).state is FileState.INTACT
    assert not list(batch.output_dir.rglob("*.tmp"))


def test_a_run_that_was_stopped_beyond_its_lease_publishes_nothing_more(recipe: Path) -> None:
    with running(recipe, "--step", "0.1") as first:
        first.wait_for("job_done")
        first.process.send_signal(signal.SIGSTOP)
        with running(recipe) as second:
            assert second.end() == 0
        first.process.send_signal(signal.SIGCONT)
        assert first.end() == 4

        assert second.jobs("job_skipped")
        assert "its lease was ended" in first.words
        assert_all_is_there_once(recipe, first, second)


def test_a_run_that_was_stopped_in_the_moment_before_a_name_is_given_does_not_give_it(
    recipe: Path,
) -> None:
    name = "drawn-s2-n4.mp4"
    with running(recipe, "--stop-before", name) as first:
        first.wait_until_stopped()
        with running(recipe, "--step", "0.05") as second:
            second.wait_for("job_assigned")  # and so the folder was swept
            first.process.send_signal(signal.SIGCONT)
            assert first.end() == 4
            assert second.end() == 0

        assert "drawn-s2-n4" in second.jobs("job_done")
        assert "its lease was ended" in first.words
        assert_all_is_there_once(recipe, first, second)


def test_a_run_that_was_stopped_goes_on_where_nobody_took_its_place(recipe: Path) -> None:
    with running(recipe, "--step", "0.05") as run:
        run.wait_for("job_done")
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * LEASE_S)
        run.process.send_signal(signal.SIGCONT)
        assert run.end() == 0
        assert_all_is_there_once(recipe, run)


def test_a_run_of_all_jobs_ends_the_leases_of_shards_that_were_stopped(recipe: Path) -> None:
    with running(recipe, "--shard", "1/2", "--step", "0.1") as shard:
        shard.wait_for("job_done")
        shard.process.send_signal(signal.SIGSTOP)
        with running(recipe) as whole:
            assert whole.end() == 0
        shard.process.send_signal(signal.SIGCONT)
        assert shard.end() == 4
        assert_all_is_there_once(recipe, shard, whole)


# In this process.


@pytest.fixture
def on_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "network_file_system", lambda folder: "nfs4")
    monkeypatch.setattr(output_folder.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lease_module, "LEASE_S", LEASE_S)
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(lease_module, "LOOK_S", 0.02)


@pytest.mark.usefixtures("on_network")
@pytest.mark.parametrize(
    "claims",
    [[Claim()] * 6, [Claim(), Claim("a", Shard(1, 2))] * 3,
     [Claim("a", Shard(1, 2)), Claim("a", Shard(1, 3)), Claim("b", Shard(2, 2))] * 2],
)  # fmt: skip
def test_of_runs_that_begin_in_one_moment_no_two_that_clash_go_on(
    tmp_path: Path, claims: list[Claim]
) -> None:
    (tmp_path / LOCKS).mkdir()
    for _ in range(5):
        assert begin_at_once(tmp_path / LOCKS, claims) <= 1


def begin_at_once(locks: Path, claims: list[Claim]) -> int:
    """Have all of them take their leases in one moment; how many got it."""
    at_once, all_tried = threading.Barrier(len(claims)), threading.Barrier(len(claims))
    held: list[Claim] = []

    def take(claim: Claim) -> None:
        descriptor = os.open(locks, os.O_RDONLY)
        lease = Lease(descriptor, "here", claim.name, claim.clashes, {}, lambda _: None)
        at_once.wait()
        try:
            lease.take()
            held.append(claim)
        except LockedError:
            pass
        all_tried.wait()
        lease.release()
        os.close(descriptor)

    threads = [threading.Thread(target=take, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(held)


@pytest.mark.usefixtures("on_network")
def test_a_run_that_lives_is_told_from_one_that_was_killed(recipe: Path) -> None:
    told: list[str] = []
    out = drawn.load(recipe).output_dir
    with running(recipe, "--step", "20") as run:
        run.wait_for("job_assigned")
        with (
            pytest.raises(LockedError, match=f"process {run.process.pid} on "),
            output_lock(out, tell=told.append),
        ):
            pass
        assert len(told) == 1
        assert "waiting to see" in told[0]
        run.process.kill()
        run.end()
    assert drawn.run(drawn.load(recipe))[0] == 0


@pytest.mark.usefixtures("on_network")
def test_leases_let_in_whom_locks_let_in(tmp_path: Path) -> None:
    one, two, three = (Claim("a", Shard(index, 3)) for index in (1, 2, 3))
    clashing = (Claim(), one, Claim("a", Shard(1, 2)), Claim("b", Shard(3, 3)))
    with output_lock(tmp_path, one), output_lock(tmp_path, two):
        for claim in clashing:
            with pytest.raises(LockedError), output_lock(tmp_path, claim):
                pass
        with output_lock(tmp_path, three):
            pass
    with output_lock(tmp_path):
        for claim in (Claim(), one):
            with pytest.raises(LockedError), output_lock(tmp_path, claim):
                pass


@pytest.mark.usefixtures("on_network")
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_network_without_locks_has_leases_and_a_disk_without_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(output_folder.fcntl, "flock", flock)
    with output_lock(tmp_path, Claim("a", Shard(1, 3))):
        assert (tmp_path / LOCKS / "a.1-of-3.e1").is_dir()
    monkeypatch.setattr(output_folder, "network_file_system", lambda folder: "")
    with pytest.raises(OutputError, match="can't be used"), output_lock(tmp_path):
        pass


@pytest.mark.usefixtures("on_network")
def test_a_lease_from_the_future_is_not_waited_for_longer_than_others(tmp_path: Path) -> None:
    dead = tmp_path / LOCKS / "all.e4"
    dead.mkdir(parents=True)
    later = time.time() + 1e6
    os.utime(dead, (later, later))
    began = time.monotonic()
    with output_lock(tmp_path):
        publish(tmp_path / "clip.mp4", b"x")
        assert (tmp_path / LOCKS / "all.e5").is_dir()
    assert LEASE_S < time.monotonic() - began < 10


@pytest.mark.usefixtures("on_network")
def test_a_lease_that_ended_is_not_waited_for_and_epochs_grow(tmp_path: Path) -> None:
    began = time.monotonic()
    for epoch in range(1, 6):
        with output_lock(tmp_path):
            assert (tmp_path / LOCKS / f"all.e{epoch}").is_dir()
        assert [path.name for path in (tmp_path / LOCKS).iterdir()] == [f"all.e{epoch}.over"]
    assert time.monotonic() - began < 3 * LEASE_S


def removed(locks: Path) -> None:
    (file,) = (locks / "all.e1").iterdir()
    file.unlink()


def made_anew(locks: Path) -> None:
    removed(locks)
    (locks / "all.e1" / "0.json").write_text("{}")


def renamed(locks: Path) -> None:
    (locks / "all.e1").rename(locks / "all.e1.over")


def all_removed(locks: Path) -> None:
    removed(locks)
    (locks / "all.e1").rmdir()
    locks.rmdir()


@pytest.mark.usefixtures("on_network")
@pytest.mark.parametrize("change", [removed, made_anew, renamed, all_removed])
def test_a_lease_that_is_gone_lets_nothing_be_published_or_moved(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    edited = tmp_path / "edited.mp4"
    edited.write_bytes(b"theirs")
    with output_lock(tmp_path) as check:
        publish(tmp_path / "clip.mp4", b"x")
        change(tmp_path / LOCKS)
        for act in (
            lambda: publish(tmp_path / "clip.mp4", b"y"),
            lambda: files.set_aside(edited),
            lambda: files.remove(edited),
            lambda: files.open_appending(tmp_path / "lines"),
        ):
            with pytest.raises(OutputError, match="its lease was ended"):
                act()
        successors = tmp_path / "clip.mp4.all.e2.tmp"
        successors.touch()
        output_folder.sweep(tmp_path, [tmp_path / "clip.mp4"])
        assert successors.exists()
        time.sleep(0.3)  # the holder has looked by itself
        with pytest.raises(OutputError, match="its lease was ended"):
            check()
    assert (tmp_path / "clip.mp4").read_bytes() == b"x"
    if change is made_anew:  # the other one's stays as it is
        assert (tmp_path / LOCKS / "all.e1" / "0.json").exists()
    assert edited.read_bytes() == b"theirs"
    assert not (tmp_path / "lines").exists()


@pytest.mark.usefixtures("on_network")
def test_a_link_in_place_of_the_folder_of_leases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCKS).symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError), output_lock(tmp_path / "out"):
        pass
    assert not any((tmp_path / "victim").iterdir())


def test_without_a_network_there_is_no_lease_and_no_wait(tmp_path: Path) -> None:
    (tmp_path / LOCKS / "all.e7").mkdir(parents=True)
    with output_lock(tmp_path):
        assert [path.name for path in (tmp_path / LOCKS).iterdir()] == ["all.e7"]
