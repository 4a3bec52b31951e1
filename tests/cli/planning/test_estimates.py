"""Estimates: how long jobs will take, learned from a pretended batch on a clock of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_cli.jobs import Batch
from flowblend_cli.planning.estimates import Estimates, Speeds, Task, Work
from flowblend_cli.planning.workloads import works_of

LARGE = Task("m", "large", 8e9)
SMALL = Task("m", "small", 1e9)
REST = Task("m", "rest", 1e5)
SECONDS = {LARGE: 4.0, SMALL: 1.0, REST: 3.0}


@dataclass
class Batchlet:
    """Jobs that take exactly what ``SECONDS`` says, but the first step of all ten times that."""

    works: dict[str, Work]
    now: float = 100.0
    warm: bool = False
    estimates: Estimates = field(init=False)

    def __post_init__(self) -> None:
        self.estimates = Estimates(self.works, Speeds())
        self.estimates.expect(self.works)
        self.estimates.loaded()

    def render(self, job: str, steps: int | None = None, *, keep: bool = True) -> None:
        work = self.works[job]
        self.estimates.started(job, self.now)
        for index, task in enumerate(work.steps[:steps]):
            self.estimates.step(job, index, self.now)
            self.now += SECONDS[task] * (1 if self.warm else 10)
            self.warm = True
        if steps is None:
            self.now += SECONDS[work.rest]
            self.estimates.ended(job, self.now, rendered=keep)

    def left(self) -> float | None:
        return self.estimates.remaining_s(self.now)


def jobs(*letters: str) -> dict[str, Work]:
    tasks = {"L": LARGE, "S": SMALL}
    return {f"{n}": Work(tuple(tasks[x] for x in text), REST) for n, text in enumerate(letters)}


def test_nothing_is_estimated_before_anything_is_known() -> None:
    batch = Batchlet(jobs("LLSS", "LLSS"))

    assert batch.left() is None
    assert batch.estimates.seconds_of("1") is None


def test_one_job_tells_the_rest_of_its_kind_although_its_first_step_was_slow() -> None:
    batch = Batchlet(jobs(*["LLLLSSSS"] * 5))
    batch.render("0")

    assert batch.left() == pytest.approx(4 * 23.0)
    assert batch.estimates.seconds_of("3") == pytest.approx(23.0)


def test_the_first_decoding_is_no_measure_once_there_was_a_second_one() -> None:
    batch = Batchlet(jobs(*["LLLLSSSS"] * 4))
    SECONDS[REST] = 30.0
    try:
        batch.render("0")
        assert batch.left() == pytest.approx(3 * 50.0)
    finally:
        SECONDS[REST] = 3.0
    batch.render("1")

    assert batch.left() == pytest.approx(2 * 23.0)


def test_other_numbers_of_steps_and_other_stages_follow_from_the_same_steps() -> None:
    batch = Batchlet(jobs("LLLSSS", "S" * 10, "L" * 7))
    batch.render("0")

    assert batch.left() == pytest.approx(10 + 3 + 28 + 3)


def test_a_denoiser_that_never_ran_goes_by_the_flops_of_the_other() -> None:
    batch = Batchlet(jobs("LLLL", "SSSS"))
    batch.render("0")

    assert batch.left() == pytest.approx(4 * SECONDS[LARGE] / 8 + SECONDS[REST])


def test_the_present_job_counts_with_what_it_has_still_to_do() -> None:
    batch = Batchlet(jobs("LLLLSSSS", "LLLLSSSS"))
    batch.render("0")
    batch.render("1", steps=6)

    assert batch.left() == pytest.approx(3 + 1 + 1, abs=1.01)


def test_jobs_under_way_at_once_are_learned_from_by_their_own_steps() -> None:
    batch = Batchlet(jobs("LLLL", "SSSS", "LLSS"))
    estimates, now = batch.estimates, batch.now
    began = {"0": LARGE, "1": SMALL}
    moments = sorted(
        (now + n * SECONDS[task], job, n) for job, task in began.items() for n in range(5)
    )
    for job in began:
        estimates.started(job, now)
    for moment, job, index in moments:
        if index < 4:
            estimates.step(job, index, moment)
    for job, task in began.items():
        estimates.rendered(job, now + 4 * SECONDS[task] + SECONDS[REST])

    assert estimates.seconds_of("2") == pytest.approx(2 * 4 + 2 * 1 + SECONDS[REST])


def test_finished_and_failed_jobs_are_no_longer_waited_for() -> None:
    batch = Batchlet(jobs("LLLL", "LLLL", "LLLL"))
    batch.render("0")
    batch.estimates.ended("1", batch.now, rendered=False)
    batch.render("2", steps=2)
    batch.estimates.ended("2", batch.now, rendered=False)

    assert batch.left() == 0


def test_a_job_that_was_taken_up_in_the_middle_teaches_nothing_wrong() -> None:
    batch = Batchlet(jobs(*["LLLLSSSS"] * 3))
    batch.render("0")
    before = batch.estimates.seconds_of("2")
    batch.estimates.started("1", batch.now)
    batch.estimates.step("1", 6, batch.now)
    batch.estimates.step("1", 7, batch.now + 1)
    batch.estimates.ended("1", batch.now + 4, rendered=True)

    assert batch.estimates.seconds_of("2") == before


def test_jobs_of_one_step_are_learned_as_a_whole() -> None:
    batch = Batchlet(jobs("L", "L", "L"), warm=True)
    batch.render("0")

    assert batch.left() == pytest.approx(2 * 7.0)


def test_a_larger_size_is_known_once_it_ran_although_its_only_step_cannot_be_timed() -> None:
    large = Task("m", "large", 100 * LARGE.amount)
    rest = Task("m", "rest", 10 * REST.amount)
    work = Work((large,), rest)
    SECONDS.update({large: 12.0, rest: 6.0})
    batch = Batchlet({**jobs("L"), "big": work, "more": work}, warm=True)
    batch.render("0")
    batch.render("big")

    assert batch.left() == pytest.approx(18.0)


def test_jobs_that_follow_from_measurements_are_as_long_as_the_others() -> None:
    batch = Batchlet(jobs("LLLL", "LLLL"))
    batch.render("0")
    one = batch.left()
    assert one is not None
    batch.estimates.grow(2)

    assert batch.left() == pytest.approx(3 * one)


def test_what_was_learned_is_known_to_the_next_run() -> None:
    first = Batchlet(jobs("LLLLSSSS", "LLLLSSSS"))
    first.render("0")
    again = Speeds()
    again.recall(json.loads(json.dumps(first.estimates.speeds.to_document())))

    assert again.total(first.works["1"].tasks) == pytest.approx(first.left() or 0)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5), max_leaves=20,
))  # fmt: skip
def test_any_document_may_be_recalled(document: object) -> None:
    speeds = Speeds()
    speeds.recall(document)

    for line in speeds.to_document():
        assert len(line) == 4


@given(
    st.dictionaries(st.floats(1, 1e15), st.floats(0, 1e6), min_size=1, max_size=6),
    st.floats(1, 1e15),
)
def test_an_estimate_is_never_negative_and_agrees_with_what_was_measured(
    seen: dict[float, float], amount: float
) -> None:
    speeds = Speeds()
    for known, seconds in seen.items():
        speeds.note(Task("m", "large", known), seconds)

    found = speeds.seconds(Task("m", "large", amount))
    assert found is not None
    assert found >= 0
    if amount in seen:
        assert found == seen[amount]


def test_work_is_told_by_letters_and_sizes_of_the_jobs(batch_of: Callable[..., Batch]) -> None:
    batch = batch_of()
    (job,) = batch.jobs
    work = works_of(batch)[job.id]

    assert [task.role for task in work.steps] == ["large"] * 4 + ["small"] * 4 + ["large"] * 2
    assert work.steps[0].amount > 0
    assert work.rest.is_rest


@given(
    st.text("LS", min_size=1, max_size=8),
    st.lists(st.integers(0, 7), max_size=12),
)
def test_what_is_to_come_of_a_job_is_its_steps_from_the_present_one_on(
    letters: str, begun: list[int]
) -> None:
    """In any order: a job may begin again, or go on at a step of its own."""
    work = jobs(letters)["0"]
    known = Speeds()
    known.recall([[*task, seconds] for task, seconds in SECONDS.items()])
    estimates = Estimates({"0": work}, known)
    estimates.expect(["0"])
    estimates.started("0", 0.0)
    now, present = 0.0, 0
    for index in begun:
        if index < len(work.steps):
            now += SECONDS[work.steps[present]]
            estimates.step("0", index, now)
            present = index
    to_come = sum(SECONDS[task] for task in work.steps[present:]) + SECONDS[REST]
    assert estimates.remaining_s(now) == pytest.approx(to_come)
