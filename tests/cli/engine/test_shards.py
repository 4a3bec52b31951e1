"""Runs of shards that share a folder: they leave each other alone, and all of it comes together."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from noise_executor import NoiseExecutor

from flowblend_cli.artifacts import existing
from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.artifacts.records import read_record, recipe_path, write_json
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.followup.measurer import Request
from flowblend_cli.engine.output_folder import Claim, output_lock, sweep
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import LockedError
from flowblend_cli.events import JobDone, JobSkipped, RunStarted, Summary, captured_events
from flowblend_cli.jobs import Batch, Shard
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.planning.shards import divide
from flowblend_cli.utils.files import publish, temporary_path
from flowblend_cli.utils.folders import HeldFolder, held, held_folders
from tests.faults import drawn

ROOT = Path(__file__).resolve().parents[3]
Load = Callable[..., Batch]
ONE, TWO = Claim("drawn", Shard(1, 2)), Claim("drawn", Shard(2, 2))


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return drawn.load(drawn.write_recipe(tmp_path, 12))


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.mp4")}


def summary_of(batch: Batch, **options: Any) -> tuple[tuple[int, ...], int]:
    """Counts of a run of drawn frames, and how many jobs it announced."""
    told, progress = captured_events(), RunProgress(batch)
    run = BatchRun(
        batch, told, overrides=(), options=RunOptions(**options), progress=progress,
        executor=drawn.DrawnFramesExecutor(),
    )  # fmt: skip
    assert run.run() == 0
    (one,), (start,) = told.of(Summary), told.of(RunStarted)
    return (one.rendered, one.skipped, one.failed, one.remaining), start.jobs


def test_a_run_counts_its_own_jobs_and_leaves_the_files_of_others_alone(batch: Batch) -> None:
    first, second = divide(batch, ONE.shard), divide(batch, TWO.shard)
    sizes = len(first.jobs), len(second.jobs)
    assert sum(sizes) == 12
    assert summary_of(first) == ((sizes[0], 0, 0, 0), sizes[0])
    before = contents(batch.output_dir)
    assert {path.name for path in before} == {job.filename for job in first.jobs}

    assert summary_of(second, max_jobs=2) == ((2, 0, 0, sizes[1] - 2), sizes[1])
    assert summary_of(second) == ((sizes[1] - 2, 2, 0, 0), sizes[1])
    assert contents(batch.output_dir).items() >= before.items()
    assert summary_of(batch) == ((0, 12, 0, 0), 12)


def test_a_shard_without_jobs_has_nothing_to_do(batch: Batch) -> None:
    sizes = [len(divide(batch, Shard(index, 100)).jobs) for index in range(1, 101)]
    empty = divide(batch, Shard(sizes.index(0) + 1, 100))
    assert summary_of(empty) == ((0, 0, 0, 0), 0)


def test_shards_in_processes_of_their_own_render_everything_once(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.lone_run", str(tmp_path / "drawn.toml"),
             "--shard", f"{index}/3"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for index in (1, 2, 3)
    ]  # fmt: skip
    done = []
    for run in runs:
        out, _ = run.communicate(timeout=60)
        assert run.returncode == 0
        told = map(json.loads, out.splitlines())
        done += [one["job"] for one in told if one["event"] in ("job_done", "job_failed")]
    assert sorted(done) == sorted(job.id for job in batch.jobs)
    for job in batch.jobs:
        assert inspect_final(batch.path_of(job)).state is FileState.INTACT
    assert not list(batch.output_dir.rglob("*.tmp"))

    def opened(*_: object) -> None:
        raise AssertionError("a file was looked into that a shard has noted")

    monkeypatch.setattr(existing, "inspect_final", opened)
    for _ in range(2):  # the second one has the lines of all jobs alone
        assert summary_of(batch)[0] == (0, 12, 0, 0)
        assert not list(batch.output_dir.rglob("shards/*/manifest.jsonl"))
    assert summary_of(divide(batch, Shard(2, 5)))[0][0] == 0


def test_who_may_work_beside_whom(tmp_path: Path) -> None:
    other_recipe, other_number = Claim("other", Shard(2, 2)), Claim("drawn", Shard(2, 3))
    with output_lock(tmp_path, ONE):
        for claim, words in [
            (Claim(), r"drawn\.1-of-2"),
            (ONE, "another run of shard 1/2"),
            (other_recipe, "one recipe and one number"),
            (other_number, "one recipe and one number"),
        ]:
            with pytest.raises(LockedError, match=words), output_lock(tmp_path, claim):
                pass
        with output_lock(tmp_path, TWO), pytest.raises(LockedError), output_lock(tmp_path):
            pass
    with output_lock(tmp_path):
        for claim in (Claim(), ONE):
            with pytest.raises(LockedError), output_lock(tmp_path, claim):
                pass
    for claim in (other_number, Claim(), other_recipe, ONE):
        with output_lock(tmp_path, claim):
            pass


def test_a_refused_run_changes_nothing(tmp_path: Path, batch: Batch) -> None:
    with output_lock(batch.output_dir, ONE):
        before = {path: path.stat().st_mtime_ns for path in batch.output_dir.rglob("*")}
        for refused in (batch, divide(batch, ONE.shard)):
            with pytest.raises(LockedError):
                drawn.run(refused)
        assert {p: p.stat().st_mtime_ns for p in batch.output_dir.rglob("*")} == before


@pytest.mark.parametrize("name", [".flowblend.lock", ".flowblend.locks/drawn.1-of-2.lock"])
def test_a_shard_whose_lock_was_removed_writes_nothing_more(tmp_path: Path, name: str) -> None:
    with output_lock(tmp_path, ONE):
        publish(tmp_path / "clip.mp4", b"x")
        (tmp_path / name).unlink()
        with pytest.raises(OSError, match="nothing more is written"):
            publish(tmp_path / "clip.mp4", b"y")
    assert (tmp_path / "clip.mp4").read_bytes() == b"x"


def test_two_shards_and_their_processes_never_share_a_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / ".flowblend" / "embeddings" / "a.safetensors"
    names = set()
    for claim in (Claim(), ONE, TWO):
        with output_lock(tmp_path, claim):
            (folder,) = held_folders()
            names.add(temporary_path(path).name)
            for pid in (7, 8):
                with held(
                    [HeldFolder.from_document(json.loads(json.dumps(vars(folder)))).of_process(pid)]
                ):
                    names.add(temporary_path(path).name)
    assert len(names) == 9
    assert all(name.endswith(".tmp") for name in names)
    assert "a.safetensors.tmp" in names
    with output_lock(tmp_path, Claim("drawn", Shard(1000, 1000))):
        longest = tmp_path / ("n" * 240 + ".mp4")
        publish(longest, b"x")
        assert longest.read_bytes() == b"x"
        assert len(temporary_path(longest).name) < 100


def test_many_writers_of_one_file_leave_it_whole(tmp_path: Path) -> None:
    path = tmp_path / ".flowblend" / "recipes" / "drawn.json"
    texts = [str(number) * 200_000 for number in range(4)]

    def write(text: str) -> None:
        for _ in range(10):
            publish(path, json.dumps({"text": text}).encode(), mark=f".{text[0]}", durable=False)

    write_json(path, {"text": texts[0]})
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert json.loads(path.read_bytes())["text"] in texts
    assert [one.name for one in path.parent.iterdir()] == ["drawn.json"]


def test_what_other_shards_are_writing_is_not_swept_away(tmp_path: Path) -> None:
    ours = tmp_path / ".flowblend" / "embeddings"
    ours.mkdir(parents=True)
    live = [tmp_path / "b.mp4.2-of-2.tmp", tmp_path / "b.mp4.2-of-2.e3.tmp",
            ours / "p.safetensors.2-of-2.tmp", ours / "p.safetensors.2-of-2.e3.77.tmp"]  # fmt: skip
    dead = [tmp_path / "a.mp4.tmp", tmp_path / "a.mp4.1-of-2.tmp", tmp_path / "x.png.all.e4.tmp",
            tmp_path / "a-adapt1.mp4.1-of-2.e9.tmp", tmp_path / "b.mp4.2-of-3.tmp",
            tmp_path / f"{'0f' * 16}.1-of-2.e1.tmp", ours / "p.safetensors.tmp",
            ours / "p.safetensors.4711.tmp", ours / "p.safetensors.1-of-2.5.tmp"]  # fmt: skip
    theirs = [tmp_path / "b.mp4.tmp", tmp_path / "notes.2-of-3.tmp", tmp_path / "c.mp4.x.tmp"]
    for path in (*live, *dead, *theirs):
        path.touch()
    sweep(tmp_path, [tmp_path / "a.mp4"], Shard(1, 2))
    assert [path for path in dead if path.exists()] == []
    assert all(path.exists() for path in (*live, *theirs))
    sweep(tmp_path, [tmp_path / "a.mp4", tmp_path / "b.mp4"])
    assert [path for path in (*live, theirs[0]) if path.exists()] == []
    assert all(path.exists() for path in theirs[1:])


def test_the_kept_recipe_is_the_whole_one(batch: Batch) -> None:
    drawn.run(batch)
    whole = recipe_path(batch.output_dir, "drawn").read_bytes()
    drawn.run(divide(batch, ONE.shard))
    assert recipe_path(batch.output_dir, "drawn").read_bytes() == whole


# References that another shard renders.

SWEPT = """
[sweep]
num_inference_steps = [4, 8]

