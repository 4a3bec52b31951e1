"""Recipes that leave their stages to data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.errors import RecipeError
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.plan import plan_batch
from flowblend_cli.recipe.loader import load_batch
from flowblend_plugin.calibration.calibration import CalibratedStep, Calibration
from flowblend_plugin.schedulers.sigmas import noise_levels

LoadText = Callable[..., Batch]
Problems = Callable[..., list[str]]
RATIO = 0.25
AUTO = """\
[model]
pipeline = "sprites"

[blend]
stages = "auto"
budget = 0.55
calibration = "c.json"
criterion = "contiguous"

[defaults]
num_inference_steps = 10
max_sequence_length = 64

[[scene]]
name = "a"
prompt = "a red circle moving right on a navy background"
"""


def calibration(**conditions: Any) -> Calibration:
    """A pair whose early steps matter most; its errors don't add up to anything else."""
    levels = noise_levels("flow_match_euler", 20, 3.0)
    steps = tuple(
        CalibratedStep(i, level, {"guided_relative_l2": 0.5, "velocity_norm": 1.0,
                                  "acceleration": 1.0, "curvature": 1.0}, {})
        for i, level in enumerate(levels)
    )  # fmt: skip
    gram = tuple(tuple((1.0 / (1 + i)) * (i == j) for j in range(20)) for i in range(20))
    told = {"pipeline": "sprites", "small": "sprites", **conditions}
    return Calibration(told, 1, steps, RATIO, tuple(range(20)), gram, 1, 1.0)


@pytest.fixture
def calibrated(tmp_path: Path) -> Callable[..., Path]:
    def write(**conditions: Any) -> Path:
        path = tmp_path / "c.json"
        path.write_text(json.dumps(calibration(**conditions).to_document()), "utf-8")
        return path

    return write


def planned(batch: Batch) -> list[str]:
    """The denoisers of every job's steps."""
    return [job.denoisers for job in plan_batch(batch).jobs]


def test_auto_chooses_from_the_calibration(
    batch_of: LoadText, calibrated: Callable[..., Path]
) -> None:
    calibrated()
    # (0.55 - 0.25) / 0.75 of ten steps may be large, and the early ones matter most.
    assert planned(batch_of(AUTO)) == ["LLLLSSSSSS"]
    assert planned(batch_of(AUTO, "blend.budget=1.0")) == ["L" * 10]


@settings(max_examples=30, deadline=None)
@given(st.floats(RATIO, 1), st.sampled_from(["best", "free", "contiguous", "complexity"]))
def test_a_budget_is_never_exceeded(
    tmp_path_factory: pytest.TempPathFactory, budget: float, criterion: str
) -> None:
    folder = tmp_path_factory.mktemp("budget")
    (folder / "c.json").write_text(json.dumps(calibration().to_document()), "utf-8")
    (folder / "r.toml").write_text(AUTO, "utf-8")
    options = (f"blend.budget={budget!r}", f'blend.criterion="{criterion}"')
    (letters,) = planned(load_batch(folder / "r.toml", options))
    assert (letters.count("L") + RATIO * letters.count("S")) / 10 <= budget + 1e-9


def test_every_job_gets_stages_for_its_own_steps(
    batch_of: LoadText, calibrated: Callable[..., Path]
) -> None:
    calibrated()
    text = AUTO + '\n[sweep]\nnum_inference_steps = [10, 20]\n"blend.stages" = ["auto", "LSL"]\n'
    batch = batch_of(text.replace("budget", "boundaries = [0.4, 0.8]\nbudget", 1))
    found = {job.job.id: job.denoisers for job in plan_batch(batch).jobs}
    assert [len(letters) for letters in found.values()] == [10, 10, 20, 20]
    assert sum(letters.endswith("LL") for letters in found.values()) == 2
    assert {job.stage_string for job in batch.jobs} == {"auto", "LSL"}


def test_adaptive_keeps_its_budget_in_the_plan(
    batch_of: LoadText, calibrated: Callable[..., Path]
) -> None:
    calibrated()
    text = AUTO.replace('"auto"', '"adaptive"').replace('criterion = "contiguous"\n', "")
    batch = batch_of(text, "blend.threshold=0.2")
    assert planned(batch) == ["LLLSSSSSSL"]
    (job,) = batch.jobs
    assert job.adaptive == 0.2
    assert Job.from_document(json.loads(json.dumps(job.to_document()))) == job
    assert plan_batch(batch).jobs[0].steps.endswith("begin as much earlier")


