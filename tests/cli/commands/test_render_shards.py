"""``flowblend render --shard I/N``: what it takes, what it refuses, and real shards of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowblend_cli.main import main

RECIPE = """\
[recipe]
name = "shared"
output_dir = "out"
report = true

[model]
pipeline = "sprites"

[blend]
stages = "S"

[defaults]
num_inference_steps = 1
num_frames = 1
max_sequence_length = 64

[metrics]
names = []

[[scene]]
name = "ring"
prompt = "a red ring moving left on a navy background"
seeds = [1, 2, 3, 4, 5]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, "utf-8")
    return path


def render(*words: object) -> Result:
    return CliRunner().invoke(main, ["render", *map(str, words)])


@pytest.mark.parametrize("value", ["0/4", "5/4", "1", "", "two/4", "1/10001"])
def test_what_is_no_shard_is_refused(recipe: Path, value: str) -> None:
    result = render(recipe, "--shard", value)
    assert result.exit_code == 2
    assert "write I/N" in result.stderr
    assert not (recipe.parent / "out").exists()


@pytest.mark.parametrize("option", ["--gallery", "--report"])
def test_what_needs_all_jobs_is_refused(recipe: Path, option: str) -> None:
    result = render(recipe, "--shard", "1/2", option)
    assert result.exit_code == 2
    assert "every shard is done" in result.stderr


def test_the_plan_of_a_shard_is_of_its_own_jobs(recipe: Path) -> None:
    planned = []
    for shard in ("1/2", "2/2"):
        result = render(recipe, "--dry-run", "--json", "--shard", shard)
        planned += [job["job"] for job in json.loads(result.stdout)["jobs"]]
    assert sorted(planned) == [f"ring-s{seed}-n1" for seed in range(1, 6)]
    assert not (recipe.parent / "out").exists()


def test_shards_render_a_recipe_together(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWBLEND_ISOLATE", "0")
    done: list[str] = []
    for shard in ("1/2", "2/2"):
        result = render(recipe, "--json", "--shard", shard)
        assert result.exit_code == 0
        events = [json.loads(line) for line in result.stdout.splitlines()]
        jobs = [one["job"] for one in events if one["event"] == "job_done"]
        summary = events[-1]
        assert (summary["rendered"], summary["skipped"], summary["remaining"]) == (len(jobs), 0, 0)
        assert f"shard {shard}: {len(jobs)} of 5 jobs" in result.stderr
        done += jobs
    assert sorted(done) == [f"ring-s{seed}-n1" for seed in range(1, 6)]
    assert not (recipe.parent / "out" / "report.html").exists()

    result = render(recipe, "--json", "--no-report")
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["skipped"] == 5
    found = CliRunner().invoke(main, ["status", str(recipe.parent / "out"), "--json"])
    (one,) = json.loads(found.stdout)["recipes"]
    assert (one["done"], one["jobs"], one["shards"]) == (5, 5, [])
    file = recipe.parent / "out" / "ring-s1-n1.png"
    result = render(file, "--shard", "1/2")
    assert result.exit_code == 2
    assert "--shard" in result.stderr
