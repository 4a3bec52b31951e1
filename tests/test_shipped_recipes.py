"""Every recipe that comes with flowblend passes check and plan, as it is shipped."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flowblend_cli import main
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.models.registry import known_pairs
from flowblend_cli.planning.plan import plan_batch
from flowblend_cli.recipe.loader import load_batch

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem != "presets")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


PAIRS = ("wan2.1-t2v", "wan2.2-t2v", "wan2.2-i2v", "ltx-video", "qwen-image", "i2vgen-xl")


def test_the_quick_start_the_comparison_and_a_recipe_for_each_pair_are_shipped() -> None:
    assert {"quickstart", "paper-ablation", *PAIRS} <= set(SHIPPED)
    assert set(PAIRS) == set(known_pairs()) - {"sprites"}
    assert set(SHIPPED) == set(bundled_recipes())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_has_no_problem(name: str) -> None:
    result = run("check", name)

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_can_be_planned(name: str) -> None:
    result = run("plan", name, "--json")

    assert result.exit_code == 0, result.output
    jobs = json.loads(result.stdout)["jobs"]
    assert jobs
    for job in jobs:
        assert len(job["denoisers"]) == job["num_inference_steps"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_listed(name: str) -> None:
    assert name in run("recipes", "ls").output


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_of_a_shipped_recipe_passes_check(name: str, tmp_path: Path) -> None:
    copied = run("recipes", "cp", name, str(tmp_path))
    assert copied.exit_code == 0, copied.output

    result = run("check", str(tmp_path / f"{name}.toml"))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", PAIRS)
def test_a_pairs_recipe_takes_its_steps_from_its_defaults(name: str) -> None:
    batch = load_batch(name, ["defaults.num_inference_steps=10"])

    assert {len(entry.denoisers) for entry in plan_batch(batch).jobs} == {10}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pairs_recipe_names_its_pair_and_blends_where_there_is_a_small_model(name: str) -> None:
    job = load_batch(name).jobs[0]
    pair = known_pairs()[name]

    assert (job.model.pipeline, job.model.small) == (name, pair.implied_small)
    assert job.stage_string == ("LSL" if pair.implied_small else "LLL")


@pytest.mark.parametrize("name", PAIRS)
def test_a_pairs_recipe_says_how_to_fetch_its_models(name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text("utf-8")

    assert re.findall(r"flowblend models fetch (\S+)", text) == [name]


def test_the_recipe_of_the_papers_pair_has_the_papers_settings() -> None:
    entry = plan_batch(load_batch("wan2.1-t2v")).jobs[0]

    assert entry.steps == "steps 0-19 large, 20-39 small, 40-49 large"
    arguments = entry.job.pipeline_arguments()
    assert {**arguments, "height": 480, "width": 832, "num_frames": 61} == arguments


def test_the_example_picture_is_what_its_script_draws() -> None:
    path = RECIPES.parent / "scripts/draw_example_image.py"
    spec = importlib.util.spec_from_file_location("draw_example_image", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    shipped = np.asarray(Image.open(script.IMAGE), int)

    assert np.abs(shipped - script.draw()).max() <= 1  # libraries may round an edge differently


def test_the_quick_start_renders_at_least_six_clips() -> None:
    jobs = json.loads(run("plan", "quickstart", "--json").stdout)["jobs"]

    assert len(jobs) >= 6


def test_the_comparison_holds_the_five_orders_of_the_paper() -> None:
    jobs = json.loads(run("plan", "paper-ablation", "--json").stdout)["jobs"]

    assert len({job["denoisers"] for job in jobs}) >= 5