[metrics]
names = ["psnr"]
reference = {num_inference_steps = 8}
"""


@pytest.fixture
def apart(
    batch_of: Load, minimal: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Batch, Batch, list[Request]]:
    """The shard of a job, that of its reference, and what is asked to be measured."""
    pytest.importorskip("skimage")
    whole = batch_of(minimal + SWEPT, "scene.square.seeds=[1,2,3,4,5,6,7,8]")
    parts = [divide(whole, Shard(index, 2)) for index in (1, 2)]
    for job in whole.jobs:
        reference = next(
            one for one in whole.jobs if one.seed == job.seed and one.num_inference_steps == 8
        )
        mine, other = (next(part for part in parts if one in part.jobs) for one in (job, reference))
        if mine is not other:
            break
    else:
        raise AssertionError("no pair is apart")
    asked: list[Request] = []
    monkeypatch.setattr(
        "flowblend_cli.engine.followup.measurer.Measurer.submit",
        lambda self, request, frames, check: asked.append(request),
    )
    return replace(mine, jobs=(job,)), replace(other, jobs=(reference,)), asked


def render(batch: Batch) -> None:
    told = captured_events()
    run = BatchRun(batch, told, overrides=(), executor=NoiseExecutor(seconds=0.01))
    assert run.run() == 0
    assert len(told.of(JobDone)) + len(told.of(JobSkipped)) == len(batch.jobs)


def test_a_reference_of_another_shard_is_compared_with_once_it_is_there(
    apart: tuple[Batch, Batch, list[Request]],
) -> None:
    mine, other, asked = apart
    job, reference = mine.jobs[0].id, other.jobs[0].id
    render(mine)
    (first,) = asked
    assert (first.job, first.reference) == (job, None)  # it has all else
    render(other)
    asked.clear()
    render(mine)
    (second,) = asked
    assert second.job == job
    assert second.reference is not None
    assert second.reference.job == reference
    assert read_record(mine.output_dir, reference) is not None
