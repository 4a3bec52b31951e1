"""A recipe's jobs are divided among shards: all of them, once, evenly, and each for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from flowblend_cli.jobs import MOST_SHARDS, Batch, Shard
from flowblend_cli.models import identity
from flowblend_cli.planning.shards import divide

Load = Callable[..., Batch]
EXPLORE = """
[draft]
steps = 2
keep = 1

[[scene]]
name = "explored"
prompt = "a {red|blue|green|yellow} ring moving left on a navy background"
seeds = "explore 3"
"""


def explored(minimal: str) -> str:
    """A recipe with drafts, and one scene without."""
    return minimal.replace("[model]", 'passes = ["draft", "final"]\n\n[model]', 1) + EXPLORE


def shards(batch: Batch, count: int) -> list[Batch]:
    return [divide(batch, Shard(index, count)) for index in range(1, count + 1)]


def place_of(batch: Batch, count: int) -> dict[str, int]:
    """The shard of each job, by id."""
    parts = shards(batch, count)
    return {job.id: n for n, part in enumerate(parts) for job in (*part.jobs, *part.reserve)}


@pytest.mark.parametrize("text", ["1/1", "1/8", "8/8", " 2/3 ", f"{MOST_SHARDS}/{MOST_SHARDS}"])
def test_a_shard_reads_as_it_is_written(text: str) -> None:
    shard = Shard.parse(text)
    assert str(shard) == text.strip()
    assert shard.slug == text.strip().replace("/", "-of-")


@pytest.mark.parametrize(
    "text",
    ["", "0/4", "5/4", "1", "1/", "/4", "1/0", "-1/4", "1/4/2", "1.0/4", "a/b", "1 / 4", "+1/4",
     "1/10001", "1/99999999999999999999", "٣/٤", "1/4\n5"],
)  # fmt: skip
def test_what_is_no_shard_is_refused_with_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="write I/N"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_each_job_is_in_one_shard_in_the_recipes_order(
    batch_of: Load, minimal: str, count: int
) -> None:
    batch = batch_of(minimal, f"scene.square.seeds={list(range(1, 31))}")
    parts = shards(batch, count)
    assert Counter(job for part in parts for job in part.jobs) == Counter(batch.jobs)
    for part in parts:
        assert list(part.jobs) == [job for job in batch.jobs if job in part.jobs]
        assert part.whole == batch
        assert part.path_of(batch.jobs[0]) == batch.path_of(batch.jobs[0])


def test_shards_are_balanced(batch_of: Load, minimal: str) -> None:
    batch = batch_of(minimal, f"scene.square.seeds={list(range(1, 2001))}")
    sizes = [len(part.jobs) for part in shards(batch, 8)]
    # 250 jobs each, give or take four standard deviations of a fair draw (14.8).
    assert all(abs(size - 250) < 60 for size in sizes)


def test_a_job_keeps_its_shard_when_the_recipe_grows_or_names_change(
    batch_of: Load, minimal: str
) -> None:
    grown = minimal.replace(
        "[[scene]]", '[[scene]]\nname = "first"\nprompt = "a ring"\nseeds = [4, 5]\n\n[[scene]]', 1
    ).replace('name = "square"', 'name = "renamed"')
    before = batch_of(minimal, f"scene.square.seeds={list(range(5, 20))}")
    after = batch_of(grown, f"scene.renamed.seeds={list(range(1, 40))}")
    known = place_of(after, 5)
    for job_id, place in place_of(before, 5).items():
        assert known[job_id.replace("square", "renamed")] == place


def test_a_shard_hangs_on_no_file_of_a_model(
    batch_of: Load, minimal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*_: object) -> None:
        raise AssertionError("a model was looked for")

    batch = batch_of(minimal, "scene.square.seeds=[1,2,3]")
    monkeypatch.setattr(identity, "resolve_model", elsewhere)
    monkeypatch.setattr(identity, "hash_folder", elsewhere)
    jobs = tuple(
        replace(job, model=replace(job.model, pipeline="owner/absent")) for job in batch.jobs
    )
    assert len(place_of(replace(batch, jobs=jobs), 4)) == 3


@pytest.mark.parametrize("count", [2, 5, 16])
def test_drafts_and_their_finals_stay_together(batch_of: Load, minimal: str, count: int) -> None:
    batch = batch_of(explored(minimal))
    assert len(batch.study.selections) == 4
    places = place_of(batch, count)
    for selection in batch.study.selections:
        assert len({places[job] for job in (*selection.drafts, *selection.finals)}) == 1
    parts = shards(batch, count)
    assert Counter(one for part in parts for one in part.study.selections) == Counter(
        batch.study.selections
    )
    for part in parts:
        own = {job.id for job in (*part.jobs, *part.reserve)}
        assert all(own.issuperset(one.drafts) for one in part.study.selections)


def test_a_selection_keeps_its_shard_when_it_gets_more_drafts(batch_of: Load, minimal: str) -> None:
    few = batch_of(explored(minimal))
    many = batch_of(explored(minimal).replace("explore 3", "explore 9"))
    known = place_of(many, 6)
    assert place_of(few, 6).items() <= known.items()


def test_what_follows_from_a_score_stays_with_what_it_is_compared_with(
    batch_of: Load, minimal: str
) -> None:
    swept = (
        minimal
        + "\n[sweep]\nnum_inference_steps = [4, 6, 8]\n"
        + "\n[metrics]\nreference = {num_inference_steps = 8}\n"
    )
    seeds = f"scene.square.seeds={list(range(1, 21))}"
    free = place_of(batch_of(swept, seeds), 8)
    tied = place_of(batch_of(swept + "\n[adapt]\nrounds = 1\n", seeds), 8)
    by_seed = [{tied[f"square-s{s}-n{n}"] for n in (4, 6, 8)} for s in range(1, 21)]
    assert all(len(one) == 1 for one in by_seed)
    assert any(len({free[f"square-s{s}-n{n}"] for n in (4, 6, 8)}) > 1 for s in range(1, 21))
