"""Rendering with records, measurements, repeats and follow-ups, on the bundled pair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowblend_cli.analysis.clips.collect import gather
from flowblend_cli.analysis.compare.findings import conclude
from flowblend_cli.analysis.report.json_report import to_document
from flowblend_cli.analysis.review.folder import write_review
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.artifacts.records import (
    JobRecord,
    looks_path,
    read_json,
    read_record,
    recipe_path,
    record_path,
)
from flowblend_cli.engine.followup.measurer import Request
from flowblend_cli.engine.followup.study_run import StudyRun
from flowblend_cli.events import captured_events
from flowblend_cli.jobs import Job
from flowblend_cli.main import main
from flowblend_plugin import metrics as library

pytestmark = pytest.mark.usefixtures("any_executor")

pytest.importorskip("cv2")
pytest.importorskip("skimage")

RECIPE = """\
[recipe]
name = "study"
output_dir = "out"

[model]
pipeline = "sprites"

[blend]
stages = "SSS"

[defaults]
num_inference_steps = 2
num_frames = 9
max_sequence_length = 64

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = [1, 2]
"""
WriteRecipe = Callable[..., Path]


@pytest.fixture
def recipe(tmp_path: Path) -> WriteRecipe:
    def write(more: str = "", **replaced: str) -> Path:
        text = RECIPE + more
        for old, new in replaced.items():
            text = text.replace(f"{old} = ", f"{old} = {new}  # ")
        path = tmp_path / "recipe.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def render(path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["render", str(path), "--json", *options])


def events(result: Result, kind: str = "") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [event for event in found if not kind or event["event"] == kind]


def jobs(result: Result, kind: str) -> list[str]:
    return [event["job"] for event in events(result, kind)]


def test_every_clip_is_recorded_and_measured_once(recipe: WriteRecipe) -> None:
    path = recipe()
    out = path.parent / "out"
    first = render(path)
    assert first.exit_code == 0
    measured = events(first, "job_measured")
    assert sorted(jobs(first, "job_measured")) == ["circle-s1-n2", "circle-s2-n2"]
    assert events(first)[-1]["event"] == "summary"
    for done in events(first, "job_done"):
        record = read_record(out, done["job"])
        assert record is not None
        (found,) = [event for event in measured if event["job"] == done["job"]]
        assert record.metrics == found["metrics"]
        assert 0 <= found["score"] <= 1
        assert (record.measured_on, record.accepted) == ("frames", None)
        assert record.pixels == (done["pixels_sha256"],)
        assert record.elapsed_s == (done["elapsed_s"],)
        assert len(record.step_s) == 2
        assert sum(record.step_s) < record.elapsed_s[0]
        assert np.shape(record.tracks) == (64, 9, 2)
        assert record.peak_rss_bytes == done["peak_rss_bytes"]
    before = record_path(out, "circle-s1-n2").read_bytes()
    assert [event["event"] for event in events(render(path))] == ["job_skipped"] * 2 + ["summary"]
    assert record_path(out, "circle-s1-n2").read_bytes() == before
    assert not list(out.rglob("*.tmp"))


def test_the_recipe_is_kept_as_it_was_rendered(recipe: WriteRecipe) -> None:
    path = recipe()
    render(path, "--set", "scene.circle.seeds=[7]")
    kept = read_json(recipe_path(path.parent / "out", "study"))
    assert kept is not None
    assert kept["text"] == path.read_text("utf-8")
    assert kept["overrides"] == ["scene.circle.seeds=[7]"]
    assert kept["jobs"] == ["circle-s7-n2"]
    assert (kept["v"], kept["recipe"], kept["path"]) == (1, "study", str(path))
    assert kept["study"]["time_repeats"] == 1


def test_what_was_lost_or_never_measured_is_measured_from_the_file(recipe: WriteRecipe) -> None:
    path = recipe("\n[output]\nscale = 2\n")
    out = path.parent / "out"
    render(path)
    exact = read_record(out, "circle-s1-n2")
    record_path(out, "circle-s1-n2").unlink()
    record_path(out, "circle-s2-n2").write_text("{ cut sh", "utf-8")
    again = render(path)
    assert sorted(jobs(again, "job_measured")) == ["circle-s1-n2", "circle-s2-n2"]
    assert jobs(again, "job_done") == []
    healed = read_record(out, "circle-s1-n2")
    assert exact is not None
    assert healed is not None
    assert healed.measured_on == "file"
    frames = read_native_frames(out / "circle-s1-n2.mp4", 2)
    assert frames.shape == (9, 64, 64, 3)
    assert healed.metrics == library.measure(frames)
    ssim = "inter_frame_ssim"
    assert healed.metrics[ssim] == pytest.approx(exact.metrics[ssim], abs=0.05)
    assert jobs(render(path), "job_measured") == []


def test_asking_for_something_else_measures_anew_and_renders_nothing(recipe: WriteRecipe) -> None:
    render(recipe())
    result = render(recipe('\n[metrics]\nnames = ["sharpness"]\n'))
    assert jobs(result, "job_done") == []
    assert [set(event["metrics"]) for event in events(result, "job_measured")] == [
        {"sharpness"},
        {"sharpness"},
    ]
    assert "job_measured" not in str(events(render(recipe("\n[metrics]\nnames = []\n"))))


def test_the_reference_is_rendered_first_and_compared_with(
    recipe: WriteRecipe, any_executor: str
) -> None:
    more = (
        "\n[sweep]\nnum_inference_steps = [1, 2]\n"
        "[metrics]\nreference = {num_inference_steps = 2}\n"
    )
    path = recipe(more)
    out = path.parent / "out"
    first = render(path)
    names = [f"circle-s{seed}-n{steps}" for steps in (2, 1) for seed in (1, 2)]
    assert sorted(jobs(first, "job_done")) == sorted(names)
    if any_executor == "one slot":
        assert jobs(first, "job_done") == names
    metrics = {event["job"]: event["metrics"] for event in events(first, "job_measured")}
    for seed in (1, 2):
        assert "psnr" not in metrics[f"circle-s{seed}-n2"]
        assert metrics[f"circle-s{seed}-n1"]["psnr"] > 5
    (out / "circle-s1-n1.mp4").unlink()
    second = render(path)  # the reference's frames are gone, its file isn't
    record = read_record(out, "circle-s1-n1")
    assert record is not None
    assert jobs(second, "job_measured") == ["circle-s1-n1"]
    assert record.measured_on == "file"
    assert 25 < record.metrics["psnr"] < metrics["circle-s1-n1"]["psnr"]  # the codec's part of it


def test_repeats_take_times_and_compare_bits_and_publish_once(recipe: WriteRecipe) -> None:
    more = "\n[sweep]\ntime_repeats = {}\n"
    path = recipe(more.format(2), seeds="[1]")
    clip = path.parent / "out" / "circle-s1-n2.mp4"
    first = render(path)
    published = (clip.stat().st_mtime_ns, clip.read_bytes())
    record = read_record(clip.parent, "circle-s1-n2")
    assert record is not None
    assert len(jobs(first, "job_started")) == 2
    assert len(record.elapsed_s) == 2
    assert events(first, "job_done")[0]["elapsed_s"] == pytest.approx(
        sum(record.elapsed_s) / 2, abs=2e-3
    )
    assert record.pixels == (record.pixels_sha256,) * 2
    assert "2 of 2 renders have the same pixels" in first.stderr

    second = render(recipe(more.format(5), seeds="[1]"))
    longer = read_record(clip.parent, "circle-s1-n2")
    assert longer is not None
    assert len(jobs(second, "job_started")) == 3
    assert events(second)[-1]["rendered"] == 0
    assert longer.elapsed_s[:2] == record.elapsed_s
    assert (len(longer.elapsed_s), longer.metrics) == (5, record.metrics)
    assert "5 of 5" in second.stderr
    assert (clip.stat().st_mtime_ns, clip.read_bytes()) == published


def test_a_finished_file_rendered_again_leaves_no_record(recipe: WriteRecipe) -> None:
    path = recipe(seeds="[1]")
    render(path)
    out = path.parent / "out"
    before = sorted(out.rglob(".flowblend/**/*"))
    result = render(out / "circle-s1-n2.mp4")
    assert "same pixels" in result.stderr
    assert sorted(out.rglob(".flowblend/**/*")) == before


def test_the_best_drafts_are_finished_and_the_same_again_on_a_second_run(
    recipe: WriteRecipe,
) -> None:
    more = "\n[draft]\nsteps = 1\nkeep = 2\n"
    path = recipe(more, seeds='"explore 4"', num_inference_steps="3")
    first = render(path)
    assert first.exit_code == 0, first.stderr
    done = events(first, "job_done")
    assert [event["num_inference_steps"] for event in done] == [1, 1, 1, 1, 3, 3]
    scores = {event["job"]: event["score"] for event in events(first, "job_measured")}
    drafts = sorted(done[:4], key=lambda event: -scores[event["job"]])
    best = sorted(event["seed"] for event in drafts[:2])
    assert sorted(event["seed"] for event in done[4:]) == best
    assert f"finishing seeds {best[0]} and {best[1]} of 4 by score" in first.stderr
    second = render(path)
    assert sorted(jobs(second, "job_skipped")) == sorted(jobs(first, "job_done"))
    assert jobs(second, "job_started") == []


def test_a_flawed_clip_is_rendered_again_and_the_one_to_keep_is_marked(
    recipe: WriteRecipe,
) -> None:
    more = "\n[adapt]\nrounds = 2\nweak_motion = 1000.0\nguidance_step = 1.0\n"
    path = recipe(more, seeds="[1]")
    path.write_text(
        path.read_text("utf-8").replace("num_frames = 9", "num_frames = 9\nguidance_scale = 5.0"),
        "utf-8",
    )
    out = path.parent / "out"
    first = render(path)
    family = ["circle-s1-n2", "circle-s1-n2-adapt1", "circle-s1-n2-adapt2"]
    assert jobs(first, "job_done") == family
    assert [event["num_inference_steps"] for event in events(first, "job_done")] == [2, 2, 22]
    assert "weak motion" in first.stderr
    scores = {event["job"]: event["score"] for event in events(first, "job_measured")}
    records = {name: read_record(out, name) for name in family}
    kept = [name for name, record in records.items() if record is not None and record.accepted]
    assert kept == [max(family, key=lambda name: scores[name])]
    assert all(record is not None and record.accepted is not None for record in records.values())
    before = {name: record_path(out, name).read_bytes() for name in family}
    second = render(path)
    assert jobs(second, "job_skipped") == family
    assert {name: record_path(out, name).read_bytes() for name in family} == before


def test_a_scene_that_asks_for_stillness_isnt_adapted_for_it(recipe: WriteRecipe) -> None:
    path = recipe("\n[adapt]\nweak_motion = 1000.0\njitter = 1000.0\n", seeds="[1]")
    path.write_text(path.read_text("utf-8").replace("moving right", "standing still"), "utf-8")
    assert len(jobs(render(path), "job_done")) == 1


@pytest.mark.parametrize("table", ["[metrics]\nnames = ['sharpness']", "[adapt]\nrounds = 1"])
def test_measurements_that_cant_be_taken_are_refused_before_anything_loads(
    recipe: WriteRecipe, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "is_available", lambda: False)
    monkeypatch.setattr(library, "missing", lambda: "pip install 'flowblend[metrics]'")
    result = render(recipe(f"\n{table}\n"))
    assert result.exit_code == 2
    assert "pip install 'flowblend[metrics]'" in result.stderr
    assert [event["event"] for event in events(result)] == ["summary"]


def test_without_the_extra_a_plain_recipe_renders_and_says_so(
    recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "is_available", lambda: False)
    monkeypatch.setattr(library, "missing", lambda: "pip install 'flowblend[metrics]'")
    path = recipe(seeds="[1]")
    result = render(path)
    assert result.exit_code == 0
    assert result.stderr.count("nothing is measured") == 1
    assert jobs(result, "job_measured") == []
    record = read_record(path.parent / "out", "circle-s1-n2")
    assert record is not None
    assert len(record.elapsed_s) == 1


def test_a_link_where_records_go_is_refused_and_nothing_is_written_through_it(
    recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = recipe()
    victim = tmp_path / "victim"
    victim.mkdir()
    (path.parent / "out").mkdir()
    (path.parent / "out" / ".flowblend").symlink_to(victim)
    result = render(path)
    assert result.exit_code == 4
    assert "symbolic link" in result.stderr
    assert not list(victim.iterdir())


def test_a_record_that_cant_be_written_ends_the_batch_and_keeps_the_clip(
    recipe: WriteRecipe,
) -> None:
    path = recipe()
    out = path.parent / "out"
    blocked = record_path(out, "circle-s1-n2")
    blocked.with_name(blocked.name + ".tmp").mkdir(parents=True)
    result = render(path)
    assert result.exit_code == 4
    done = jobs(result, "job_done")
    assert "circle-s1-n2" in done
    assert events(result)[-1] == events(result, "summary")[0]
    assert events(result)[-1]["rendered"] == len(done)
    blocked.with_name(blocked.name + ".tmp").rmdir()
    healed = render(path)
    assert healed.exit_code == 0
    assert sorted(jobs(healed, "job_skipped")) == sorted(done)
    assert sorted(jobs(healed, "job_measured")) == ["circle-s1-n2", "circle-s2-n2"]


@pytest.mark.night
def test_killed_while_measuring_the_next_run_heals(recipe: WriteRecipe) -> None:
    path = recipe()
    out = path.parent / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "flowblend_cli", "render", str(path), "--json"],
        stdout=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "job_done":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.2)
    killed = read_record(out, "circle-s1-n2")
    assert killed is not None
    assert len(killed.elapsed_s) == 1
    result = render(path)
    assert result.exit_code == 0
    for seed in (1, 2):
        record = read_record(out, f"circle-s{seed}-n2")
        assert record is not None
        assert record.metrics
        assert len(record.elapsed_s) == 1
    assert not list(out.rglob("*.tmp"))


def test_a_name_like_that_of_a_look_is_measured_like_any_other(recipe: WriteRecipe) -> None:
    path = recipe(seeds="[1]")
    text = path.read_text("utf-8").replace('name = "circle"', 'name = "look at circle"')
    path.write_text(text, "utf-8")
    assert jobs(render(path), "job_measured") == ["look at circle-s1-n2"]


def test_a_drawn_seed_keeps_its_noise_when_the_clip_is_rendered_again(recipe: WriteRecipe) -> None:
    path = recipe("\n[adapt]\nrounds = 1\nweak_motion = 1000.0\n", seeds="[0]")
    first = render(path)
    seeds = [event["seed"] for event in events(first, "job_done")]
    assert len(seeds) == 2
    assert seeds[0] == seeds[1]
    assert jobs(render(path), "job_skipped") == jobs(first, "job_done")


def test_drafts_that_cant_be_measured_lead_to_no_final_and_the_run_says_so(
    recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe("\n[draft]\nsteps = 1\n", seeds='"explore 2"')
    monkeypatch.setattr(
        "flowblend_cli.engine.followup.measurer.MODULE", "flowblend_cli.no_such_module"
    )
    failed = render(path)
    assert failed.exit_code == 1
    assert "none of its drafts has a score" in failed.stderr
    monkeypatch.undo()
    healed = render(path)
    assert healed.exit_code == 0
    assert len(jobs(healed, "job_done")) == 1


@pytest.mark.parametrize("damage", [{"elapsed_s": None}, {"metrics": [1]}, {"step_s": "fast"}])
def test_a_record_with_other_types_counts_as_none(
    recipe: WriteRecipe, damage: dict[str, Any]
) -> None:
    path = recipe("\n[sweep]\ntime_repeats = 1\n", seeds="[1]")
    render(path)
    file = record_path(path.parent / "out", "circle-s1-n2")
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **damage}), "utf-8")
    result = render(path)
    assert result.exit_code == 0
    assert jobs(result, "job_measured") == ["circle-s1-n2"]


def test_looks_are_kept_so_that_the_same_drafts_are_dropped_again(recipe: WriteRecipe) -> None:
    more = "\n[draft]\nsteps = 3\nkeep = 1\nreject_after = 1\nreject_keep = 2\n"
    path = recipe(more, seeds='"explore 3"', num_inference_steps="4")
    first = render(path)
    assert first.exit_code == 0, first.stderr
    (lost,) = events(first, "job_dropped")
    assert "it is number 3 of 3 by score, and 2 go on" in lost["reason"]
    assert len(jobs(first, "job_done")) == 3  # two drafts, one final
    assert lost["job"] not in jobs(first, "job_done")
    drafts = sorted([lost["job"], *jobs(first, "job_done")[:2]])
    kept = read_json(looks_path(path.parent / "out", drafts[0]))
    assert kept is not None
    assert sorted(kept["looks"]) == drafts
    assert kept["looks"][lost["job"]]["score"] == lost["score"]
    assert all(look["elapsed_s"] > 0 for look in kept["looks"].values())
    second = render(path)
    assert jobs(second, "job_dropped") == [lost["job"]]
    assert sorted(jobs(second, "job_skipped")) == sorted(jobs(first, "job_done"))
    assert jobs(second, "job_started") == []
    assert read_json(looks_path(path.parent / "out", drafts[0])) == kept

    told = to_document(conclude(gather(path.parent / "out")))["studies"][0]["drafts"][0]
    assert (told["drafts"], told["abandoned"]) == (3, 1)


def test_what_raters_disliked_is_rendered_again_and_the_original_isnt_kept(
    recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = recipe("\n[sweep]\nnum_inference_steps = [1, 2]\n", seeds="[1]")
    out = path.parent / "out"
    render(path)
    written = write_review(out)
    items = json.loads(written.key.read_text("utf-8"))["items"]
    scores = [
        {"item": item, "criterion": "sharpness", "score": 9 if "-n2" in str(told) else 3}
        for item, told in items.items()
    ]
    ratings = tmp_path / "ann.json"
    ratings.write_text(
        json.dumps(
            {"v": 1, "review": written.arrangement.id, "rater": "ann", "session": "a",
             "saved": "2026-01-01", "scores": scores}
        ), "utf-8",
    )  # fmt: skip
    result = render(path, "--reviews", str(ratings))
    assert result.exit_code == 0, result.stderr
    assert jobs(result, "job_done") == ["circle-s1-n1-adapt1"]
    assert "sharpness 3.0 of 10 by 1 rater" in result.stderr
    assert "num_inference_steps 1 -> 21" in result.stderr
    accepted = {name: read_record(out, name) for name in ("circle-s1-n1", "circle-s1-n1-adapt1")}
    assert [one.accepted for one in accepted.values() if one is not None] == [False, True]
    assert render(path, "--reviews", str(tmp_path / "nobody.json")).exit_code == 2


class Requested:
    """Takes requests to measure, and answers none."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.outstanding = 0

    def submit(self, request: Request, frames: Any, check: Any) -> None:
        self.requests.append(request)

    def answer(self, timeout_s: float = 0.0) -> None:
        return None


