"""``flowblend render`` end to end, on the bundled pair at very few steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import WanPipeline
from filelock import FileLock
from PIL import Image, PngImagePlugin

from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.engine.output_folder import LOCK_NAME
from flowblend_cli.main import main
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.utils.frames import pixels_sha256

pytestmark = pytest.mark.usefixtures("any_executor")

SPRITES = bundled_dir() / "models" / "sprites"
RECIPE = """\
[recipe]
name = "test"
output_dir = "out"

[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[metrics]
names = []

[defaults]
num_inference_steps = 3
guidance_scale = 5.0
max_sequence_length = 64

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = [1, 2]

[[scene]]
name = "picture"
prompt = "a white star on a black background"
seeds = [1]
num_frames = 1
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def of_kind(result: Result, kind: str) -> list[dict[str, Any]]:
    return [event for event in events(result) if event["event"] == kind]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A small batch, rendered once; tests that change its files copy the recipe elsewhere."""
    folder = tmp_path_factory.mktemp("batch")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE, "utf-8")
    return recipe, invoke("render", recipe, "--json")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str = RECIPE) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, "utf-8")
        return path

    return write


ONE = ["--set", "scene.circle.seeds=[1]", "--set", "scene.picture.num_frames=1"]


def test_every_job_becomes_a_file_and_an_event(rendered: tuple[Path, Result]) -> None:
    recipe, result = rendered
    assert result.exit_code == 0
    done = of_kind(result, "job_done")
    assert [event["job"] for event in done] == ["circle-s1-n3", "circle-s2-n3", "picture-s1-n3"]
    for event in done:
        assert event["denoisers"] == "LSL"
        assert event["num_inference_steps"] == 3
        assert event["elapsed_s"] > 0
        assert event["peak_rss_bytes"] > 2**20
        assert event["peak_vram_bytes"] is None
        assert Path(event["path"]).parent == recipe.parent / "out"
    last = events(result)[-1]
    assert (last["event"], last["rendered"], last["skipped"], last["failed"]) == (
        "summary",
        3,
        0,
        0,
    )
    assert all(event["v"] == 1 for event in events(result))
    assert len(of_kind(result, "model_loaded")) == 1


def test_the_pixels_are_those_of_the_plain_pipeline(tmp_path: Path, recipe: Any) -> None:
    result = invoke("render", recipe(), "--json", "--set", "blend.stages=LLL")
    pipe = WanPipeline.from_pretrained(SPRITES, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        "a red circle moving right on a navy background",
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=3,
        guidance_scale=5.0,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    expected = pixels_sha256((frames * 255).round().astype("uint8"))
    done = {event["job"]: event["pixels_sha256"] for event in of_kind(result, "job_done")}
    assert done["circle-s1-n3"] == expected


def test_a_second_run_renders_nothing_and_loads_nothing(rendered: tuple[Path, Result]) -> None:
    result = invoke("render", rendered[0], "--json")
    assert result.exit_code == 0
    assert [e["event"] for e in events(result)] == ["job_skipped"] * 3 + ["summary"]


def test_a_finished_batch_is_skipped_without_importing_torch(rendered: tuple[Path, Result]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from flowblend_cli.main import main; "
        "r = CliRunner().invoke(main, ['render', sys.argv[1]]); "
        "print(r.exit_code, 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, rendered[0]], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "0 False"


def test_deleting_one_file_renders_that_one_again_with_the_same_pixels(recipe: Any) -> None:
    path = recipe()
    first = {e["job"]: e for e in of_kind(invoke("render", path, "--json"), "job_done")}
    Path(first["circle-s2-n3"]["path"]).unlink()
    (again,) = of_kind(invoke("render", path, "--json"), "job_done")
    assert again["job"] == "circle-s2-n3"
    assert again["pixels_sha256"] == first["circle-s2-n3"]["pixels_sha256"]


def test_editing_one_prompt_renders_one_job_again(recipe: Any) -> None:
    invoke("render", recipe())
    result = invoke("render", recipe(RECIPE.replace("white star", "cyan star")), "--json")
    assert [e["job"] for e in of_kind(result, "job_done")] == ["picture-s1-n3"]
    assert len(of_kind(result, "job_skipped")) == 2


def test_a_damaged_file_is_rendered_again_and_a_foreign_one_left_alone(recipe: Any) -> None:
    path = recipe()
    first = {e["job"]: e for e in of_kind(invoke("render", path, "--json"), "job_done")}
    damaged, foreign = (Path(first[f"circle-s{seed}-n3"]["path"]) for seed in (1, 2))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-200] + b"\0" * 200)
    foreign.write_bytes(b"somebody's holiday")
    result = invoke("render", path, "--json")
    assert result.exit_code == 1
    (done,) = of_kind(result, "job_done")
    assert done["job"] == "circle-s1-n3"
    assert done["pixels_sha256"] == first["circle-s1-n3"]["pixels_sha256"]
    assert inspect_final(damaged).state is FileState.INTACT
    (failed,) = of_kind(result, "job_failed")
    assert "left alone" in failed["error"]
    assert foreign.read_bytes() == b"somebody's holiday"


def test_the_file_of_another_recipe_is_left_alone(recipe: Any) -> None:
    path = recipe()
    invoke("render", path)
    before = (path.parent / "out" / "circle-s1-n3.mp4").read_bytes()
    other = RECIPE.replace('name = "test"', 'name = "other"').replace("red circle", "blue circle")
    result = invoke("render", recipe(other), "--json")
    assert result.exit_code == 1
    assert "belongs to recipe 'test'" in of_kind(result, "job_failed")[0]["error"]
    assert (path.parent / "out" / "circle-s1-n3.mp4").read_bytes() == before


def test_a_limit_before_a_finished_file_is_rendered_again_says_nothing_of_its_bits(
    rendered: tuple[Path, Result],
) -> None:
    clip = rendered[0].parent / "out" / "circle-s1-n3.mp4"
    result = invoke("render", clip, "--max-time", "0.001s")
    assert result.exit_code == 0
    assert "1 job remains" in result.stderr
    assert "pixels" not in result.stderr


def test_a_finished_file_renders_again_to_the_same_bits(rendered: tuple[Path, Result]) -> None:
    clip = rendered[0].parent / "out" / "circle-s1-n3.mp4"
    result = invoke("render", clip)
    assert result.exit_code == 0
    assert "same pixels" in result.stderr
    again = clip.with_name("circle-s1-n3.again.mp4")
    assert (read_document(again) or {})["pixels_sha256"] == (read_document(clip) or {})[
        "pixels_sha256"
    ]
    again.unlink()


def test_a_file_that_was_edited_is_told_from_its_record_when_it_is_rendered_again(
    rendered: tuple[Path, Result], tmp_path: Path
) -> None:
    out = rendered[0].parent / "out"
    clip = shutil.copy(out / "circle-s1-n3.mp4", tmp_path / "circle.mp4")
    with clip.open("ab") as file:
        file.write(b"\0\0\0\x08free")  # as a tag editor leaves it: no frame is another one
    result = invoke("render", clip)
    assert result.exit_code == 0, result.stderr
    assert "circle.mp4 was altered since it was rendered, but shows the same" in result.stderr

    still = shutil.copy(out / "picture-s1-n3.png", tmp_path / "picture.png")
    with Image.open(still) as image:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("comment", image.text["comment"])  # type: ignore[attr-defined]
        image.putpixel((0, 0), (255, 0, 255))
        image.save(still, pnginfo=info)
    result = invoke("render", still)
    assert result.exit_code == 1
    assert "picture.again.png has the same pixels as the record of picture.png" in result.stderr
    assert "the pixels of picture.png differ from its record" in result.stderr
    told = invoke("info", still)
    assert "note             the file has pixels that differ from its record" in told.stdout


def test_other_pixels_come_with_the_conditions_that_differ(
    rendered: tuple[Path, Result], tmp_path: Path
) -> None:
    still = shutil.copy(rendered[0].parent / "out" / "picture-s1-n3.png", tmp_path / "picture.png")
    with Image.open(still) as image:
        document = json.loads(image.text["comment"])  # type: ignore[attr-defined]
        image.putpixel((0, 0), (255, 0, 255))
        document["pixels_sha256"] = pixels_sha256(np.asarray(image)[None])
        document["versions"]["threads"] = "77"
        info = PngImagePlugin.PngInfo()
        info.add_itxt("comment", json.dumps(document))
        image.save(still, pnginfo=info)
    result = invoke("render", still)
    assert result.exit_code == 1, result.stderr
    assert "picture.again.png has other pixels as picture.png" not in result.stderr
    assert "picture.again.png has other pixels than picture.png" in result.stderr
    assert f"threads 77 then and {torch.get_num_threads()} now" in result.stderr


def test_the_document_holds_the_whole_job(rendered: tuple[Path, Result]) -> None:
    document = read_document(rendered[0].parent / "out" / "picture-s1-n3.png")
    assert document is not None
    assert document["job"]["prompt"] == "a white star on a black background"
    assert document["resolved"]["seed"] == 1
    assert document["resolved"]["denoisers"] == "LSL"
    assert set(document["models"]) == {"pipeline", "small"}
    assert {"torch", "diffusers", "flowblend"} <= set(document["versions"])


def test_clips_decode_to_every_frame_at_the_asked_scale(recipe: Any) -> None:
    path = recipe(RECIPE + "\n[output]\nscale = 4\n")
    (first, *_) = of_kind(invoke("render", path, "--json", *ONE), "job_done")
    assert read_native_frames(Path(first["path"])).shape == (17, 256, 256, 3)


def test_seed_zero_draws_a_seed_and_counts_as_done(recipe: Any) -> None:
    path = recipe(RECIPE.replace("seeds = [1, 2]", "seeds = [0]"))
    done = of_kind(invoke("render", path, "--json"), "job_done")[0]
    assert done["seed"] > 0
    again = of_kind(invoke("render", path, "--json"), "job_skipped")
    assert done["seed"] in [event["seed"] for event in again]


def test_sde_repeats_with_its_seed(recipe: Any, tmp_path: Path) -> None:
    path = recipe(RECIPE + '\n[sampling]\nmode = "sde"\n')
    runs = [
        of_kind(invoke("render", path, "--json", "--out", tmp_path / name), "job_done")
        for name in ("one", "two")
    ]
    hashes = [[event["pixels_sha256"] for event in run] for run in runs]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 3


@pytest.mark.parametrize("scheduler", ["unipc", "dpmpp_2m", "heun", "flow_match_euler"])
def test_every_solver_renders_as_planned(recipe: Any, scheduler: str) -> None:
    path = recipe(RECIPE + f'\n[sampling]\nscheduler = "{scheduler}"\nflow_shift = 2.0\n')
    result = invoke("render", path, "--json", *ONE)
    assert [event["denoisers"] for event in of_kind(result, "job_done")] == ["LSL", "LSL"]


def test_a_failing_job_fails_alone(recipe: Any) -> None:
    path = recipe(RECIPE.replace("num_frames = 1", "num_frames = 17\nguidance_scale = 1e38"))
    result = invoke("render", path, "--json")
    assert result.exit_code == 1
    assert len(of_kind(result, "job_done")) == 2
    (failed,) = of_kind(result, "job_failed")
    assert failed["job"].startswith("picture")


def test_a_model_that_isnt_there_is_exit_3_before_any_work(recipe: Any) -> None:
    hub = 'pipeline = "nobody/nothing"\nsmall = "nobody/small"'
    path = recipe(RECIPE.replace('pipeline = "sprites"', hub))
    result = invoke("render", path)
    assert result.exit_code == 3
    assert "nobody/nothing" in result.stderr
    assert not list((path.parent / "out").glob("*.mp4"))


def test_a_second_run_on_the_same_folder_is_refused_at_once(recipe: Any) -> None:
    path = recipe()
    (path.parent / "out").mkdir()
    with FileLock(path.parent / "out" / LOCK_NAME):
        run = subprocess.run(
            [sys.executable, "-m", "flowblend_cli", "render", path],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert run.returncode == 75
    assert "another run" in run.stderr


def test_dry_run_shows_the_plan_and_writes_nothing(recipe: Any) -> None:
    path = recipe()
    result = invoke("render", path, "--dry-run")
    assert result.exit_code == 0
    assert "steps 0 large, 1 small, 2 large" in result.stdout
    assert not (path.parent / "out").exists()


def test_a_bad_recipe_is_exit_2_with_every_problem(recipe: Any) -> None:
    path = recipe(RECIPE.replace("stages", "stagse").replace("seeds = [1, 2]", "seeds = [-1]"))
    result = CliRunner().invoke(main, ["render", str(path)], standalone_mode=True)
    assert result.exit_code == 2
    assert result.stderr.count(f"{path}:") >= 2


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.night)],
)
def test_a_signal_stops_at_the_next_step_and_keeps_what_is_done(
    recipe: Any, number: int, code: int
) -> None:
    path = recipe(RECIPE.replace("num_inference_steps = 3", "num_inference_steps = 400"))
    process = subprocess.Popen(
        [sys.executable, "-m", "flowblend_cli", "render", str(path), "--json",
         "--set", "scene.circle.num_inference_steps=2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if lines[-1]["event"] == "job_started" and lines[-1]["job"].startswith("picture"):
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=60)
    lines += [json.loads(line) for line in rest.splitlines()]
    assert process.returncode == code
    assert [line["event"] for line in lines].count("job_done") == 2
    assert lines[-1]["event"] == "summary"
    assert lines[-1]["rendered"] == 2
    assert not list(path.parent.rglob("*.tmp"))


def test_an_output_folder_that_cant_be_made_is_exit_4(recipe: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", "utf-8")
    result = invoke("render", recipe(), "--out", blocked / "out")
    assert result.exit_code == 4
    assert blocked.read_text("utf-8") == "in the way"


def test_a_file_without_a_document_is_no_recipe(tmp_path: Path) -> None:
    stranger = tmp_path / "holiday.mp4"
    stranger.write_bytes(b"somebody's holiday")
    result = invoke("render", stranger)
    assert result.exit_code == 2
    assert "holds no record of a render" in result.stderr


def test_a_finished_file_is_really_rendered_again_each_time(rendered: tuple[Path, Result]) -> None:
    clip = rendered[0].parent / "out" / "circle-s2-n3.mp4"
    for _ in range(2):
        result = invoke("render", clip, "--json")
        assert [event["event"] for event in events(result)].count("job_done") == 1
    clip.with_name("circle-s2-n3.again.mp4").unlink()


def test_options_that_a_finished_file_cant_take_are_refused(rendered: tuple[Path, Result]) -> None:
    clip = rendered[0].parent / "out" / "circle-s2-n3.mp4"
    for option in (["--dry-run"], ["--gallery"], ["--out", "x"], ["--set", "a=1"]):
        assert invoke("render", clip, *option).exit_code == 2


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_a_device_that_isnt_there_is_exit_5(recipe: Any, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    result = invoke("render", recipe(), "--set", f"model.device={device}")
    assert result.exit_code == 5
    assert f"device '{device}' isn't there" in result.stderr


def test_weights_cut_short_are_a_missing_model_not_a_traceback(recipe: Any) -> None:
    path = recipe(RECIPE.replace('"sprites"', '"./model"'))
    shutil.copytree(SPRITES, path.parent / "model")
    weights = path.parent / "model" / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = invoke("render", path, "--set", "model.small=./model")
    assert result.exit_code == 3
    assert "can't be loaded" in result.stderr


def test_a_run_that_a_limit_stops_counts_what_remains_and_the_next_one_goes_on(
    recipe: Any, tmp_path: Path
) -> None:
    path = recipe()
    first = invoke("render", path, "--json", "--max-jobs", 1, "--gallery")
    done, late = tmp_path / "out" / "circle-s1-n3.mp4", tmp_path / "out" / "circle-s2-n3.mp4"
    assert first.exit_code == 0
    assert [event["path"] for event in of_kind(first, "job_done")] == [str(done)]
    assert of_kind(first, "summary")[0]["remaining"] == 2
    assert "stopped after 1 rendered job (--max-jobs): 2 jobs remain" in first.stderr
    assert not list((tmp_path / "out").glob("contact-sheet*")), "that waits for the other jobs"

    no_time = invoke("render", path, "--json", "--max-time", "0.001")
    assert no_time.exit_code == 0
    assert not of_kind(no_time, "model_loaded")
    summary = of_kind(no_time, "summary")[0]
    assert (summary["skipped"], summary["rendered"], summary["remaining"]) == (1, 0, 2)

    late.write_bytes(b"somebody's")
    failing = invoke("render", path, "--json", "--fail-fast")
    assert failing.exit_code == 1
    summary = of_kind(failing, "summary")[0]
    assert (summary["skipped"], summary["failed"], summary["remaining"]) == (1, 1, 1)
    assert late.read_bytes() == b"somebody's"
