from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

from flowblend_cli import main
from flowblend_cli.jobs import Batch
from flowblend_cli.planning.plan import plan_batch

Load = Callable[..., Batch]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_a_plan_tells_each_jobs_steps_in_plain_words(recipe_file: Callable[[], Path]) -> None:
    result = run("plan", str(recipe_file()))

    assert result.exit_code == 0
    assert "  square-s1-n10\n" in result.stdout
    assert "    a red square moving left on a navy background\n" in result.stdout
    assert "    steps 0-3 large, 4-7 small, 8-9 large\n" in result.stdout
    assert result.stdout.endswith("1 job, 10 steps: 6 large, 4 small\n")


def test_a_plan_as_json_is_one_object(recipe_file: Callable[[], Path], tmp_path: Path) -> None:
    result = run("plan", str(recipe_file()), "--json")

    document = json.loads(result.stdout)
    assert document["v"] == 1
    assert document["totals"] == {"jobs": 1, "steps": 10, "large_steps": 6, "small_steps": 4}
    (job,) = document["jobs"]
    expected = {
        "job": "square-s1-n10",
        "scene": "square",
        "prompt": "a red square moving left on a navy background",
        "negative_prompt": None,
        "seed": 1,
        "num_inference_steps": 10,
        "stages": "steps 0-3 large, 4-7 small, 8-9 large",
        "denoisers": "LLLLSSSSLL",
        "path": str(tmp_path / "out" / "square-s1-n10.mp4"),
        "arguments": {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 10},
    }
    assert {key: job[key] for key in expected} == expected


def test_a_stage_without_a_step_is_planned_and_warned_about(
    recipe_file: Callable[[], Path],
) -> None:
    result = run("plan", str(recipe_file()), "--set", "defaults.num_inference_steps=1")

    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: stage 1 of LSL (large) gets no step at num_inference_steps = 1 (1 job)",
        "warning: stage 3 of LSL (large) gets no step at num_inference_steps = 1 (1 job)",
    ]


def test_boundaries_in_sigma_follow_the_shift_of_the_noise_levels(
    batch_of: Load, minimal: str
) -> None:
    text = minimal.replace("boundaries = [0.4, 0.8]", "boundary_sigmas = [0.9, 0.5]")

    def planned(*options: str) -> str:
        return plan_batch(batch_of(text, *options)).jobs[0].denoisers

    assert planned() == planned("sampling.flow_shift=3.0", "sampling.scheduler=flow_match_euler")
    assert planned().index("S") < planned("sampling.flow_shift=7.0").index("S")


def test_an_empty_stage_between_sigmas_is_warned_about(batch_of: Load, minimal: str) -> None:
    text = minimal.replace("boundaries = [0.4, 0.8]", "boundary_sigmas = [0.9, 0.9]")

    (warning,) = plan_batch(batch_of(text)).warnings

    assert warning.startswith("stage 2 of LSL (small) gets no step")


def test_sigmas_of_an_unknown_pipeline_are_planned_by_the_scheduler_and_shift_it_is_given(
    batch_of: Load, minimal: str
) -> None:
    sigmas = minimal.replace("boundaries = [0.4, 0.8]", "boundary_sigmas = [0.9, 0.5]")
    unknown = sigmas.replace('pipeline = "sprites"', 'pipeline = "a/b"\nsmall = "c/d"')
    options = ["sampling.scheduler=unipc", "sampling.flow_shift=7.0"]

    known, other = (plan_batch(batch_of(text, *options)) for text in (sigmas, unknown))

    assert known.jobs[0].denoisers == other.jobs[0].denoisers
    assert known.jobs[0].denoisers.index("S") > 1


def test_check_counts_the_jobs_of_each_recipe(
    recipe_file: Callable[[], Path],
) -> None:
    path = recipe_file()

    result = run("check", "quickstart", str(path))

    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["OK quickstart: 8 jobs", f"OK {path}: 1 job"]


def test_check_reports_good_and_bad_recipes_together_as_json(
    recipe_file: Callable[[str], Path], minimal: str
) -> None:
    path = recipe_file(minimal.replace("= 10", "= 0"))

    result = run("check", "quickstart", str(path), "--json")

    assert result.exit_code == 2
    good, bad = json.loads(result.stdout)["recipes"]
    steps = good.pop("steps")
    assert {(each["steps"], each["reason"]) for each in steps} == {(50, "from [defaults]")}
    assert good == {"path": "quickstart", "ok": True, "jobs": 8, "warnings": [], "problems": []}
    assert bad["problems"] == [
        {
            "path": str(path),
            "line": 12,
            "column": 23,
            "location": "defaults.num_inference_steps",
            "message": "must be at least 1, got 0",
        }
    ]


def test_the_schema_describes_every_table_and_argument() -> None:
    schema = json.loads(run("schema").stdout)

    assert set(schema["properties"]) == {
        "recipe", "model", "blend", "sampling", "defaults", "presets", "scene", "sweep", "output",
        "metrics", "score", "adapt", "draft", "review", "include", "matrix", "run",
    }  # fmt: skip
    scene = schema["$defs"]["SceneTable"]
    assert scene["additionalProperties"] is False
    assert scene["properties"]["num_inference_steps"]["minimum"] == 1
    alone, with_include = schema["anyOf"]
    assert alone["required"] == ["model", "scene"]
    assert alone["properties"]["scene"]["items"] == {
        "required": ["name"],
        "anyOf": [{"required": ["prompt"]}, {"required": ["prompts_file"]}],
    }
    assert with_include["required"] == ["include"]


def test_a_bundled_recipe_is_copied_once_and_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"

    assert run("recipes", "cp", "quickstart", str(target)).exit_code == 0
    again = run("recipes", "cp", "quickstart", str(target))
    into_folder = run("recipes", "cp", "quickstart", str(tmp_path))

    assert again.exit_code == 2
    assert "exists already and isn't overwritten" in again.stderr
    assert into_folder.exit_code == 0
    assert run("check", str(target), str(tmp_path / "quickstart.toml")).exit_code == 0


def test_copying_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    result = run("recipes", "cp", "quickstrat", str(tmp_path))

    assert result.exit_code == 2
    assert "paper-ablation, quickstart" in result.stderr
