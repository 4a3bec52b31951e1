"""JobQueue: which job comes next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_cli.engine.job_queue import JobQueue
from flowblend_cli.jobs import Job, Origin
from tests.rendered import a_job


def job(name: str, pipeline: str = "a") -> Job:
    made = replace(a_job(), id=name)
    return replace(made, model=replace(made.model, pipeline=pipeline))


def drain(queue: JobQueue) -> list[str]:
    return [queue.take().id for _ in range(len(queue))]


def test_jobs_come_in_their_order_and_one_that_is_put_back_comes_first() -> None:
    queue = JobQueue()
    queue.add(map(job, "abc"))
    first = queue.take()
    queue.add([job("d")])
    queue.put_back(first)
    assert len(queue) == 4
    assert drain(queue) == ["a", "b", "c", "d"]
    assert not queue
    with pytest.raises(IndexError):
        queue.take()


def test_a_job_of_loaded_models_comes_first_where_one_waits() -> None:
    queue = JobQueue()
    queue.add([job("1", "a"), job("2", "b"), job("3", "a"), job("4", "b")])
    b, c = job("x", "b").model, job("x", "c").model
    assert [queue.take([b]).id for _ in range(3)] == ["2", "4", "1"]
    assert queue.take([c]).id == "3"


def test_the_longest_come_first_and_drafts_before_finals() -> None:
    amounts = {"short": 1.0, "long": 9.0, "draft": 0.5, "middle": 3.0}
    queue = JobQueue(lambda one: amounts[one.id])
    draft = replace(job("draft"), origin=Origin("draft", "", ""))
    queue.add([job("short"), job("long"), job("middle"), draft])
    assert drain(queue) == ["draft", "long", "middle", "short"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30),
    st.sets(st.integers(0, 29)),
)
def test_what_is_dropped_never_comes_and_everything_else_once(
    jobs: list[tuple[str, int]], dropped: set[int]
) -> None:
    queue = JobQueue(lambda one: one.seed)
    queue.add(replace(job(str(n), pipeline), seed=seed) for n, (pipeline, seed) in enumerate(jobs))
    queue.drop({str(n) for n in dropped})
    assert len(queue) == len(jobs) - len(dropped & set(range(len(jobs))))
    came = drain(queue)
    assert sorted(map(int, came)) == sorted(set(range(len(jobs))) - dropped)
    seeds = [jobs[int(one)][1] for one in came]
    assert seeds == sorted(seeds, reverse=True)
