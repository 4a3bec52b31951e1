"""Plan: who will run which step of which job, told before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.models.solvers import find_solver
from flowblend_cli.study import StepChoice, go_on
from flowblend_cli.text import count, printable, shorten
from flowblend_plugin.errors import StageError
from flowblend_plugin.schedulers.sigmas import noise_levels
from flowblend_plugin.stages import EXTRAPOLATED, LETTERS, letters


@dataclass(frozen=True)
class PlannedJob:
    """One job and its steps.

    Args:
        job: The job.
        path: Absolute path of its final file.
        denoisers: The denoiser of every step as letters, such as ``"LLLLSSSSLL"``.
        steps: The same in words: ``"steps 0-3 large, 4-7 small, 8-9 large"``.
    """

    job: Job
    path: Path
    denoisers: str
    steps: str

    def to_document(self) -> dict[str, Any]:
        """The planned job as plain JSON values."""
        return {
            "job": self.job.id,
            "scene": self.job.scene,
            "prompt": self.job.prompt,
            "negative_prompt": self.job.negative_prompt,
            "seed": self.job.seed,
            "num_inference_steps": self.job.num_inference_steps,
            "stages": self.steps,
            "denoisers": self.denoisers,
            "path": str(self.path),
            "arguments": self.job.pipeline_arguments(),
        }


@dataclass(frozen=True)
class Plan:
    """A whole batch, planned.

    Args:
        batch: The batch.
        jobs: Its jobs with their steps, in order.
        warnings: What is legal, but probably not meant.
    """

    batch: Batch
    jobs: tuple[PlannedJob, ...]
    warnings: tuple[str, ...]

    def totals(self) -> dict[str, int]:
        """Jobs and steps of the batch, and the steps of each denoiser."""
        steps = Counter("".join(job.denoisers for job in self.jobs))
        further = sorted(set(steps) - set(LETTERS))
        return {
            "jobs": len(self.jobs),
            "steps": steps.total(),
            **{
                f"{role}_steps": steps[letter]
                for letter, role in LETTERS.items()
                if role != EXTRAPOLATED or steps[letter]
            },
            **{f"{letter}_steps": steps[letter] for letter in further},
        }

    def opening(self) -> dict[str, Any]:
        """What comes before the jobs in the plan as one versioned JSON object."""
        batch = self.batch
        return {"v": 1, "recipe": batch.recipe_name, "output_dir": str(batch.output_dir)}

    def closing(self) -> dict[str, Any]:
        """What comes after them."""
        return {
            "totals": self.totals(),
            "warnings": list(self.warnings),
            "may_follow": may_follow(self.batch),
        }


def plan_batch(batch: Batch) -> Plan:
    """Plan every job of a batch.

    Raises:
        UsageError: See ``job_noise_levels``.
    """
    known: dict[tuple[Any, ...], tuple[str, str]] = {}
    planned = []
    levels_warnings: dict[str, None] = {}
    for job in batch.jobs:
        key = (job.adaptive, job.stages, job.num_inference_steps, job.sampling, job.model.pipeline)
        if key not in known:
            levels = job_noise_levels(job, batch.source.parent)
            known[key] = _steps_of(job, levels)
            if levels is not None:
                levels_warnings |= dict.fromkeys(job.empty_stages(levels))
        planned.append(PlannedJob(job, batch.path_of(job), *known[key]))
    return Plan(batch, tuple(planned), (*batch.warnings, *levels_warnings))


def job_noise_levels(job: Job, recipe_dir: Path) -> tuple[float, ...] | None:
    """The noise level of each step, worked out without the pipeline; None where none is needed.

    Args:
        job: The job.
        recipe_dir: Folder that the job's model folders are relative to.

    Raises:
        UsageError: They can't be told exactly without the pipeline; a recipe's are checked
            already.
    """
    if not job.schedule.needs_noise_levels:
        return None
    solver = find_solver(job.model.pipeline, job.sampling, recipe_dir)
    steps = job.num_inference_steps
    return noise_levels(solver.name, steps, solver.flow_shift, solver.start)


def plan_job(job: Job, recipe_dir: Path) -> str:
    """The denoiser planned for each step of one job, one letter a step.

    Args:
        job: The job.
        recipe_dir: Folder that the job's model folders are relative to.

    Raises:
        UsageError: See ``job_noise_levels``.
    """
    return _steps_of(job, job_noise_levels(job, recipe_dir))[0]


def _steps_of(job: Job, levels: tuple[float, ...] | None) -> tuple[str, str]:
    steps = job.num_inference_steps
    try:
        denoisers = letters(job.schedule.denoisers(steps, levels))
        told = job.schedule.describe(steps, levels)
        if job.adaptive is not None:
            told += "; the first stage may end earlier, and the last begin as much earlier"
        return denoisers, told
    except StageError as error:
        raise UsageError(f"{job.id}: {error}") from error


def summarize(totals: dict[str, int]) -> str:
    """Write totals in words: ``"300 steps: 180 large, 120 small"``."""
    kinds = {key.removesuffix("_steps"): value for key, value in totals.items() if "_steps" in key}
    parts = ", ".join(f"{steps:,} {kind}" for kind, steps in kinds.items())
    return f"{totals['steps']:,} steps: {parts}"


def explain_steps(choices: Iterable[StepChoice]) -> Iterator[str]:
    """Say of each prompt whose steps were left to its words what they chose."""
    left = [choice for choice in choices if choice.is_auto]
    prompts = Counter(choice.scene for choice in left)
    for choice in left:
        prompt = f" ({shorten(choice.prompt, 40)})" if prompts[choice.scene] > 1 else ""
        yield f"{printable(choice.scene)}{prompt}: {printable(choice.reason)}"


def may_follow(batch: Batch) -> list[str]:
    """What measurements may add to a batch, or drop from it, one sentence each."""
    reserve = explain_reserve(batch)
    return [*announced(batch), *([reserve] if reserve else [])]


def explain_reserve(batch: Batch) -> str | None:
    """Say how many finals follow the drafts of a batch, or None where none waits for that."""
    if not batch.reserve:
        return None
    kept = sum(selection.keep for selection in batch.study.selections)
    return f"{kept:,} of {count(len(batch.reserve), 'final')} will follow: those of the best drafts"


def announced(batch: Batch) -> list[str]:
    """What may follow the jobs of a batch, or keep some of them from being rendered, for plans."""
    lines = [
        f"scene {selection.scene}: after {count(selection.reject_after, 'step')} a look at each of "
        f"{count(len(selection.drafts), 'draft')}; {go_on(selection)} of them go on"
        for selection in batch.study.selections
        if selection.reject_after is not None
    ]
    spec = batch.study.adapt
    if spec is not None and spec.rounds:
        lines.append(
            f"up to {count(spec.rounds, 'further render')} of each clip whose motion is too weak "
            "or jitters will follow"
        )
    return lines
