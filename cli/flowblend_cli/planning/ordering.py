"""Order: sorts the jobs of a batch so that models are loaded and moved rarely. Pure Python.

No pixel depends on it. Jobs of one model stand together, and in them what others are compared with
comes first. Beyond that the recipe's order stays, unless something in memory changes with a job:
LoRA adapters, and, where models are offloaded, which of them run and on how many pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from flowblend_cli.jobs import Job


def ordered(jobs: Sequence[Job], first: Collection[str] = ()) -> list[Job]:
    """The jobs in an order that loads and moves least, otherwise as they are.

    Args:
        jobs: The jobs in the recipe's order.
        first: Ids of the jobs that others are compared with.

    Returns:
        All of them: those of one model together; of these, the ``first`` ones before the others;
        of these, those with one setup together. What is met first comes first.
    """
    models = _places(job.model for job in sorted(jobs, key=lambda job: job.id not in first))
    setups = {
        is_later: _places(setup(job) for job in jobs if (job.id not in first) is is_later)
        for is_later in (False, True)
    }

    def place(job: Job) -> tuple[int, bool, int]:
        is_later = job.id not in first
        return models[job.model], is_later, setups[is_later][setup(job)]

    return sorted(jobs, key=place)  # a stable sort


def cost(jobs: Sequence[Job]) -> tuple[int, int]:
    """How often, from one job to the next, models are loaded, and how often setups change."""
    return (
        sum(one.model != next_one.model for one, next_one in pairwise(jobs)),
        sum(setup(one) != setup(next_one) for one, next_one in pairwise(jobs)),
    )


def setup(job: Job) -> tuple[Any, ...]:
    """What in memory changes between two jobs of which this differs."""
    adapters = tuple(stage.adapters for stage in job.stages if stage.adapters)
    common = (job.model, job.adapters, adapters)
    if job.model.offload == "none":
        return common
    sides = tuple(job.argument(name) for name in ("height", "width", "num_frames"))
    caches = tuple(stage.cache for stage in job.stages)
    return (*common, tuple(stage.denoiser for stage in job.stages), caches, sides)


def _places(keys: Any) -> dict[Any, int]:
    return {key: place for place, key in enumerate(dict.fromkeys(keys))}