def test_a_finished_adaptive_clip_says_who_ran(
    tmp_path: Path, calibrated: Callable[..., Path]
) -> None:
    from click.testing import CliRunner

    from flowblend_cli.main import main

    calibrated()
    text = AUTO.replace('"auto"', '"adaptive"').replace('criterion = "contiguous"\n', "")
    (tmp_path / "r.toml").write_text(text.replace("= 10", "= 8"))
    options = ["--set", "blend.threshold=1000.0", "--set", "blend.budget=0.7"]
    result = CliRunner().invoke(main, ["render", str(tmp_path / "r.toml"), *options])
    assert result.exit_code == 0, result.output
    (clip,) = (tmp_path / "out").glob("*.mp4")
    # Four of eight steps may be large: two until there is a change to look at, the others last.
    assert read_document(clip)["resolved"]["denoisers"] == "LLSSSSLL"


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ({"guidance_scale": 7.0, "height": 64}, ["guidance_scale 5.0 (calibrated at 7.0)"]),
        ({"small": "org/other"}, ["small sprites (calibrated at org/other)"]),
        ({"height": 256}, ["height 64 (calibrated at 256)"]),
        ({"height": 80}, []),
    ],
)
def test_other_conditions_are_warned_of(
    batch_of: LoadText,
    calibrated: Callable[..., Path],
    conditions: dict[str, Any],
    told: list[str],
) -> None:
    calibrated(**conditions)
    warnings = batch_of(AUTO).warnings
    assert len(warnings) == len(told)
    assert all(part in warning for part, warning in zip(told, warnings, strict=True))


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("0.55", "0.2"), 6, "a budget of 0.2 can't be kept"),
        (('"c.json"', '"none.json"'), 7, "can't be read"),
        (('"contiguous"', '"guess"'), 8, "criterion"),
        (('stages = "auto"', 'stages = "L"'), 6, "stages that are written out don't read it"),
        (('"auto"', '"adaptive"'), 8, '"adaptive" don\'t read it'),
        (('"auto"', '"Auto"'), 5, "did you mean 'auto'"),
        (('"sprites"', '"qwen-image"'), 5, "write the stages out"),
    ],
)
def test_what_cannot_be_is_said_at_its_line(
    recipe_file: Callable[[str], Path],
    calibrated: Callable[..., Path],
    change: tuple[str, str],
    line: int,
    message: str,
) -> None:
    calibrated()
    path = recipe_file(AUTO.replace(*change))
    with pytest.raises(RecipeError) as caught:
        load_batch(path, ())
    (told,) = [text for text in str(caught.value).splitlines() if message in text]
    assert f":{line}:" in told


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "flowblend calibration"}', "[" * 9999])
def test_a_damaged_calibration_is_refused(
    recipe_file: Callable[[str], Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.json").write_text(text, "utf-8")
    with pytest.raises(RecipeError, match="calibration"):
        load_batch(recipe_file(AUTO), ())


@pytest.mark.parametrize("value", [0, -1, "64", [64], {"a": 1}, None, True])
def test_conditions_that_make_no_sense_break_nothing(
    batch_of: LoadText, calibrated: Callable[..., Path], value: Any
) -> None:
    calibrated(height=value, guidance_scale=value)
    assert len(batch_of(AUTO).jobs) == 1


@pytest.mark.parametrize("name", ["a\\u0000b", "loop.json", "."])
def test_calibrations_that_are_no_files_are_said(
    recipe_file: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(RecipeError, match="can't be read"):
        load_batch(recipe_file(AUTO.replace("c.json", name)), ())


def test_a_recipe_can_be_loaded_for_the_probe_that_its_calibration_comes_from(
    recipe_file: Callable[[str], Path],
) -> None:
    (job,) = load_batch(recipe_file(AUTO), (), settle=False).jobs
    assert (job.model.small, job.stage_string) == ("sprites", "auto")


def test_what_was_chosen_may_need_no_small_denoiser(
    batch_of: LoadText, calibrated: Callable[..., Path]
) -> None:
    calibrated()
    text = AUTO.replace('pipeline = "sprites"', 'pipeline = "a/b"')
    text += '\n[sampling]\nscheduler = "unipc"\nflow_shift = 3.0\n'
    (job,) = batch_of(text, 'blend.criterion="extrapolated"').jobs
    assert {stage.denoiser for stage in job.stages} == {"large", "extrapolated"}
    with pytest.raises(RecipeError, match="the stages that were chosen use the small denoiser"):
        batch_of(text)


@pytest.mark.parametrize("shift", [0.2, 0.67, 1.32, 1.84])
def test_shifts_that_round_above_one_are_levels_all_the_same(
    batch_of: LoadText, calibrated: Callable[..., Path], shift: float
) -> None:
    calibrated()
    batch = batch_of(AUTO, f"sampling.flow_shift={shift}")
    assert len(planned(batch)[0]) == 10


def test_adaptive_stages_of_one_step_are_all_large(
    batch_of: LoadText, calibrated: Callable[..., Path]
) -> None:
    calibrated()
    text = AUTO.replace('"auto"', '"adaptive"').replace('criterion = "contiguous"\n', "")
    batch = batch_of(text, "blend.budget=1.0", "defaults.num_inference_steps=1")
    assert (planned(batch), batch.jobs[0].adaptive) == (["L"], None)
    with pytest.raises(RecipeError, match="heun asks the denoiser twice"):
        batch_of(text, 'sampling.scheduler="heun"')


def test_a_calibration_beside_the_weights_changes_no_job_key(tmp_path: Path) -> None:
    from flowblend_cli.models.identity import hash_folder

    (tmp_path / "config.json").write_text("{}")
    before = hash_folder(tmp_path)
    (tmp_path / "calibration.json").write_text("{}")
    assert hash_folder(tmp_path) == before
    (tmp_path / "other.json").write_text("{}")
    assert hash_folder(tmp_path) != before


@pytest.mark.parametrize("value", ["abc", [1], {"a": 1}])
def test_a_recorded_threshold_is_a_number(
    batch_of: LoadText, calibrated: Callable[..., Path], value: Any
) -> None:
    from flowblend_cli.errors import DocumentError

    calibrated()
    document = batch_of(AUTO).jobs[0].to_document()
    with pytest.raises(DocumentError, match="adaptive"):
        Job.from_document({**document, "adaptive": value})


def test_another_small_denoiser_than_the_pipelines_own_calibration_knows_is_warned_of(
    batch_of: LoadText,
) -> None:
    text = AUTO.replace('calibration = "c.json"\n', "")
    assert batch_of(text).warnings == ()
    text = text.replace('"sprites"', '"sprites"\nsmall = "a/b"', 1)
    (warning,) = batch_of(text).warnings
    assert "small a/b (calibrated at sprites)" in warning
