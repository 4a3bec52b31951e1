"""divide: the part of a batch that one of several runs renders, none of which waits for another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flowblend_cli.jobs import Batch, Shard, references
from flowblend_cli.models.identity import recipe_key


def divide(batch: Batch, shard: Shard) -> Batch:
    """Take the jobs of one shard out of a batch.

    A job belongs to the shard that the hash of what its recipe says of it falls to, its name left
    out. So shards have about equally many jobs, and a job keeps its shard whatever else the recipe
    gets; jobs that are chosen among, and what follows from them, stay in one.

    Args:
        batch: The whole batch.
        shard: Which part of it.

    Returns:
        A batch of its own, with ``whole`` behind it; empty where no job falls to the shard.
    """
    leaders = _leaders(batch)
    jobs = {job.id: job for job in (*batch.jobs, *batch.reserve)}
    places: dict[str, int] = {}
    for job_id in jobs:
        leader = leaders.get(job_id, job_id)
        if leader not in places:
            places[leader] = int(recipe_key(jobs[leader])[:16], 16) % shard.count + 1
        places[job_id] = places[leader]
    selections = batch.study.selections
    mine = tuple(one for one in selections if places[one.drafts[0]] == shard.index)
    return replace(
        batch,
        jobs=tuple(job for job in batch.jobs if places[job.id] == shard.index),
        reserve=tuple(job for job in batch.reserve if places[job.id] == shard.index),
        study=replace(batch.study, selections=mine),
        shard=shard,
        undivided=batch,
    )


def _leaders(batch: Batch) -> dict[str, str]:
    """Of each job that has to stay with others, the first of these, which decides for all."""
    order = {job.id: n for n, job in enumerate((*batch.jobs, *batch.reserve))}
    above: dict[str, str] = {}

    def leader_of(job: str) -> str:
        while job in above:
            job = above[job]
        return job

    for one, other in _ties(batch):
        first, second = sorted((leader_of(one), leader_of(other)), key=order.__getitem__)
        if first != second:
            above[second] = first
    return {job: leader_of(job) for job in above}


def _ties(batch: Batch) -> Iterator[tuple[str, str]]:
    """Pairs of jobs of which one decides what becomes of the other."""
    study = batch.study
    for selection in study.selections:
        for job in (*selection.drafts, *selection.finals):
            yield selection.drafts[0], job
    if study.selections or study.adapt:  # what follows from a score needs what it is compared with
        for job, reference in references(batch).items():
            yield reference.id, job
