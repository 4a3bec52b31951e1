"""Stages with steps and solvers of their own in recipes: what plan says, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.models.solvers import find_solver
from flowblend_cli.planning.flops import cost_plan
from flowblend_cli.planning.plan import plan_batch, summarize
from flowblend_cli.recipe.schema.tables import StageTable
from flowblend_plugin.schedulers.sigmas import join_segments, noise_levels, segments_of
from flowblend_plugin.stages import SOLVERS

LoadText = Callable[..., Batch]
Problems = Callable[..., list[str]]

TWO = """\
[model]
pipeline = "sprites"
small = "sprites"

[[blend.stage]]
denoiser = "large"
steps = 3
until_sigma = 0.7
scheduler = "unipc"

[[blend.stage]]
denoiser = "small"
steps = 2

[[scene]]
name = "a"
prompt = "a red circle moving right on a navy background"
seeds = [1]
"""


def test_a_job_has_the_sum_of_its_stages_steps(batch_of: LoadText) -> None:
    batch = batch_of(TWO)
    (job,) = batch.jobs
    assert job.num_inference_steps == 5
    assert job.id == "a-s1-n5"
    assert Job.from_document(job.to_document()) == job
    assert [stage.get("steps") for stage in job.to_document()["stages"]] == [3, 2]
    assert batch.warnings == ()


def test_the_plan_names_the_solver_of_each_stage(batch_of: LoadText) -> None:
    plan = plan_batch(batch_of(TWO))
    assert plan.jobs[0].steps == "steps 0-2 large (unipc), 3-4 small"
    assert plan.jobs[0].denoisers == "LLLSS"
    assert summarize(plan.totals()) == "5 steps: 3 large, 2 small"
    (cost,) = cost_plan(plan)
    assert cost.forwards == {"large": 6, "small": 4}


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("[defaults]\nnum_inference_steps = 40\n\n[[scene]]", 16),
        ('[[scene]]\npreset = "walking"', 16),
        ("[[scene]]\nnum_inference_steps = 7", 16),
        ("[sweep]\nnum_inference_steps = [5, 6]\n\n[[scene]]", 16),
    ],
)
def test_another_number_of_steps_is_an_error_that_says_so(
    problems_of: Problems, where: str, line: int
) -> None:
    problems = problems_of(TWO.replace("[[scene]]", where))
    assert len([p for p in problems if "3 + 2 = 5 of their own" in p]) == 1
    assert "leave num_inference_steps out here" in "".join(problems)
    assert problems[0].startswith(f"recipe.toml:{line}:")


def test_the_same_number_of_steps_may_be_written_out(batch_of: LoadText) -> None:
    text = TWO.replace("[[scene]]", "[defaults]\nnum_inference_steps = 5\n\n[[scene]]")
    assert batch_of(text).jobs[0].num_inference_steps == 5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("until_sigma = 0.7\n", "", "stage 1 has steps of its own, so it needs until_sigma"),
        ("until_sigma = 0.7", "until_sigma = 0.0001", "noise levels must descend"),
        ("steps = 2", "", "stage 2 has no steps and others have"),
        ("[[scene]]", '[sampling]\nscheduler = "heun"\n\n[[scene]]', "scheduler 'heun': choose"),
        ('scheduler = "unipc"', 'scheduler = "heun"', "scheduler"),
        ('pipeline = "sprites"', 'pipeline = "ltx-video"', "leave steps out, and give boundaries"),
    ],
)
def test_stages_that_make_no_two_phases_are_faults_of_the_recipe(
    problems_of: Problems, old: str, new: str, says: str
) -> None:
    assert says in "\n".join(problems_of(TWO.replace(old, new, 1)))


def test_whole_lists_of_stages_are_swept(batch_of: LoadText) -> None:
    head, _, rest = TWO.partition("[[blend.stage]]")
    scene = rest[rest.index("[[scene]]") :]
    swept = """[sweep]
"blend.stage" = [
  [{ denoiser = "large", steps = 3, until_sigma = 0.7 }, { denoiser = "large", steps = 2 }],
  [{ denoiser = "large", steps = 4, until_sigma = 0.6 }, { denoiser = "large", steps = 4 }],
]

"""
    assert [job.num_inference_steps for job in batch_of(head + swept + scene).jobs] == [5, 8]


def test_levels_told_offline_are_those_that_the_pipeline_runs(batch_of: LoadText) -> None:
    torch.set_num_threads(1)
    text = TWO.replace("[[scene]]", "[sampling]\nsigma_max = 80.0\n\n[[scene]]")
    (job,) = batch_of(text).jobs
    seen: list[Any] = []
    runtime = PipelineRuntime(resolve_models(job.model, Path.cwd()))

    def note(index: int, role: str) -> None:
        seen.append(runtime._pipe.scheduler.timesteps.tolist())

    runtime.sample(job, 1, note)
    solver = find_solver("sprites", job.sampling, Path.cwd())
    grid = join_segments(segments_of(job.stages, solver.name), solver.flow_shift, solver.start)
    assert seen[0] == list(grid.timesteps)
    assert grid.sigmas[0] == 80 / 81


def test_sigma_max_moves_the_levels_of_stages_that_end_at_some(batch_of: LoadText) -> None:
    text = TWO.partition("[[blend.stage]]")[0] + """[blend]
stages = "LS"
boundary_sigmas = [0.9]

[sampling]
sigma_max = 4.0

[defaults]
num_inference_steps = 6

""" + TWO[TWO.index("[[scene]]") :]  # fmt: skip
    assert plan_batch(batch_of(text)).jobs[0].denoisers == "SSSSSS"
    assert noise_levels("unipc", 6, 3.0, 0.8)[0] == 0.8
    assert plan_batch(batch_of(text, "sampling.sigma_max=200")).jobs[0].denoisers == "LLSSSS"


def test_recipes_know_the_solvers_of_stages() -> None:
    annotation = StageTable.model_fields["scheduler"].annotation
    assert {name for part in get_args(annotation) for name in get_args(part)} == set(SOLVERS)
