"""Finder, manifest and records: finished jobs are found, and damaged ones are rendered again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rendered import KEY, a_job, frames_of, write_clip

from flowblend_cli.artifacts.existing import Existing, Finder
from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.manifest import (
    HASHED_BYTES,
    NAME,
    Entry,
    Manifest,
    fingerprint,
    matches,
)
from flowblend_cli.artifacts.records import (
    FOLDER,
    JobRecord,
    is_measured,
    record_path,
    write_record,
)
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.jobs import Batch, Job, Shard
from flowblend_cli.main import main
from flowblend_cli.models.identity import job_key, model_identity
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.utils.frames import pixels_sha256

ROOT = Path(__file__).resolve().parents[3]
RECIPE = """\
[recipe]
name = "test"
output_dir = "out"

[model]
pipeline = "sprites"

[metrics]
names = []

[defaults]
num_inference_steps = 1
num_frames = 5
height = 32
width = 32

[[scene]]
name = "circle"
prompt = "a red circle moving right"
seeds = [1, 2, 3]

[[scene]]
name = "picture"
prompt = "a white star"
seeds = [1]
num_frames = 1
"""


def picture(name: str, **changes: Any) -> Job:
    return a_job(name, arguments={"num_frames": 1}, **changes)


def finder(folder: Path, *, verify: bool = False) -> Finder:
    return Finder(Manifest(folder, pytest.fail), verify=verify)


def find(folder: Path, job: Job, *, verify: bool = False, key: str = KEY) -> Existing:
    looking = finder(folder, verify=verify)
    try:
        return looking.find(job, folder / job.filename, key)
    finally:
        looking.close()


def published(folder: Path, *jobs: Job, **how: Any) -> tuple[Job, ...]:
    looking = finder(folder)
    for job in jobs:
        pixels = write_clip(folder, job, **how)
        path = folder / job.filename
        looking.published(job, path, KEY, pixels=pixels, seed=job.seed, sampling_s=1.0)
    looking.close()
    return jobs


def lines(folder: Path) -> list[str]:
    return (folder / FOLDER / NAME).read_text("utf-8").splitlines()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("job", [picture("a"), a_job("b")], ids=["png", "mp4"])
def test_what_was_published_is_done_and_stays_what_it_was(tmp_path: Path, job: Job) -> None:
    published(tmp_path, job)

    for verify in (False, True):
        done = find(tmp_path, job, verify=verify).done
        assert done is not None
        assert (done.seed, done.sampling_s, done.job_key) == (job.seed, 1.0, KEY)
        assert len(done.pixels_sha256) == 64


@pytest.mark.parametrize("job", [picture("a"), a_job("b")], ids=["png", "mp4"])
def test_a_file_that_the_manifest_knows_is_not_opened(tmp_path: Path, job: Job) -> None:
    path = tmp_path / job.filename
    path.write_bytes(b"no container at all")
    assert find(tmp_path, job).obstacle  # looked into, it is somebody else's

    finder(tmp_path).published(job, path, KEY, pixels="ab" * 32, seed=1, sampling_s=1.0)

    assert find(tmp_path, job).done is not None


@pytest.mark.parametrize("job", [picture("a"), a_job("b", seed=0)], ids=["png", "mp4"])
def test_without_a_manifest_files_are_looked_into_and_it_is_made_again(
    tmp_path: Path, job: Job
) -> None:
    published(tmp_path, job)
    before = lines(tmp_path)
    (tmp_path / FOLDER / NAME).unlink()

    found = find(tmp_path, job)

    assert found.done is not None
    assert found.done.seed == (job.seed or 7)  # a drawn seed is the recorded one
    assert [json.loads(line)["sha256"] for line in lines(tmp_path)] == [
        json.loads(line)["sha256"] for line in before
    ]


@pytest.mark.parametrize("job", [picture("a"), a_job("b")], ids=["png", "mp4"])
def test_one_flipped_byte_of_a_small_file_is_noticed(tmp_path: Path, job: Job) -> None:
    published(tmp_path, job)
    path = tmp_path / job.filename
    for place in (path.stat().st_size // 2, -20):
        flip(path, place)
        found = find(tmp_path, job)
        assert found.done is None
        assert found.is_damaged or found.edited  # by whether a decoder can make frames of it
        flip(path, place)
    assert find(tmp_path, job).done is not None


def test_a_large_file_is_judged_by_its_size_unless_all_is_verified(tmp_path: Path) -> None:
    job = picture("large")
    noise = np.random.default_rng(0).integers(0, 256, (1, 1300, 1300, 3), np.uint8)
    published(tmp_path, job, frames=noise)
    path = tmp_path / job.filename
    assert path.stat().st_size > HASHED_BYTES
    flip(path, path.stat().st_size // 2)

    assert find(tmp_path, job).done is not None
    assert find(tmp_path, job, verify=True) == Existing(is_damaged=True)

    os.truncate(path, path.stat().st_size - 1)
    assert find(tmp_path, job) == Existing(is_damaged=True)


def test_a_manifest_that_lies_is_found_out(tmp_path: Path) -> None:
    one, other = published(tmp_path, picture("one", seed=1), picture("other", seed=2))
    path = tmp_path / FOLDER / NAME
    entries = [json.loads(line) for line in lines(tmp_path)]
    swapped = [
        {**a, "sha256": b["sha256"], "seed": 99}
        for a, b in zip(entries, entries[::-1], strict=True)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in swapped))

    for job in (one, other):
        found = find(tmp_path, job)
        assert found.done is not None
        assert found.done.seed == job.seed


def test_what_lies_there_now_counts_and_not_what_the_manifest_remembers(tmp_path: Path) -> None:
    one, other, gone, foreign, linked = published(
        tmp_path, *(picture(name, seed=number) for number, name in enumerate("abcde", 1))
    )
    strange = replace(picture("f"), recipe="another")
    published(tmp_path, picture("f"))
    write_clip(tmp_path, strange)
    (tmp_path / other.filename).write_bytes((tmp_path / one.filename).read_bytes() + b" ")
    (tmp_path / gone.filename).unlink()
    (tmp_path / foreign.filename).write_bytes(b"mine")
    (tmp_path / linked.filename).rename(tmp_path / "elsewhere.png")
    (tmp_path / linked.filename).symlink_to(tmp_path / "elsewhere.png")

    assert find(tmp_path, one, key="edited") == Existing()
    assert find(tmp_path, other) == Existing(
        edited="was altered since it was rendered, behind its end"
    )
    assert find(tmp_path, gone) == Existing()
    assert "someone else" in find(tmp_path, foreign).obstacle
    assert "someone else" in find(tmp_path, linked).obstacle
    assert "recipe 'another'" in find(tmp_path, picture("f")).obstacle


def test_a_torn_last_line_costs_one_look_and_no_other_line(tmp_path: Path) -> None:
    first, last = published(tmp_path, picture("first"), picture("last", seed=2))
    path = tmp_path / FOLDER / NAME
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in (start, start + 1, start + 40, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        manifest = Manifest(tmp_path, pytest.fail)
        assert manifest.entry(first.filename) is not None
        assert (manifest.entry(last.filename) is not None) == (end == len(whole) - 1)

        assert find(tmp_path, last).done is not None
        again = Manifest(tmp_path, pytest.fail)
        assert again.entry(first.filename) is not None
        assert again.entry(last.filename) is not None


ENTRY = Entry("a.png", 5, "12" * 32, "study", KEY, "cd" * 32, 1, 1.0)


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [b"{}", b"[]", b"null", b'{"v":1}', b'{"v":2,"file":"a.png"}', b"[" * 5000]
            ),
            st.sampled_from(["file", "size", "sha256", "recipe", "seed", "sampling_s"]).map(
                lambda key: json.dumps({"v": 1, "file": "a.png", key: None}).encode()
            ),
        ),
        max_size=5,
    )
)
def test_lines_that_are_none_of_ours_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, strange: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    manifest = Manifest(folder, pytest.fail)
    manifest.note(ENTRY)
    manifest.close()
    path = folder / FOLDER / NAME
    path.write_bytes(b"\n".join([*strange, path.read_bytes(), *strange]))

    again = Manifest(folder, pytest.fail)
    assert again.entry("a.png") == ENTRY
    later = replace(ENTRY, file="b.png")
    again.note(later)
    again.close()
    assert Manifest(folder, pytest.fail).entry("b.png") == later


def test_a_manifest_that_has_grown_is_written_anew(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, pytest.fail)
    for number in range(2, 302):
        manifest.note(replace(ENTRY, seed=number))
        manifest.note(ENTRY)
    assert len(lines(tmp_path)) == 600
    manifest.close()

    assert len(lines(tmp_path)) == 1
    assert Manifest(tmp_path, pytest.fail).entry("a.png") == ENTRY
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [NAME]


def test_a_manifest_that_can_t_be_written_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    jobs = [picture("a"), picture("b", seed=2)]
    for job in jobs:
        write_clip(tmp_path, job)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / FOLDER).mkdir(exist_ok=True)
    (tmp_path / FOLDER / NAME).symlink_to(victim)
    told: list[str] = []
    looking = Finder(Manifest(tmp_path, told.append))

    for job in jobs:
        assert looking.find(job, tmp_path / job.filename, KEY).done is not None
    looking.close()

    assert len(told) == 1
    assert NAME in told[0]
    assert victim.read_text() == "untouched"


def test_nothing_is_decided_by_dates(tmp_path: Path) -> None:
    (job,) = published(tmp_path, picture("a"))
    path = tmp_path / job.filename
    for seconds in (0, 1, 4_000_000_000):
        os.utime(path, (seconds, seconds))
        os.utime(tmp_path / FOLDER / NAME, (4_000_000_000 - seconds,) * 2)
        assert find(tmp_path, job).done is not None
    flip(path, path.stat().st_size // 2)
    os.utime(path, (1, 1))
    assert find(tmp_path, job).is_damaged


def test_a_record_counts_for_its_pixels_and_its_measurement_key_alone(tmp_path: Path) -> None:
    asked = json.dumps([1, ["flicker"], None])
    record = JobRecord("a", "study", "pixels", measurement_key=asked, tracks=(((0.1, 0.2),),))
    assert not is_measured(tmp_path, "a", "pixels", asked)
    write_record(tmp_path, record)

    assert is_measured(tmp_path, "a", "pixels", asked)
    assert not is_measured(tmp_path, "a", "pixel", asked)
    assert not is_measured(tmp_path, "a", "pixels", "")
    assert not is_measured(tmp_path, "a", "pixels", json.dumps([1, ["flicker"], "p"]))
    path = record_path(tmp_path, "a")
    path.write_bytes(path.read_bytes()[:-3])
    assert not is_measured(tmp_path, "a", "pixels", asked)
    write_record(tmp_path, replace(record, job=f'"asked": {json.dumps(asked)}', measurement_key=""))
    assert not is_measured(tmp_path, f'"asked": {json.dumps(asked)}', "pixels", asked)


def test_a_manifest_whose_last_byte_the_disk_refuses_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest(tmp_path, pytest.fail)
    manifest.note(ENTRY)
    close = os.close

    def refuse(file: int) -> None:
        close(file)
        raise OSError(errno.EIO, "as a network file system does")

    monkeypatch.setattr(os, "close", refuse)
    manifest.close()
    monkeypatch.undo()
    manifest.close()
    assert Manifest(tmp_path, pytest.fail).entry("a.png") == ENTRY


def test_lines_follow_upon_each_other_from_run_to_run(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        manifest = Manifest(tmp_path, pytest.fail)
        manifest.note(replace(ENTRY, file=name))
        manifest.close()
    text = (tmp_path / FOLDER / NAME).read_text("utf-8")
    assert [line[:1] for line in text.split("\n")] == ["{", "{", "{", ""]


def test_a_full_disk_is_told_in_the_system_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    told: list[str] = []
    manifest = Manifest(tmp_path, told.append)
    monkeypatch.setattr(os, "write", refuse)
    manifest.note(ENTRY)
    assert told == [
        (
            f"{tmp_path / FOLDER / NAME}: can't be written (No space left on device): the batch "
            "goes on, and the next run looks into every file that isn't in it"
        )
    ]


# Shards.


def test_a_shard_reads_the_lines_of_all_jobs_and_writes_its_own(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, pytest.fail)
    manifest.note(ENTRY)
    manifest.close()
    before = lines(tmp_path)
    shard = Shard(2, 3)
    ours = Manifest(tmp_path, pytest.fail, shard)
    assert ours.entry("a.png") == ENTRY
    newer, other = replace(ENTRY, seed=9), replace(ENTRY, file="b.png")
    ours.note(newer)
    ours.note(other)
    ours.close()

    assert lines(tmp_path) == before
    assert Manifest(tmp_path, pytest.fail, Shard(1, 3)).entry("b.png") is None
    again = Manifest(tmp_path, pytest.fail, shard)
    assert (again.entry("a.png"), again.entry("b.png")) == (newer, other)

    whole = Manifest(tmp_path, pytest.fail)
    assert (whole.entry("a.png"), whole.entry("b.png")) == (newer, other)
    assert len(list((tmp_path / FOLDER).rglob(NAME))) == 2
    whole.close()
    assert list((tmp_path / FOLDER).rglob(NAME)) == [tmp_path / FOLDER / NAME]
    whole = Manifest(tmp_path, pytest.fail)
    assert (whole.entry("a.png"), whole.entry("b.png")) == (newer, other)
    assert len(lines(tmp_path)) == 2


def test_lines_of_several_shards_are_taken_over_together(tmp_path: Path) -> None:
    for index in (1, 2, 3):
        manifest = Manifest(tmp_path, pytest.fail, Shard(index, 3))
        manifest.note(replace(ENTRY, file=f"{index}.png"))
        manifest.close()
    whole = Manifest(tmp_path, pytest.fail)
    whole.note(replace(ENTRY, file="4.png"))
    whole.close()
    whole = Manifest(tmp_path, pytest.fail)
    assert all(whole.entry(f"{index}.png") is not None for index in (1, 2, 3, 4))
    assert len(lines(tmp_path)) == 4


def test_what_cant_be_taken_over_stays_where_it_is(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, pytest.fail, Shard(1, 2))
    manifest.note(ENTRY)
    manifest.close()
    (tmp_path / FOLDER / NAME).mkdir()
    told: list[str] = []
    whole = Manifest(tmp_path, told.append)
    assert whole.entry("a.png") == ENTRY
    whole.close()
    (text,) = told
    assert text.startswith(f"{tmp_path / FOLDER / NAME}: can't be written (")
    assert Manifest(tmp_path, told.append).entry("a.png") == ENTRY


@pytest.mark.parametrize(("lines_of_old", "is_shorter"), [(101, False), (102, True)])
def test_a_manifest_is_written_anew_once_so_many_of_its_lines_are_old(
    tmp_path: Path, lines_of_old: int, is_shorter: bool
) -> None:
    manifest = Manifest(tmp_path, pytest.fail)
    for number in range(lines_of_old + 1):
        manifest.note(replace(ENTRY, seed=number))
    manifest.close()
    assert len(lines(tmp_path)) == (1 if is_shorter else lines_of_old + 1)


def test_an_entry_that_is_known_already_isnt_written_twice(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, pytest.fail)
    for _ in range(3):
        manifest.note(ENTRY)
    manifest.close()
    assert len(lines(tmp_path)) == 1


def test_a_disk_that_takes_a_part_of_a_line_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    manifest = Manifest(tmp_path, told.append)
    manifest.note(ENTRY)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:-9]))
    later = replace(ENTRY, file="b.png")
    manifest.note(later)
    manifest.note(replace(ENTRY, file="c.png"))
    monkeypatch.undo()
    manifest.close()
    (text,) = told
    assert "(the disk took only a part of it): the batch goes on, and the next run looks" in text
    assert manifest.entry("b.png") == later  # it is known in this run all the same
    again = Manifest(tmp_path, pytest.fail)
    assert again.entry("a.png") == ENTRY
    assert again.entry("b.png") is None


def test_every_field_of_an_entry_is_that_of_its_file(tmp_path: Path) -> None:
    job = picture("a", seed=0)
    path = tmp_path / job.filename
    pixels = write_clip(tmp_path, job, elapsed_s=(1.25,))
    data = path.read_bytes()
    expected = Entry(
        path.name, len(data), hashlib.sha256(data).hexdigest(), "study", KEY, pixels, 7, 1.25
    )
    inspected = Manifest(tmp_path, pytest.fail)
    assert Finder(inspected).find(job, path, KEY) == Existing(expected)
    assert inspected.entry(path.name) == expected
    (tmp_path / "elsewhere").mkdir()
    told = Manifest(tmp_path / "elsewhere", pytest.fail)
    Finder(told).published(job, path, KEY, pixels=pixels, seed=7, sampling_s=1.25)
    assert told.entry(path.name) == expected

    unknown = Finder(None)
    unknown.published(job, path, KEY, pixels=pixels, seed=7, sampling_s=1.25)
    found = unknown.find(job, path, KEY).done
    assert found == replace(expected, size=0, sha256="")
    unknown.close()
    told.close()
    Finder(told).published(job, tmp_path / "gone.png", KEY, pixels=pixels, seed=7, sampling_s=1)
    assert told.entry("gone.png") is None


@pytest.mark.parametrize("resolved", [{}, {"sampling_s": None, "seed": None}])
def test_a_file_that_says_no_seed_and_no_seconds_has_those_of_its_job_and_none(
    tmp_path: Path, resolved: dict[str, Any]
) -> None:
    job = picture("a", seed=5)
    document = {
        "flowblend": "0", "job": job.to_document(), "job_key": KEY, "resolved": resolved,
        "pixels_sha256": pixels_sha256(frames_of(5)[:1]),
    }  # fmt: skip
    publish_image(frames_of(5)[0], tmp_path / job.filename, document=document)
    done = find(tmp_path, job).done
    assert done is not None
    assert (done.seed, done.sampling_s) == (5, 0.0)


def test_a_file_of_ours_whose_record_cant_be_used_is_kept(tmp_path: Path) -> None:
    job = picture("a", seed=5)
    document = {
        "flowblend": "0", "job": job.to_document(), "job_key": KEY, "resolved": {"seed": -3},
        "pixels_sha256": pixels_sha256(frames_of(5)[:1]),
    }  # fmt: skip
    publish_image(frames_of(5)[0], tmp_path / job.filename, document=document)
    found = find(tmp_path, job)
    assert found.edited.startswith("has a record that can't be used (seed must be")
    assert found == Existing(edited=found.edited)


def test_a_file_is_hashed_up_to_a_size_and_links_never(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    digest = hashlib.sha256(b"12345").hexdigest()
    assert fingerprint(path) == (5, digest)
    assert fingerprint(path, up_to=5) == (5, digest)
    assert fingerprint(path, up_to=4) == (5, None)
    (tmp_path / "b").symlink_to(path)
    assert fingerprint(tmp_path / "b") is None
    assert fingerprint(tmp_path / "c") is None
    entry = replace(ENTRY, size=5, sha256=digest)
    assert matches(entry, path)
    for other in (replace(entry, size=4), replace(entry, sha256="00" * 32)):
        assert not matches(other, path)
    assert not matches(entry, tmp_path / "c")


# The same through the command, on a batch that is finished without a render.


def finished(recipe: Path) -> Batch:
    batch = load_batch(recipe)
    batch.output_dir.mkdir(exist_ok=True)
    identity = model_identity(batch.jobs[0].model, recipe.parent)
    for job in batch.jobs:
        frames = frames_of(job.seed, int(job.argument("num_frames")))
        document = {
            "flowblend": "0", "v": 1, "job": job.to_document(),
            "job_key": job_key(job, identity), "resolved": {"seed": job.seed, "sampling_s": 1.0},
            "pixels_sha256": pixels_sha256(frames),
        }  # fmt: skip
        if job.extension == ".png":
            publish_image(frames[0], batch.path_of(job), document=document)
        else:
            publish_video(frames, batch.path_of(job), fps=job.output.fps, document=document)
    return batch


def render(recipe: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["render", str(recipe), "--json", *options])


def skipped(result: Result) -> list[str]:
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.exit_code, events[-1]["rendered"]) == (0, 0)
    return [event["job"] for event in events if event["event"] == "job_skipped"]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str = RECIPE) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_a_finished_batch_runs_again_with_and_without_its_manifest(
    recipe: Callable[..., Path],
) -> None:
    path = recipe()
    batch = finished(path)
    manifest = batch.output_dir / FOLDER / NAME
    expected = [job.id for job in batch.jobs]

    assert not manifest.exists()
    assert skipped(render(path)) == expected
    made = manifest.read_bytes()
    assert len(made.splitlines()) == len(expected)
    assert skipped(render(path)) == expected
    assert skipped(render(path, "--verify")) == expected
    assert manifest.read_bytes() == made
    manifest.write_bytes(made[:-30])
    assert skipped(render(path)) == expected
    again = Manifest(batch.output_dir, pytest.fail)
    assert all(again.entry(job.filename) for job in batch.jobs)


def test_a_recipe_in_another_order_finds_all_of_its_files(recipe: Callable[..., Path]) -> None:
    batch = finished(recipe())
    head, *scenes = RECIPE.split("[[scene]]")
    turned = "[[scene]]".join([head, *(scene + "\n" for scene in reversed(scenes))])
    turned = turned.replace("[1, 2, 3]", "[3, 1, 2]")
    skipped(render(recipe()))

    found = skipped(render(recipe(turned)))

    assert found != [job.id for job in batch.jobs]
    assert sorted(found) == sorted(job.id for job in batch.jobs)


def test_a_second_run_opens_no_container_and_needs_no_model_library(
    recipe: Callable[..., Path],
) -> None:
    path = recipe()
    finished(path)
    skipped(render(path))
    code = (
        "import sys; from flowblend_cli.main import main\n"
        f"code = main.main(['render', {str(path)!r}, '-q'], standalone_mode=False)\n"
        "print(code, *sorted({'av', 'torch', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["0"]
