"""Extrapolated steps in recipes: checked, planned, costed, rendered, recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowblend_cli import main
from flowblend_cli.analysis.gallery.comparison import count_steps
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.commands.info import describe
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.events import captured_events
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.flops import cost_plan, sum_up
from flowblend_cli.planning.plan import plan_batch, plan_job, summarize
from flowblend_plugin.stages import Stage

pytestmark = pytest.mark.usefixtures("any_executor")

LoadText = Callable[..., Batch]
Problems = Callable[..., list[str]]

SHORT = """\
[model]
pipeline = "sprites"

[blend]
stages = "LELES"
boundaries = [0.25, 0.5, 0.625, 0.75]

[defaults]
num_inference_steps = 8
num_frames = 5
max_sequence_length = 32

[[scene]]
name = "a"
prompt = "a red circle moving right on a navy background"
"""
LONG = SHORT.replace(
    'stages = "LELES"\nboundaries = [0.25, 0.5, 0.625, 0.75]\n',
    """\
[[blend.stage]]
denoiser = "large"
until = 0.5

[[blend.stage]]
denoiser = "extrapolated"
""",
).replace("[blend]\n", "")


def test_a_letter_makes_steps_that_no_denoiser_runs(batch_of: LoadText) -> None:
    plan = plan_batch(batch_of(SHORT))

    assert plan.jobs[0].denoisers == "LLEELESS"
    assert plan.jobs[0].steps == (
        "steps 0-1 large, 2-3 extrapolated, 4 large, 5 extrapolated, 6-7 small"
    )
    assert plan.totals()["extrapolated_steps"] == 3
    assert summarize(plan.totals()) == "8 steps: 3 large, 2 small, 3 extrapolated"


def test_without_such_steps_the_totals_dont_speak_of_them(batch_of: LoadText) -> None:
    assert "extrapolated_steps" not in plan_batch(batch_of()).totals()


@pytest.mark.parametrize("name", ["extrapolated", "E"])
def test_the_long_form_names_them_too(batch_of: LoadText, name: str) -> None:
    (job,) = batch_of(LONG.replace('"extrapolated"', f'"{name}"')).jobs

    assert job.stages == (Stage("large", until=0.5), Stage("extrapolated"))
    assert job.stage_string == "LE"
    assert Job.from_document(json.loads(json.dumps(job.to_document()))) == job


def test_a_pair_without_a_small_denoiser_can_have_them(batch_of: LoadText) -> None:
    text = SHORT.replace('"sprites"', '"qwen-image"').replace("num_frames = 5\n", "")
    (job,) = batch_of(text.replace("LELES", "LELEL")).jobs

    assert job.model.small is None
    assert plan_job(job, Path()) == "LLEELELL"


def test_they_cost_nothing_and_the_same_job_all_large_pays_for_them(batch_of: LoadText) -> None:
    (blended,) = cost_plan(plan_batch(batch_of(SHORT)))
    (large,) = cost_plan(plan_batch(batch_of(SHORT.replace("LELES", "LLLLL"))))

    assert blended.forwards == {"large": 6, "small": 4}
    assert blended.saved == 6
    for convention in ("linear_only", "full"):
        assert blended.all_large(convention) == large.total(convention)
        assert 0 < blended.total(convention) < large.total(convention) / 2
    assert set(sum_up([blended]) or {}) == set(sum_up([large]) or {})


def test_they_are_rendered_recorded_and_read_back(batch_of: LoadText) -> None:
    batch = batch_of(SHORT)
    (job,) = batch.jobs

    assert BatchRun(batch, captured_events()).run() == 0
    document = read_document(batch.path_of(job)) or {}
    assert document["resolved"]["denoisers"] == "LLEELESS"
    assert set(document["models"]) == {"pipeline", "small"}
    told = dict(describe(document))["denoisers"]
    assert told == plan_batch(batch).jobs[0].steps


def test_a_gallery_counts_them() -> None:
    assert count_steps("LLEELESS") == "  3 large,   2 small,   3 extrapolated steps"
    assert count_steps("LLSS") == "  2 large,   2 small steps"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("blend.stages=ELELS", "blend.stages: the first stage can't be extrapolated, because"),
        ("blend.boundaries=[0.0, 0.5, 0.6, 0.7]", "blend.stages: scene 'a': at 8 steps the first"),
        ("defaults.num_inference_steps=1", "blend.stages: scene 'a': at 1 steps the first one"),
    ],
)
def test_what_has_nothing_to_go_by_is_refused(
    problems_of: Problems, option: str, message: str
) -> None:
    (problem,) = problems_of(SHORT, option)

    assert message in problem
    assert problem.startswith("recipe.toml:5:10: ")


def test_noise_levels_are_looked_at_too(problems_of: Problems, batch_of: LoadText) -> None:
    text = SHORT.replace(
        "boundaries = [0.25, 0.5, 0.625, 0.75]", "boundary_sigmas = [1.0, 0.8, 0.7, 0.6]"
    )
    assert plan_batch(batch_of(text)).jobs[0].denoisers.startswith("LE")
    # UniPC's first step lies below 1.
    (problem,) = problems_of(text + '\n[sampling]\nscheduler = "unipc"\n')

    assert "at 8 steps the first one falls into stage 2 of LELES" in problem


def test_a_solver_that_asks_twice_a_step_is_refused(problems_of: Problems) -> None:
    (problem,) = problems_of(SHORT + '\n[sampling]\nscheduler = "heun"\n')

    assert problem.startswith("recipe.toml:18:13: sampling.scheduler: 'heun' asks the denoiser")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("guidance_scale = 3.0", "guidance_scale"),
        ('cache = "first_block"', "cache"),
        ('attention_backend = "native"', "attention_backend"),
        ('adapters = [{ name = "style" }]', "adapters"),
    ],
)
def test_what_such_a_stage_sets_is_refused_at_its_line(
    problems_of: Problems, setting: str, key: str
) -> None:
    found = problems_of(LONG.replace('"extrapolated"\n', f'"extrapolated"\n{setting}\n'))

    (problem,) = [one for one in found if "no file of a LoRA" not in one and "'style'" not in one]
    assert problem.startswith(f"recipe.toml:10:1: blend.stage[1].{key}: no denoiser runs a stage")


def test_a_first_table_that_is_extrapolated_is_refused_at_its_line(problems_of: Problems) -> None:
    (problem,) = problems_of(LONG.replace('"large"', '"extrapolated"'))

    assert problem.startswith("recipe.toml:5:12: blend.stage[0].denoiser: the first stage can't be")


def test_plan_shows_them_in_words(recipe_file: Callable[[str], Path]) -> None:
    result = CliRunner().invoke(main, ["plan", str(recipe_file(SHORT))])

    assert result.exit_code == 0
    assert result.stdout.endswith("1 job, 8 steps: 3 large, 2 small, 3 extrapolated\n")