@pytest.fixture
def compared(batch_of: Any, minimal: str) -> tuple[StudyRun, Requested, Job, Job]:
    """A study before its first clip, a job that is compared, and its reference."""
    more = "\n[sweep]\nnum_inference_steps = [1, 2]\n[metrics]\nnames = ['psnr']\n"
    batch = batch_of(minimal + more + "reference = {num_inference_steps = 2}\n")
    batch.output_dir.mkdir(parents=True)
    study = StudyRun(batch, captured_events(), (), {})
    study._measurer = requested = Requested()  # type: ignore[assignment]
    reference, job = study.begin()
    assert reference.num_inference_steps == 2
    return study, requested, job, reference


def publish(study: StudyRun, job: Job) -> None:
    record = JobRecord(job.id, job.recipe, f"pixels of {job.id}")
    study.on_published(job, record, np.zeros((3, 8, 8, 3), np.uint8), lambda: None)


def test_a_clip_waits_for_a_reference_that_another_slot_has(compared: Any) -> None:
    study, requested, job, reference = compared
    publish(study, job)
    assert not requested.requests
    publish(study, reference)
    first, second = requested.requests
    assert (first.job, first.reference) == (reference.id, None)
    assert second.job == job.id
    assert second.reference.job == reference.id


@pytest.mark.parametrize("why", ["it failed", "it never came"])
def test_a_clip_whose_reference_has_no_file_is_measured_without(compared: Any, why: str) -> None:
    study, requested, job, reference = compared
    publish(study, job)
    if why == "it failed":
        study.on_failed(reference)
    else:
        assert study.measure_unreferenced(lambda: None)
        assert not study.measure_unreferenced(lambda: None)
    (request,) = requested.requests
    assert (request.job, request.reference) == (job.id, None)
