"""Whatever a run wrote and reads back is checked: one property a reader, on hostile documents."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import documents, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from rendered import VERSIONS, a_job, values_for, write_clip
from thorough import examples, thorough

from flowblend_cli.analysis.clips.collect import find_clips, kept_recipe
from flowblend_cli.analysis.report.write import draw_up
from flowblend_cli.analysis.review.ratings import Rating, RatingsError, read, read_keys
from flowblend_cli.artifacts import records
from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.manifest import Entry, Manifest
from flowblend_cli.artifacts.metadata import from_text
from flowblend_cli.artifacts.schema.description import describe
from flowblend_cli.console.run_state import read_state
from flowblend_cli.console.status import read_statuses
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.errors import DocumentError, RecipeError
from flowblend_cli.jobs import AdapterSpec, ImageSpec, Job, Origin
from flowblend_cli.models.calibrations import read_calibration
from flowblend_cli.models.lockfile import LOCK_NAME, read_lock
from flowblend_cli.planning.flops_cache import _read as read_count
from flowblend_cli.study import AdaptSpec, MeasureSpec, Selection, StepChoice, Study
from flowblend_plugin.errors import CalibrationError, CheckpointError
from flowblend_plugin.stages import Adapter, Cache, Stage

JOB = a_job(
    "clip",
    prompt="a red square",
    stages=(
        Stage("large", until=0.5, adapters=(Adapter("style", 0.5, 1.0),), guidance_scale=3.0),
        Stage("small", cache=Cache.of("first_block", {"threshold": 0.1})),
    ),
    stage_string="LS",
    image=ImageSpec("first.png", "ab" * 32),
    adapters=(AdapterSpec("style", "large", "./style.safetensors"),),
    origin=Origin("adapted", "clip", "motion", 1),
    arguments={"num_frames": 1},
)
DOCUMENT: dict[str, Any] = json.loads(
    json.dumps(
        {
            "flowblend": "0.1.0", "v": 1, "job": JOB.to_document(), "job_key": "ab" * 32,
            "resolved": {
                "seed": 7, "denoisers": "L" * 50, "device": "cpu", "sampling_s": 1.5,
                "source": "/home/me", "memory": ["tiling"],
                "caches": [{"stage": 1, "kind": "mag", "forwards": 9, "skipped": 3,
                            "computed": 0.5}],
            },
            "models": {"pipeline": {"path": "/models/sprites", "sha256": "ab" * 32}},
            "versions": VERSIONS, "pixels_sha256": "cd" * 32,
        }
    )
)  # fmt: skip
RECORD = {
    "v": 1, "job": "clip", "recipe": "study", "pixels_sha256": "cd" * 32, "elapsed_s": [1.5, 2],
    "pixels": ["cd" * 32], "step_s": [0.1], "peak_rss_bytes": 10**9, "peak_vram_bytes": None,
    "metrics": values_for(0.5), "measured_on": "frames", "tracks": [[[0.1, 0.2], [0.3, 0.4]]],
    "accepted": None, "asked": "key",
}  # fmt: skip
STUDY = Study(
    axes=("num_inference_steps",), measure=MeasureSpec(("flicker",), (("mode", 1),), (("a", 1.0),)),
    adapt=AdaptSpec(), step_ranges=(("square", 30, 50),), max_steps=80,
    selections=(Selection("square", ("clip",), ("final",), 1, 4, 1),),
    choices=(StepChoice("square", "a red square", 50, "the recipe says so"),),
)  # fmt: skip
RECIPE = json.loads(json.dumps({
    "v": 1, "recipe": "study", "path": "study.toml", "text": "[recipe]", "overrides": ["a=1"],
    "warnings": ["odd"], "study": asdict(STUDY), "jobs": ["clip"],
}))  # fmt: skip
LOOKS = {
    "v": 1, "scene": "square", "asked": "key", "after_steps": 4,
    "looks": {"clip": {"job_key": "ab" * 32, "score": 0.5, "elapsed_s": 1.0}},
}  # fmt: skip
PRESENT = {
    "job": "clip", "scene": "square", "step": 3, "num_inference_steps": 50, "role": "large",
}  # fmt: skip
STATE = {
    "v": 1, "recipe": "study", "command": ["flowblend", "render", "a.toml"], "folder": "/home/me",
    "jobs": 2, "started": "2026-01-31T23:59:59Z", "ended": None, "elapsed_s": 1.5, "clock_s": 9.0,
    "process": {"pid": 7, "host": "here", "boot": "x", "born": "1"}, "rendered": 1, "skipped": 0,
    "added": 0, "added_done": 0, "dropped": ["clip"], "present": PRESENT, "under_way": [PRESENT],
    "failed": {"other": {"scene": "square", "seed": 2**63 - 1, "error": "no",
                         "at": "2026-01-31T23:59:59Z"}},
    "waiting": "", "error": "", "remaining_s": None, "learned": [["m", "large", 1.0, 0.5]],
}  # fmt: skip
ENTRY = {"v": 1, **asdict(Entry("clip.png", 9, "ab" * 32, "study", "ab" * 32, "cd" * 32, 7, 1.5))}
RATINGS = {
    "v": 1, "review": "abc", "rater": "ann", "session": "0" * 16, "saved": "2026-01-31",
    "scores": [{"item": "item", "criterion": "wit", "score": 7}],
    "notes": [{"item": "item", "note": "good"}],
}  # fmt: skip
KEY = {
    "v": 1, "review": "abc", "seed": 0,
    "items": {"item": {"criteria": ["wit"], "clips": [
        {"recipe": "study", "job": "clip", "scene": "square", "seed": 7, "variant": "all"}]}},
}  # fmt: skip
STEP = {"step": 0, "sigma": 1.0, "guided_relative_l2": 0.1, "velocity_norm": 1.0, "spread": {}}
CALIBRATION = {
    "kind": "flowblend calibration", "v": 1, "conditions": {"pipeline": "sprites"}, "prompts": 2,
    "steps": [STEP, {**STEP, "step": 1, "sigma": 0.5}], "cost_ratio": 0.2, "positions": [0, 1],
    "interactions": [[1.0, 0.1], [0.1, 1.0]], "sensitivity_prompts": 2, "final_rms": 1.0,
}  # fmt: skip
ABOUT = {
    "job_key": "ab" * 32, "seed": 7, "step": 3, "total": 50, "surroundings": {"torch": "2"},
    "elapsed_s": 1.5, "step_s": [0.5], "roles": ["large"], "v": 1,
}  # fmt: skip
COUNT = {"linear_only": 10, "full": 12}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An output folder, and beside it what is nobody's to touch."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "clip.mp4").write_bytes(b"mine")
    out = tmp_path / "out"
    for name in ("jobs", "recipes", "runs", "selections", "reviews"):
        (out / ".flowblend" / name).mkdir(parents=True)
    return out


def surroundings(out: Path) -> dict[str, bytes]:
    """Everything around an output folder."""
    found = (path for path in out.parent.rglob("*") if out not in (path, *path.parents))
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in found}


def hostile(sound: Any, few: int = 30) -> Callable[[Any], Any]:
    """A property of bytes that were such a document: quick here, and tried often elsewhere."""

    def decorated(test: Any) -> Any:
        return thorough(settings(examples(few), deadline=5000)(given(data=texts(sound))(test)))

    return decorated


def outcome(read: Callable[[], Any], refusal: type[Exception]) -> tuple[Any, str]:
    """What a reader gives, or what it says where it refuses; any other error ends the test."""
    try:
        return read(), ""
    except refusal as error:
        return None, str(error)


def is_inside(job: Job) -> bool:
    """Whether a job's names are those that a recipe could give it."""
    plain = Path(job.filename).name == job.filename and "\0" not in job.filename
    return plain and job.extension in (".mp4", ".png") and not job.filename.startswith(".")


