"""ProbePlan: the prompts, seeds and settings that a recipe is probed with; loads no model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowblend_cli import __version__
from flowblend_cli.engine.batch_run import draw_seed
from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.flops import cost_plan
from flowblend_cli.planning.plan import plan_batch
from flowblend_plugin.calibration.calibration import ErrorModel
from flowblend_plugin.calibration.criteria import choose
from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import Stage

_SIZES = ("height", "width", "num_frames", "guidance_scale")


@dataclass(frozen=True)
class ProbePlan:
    """The jobs and conditions of a probe.

    Args:
        jobs: One for each prompt and seed, alike in everything else, with their seeds drawn.
        cost_ratio: Full FLOPs of a small forward relative to a large one.
        conditions: The conditions that the calibration will hold for.
        notes: Notes for the user, such as of settings that are left out.
    """

    jobs: tuple[Job, ...]
    cost_ratio: float
    conditions: dict[str, Any]
    notes: tuple[str, ...] = ()


def prepare(
    batch: Batch,
    prompts: int,
    cost_ratio: float | None = None,
    on_counting: Callable[[int], None] | None = None,
) -> ProbePlan:
    """Choose the jobs and conditions to probe a recipe with.

    Args:
        batch: The recipe's jobs.
        prompts: How many pairs of prompt and seed: the first distinct ones, and where there are
            fewer, further seeds of the same prompts.
        cost_ratio: Cost of a small forward relative to a large one; None counts its FLOPs.
        on_counting: See ``planning.flops.cost_plan``.

    Raises:
        UsageError: The recipe can't be probed; says why, and what to do.
    """
    first = _first_with_small(batch)
    jobs = _probed(first, batch.jobs, prompts)
    ratio = _count_ratio(first, batch, on_counting) if cost_ratio is None else cost_ratio
    if not 0 < ratio <= 1:
        raise UsageError(
            f"a forward of the small denoiser costs {ratio:.3g} times as much as one of the large "
            "one, so that it saves nothing: name the cheaper one in model.small"
        )
    return ProbePlan(jobs, ratio, _conditions(jobs), tuple(_notes(first, batch.jobs)))


def check_budget(cost_ratio: float, steps: int, budget: float, criterion: str) -> None:
    """Check, before hours of measuring, that a budget can be kept.

    Raises:
        UsageError: It can't.
    """
    levels = tuple(1 - step / steps for step in range(steps))
    nothing = (0.0,) * steps
    model = ErrorModel(
        levels, (1 / steps,) * steps, (nothing,) * steps, nothing, nothing, nothing, nothing,
        cost_ratio,
    )  # fmt: skip
    try:
        choose(model, budget, criterion)
    except StageError as error:
        raise UsageError(f"--budget with --criterion {criterion}: {error}") from error


def _first_with_small(batch: Batch) -> Job:
    """The job whose model, size and solver are probed, without what its stages add."""
    for job in batch.jobs:
        if job.model.small is not None:
            return _plain(job)
    raise UsageError(
        f"{batch.recipe_name} names no small denoiser, and a probe compares one with the large "
        'one: set model.small, such as --set "model.small=./folder"'
    )


def _plain(job: Job) -> Job:
    """A job all large, without further denoisers, adapters and what stages set."""
    return replace(
        job,
        stages=(Stage("large"),),
        stage_string="L",
        adapters=(),
        model=replace(job.model, denoisers=()),
    )


def _probed(first: Job, jobs: Sequence[Job], prompts: int) -> tuple[Job, ...]:
    found: dict[tuple[Any, ...], Job] = {}
    for job in itertools.chain(jobs, _further_seeds(jobs)):
        if len(found) == prompts:
            break
        probed = replace(
            first,
            id=job.id,
            scene=job.scene,
            prompt=job.prompt,
            prompt_template=job.prompt_template,
            negative_prompt=job.negative_prompt,
            image=job.image,
            seed=job.seed or draw_seed(),
        )
        found.setdefault((job.prompt, job.image, job.seed), probed)
    return tuple(found.values())


def _further_seeds(jobs: Sequence[Job]) -> Iterator[Job]:
    """The same prompts again with the seeds after their own, without end."""
    drawn = [replace(job, seed=job.seed or draw_seed()) for job in jobs]
    for more in itertools.count(1):
        for job in drawn:
            yield replace(job, seed=job.seed + more)


def _count_ratio(first: Job, batch: Batch, on_counting: Callable[[int], None] | None) -> float:
    all_small = replace(first, stages=(Stage("small"),), stage_string="S")
    (cost,) = cost_plan(plan_batch(replace(batch, jobs=(all_small,))), on_counting)
    if not cost.counts:
        raise UsageError(
            f"what a small step saves can't be counted ({cost.note}): say the cost of a small "
            "forward relative to a large one with --cost-ratio"
        )
    return cost.counts["small"].full / cost.counts["large"].full


def _conditions(jobs: Sequence[Job]) -> dict[str, Any]:
    """Conditions of the calibration, as the recipe has them: None where it leaves a choice."""
    first = jobs[0]
    return {
        "pipeline": first.model.pipeline,
        "small": first.model.small,
        **{name: first.argument(name) for name in _SIZES},
        "scheduler": first.sampling.scheduler,
        "flow_shift": first.sampling.flow_shift,
        "num_inference_steps": first.num_inference_steps,
        "mode": first.sampling.mode,
        "flowblend": __version__,
        "probed": [{"prompt": job.prompt, "seed": job.seed} for job in jobs],
    }


def _notes(first: Job, jobs: Sequence[Job]) -> Iterator[str]:
    plain = [_plain(job) for job in jobs]
    if any(
        (job.model, job.arguments, job.sampling) != (first.model, first.arguments, first.sampling)
        for job in plain
    ):
        yield (
            "the recipe's jobs differ in model, size, steps or solver: all prompts are probed as "
            f"{first.id} has them"
        )
    if any(stage.describe_settings() for job in jobs for stage in job.stages):
        yield (
            "what stages set (guidance, LoRA adapters, caches, attention) is left out: both "
            "denoisers are probed without it"
        )
