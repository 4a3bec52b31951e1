"""Where records lie, what they hold, and what is said of those that can't be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowblend_cli.artifacts import records
from flowblend_cli.artifacts.records import JobRecord, Look
from flowblend_cli.artifacts.schema.records import RecordDocument
from flowblend_cli.errors import OutputError
from flowblend_cli.jobs import Shard
from flowblend_cli.study import Selection

PIXELS, KEY = "cd" * 32, "ab" * 32
RECORD = JobRecord(
    "clip", "study", PIXELS, (1.5, 2.0), (PIXELS, "ef" * 32), (0.5, 0.25), 10, 20,
    {"flicker": 0.5}, "file", ([[0.1, 0.2], [0.3, 0.4]],), True, "asked for this",
)  # fmt: skip
SELECTION = Selection("square", ("d1", "d2"), ("f1", "f2"), 1, 4, 1)
KEYS = {"d1": KEY, "d2": "12" * 32}


def test_files_lie_where_readers_look_for_them(tmp_path: Path) -> None:
    ours = tmp_path / ".flowblend"
    shard = ours / "shards" / "2-of-3"
    assert records.record_path(tmp_path, "a") == ours / "jobs" / "a.json"
    assert records.recipe_path(tmp_path, "r") == ours / "recipes" / "r.json"
    assert records.run_path(tmp_path, "r") == ours / "runs" / "r.json"
    assert records.run_path(tmp_path, "r", Shard(2, 3)) == shard / "runs" / "r.json"
    assert records.own_folder(tmp_path) == ours
    assert records.own_folder(tmp_path, Shard(2, 3)) == shard
    assert records.looks_path(tmp_path, "a") == ours / "selections" / "a.json"
    assert records.review_path(tmp_path, "x") == ours / "reviews" / "x.json"


def test_shards_are_found_in_order_and_other_folders_arent_shards(tmp_path: Path) -> None:
    assert records.shards_of(tmp_path) == []
    shards = [Shard(1, 2), Shard(2, 2), Shard(2, 3), Shard(10, 12)]
    for shard in reversed(shards):
        records.own_folder(tmp_path, shard).mkdir(parents=True)
    for name in ("2-3", "5-of-3", "x-of-y", ".tmp"):
        (tmp_path / ".flowblend" / "shards" / name).mkdir()
    assert records.shards_of(tmp_path) == shards


def test_a_record_reads_back_equal_and_is_written_as_its_readers_expect(tmp_path: Path) -> None:
    records.write_record(tmp_path, RECORD)
    assert records.read_record(tmp_path, "clip", pytest.fail) == RECORD
    text = records.record_path(tmp_path, "clip").read_text("utf-8")
    assert text.startswith('{"v": 1, "job": "clip", ')
    assert text.endswith("}\n")
    document = json.loads(text)
    assert document["asked"] == "asked for this"
    assert "measurement_key" not in document
    assert records.is_measured(tmp_path, "clip", PIXELS, "asked for this")
    empty = JobRecord("other", "study", PIXELS)
    records.write_record(tmp_path, empty)
    assert records.read_record(tmp_path, "other") == empty
    assert [path.name for path in tmp_path.iterdir()] == [".flowblend"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"job": "another"}, "is of job another, and is left out"),
        ({"v": 2}, "can't be used (v must be one of 1, got 2)"),
        ({"elapsed_s": "long"}, "can't be used (elapsed_s must be"),
    ],
)
def test_a_record_that_isnt_one_is_named_with_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    records.write_record(tmp_path, RECORD)
    path = records.record_path(tmp_path, "clip")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    told: list[str] = []
    assert records.read_record(tmp_path, "clip", told.append) is None
    assert told[0].startswith(f".flowblend/jobs/clip.json {says}")
    assert told[0].endswith(", and is left out")
    assert records.read_record(tmp_path, "clip") is None


def test_what_isnt_there_isnt_complained_of_and_what_cant_be_opened_is(tmp_path: Path) -> None:
    assert records.read_record(tmp_path, "clip", pytest.fail) is None
    path = records.record_path(tmp_path, "clip")
    path.mkdir(parents=True)
    told: list[str] = []
    assert records.read_checked(path, RecordDocument, told.append) is None
    (text,) = told
    assert "(None)" not in text
    assert text.startswith(".flowblend/jobs/clip.json can't be used (")
    path.rmdir()
    path.write_text("{")
    assert records.read_checked(path, RecordDocument, told.append) is None
    assert told[1].startswith(".flowblend/jobs/clip.json can't be used (")


def test_a_record_of_another_version_is_measured_anew(tmp_path: Path) -> None:
    records.write_record(tmp_path, RECORD)
    path = records.record_path(tmp_path, "clip")
    for data in (path.read_bytes().replace(b'"v": 1', b'"v": 2'), b" " + path.read_bytes()):
        path.write_bytes(data)
        assert not records.is_measured(tmp_path, "clip", PIXELS, "asked for this")


def test_looks_are_kept_by_drafts_and_read_for_the_same_question_alone(tmp_path: Path) -> None:
    looks = {"d1": Look(0.5, 1.25), "d3": Look(0.25, 2.0)}
    assert records.read_looks(tmp_path, SELECTION, "asked", KEYS) == {}
    records.write_looks(tmp_path, SELECTION, "asked", KEYS, looks)
    document = json.loads(records.looks_path(tmp_path, "d1").read_text("utf-8"))
    assert document == {
        "v": 1, "scene": "square", "asked": "asked", "after_steps": 4,
        "looks": {"d1": {"job_key": KEY, "score": 0.5, "elapsed_s": 1.25}},
    }  # fmt: skip
    assert records.read_looks(tmp_path, SELECTION, "asked", KEYS) == {"d1": looks["d1"]}
    assert records.read_looks(tmp_path, SELECTION, "another", KEYS) == {}
    assert records.read_looks(tmp_path, SELECTION, "asked", {**KEYS, "d1": "00" * 32}) == {}
    assert records.read_looks(tmp_path, SELECTION, "asked", {}) == {}
    for later in (replace(SELECTION, reject_after=5), replace(SELECTION, reject_after=None)):
        assert records.read_looks(tmp_path, later, "asked", KEYS) == {}
        assert records.looks_s(tmp_path, later) == {}


def test_seconds_of_looks_are_those_that_took_any(tmp_path: Path) -> None:
    assert records.looks_s(tmp_path, SELECTION) == {}
    looks = {"d1": Look(None, 1.25), "d2": Look(0.5, 0.0)}
    records.write_looks(tmp_path, SELECTION, "asked", KEYS, looks)
    assert records.looks_s(tmp_path, SELECTION) == {"d1": 1.25}
    assert Look() == Look(None, 0.0)


def test_what_no_json_can_say_isnt_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(tmp_path / ".flowblend" / "a.json", {"x": float("nan")})


@pytest.mark.parametrize("durable", [True, False])
def test_a_document_waits_for_the_disk_where_it_is_to_last(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    records.write_json(tmp_path / ".flowblend" / "a.json", {"x": 1}, durable=durable)
    assert bool(synced) == durable
    synced.clear()
    records.write_json(tmp_path / ".flowblend" / "a.json", {"x": 1})
    assert synced


def test_a_folder_that_cant_be_made_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".flowblend").mkdir()
    (tmp_path / ".flowblend" / "jobs").write_text("in the way")
    with pytest.raises(OutputError) as caught:
        records.write_record(tmp_path, RECORD)
    assert str(caught.value).startswith(f"{tmp_path / '.flowblend' / 'jobs'}: ")
    assert "Not a directory, and what is known of jobs is kept there" in str(caught.value)