def test_the_sound_ones_are_read(folder: Path) -> None:
    assert describe(DOCUMENT).job == JOB
    for path, document in _files(folder):
        path.write_text(json.dumps(document))
    assert records.read_record(folder, "clip") is not None
    assert records.read_looks(folder, STUDY.selections[0], "key", {"clip": "ab" * 32})
    kept = kept_recipe(folder, "study")
    assert kept is not None
    assert kept.study == STUDY
    assert read_state(records.run_path(folder, "study")) == STATE
    assert Manifest(folder, print).entry("clip.png") is not None
    assert read_keys(folder, [_rating()])["abc"].clips["item"][0].seed == 7
    assert read_calibration(folder / "calibration.json").prompts == 2
    assert read_count(folder / "count.json") is not None


def _files(folder: Path) -> list[tuple[Path, Any]]:
    return [
        (records.record_path(folder, "clip"), RECORD),
        (records.looks_path(folder, "clip"), LOOKS),
        (records.recipe_path(folder, "study"), RECIPE),
        (records.run_path(folder, "study"), STATE),
        (records.review_path(folder, "abc"), KEY),
        (folder / ".flowblend" / "manifest.jsonl", ENTRY),
        (folder / "calibration.json", CALIBRATION),
        (folder / "count.json", COUNT),
    ]


