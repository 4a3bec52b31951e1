"""Which job is the reference of which others. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flowblend_cli.jobs import Batch, Job, freeze

# A repeat of the noise isn't another variant: its reference may have none of its own.
_MAY_DIFFER = "sampling.noise_seed"
# Axes that leave nothing in a job but the stages that came of them.
OF_STAGES = tuple(
    f"blend.{key}"
    for key in ("stage", "budget", "calibration", "criterion", "max_stages", "threshold")
)


def axis_value(job: Job, axis: str) -> Any:
    """What a job has on an axis of a sweep; None where a job can't tell.

    Args:
        job: The job.
        axis: A dotted key as in a recipe; a bare one is a key of ``[defaults]``.
    """
    table, _, key = axis.rpartition(".")
    if table in ("sampling", "output", "model"):
        return freeze(getattr(getattr(job, table), key, None))
    if table == "blend":
        values = {
            "stages": job.stage_string,
            "boundaries": tuple(stage.until for stage in job.stages[:-1]),
            "boundary_sigmas": tuple(stage.until_sigma for stage in job.stages[:-1]),
        }
        return values.get(key)
    if key in ("seed", "negative_prompt"):
        return getattr(job, key)
    return freeze(job.argument(key))


def references(batch: Batch) -> dict[str, Job]:
    """The reference of each job that has one, by the job's id.

    A reference has the values that the study names, and everything else as the job that is
    compared with it: scene, prompt, seed, and the other axes of the sweep. Jobs that draw their
    seed have none, since their noise differs.
    """
    wanted = batch.study.measure.reference
    if not wanted:
        return {}
    jobs = [job for job in (*batch.jobs, *batch.reserve) if job.seed]
    others = [axis for axis in batch.study.axes if axis not in dict(wanted)]
    relaxed = [axis for axis in others if axis != _MAY_DIFFER]
    found = [job for job in jobs if all(axis_value(job, a) == freeze(v) for a, v in wanted)]
    known: dict[tuple[Any, ...], Job] = {}
    nearly: dict[tuple[Any, ...], Job] = {}
    for job in found:
        known.setdefault(_place(job, others), job)
        nearly.setdefault(_place(job, relaxed), job)
    ids = {job.id for job in found}
    chosen: dict[str, Job] = {}
    for job in jobs:
        reference = known.get(_place(job, others)) or nearly.get(_place(job, relaxed))
        if reference is not None and job.id not in ids:
            chosen[job.id] = reference
    return chosen


def _place(job: Job, axes: Iterable[str]) -> tuple[Any, ...]:
    kind = job.origin.kind if job.origin is not None else ""
    values = (
        # How stages came about isn't in a job; what came out of it is.
        (job.stages, job.adaptive, job.adapters) if axis in OF_STAGES else axis_value(job, axis)
        for axis in axes
    )
    return (job.scene, job.prompt, job.seed, kind, *values)
