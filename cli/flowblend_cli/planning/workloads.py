"""Works: the FLOPs or pixels of each job's steps, by which its seconds are estimated."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flowblend_cli.jobs import Batch, Job, ModelSpec
from flowblend_cli.planning.estimates import REST, Task, Work
from flowblend_cli.planning.flops import Cost, cost_plan
from flowblend_cli.planning.plan import plan_batch
from flowblend_plugin.errors import FlowBlendError
from flowblend_plugin.stages import LETTERS

_SIZES = ("height", "width", "num_frames")


def works_of(batch: Batch, *, by_flops: bool = True) -> dict[str, Work]:
    """Tell what each job of a batch, and each that may follow from it, asks for.

    Steps are told in FLOPs where all of the batch were counted before, as ``flowblend plan`` does;
    else, since a render doesn't wait for that, in pixels times forwards.

    Args:
        batch: The batch.
        by_flops: Whether FLOPs may be used where they are known.

    Returns:
        The work of each job by its id; empty where it can't be told.
    """
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in (*batch.jobs, *batch.reserve):
        has = (job.negative_prompt is None, job.image is None, job.output.scale)
        key = (job.model, job.stages, job.sampling, job.arguments, job.adaptive, *has)
        groups.setdefault(key, []).append(job)
    try:
        plan = plan_batch(replace(batch, jobs=tuple(jobs[0] for jobs in groups.values())))
        costs = cost_plan(plan, known_only=True)
    except FlowBlendError:
        return {}
    counted = by_flops and all(cost.counts for cost in costs)
    repeats = batch.study.time_repeats
    works = {}
    for jobs, planned, cost in zip(groups.values(), plan.jobs, costs, strict=True):
        work = _work(jobs[0], planned.denoisers, cost, counted=counted, repeats=repeats)
        works.update(dict.fromkeys((job.id for job in jobs), work))
    return works


def _work(job: Job, denoisers: str, cost: Cost, *, counted: bool, repeats: int) -> Work:
    pixels = math.prod(float(job.argument(name, 1) or 1) for name in _SIZES)
    unit = "FLOPs" if counted else "pixels"
    model = f"{_words(job.model)} {unit}"
    tasks = {}
    for letter, steps in Counter(denoisers).items():
        role = LETTERS.get(letter, letter)
        forwards = (cost.forwards or {}).get(role, steps) / steps
        per_forward = (
            cost.counts[role].full if counted and cost.counts and role in cost.counts else pixels
        )
        runs = role in (cost.forwards or {role: steps})
        tasks[letter] = Task(model, role + _settings(job, role), forwards * per_forward * runs)
    rest = Task(model, f"{REST} at scale {job.output.scale}", pixels)
    return Work(tuple(tasks[letter] for letter in denoisers), rest, repeats)


def _words(model: ModelSpec) -> str:
    further = [f"{letter}={name}" for letter, name in model.denoisers]
    parts = (model.pipeline, model.small or "-", model.dtype, model.device, model.offload, *further)
    return " ".join(parts)


def _settings(job: Job, role: str) -> str:
    """What changes a denoiser's seconds, but not its FLOPs."""
    found: Mapping[str, None] = dict.fromkeys(
        json.dumps([stage.to_document().get(name) for name in ("cache", "attention_backend")])
        for stage in job.stages
        if stage.denoiser == role and (stage.cache or stage.attention_backend)
    )
    return "".join(f" {settings}" for settings in found)