def _rating() -> Rating:
    return Rating("ann.json", "abc", "ann", "", "", {("item", "wit"): 7.0}, {})


@hostile(DOCUMENT)
def test_a_document_leads_nowhere(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    document = from_text(text)
    if document is None:
        return
    found, told = outcome(lambda: describe(document), DocumentError)
    assert told.isprintable()
    if found is not None:
        assert found.job is None or is_inside(found.job)
        assert 0 <= found.seed < 2**63


@hostile(RECORD)
def test_a_record_is_sound_or_named(folder: Path, data: bytes) -> None:
    records.record_path(folder, "clip").write_bytes(data)
    warnings: list[str] = []

    found = records.read_record(folder, "clip", warnings.append)

    assert (found is None) == bool(warnings)
    if found is not None:
        assert found.job == "clip"
        assert all(0 <= value < 1e10 for value in (*found.elapsed_s, *found.step_s))
        assert all(isinstance(value, (int, float)) for value in found.metrics.values())
    else:
        assert warnings[0].startswith(".flowblend/jobs/clip.json ")


@hostile(LOOKS)
def test_looks_are_sound_or_none(folder: Path, data: bytes) -> None:
    records.looks_path(folder, "clip").write_bytes(data)

    found = records.read_looks(folder, STUDY.selections[0], "key", {"clip": "ab" * 32})

    assert all(look.score is None or abs(look.score) < 1e16 for look in found.values())
    assert all(seconds >= 0 for seconds in records.looks_s(folder, STUDY.selections[0]).values())


@hostile(RECIPE)
def test_a_kept_recipe_is_sound_or_named(folder: Path, data: bytes) -> None:
    records.recipe_path(folder, "study").write_bytes(data)
    warnings: list[str] = []

    found = kept_recipe(folder, "study", warnings.append)

    assert (found is None) == bool(warnings)
    for one in found.study.selections if found is not None else ():
        assert not any("/" in name or "\0" in name for name in (*one.drafts, *one.finals))


@hostile(STATE)
def test_a_state_is_sound_or_named(folder: Path, data: bytes) -> None:
    records.run_path(folder, "study").write_bytes(data)
    records.recipe_path(folder, "study").write_text(json.dumps(RECIPE))
    warnings: list[str] = []

    (found,) = read_statuses(folder, warnings.append)

    assert (found.state == "unknown") == bool(warnings)
    assert json.dumps(found.to_document(), allow_nan=False)


@hostile(ENTRY)
def test_a_line_of_the_manifest_is_sound_or_none(folder: Path, data: bytes) -> None:
    (folder / ".flowblend" / "manifest.jsonl").write_bytes(data + b"\n")

    manifest = Manifest(folder, print)

    known = manifest.entry("clip.png")
    assert known is None or (known.size >= 0 and known.seed >= 0 and known.sampling_s >= 0)


@hostile(RATINGS)
def test_ratings_are_sound_or_say_what_is_wrong(folder: Path, data: bytes) -> None:
    path = folder / "ann.json"
    path.write_bytes(data)
    found, told = outcome(lambda: read([path]), RatingsError)
    assert found is not None or told.startswith(str(path))
    for one in found or ():
        assert one.review.isalnum()
        assert 0 < len(one.rater) <= 200
        assert all(0 <= score <= 10 for score in one.scores.values())


@hostile(KEY)
def test_a_key_of_a_review_is_sound_or_says_what_is_wrong(folder: Path, data: bytes) -> None:
    records.review_path(folder, "abc").write_bytes(data)
    found, told = outcome(lambda: read_keys(folder, [_rating()]), RatingsError)
    assert (found is None) == bool(told)


@hostile(CALIBRATION)
def test_a_calibration_is_sound_or_says_what_is_wrong(folder: Path, data: bytes) -> None:
    path = folder / "calibration.json"
    path.write_bytes(data)
    found, told = outcome(lambda: read_calibration(path), CalibrationError)
    assert found is not None or str(path) in told
    assert found is None or all(math.isfinite(gain or 0) for gain in found.gains())


@hostile(COUNT)
def test_a_count_of_flops_is_sound_or_none(folder: Path, data: bytes) -> None:
    path = folder / "count.json"
    path.write_bytes(data)

    found = read_count(path)

    assert found is None or found.reason is not None or 0 < found.full < 10**24


@hostile(ABOUT)
def test_what_a_stored_state_says_is_sound_or_damaged(folder: Path, data: bytes) -> None:
    header = json.dumps({"__metadata__": {"about": data.decode("utf-8", "replace")}}).encode()
    path = folder / "clip.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)

    found, told = outcome(CheckpointFile(path, "ab" * 32).read, CheckpointError)

    assert found is None
    assert told.startswith("is ")  # a sound one has no checksum here
    seed = CheckpointFile(path, "ab" * 32).seed()
    assert seed is None or 0 <= seed < 2**63


@thorough
@settings(examples(30), deadline=5000)
@given(data=st.binary(max_size=200) | texts({"version": 1}), cut=st.integers(0, 400))
def test_a_lock_is_sound_or_says_what_is_wrong(folder: Path, data: bytes, cut: int) -> None:
    lock = f'version = 1\n[[model]]\nrepo = "a/b"\nrevision = "{"0" * 40}"\nasked = "a/b"\n'
    (folder / LOCK_NAME).write_bytes(lock.encode()[:cut] + data + lock.encode()[cut:])
    found, told = outcome(lambda: read_lock(folder, frozenset()), RecipeError)
    assert found is not None or str(folder / LOCK_NAME) in told


@thorough
@settings(examples(15), deadline=5000)
@given(document=documents(DOCUMENT))
def test_a_clip_among_good_ones_is_read_or_named_and_nothing_around_changes(
    folder: Path, document: Any
) -> None:
    write_clip(folder, a_job("good", arguments={"num_frames": 1}))
    picture = np.zeros((16, 16, 3), np.uint8)
    before = surroundings(folder)
    try:
        publish_image(picture, folder / "bad.png", document=document)
    except (TypeError, KeyError, ValueError, AttributeError, OSError):
        return  # what can't be written isn't there to be read

    clips, warnings = find_clips(folder)

    names = [clip.name for clip in clips]
    assert "good.png" in names
    assert "bad.png" in names or any("bad.png" in warning for warning in warnings)
    assert surroundings(folder) == before


@settings(examples(3), max_examples=3, deadline=None)
@given(record=texts(RECORD), recipe=texts(RECIPE), looks=texts(LOOKS), drawn=documents(DOCUMENT))
def test_a_report_leaves_out_what_is_bad(
    folder: Path, record: bytes, recipe: bytes, looks: bytes, drawn: Any
) -> None:
    for steps in (30, 50):
        write_clip(folder, a_job("good" if steps == 50 else "clip", steps=steps),
                   metrics=values_for(0.5))  # fmt: skip
    records.record_path(folder, "clip").write_bytes(record)
    records.recipe_path(folder, "study").write_bytes(recipe)
    records.looks_path(folder, "clip").write_bytes(looks)
    before = surroundings(folder)

    page = draw_up(folder).page

    assert "good.mp4" in page
    assert not any(control in page for control in ("\x1b", "\u202e"))
    assert surroundings(folder) == before
