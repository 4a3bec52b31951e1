"""``flowblend status``, of runs that work, have ended, were killed, or left something damaged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from flowblend_cli.artifacts.records import run_path
from flowblend_cli.console import run_state
from flowblend_cli.console.run_state import RunState
from flowblend_cli.events import (
    JobAssigned,
    JobDone,
    JobDropped,
    JobFailed,
    JobRendered,
    JobReturned,
    JobsAdded,
    JobSkipped,
    JobStarted,
    Message,
    ModelLoaded,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    Waiting,
    captured_events,
    chain,
)
from flowblend_cli.jobs import Batch, Job, Shard
from flowblend_cli.main import main
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.utils.process import is_running, process_mark
from tests.naughty import NAUGHTY
from tests.rendered import a_job, keep_recipe

COMMAND = ["flowblend", "render", "study of mine.toml", "--set", "defaults.num_frames=9"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Night:
    """A batch of four jobs that is told what happens, as an engine tells it; a context manager."""

    def __init__(self, folder: Path, slots: int = 1, shard: str = "") -> None:
        self.folder = folder
        self.jobs = [a_job(f"clip-{n}", steps=4, seed=n) for n in range(1, 5)]
        self.batch = Batch("study", folder, tuple(self.jobs), (), folder / "study.toml")
        self.clock, self.heard = Clock(), captured_events()
        folder.mkdir(exist_ok=True)
        keep_recipe(folder, self.jobs)
        self.shard = Shard.parse(shard) if shard else None
        words = list(COMMAND)
        if self.shard is not None:  # of n shards, the i-th has every n-th job
            self.jobs = self.jobs[self.shard.index - 1 :: self.shard.count]
            self.batch = replace(
                self.batch, jobs=tuple(self.jobs), shard=self.shard, undivided=self.batch
            )
            words += ["--shard", shard]
        self.progress = RunProgress(self.batch, self.clock)
        state = RunState(self.progress, self.batch, words, self.heard)
        self.tell = chain([self.progress, state, self.heard])
        self._slots = slots

    def __enter__(self) -> Night:
        expected = [job.id for job in self.jobs if not (self.folder / job.filename).exists()]
        self.tell(RunStarted(len(self.jobs), tuple(expected), self._slots))
        return self

    def __exit__(self, *_: object) -> None:
        self.tell(RunEnded())

    def start(self, job: Job, steps: int = 4, step_s: float = 2.0) -> None:
        self.tell(JobAssigned(job.id))
        self.tell(JobStarted(job.id, job.scene, job.seed, 4, "LLSL", job.prompt))
        for index in range(steps):
            self.tell(StepStarted(job.id, index, 4, "large"))
            self.clock.now += step_s

    def finish(self, job: Job, **how: Any) -> None:
        self.start(job, **how)
        self.tell(JobRendered(job.id))
        (self.folder / job.filename).write_bytes(b"a clip")
        path = str(self.folder / job.filename)
        self.tell(JobDone(job.id, job.scene, job.seed, 4, path, 8.0, "LLSL", 1, None, "ab"))

    def fail(self, job: Job, error: str) -> None:
        self.tell(JobFailed(job.id, job.scene, job.seed, error))

    def kept(self) -> dict[str, Any]:
        path = run_path(self.folder, "study", self.shard)
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return document

    def change(self, **values: Any) -> None:
        """Put other values into the kept state."""
        path = run_path(self.folder, "study", self.shard)
        path.write_text(json.dumps({**self.kept(), **values}), "utf-8")

    def seem_killed(self) -> None:
        """Make the state that of a process which is over."""
        done = subprocess.Popen([sys.executable, "-c", ""])
        mark = process_mark(done.pid)
        done.wait()
        self.change(process=mark)


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path / "out")


def status(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["status", str(folder), *options])


def only(folder: Path) -> dict[str, Any]:
    result = status(folder, "--json")
    document = json.loads(result.stdout)
    assert document["v"] == 1
    assert document["output_dir"] == str(folder)
    (recipe,) = document["recipes"]
    assert result.exit_code == int(bool(recipe["failed"]) or recipe["state"] == "killed")
    return dict(recipe)


def test_an_answer_to_a_signal_is_no_error_that_the_status_keeps(night: Night) -> None:
    with night:
        night.tell(Message("a problem", is_error=True))
        night.tell(Message("status: 1 done", is_answer=True))
    assert only(night.folder)["error"] == "a problem"


def test_a_job_is_estimated_before_the_run_loads_anything_and_a_further_one_too(
    night: Night,
) -> None:
    with night:
        assert night.progress.seconds_of("clip-1") is None
        night.finish(night.jobs[0])
    second = Night(night.folder)
    with second:
        known = second.progress.seconds_of("clip-2")
        assert known == pytest.approx(8, abs=1)
        assert second.progress.seconds_of("clip-1-adapt1") == pytest.approx(known)
        second.finish(second.jobs[1])
        told = second.progress.left_s()
        second.clock.now += 5
        assert told is not None
        assert second.progress.left_s() == told - 5


def test_a_run_at_work_shows_its_job_its_step_and_how_long_it_will_take(night: Night) -> None:
    with night:
        night.tell(ModelLoaded("sprites", 2.0))
        night.finish(night.jobs[0])
        night.fail(night.jobs[1], "NumericsError: inf in stage 2")
        night.start(night.jobs[2], steps=2)
        found, shown = only(night.folder), status(night.folder)

    assert (found["state"], found["pid"]) == ("running", os.getpid())
    assert (found["jobs"], found["done"], found["failed"], found["remaining"]) == (4, 1, 1, 2)
    assert found["present"]["job"] == "clip-3"
    assert found["present"]["step"] == 2
    assert found["remaining_s"] == pytest.approx(2 * 8 - 2, abs=1)
    assert "study: running for 0:1" in shown.stdout
    assert "  now: clip-3, step 2 of 4 large" in shown.stdout
    assert "  failed: clip-2: NumericsError: inf in stage 2" in shown.stdout
    # Of the second step nothing was written since it began, 2 s ago.
    assert night.progress.left_s() == pytest.approx(found["remaining_s"] - 2, abs=0.1)


def test_all_jobs_under_way_are_kept_and_shown_and_the_first_one_is_the_present_one(
    night: Night,
) -> None:
    with night:
        for number, job in enumerate(night.jobs[:3], 1):
            night.start(job, steps=number)
        night.tell(JobAssigned(night.jobs[3].id))  # its process loads models
        kept, found, shown = night.kept(), only(night.folder), status(night.folder)

    assert [(one["job"], one["step"]) for one in kept["under_way"]] == [
        ("clip-1", 1), ("clip-2", 2), ("clip-3", 3),
    ]  # fmt: skip
    assert kept["present"] == kept["under_way"][0]
    assert (found["present"], found["under_way"]) == (kept["present"], kept["under_way"])
    assert found["remaining"] == 4
    for number in (1, 2, 3):
        assert f"  now: clip-{number}, step {number} of 4 large" in shown.stdout
    assert night.kept()["under_way"] == []


def test_a_job_that_is_rendered_or_came_back_is_no_longer_under_way(night: Night) -> None:
    with night:
        for job in night.jobs[:3]:
            night.start(job)
        night.tell(JobRendered(night.jobs[0].id))
        night.tell(JobReturned(night.jobs[1].id))
        found = only(night.folder)

    assert [one["job"] for one in found["under_way"]] == ["clip-3"]
    assert (found["done"], found["remaining"]) == (0, 4)


@pytest.mark.parametrize("present", [True, False])
def test_the_state_of_a_former_version_which_knew_one_job_is_still_read(
    night: Night, present: bool
) -> None:
    with night:
        night.finish(night.jobs[0])
        if present:
            night.start(night.jobs[1], steps=3)
        former = night.kept()
        del former["under_way"]
        run_path(night.folder, "study").write_text(json.dumps(former), "utf-8")
        found, shown = only(night.folder), status(night.folder)

    assert found["present"] == former["present"]
    assert found["under_way"] == ([former["present"]] if present else [])
    assert found["done"] == 1
    assert ("  now: clip-2, step 3 of 4 large" in shown.stdout) is present


@pytest.mark.parametrize(
    "under_way", [None, 7, "clip-1", {"job": "clip-1"}, [None, 7, ["clip-1"]], [{"job": ["a"]}]]
)
def test_a_state_whose_jobs_under_way_make_no_sense_is_named_and_left_out(
    night: Night, under_way: object
) -> None:
    with night:
        night.finish(night.jobs[0])
        path = run_path(night.folder, "study")
        path.write_text(json.dumps({**night.kept(), "under_way": under_way}), "utf-8")
        found, shown = only(night.folder), status(night.folder)

    assert (found["state"], found["done"], shown.exit_code) == ("unknown", 1, 0)
    assert "warning: .flowblend/runs/study.json can't be used (under_way" in shown.stderr


def test_a_killed_run_says_so_and_how_to_go_on(night: Night) -> None:
    with night:
        night.finish(night.jobs[0])
        night.start(night.jobs[1], steps=2)
        night.seem_killed()
        shown = status(night.folder)

    assert shown.exit_code == 1
    assert "was killed after 0:" in shown.stdout
    assert "1 of 4 jobs done, 0 failed, 3 left" in shown.stdout
    command = f"cd {os.getcwd()} && flowblend render 'study of mine.toml' --set"
    assert f"  go on with: {command}" in shown.stdout


@pytest.mark.parametrize("was_given_out", [False, True])
def test_of_a_moved_folder_todays_place_is_named(tmp_path: Path, was_given_out: bool) -> None:
    night = Night(tmp_path / "clips")
    with night:
        night.finish(night.jobs[0])
    night.seem_killed()
    path = run_path(night.folder, "study")
    recipes, moved = night.folder.parent, night.folder.parent / "elsewhere/clips"
    words = ["flowblend", "render", "r.toml", *(["--out", "clips"] if was_given_out else [])]
    kept = {**night.kept(), "folder": str(recipes), "command": words}
    path.write_text(json.dumps({**kept, "output_dir": str(recipes / "clips")}), "utf-8")
    moved.parent.mkdir()
    night.folder.rename(moved)
    together = f"  go on with: cd {recipes}/elsewhere && {' '.join(words)}"
    assert together + (f" --out {moved}" if was_given_out else "") in status(moved).stdout

    alone = recipes / "alone"
    moved.rename(alone)
    assert f"cd {recipes} && {' '.join(words)} --out {alone}\n" in status(alone).stdout


def test_without_a_folder_the_present_one_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night(tmp_path / "clips")
    with night:
        night.finish(night.jobs[0])
    monkeypatch.chdir(night.folder)
    assert "1 of 4 jobs done" in CliRunner().invoke(main, ["status"]).stdout
    monkeypatch.chdir(night.folder.parent)
    for command in ("status", "report", "review"):
        told = CliRunner().invoke(main, [command])
        assert told.exit_code == 2
        assert "name the folder that a recipe renders into" in told.stderr


def test_a_finished_run_is_well_and_asks_for_nothing(night: Night) -> None:
    with night:
        for job in night.jobs:
            night.finish(job)
        night.tell(Summary(4, 0, 0, 1.0))
    shown = status(night.folder)

    assert shown.exit_code == 0
    assert re.search(
        r"study: not running; the last run ended \d{4}-\d\d-\d\dT[\d:]{8}Z", shown.stdout
    )
    assert "4 of 4 jobs done, 0 failed, 0 left" in shown.stdout
    assert "go on with" not in shown.stdout


def test_a_failure_is_kept_over_runs_until_the_job_succeeds(night: Night, tmp_path: Path) -> None:
    with night:
        night.fail(night.jobs[0], "out of paint")
        night.fail(night.jobs[1], "out of canvas")
        night.tell(Summary(0, 0, 2, 1.0))
    second = Night(tmp_path / "out")
    with second:
        assert [told["job"] for told in only(night.folder)["failures"]] == ["clip-1", "clip-2"]
        second.finish(second.jobs[0])
        second.tell(Summary(1, 0, 0, 1.0))

    assert [told["error"] for told in only(night.folder)["failures"]] == ["out of canvas"]


def test_skipped_dropped_and_added_jobs_are_counted(night: Night) -> None:
    skipped, dropped = night.jobs[:2]
    with night:
        (night.folder / skipped.filename).touch()
        night.tell(JobSkipped(skipped.id, "s", 1, "/p"))
        night.tell(JobDropped(dropped.id, "s", 2, "no promise", 0.1))
        night.tell(JobsAdded(1))
        night.finish(replace(skipped, id="clip-1-adapt1"))
    found = only(night.folder)

    assert (found["jobs"], found["done"], found["dropped"], found["remaining"]) == (5, 2, 1, 2)


def test_an_earlier_run_lets_the_next_one_estimate_from_its_start(night: Night) -> None:
    with night:
        night.tell(ModelLoaded("sprites", 2.0))
        night.finish(night.jobs[0])
        night.finish(night.jobs[1])
    second = Night(night.folder)
    with second:
        second.tell(ModelLoaded("sprites", 2.0))

        assert second.progress.remaining_s() == pytest.approx(2 * 8, abs=1)
        assert second.progress.seconds_of("clip-3") == pytest.approx(8, abs=1)


def test_steps_are_written_at_most_once_a_second_and_nothing_is_flushed(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []
    real = run_state.write_json

    def write(*arguments: Any, **options: Any) -> None:
        written.append(night.clock.now)
        real(*arguments, **options)

    monkeypatch.setattr(run_state, "write_json", write)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("the state is flushed to the disk"))
    with night:
        night.start(night.jobs[0], steps=100, step_s=0.05)

    assert 5 <= len(written) <= 9


def test_a_state_that_cannot_be_written_costs_one_message(night: Night) -> None:
    run_path(night.folder, "study").parent.write_text("no folder", "utf-8")
    with night:
        night.finish(night.jobs[0])
        night.finish(night.jobs[1])

    (message,) = night.heard.messages
    assert "status" in message
    assert len(night.heard.of(JobDone)) == 2


def test_status_takes_no_lock_and_writes_nothing(night: Night) -> None:
    with night:
        night.finish(night.jobs[0])

    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in night.folder.rglob("*") if p.is_file()}

    with FileLock(night.folder / ".flowblend.lock"):
        before = contents()
        assert status(night.folder).exit_code == 0
        assert contents() == before


def test_a_folder_without_runs_and_no_folder_are_clear_errors(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        result = status(folder)
        assert result.exit_code == 2
        assert re.match(r"flowblend: .*(no run of flowblend|no folder)", result.stderr)


def test_a_folder_of_an_older_version_is_told_from_its_files(night: Night) -> None:
    (night.folder / night.jobs[0].filename).touch()
    found = only(night.folder)

    assert (found["state"], found["done"], found["remaining"]) == ("unknown", 1, 3)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"v": 2}', '{"v": 1, "failed": {"a": 1}}'])
def test_a_damaged_state_counts_as_none(night: Night, text: str) -> None:
    path = run_path(night.folder, "study")
    path.parent.mkdir()
    path.write_text(text, "utf-8")

    assert only(night.folder)["state"] == "unknown"
    with night:
        night.finish(night.jobs[0])
    assert only(night.folder)["done"] == 1


def test_files_that_are_none_of_ours_count_as_none(night: Night) -> None:
    with night:
        night.finish(night.jobs[0])
    kept = night.folder / ".flowblend"
    for document in ({"jobs": 5}, {"jobs": {"a": 1}}, {"jobs": "abc"}, {"jobs": [1, None]}):
        (kept / "recipes" / "study.json").write_text(json.dumps(document), "utf-8")
        found = only(night.folder)
        assert (found["jobs"], found["done"]) == (4, 1), document
    os.mkfifo(kept / "runs" / "pipe.json")
    (kept / "recipes" / "folder.json").mkdir()
    assert only(night.folder)["recipe"] == "study"


def test_clocks_that_jump_and_times_of_files_decide_nothing(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    with night:
        night.finish(night.jobs[0])
        night.start(night.jobs[1], steps=1)
        before = only(night.folder)
        for path in night.folder.rglob("*"):
            os.utime(path, (1, 1))  # 1970
        monkeypatch.setattr(time, "time", lambda: 4e9)  # 2096
        after = only(night.folder)

    assert after["elapsed_s"] == pytest.approx(before["elapsed_s"], abs=5)
    assert after | {"elapsed_s": 0, "remaining_s": 0} == before | {"elapsed_s": 0, "remaining_s": 0}


def test_a_process_is_known_by_more_than_its_number() -> None:
    mark = process_mark(os.getpid())

    assert is_running(mark) is True
    assert is_running({**mark, "born": "1"}) is False
    assert is_running({**mark, "boot": "another"}) is False
    assert is_running({**mark, "host": "another"}) is None
    assert is_running({}) is None


@pytest.mark.parametrize("text", NAUGHTY.values(), ids=NAUGHTY)
def test_nothing_in_a_state_reaches_the_terminal_as_a_command(night: Night, text: str) -> None:
    with night:
        night.fail(night.jobs[0], text)
        night.tell(Message(text, is_error=True))
        night.tell(Waiting(text))
        shown = status(night.folder)
        assert only(night.folder)["failures"][0]["error"] == text

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown.stdout)


# Shards, each with a state of its own.


def end(night: Night) -> None:
    night.tell(Summary(0, 0, 0, 0.0, 0))
    night.tell(RunEnded())


def test_the_states_of_shards_are_told_as_one(tmp_path: Path) -> None:
    one, two = (Night(tmp_path / "out", shard=f"{index}/2") for index in (1, 2))
    for night in (one, two):
        night.tell(RunStarted(len(night.jobs), (), 1))
    one.finish(one.jobs[0])
    one.fail(one.jobs[1], "ValueError: no paint")
    end(one)
    two.finish(two.jobs[0])
    two.start(two.jobs[1], steps=2)
    found = only(one.folder)

    assert (found["state"], found["jobs"], found["done"]) == ("running", 4, 2)
    assert (found["failed"], found["remaining"]) == (1, 1)
    assert [failure["job"] for failure in found["failures"]] == ["clip-3"]
    (now,) = found["under_way"]
    assert (now["job"], now["shard"], now["host"]) == ("clip-4", "2/2", os.uname().nodename)
    assert found["present"] == now
    assert [(s["shard"], s["state"]) for s in found["shards"]] == [
        ("1/2", "ended"), ("2/2", "running"),
    ]  # fmt: skip
    assert all(s["pid"] == os.getpid() for s in found["shards"])
    told = status(one.folder).stdout
    assert "study: 2 shards, 1 ended, 1 running" in told or "1 running, 1 ended" in told
    assert f"now: on shard 2/2, {os.uname().nodename}: clip-4, step 2 of 4 large" in told


def test_a_shard_that_was_killed_or_is_elsewhere_is_told_with_its_host(tmp_path: Path) -> None:
    nights = [Night(tmp_path / "out", shard=f"{index}/4") for index in (1, 2, 3)]
    for night in nights:
        night.tell(RunStarted(len(night.jobs), (), 1))
        night.start(night.jobs[0], steps=1)
    end(nights[0])
    nights[1].seem_killed()
    nights[2].change(process={"pid": 7, "host": "node-12", "boot": "b", "born": "1"})
    found = json.loads(status(nights[0].folder, "--json").stdout)["recipes"][0]

    assert [one["state"] for one in found["shards"]] == ["ended", "killed", "elsewhere"]
    assert found["shards"][2]["host"] == "node-12"
    assert {one["host"] for one in found["under_way"]} >= {"node-12"}
    result = status(nights[0].folder)
    assert result.exit_code == 1
    assert "1 not begun" in result.stdout
    assert "shard 2/4 was killed on" in result.stdout
    # What goes on with all of it names no shard.
    assert "go on with: " in result.stdout
    assert "--shard" not in result.stdout


def test_a_run_of_all_jobs_takes_the_states_of_shards_over(tmp_path: Path) -> None:
    shard = Night(tmp_path / "out", shard="1/2")
    with shard:
        shard.fail(shard.jobs[0], "ValueError: no paint")
        shard.fail(shard.jobs[1], "ValueError: no paint")
    whole = Night(tmp_path / "out")
    with whole:
        whole.finish(whole.jobs[0])
    found = only(whole.folder)
    assert found["shards"] == []
    assert [failure["job"] for failure in found["failures"]] == ["clip-3"]
    assert not run_path(whole.folder, "study", shard.shard).exists()


def test_a_shard_takes_over_what_failed_before_and_other_jobs_stay_failed(tmp_path: Path) -> None:
    whole = Night(tmp_path / "out")
    with whole:
        for job in whole.jobs[:2]:
            whole.fail(job, "ValueError: no paint")
    shard = Night(tmp_path / "out", shard="1/2")
    with shard:
        assert [one["job"] for one in only(whole.folder)["failures"]] == ["clip-2", "clip-1"]
        shard.finish(shard.jobs[0])
    assert [one["job"] for one in only(whole.folder)["failures"]] == ["clip-2"]
    other = Night(tmp_path / "out", shard="2/4")  # a further division, of the second job alone
    with other:
        other.fail(other.jobs[0], "ValueError: still none")
    (failure,) = only(whole.folder)["failures"]
    assert (failure["job"], failure["error"]) == ("clip-2", "ValueError: still none")


def test_the_place_of_a_state_says_whose_it_is(tmp_path: Path) -> None:
    night = Night(tmp_path / "out", shard="1/2")
    with night:
        pass
    for hostile in ("x", "7/7", None):
        night.change(shard=hostile)
        assert [one["shard"] for one in only(night.folder)["shards"]] == ["1/2"]


def test_jobs_that_end_every_moment_are_written_now_and_then_and_at_the_end(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = run_state.write_json
    monkeypatch.setattr(
        run_state, "write_json", lambda *args, **how: written.append(args) or write(*args, **how)
    )
    first = night.jobs[0]
    with night:
        night.start(first, steps=1)
        assert night.kept()["present"]["job"] == first.id  # at once, as long as that is cheap
        before = len(written)
        for _ in range(200):
            night.finish(first, step_s=0.0)
        assert len(written) - before < 60
        night.clock.now += 60.0  # a step of the next job
        night.tell(StepStarted(night.jobs[1].id, 1, 4, "large"))
        assert night.kept()["rendered"] == 200
        for _ in range(50):
            night.finish(first, step_s=0.0)
        night.tell(Summary(250, 0, 0, 1.0, 0))
        assert night.kept()["rendered"] == 250


def test_a_thousand_jobs_under_way_are_written_every_few_seconds(tmp_path: Path) -> None:
    night = Night(tmp_path / "out", slots=1000)
    jobs = [a_job(f"clip-{n}", steps=4, seed=n) for n in range(1000)]
    seen = set()
    with night:
        for second in range(100):
            for job in jobs[second::100]:
                night.start(job, steps=1, step_s=0.0)
            night.clock.now += 1.0
            seen.add(night.kept()["elapsed_s"])
    assert 10 < len(seen) < 60
    assert night.kept()["elapsed_s"] == 100.0
