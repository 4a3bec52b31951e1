"""Every recipe that comes with flowblend passes check and plan, as it is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowblend_cli import main
from flowblend_cli.bundled import bundled_recipes

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem != "presets")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_quick_start_and_the_comparison_are_shipped() -> None:
    assert {"quickstart", "paper-ablation"} <= set(SHIPPED)
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


def test_the_quick_start_renders_at_least_six_clips() -> None:
    jobs = json.loads(run("plan", "quickstart", "--json").stdout)["jobs"]

    assert len(jobs) >= 6


def test_the_comparison_holds_the_five_orders_of_the_paper() -> None:
    jobs = json.loads(run("plan", "paper-ablation", "--json").stdout)["jobs"]

    assert len({job["denoisers"] for job in jobs}) >= 5
