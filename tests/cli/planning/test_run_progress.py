"""RunProgress: its counts and the time left, from pretended runs on a clock of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from flowblend_cli.events import (
    Event,
    JobAssigned,
    JobDone,
    JobDropped,
    JobFailed,
    JobRendered,
    JobReturned,
    JobsAdded,
    JobSkipped,
    JobStarted,
    Message,
    ModelLoaded,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    Waiting,
)
from flowblend_cli.jobs import Batch
from flowblend_cli.planning import run_progress
from flowblend_cli.planning.estimates import Work
from flowblend_cli.planning.run_progress import RunProgress
from tests.rendered import a_job

STEPS = 4
STEP_S = 2.0
JOB_S = STEPS * STEP_S


class Run:
    """Jobs of four steps of 2 s each, which are told of as an executor tells of them.

    Args:
        jobs: How many jobs the batch has: ``job1``, ``job2``, and so on.
        slots: How many may be under way at once.
        finished: How many have a file from the start.
        learned: The speeds that an earlier run learned.
    """

    def __init__(
        self, jobs: int = 4, slots: int = 1, finished: int = 0, learned: object = None
    ) -> None:
        self.now = 50.0
        self.names = [f"job{number}" for number in range(1, jobs + 1)]
        made = tuple(a_job(name, steps=STEPS) for name in self.names)
        batch = Batch("study", Path("out"), made, (), Path("study.toml"))
        self.progress = RunProgress(batch, lambda: self.now)
        self.progress.recall(learned)
        self.tell(RunStarted(jobs, tuple(self.names[finished:]), slots))

    def tell(self, *events: Event) -> None:
        for event in events:
            self.progress(event)

    def start(self, job: str, resumed_at: int = 0) -> None:
        self.tell(JobAssigned(job))
        self.tell(JobStarted(job, "s", 1, STEPS, "L" * STEPS, "p", resumed_at))

    def step(self, job: str, index: int) -> None:
        """Tell that a step begins, and let its time pass."""
        self.tell(StepStarted(job, index, STEPS, "large"))
        self.now += STEP_S

    def render(self, job: str, steps: Iterable[int] = range(STEPS)) -> None:
        self.start(job)
        for index in steps:
            self.step(job, index)
        self.tell(JobRendered(job), done(job))


def done(job: str) -> JobDone:
    return JobDone(job, "s", 1, STEPS, f"/out/{job}", JOB_S, "L" * STEPS, 1, None, "ab")


@pytest.fixture
def no_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(batch: Batch) -> dict[str, Work]:
        raise AssertionError("somebody asks how long the jobs of a finished batch take")

    monkeypatch.setattr(run_progress, "works_of", asked)


def test_jobs_are_counted_by_how_they_ended() -> None:
    run = Run(jobs=5)
    run.render("job1")
    run.tell(JobSkipped("job2", "s", 1, "/out/job2"))
    run.tell(JobFailed("job3", "s", 1, "out of paint"))
    run.tell(JobDropped("job4", "s", 1, "no promise", 0.1))
    progress = run.progress

    assert (progress.rendered, progress.skipped, progress.failed) == (1, 1, 1)
    assert progress.dropped == ["job4"]
    assert progress.done == {"job1", "job2"}
    assert (progress.ended, progress.remaining, progress.total) == (4, 1, 5)


def test_jobs_that_measurements_add_are_counted_like_the_others() -> None:
    run = Run(jobs=1)
    run.render("job1")
    run.tell(JobsAdded(2))
    assert (run.progress.total, run.progress.added, run.progress.remaining) == (3, 2, 2)

    run.render("job1-adapt1")
    assert (run.progress.ended, run.progress.remaining) == (2, 1)


def test_a_job_that_is_told_of_twice_is_over_once() -> None:
    run = Run(jobs=2)
    for _ in range(2):
        run.tell(JobFailed("job1", "s", 1, "out of paint"))

    assert (run.progress.ended, run.progress.remaining) == (1, 1)


def test_what_is_only_said_counts_for_nothing() -> None:
    run = Run(jobs=2)
    run.tell(Message("a hint"), Waiting("a look"), Summary(9, 9, 9, 1.0, 9))

    assert (run.progress.ended, run.progress.remaining) == (0, 2)
    assert run.progress.left_s() is None


def test_several_jobs_are_under_way_at_once_each_at_its_own_step() -> None:
    run = Run(jobs=4, slots=3)
    for number, name in enumerate(run.names[:3], 1):
        run.start(name)
        for index in range(number):
            run.step(name, index)
    run.tell(JobAssigned("job4"))

    assert list(run.progress.under_way) == run.names
    assert list(run.progress.sampling) == run.names[:3]
    assert [one.step for one in run.progress.sampling.values()] == [0, 1, 2]
    assert [one.ran for one in run.progress.sampling.values()] == ["L", "LL", "LLL"]
    told = run.progress.line()
    assert "job1 at step 1 of 4; job2 at step 2 of 4; job3 at step 3 of 4; " in told

    run.tell(JobRendered("job2"))
    assert list(run.progress.under_way) == run.names  # its file is to come
    assert list(run.progress.sampling) == ["job1", "job3"]

    run.tell(done("job2"), JobFailed("job1", "s", 1, "out of paint"))
    assert list(run.progress.under_way) == ["job3", "job4"]


def test_events_of_different_jobs_may_come_in_any_order() -> None:
    run = Run(jobs=2, slots=2)
    run.start("job1")
    run.start("job2")
    for index in range(STEPS):
        for name in run.names:
            run.step(name, index)
    run.tell(JobRendered("job2"), done("job2"), JobRendered("job1"), done("job1"))

    assert (run.progress.rendered, run.progress.remaining) == (2, 0)
    assert run.progress.under_way == {}


def test_a_job_that_came_back_remains_and_no_longer_renders() -> None:
    run = Run(jobs=2, slots=2)
    for name in run.names:
        run.start(name)
        run.step(name, 0)
    run.tell(JobReturned("job1"))

    assert list(run.progress.under_way) == ["job2"]
    assert (run.progress.ended, run.progress.remaining) == (0, 2)
    assert "job1" not in run.progress.line()


def test_nothing_is_under_way_after_the_run() -> None:
    run = Run()
    run.start("job1")
    run.tell(RunEnded())

    assert run.progress.under_way == {}
    assert run.progress.remaining == 4


def test_a_job_begun_again_is_under_way_once_and_at_its_first_step() -> None:
    run = Run()
    run.start("job1")
    run.step("job1", 0)
    run.step("job1", 1)
    run.start("job1")  # its process died

    assert list(run.progress.sampling) == ["job1"]
    one = run.progress.sampling["job1"]
    assert (one.step, one.ran, one.longest_step_s) == (0, "", 0.0)


def test_a_job_that_goes_on_in_the_middle_has_the_steps_of_before() -> None:
    run = Run()
    run.start("job1", resumed_at=2)
    assert "job1 at step 3 of 4" in run.progress.line()
    run.step("job1", 2)

    assert run.progress.sampling["job1"].ran == "LLL"
    assert run.progress.sampling["job1"].step == 2


def test_the_longest_step_leaves_out_the_first_one_where_others_are_known() -> None:
    run = Run()
    run.start("job1")
    one = run.progress.under_way["job1"]
    for index, seconds in enumerate((10.0, 1.0, 3.0)):
        run.tell(StepStarted("job1", index, STEPS, "large"))
        run.now += seconds
    assert one.longest_step_s == 1.0

    run.tell(StepStarted("job1", 3, STEPS, "large"))
    assert one.longest_step_s == 3.0


def test_the_time_left_is_unknown_until_a_job_was_rendered() -> None:
    run = Run()
    run.tell(ModelLoaded("sprites", 1.0))
    run.start("job1")
    assert run.progress.left_s() is None
    assert "time left unknown" in run.progress.line()
    for index in range(STEPS):
        run.step("job1", index)
    run.tell(JobRendered("job1"), done("job1"))

    assert run.progress.left_s() == pytest.approx(3 * JOB_S)
    assert run.progress.remaining_s() == pytest.approx(3 * JOB_S)
    assert run.progress.line().endswith("0:08 elapsed, about 0:24 left")


def test_the_time_left_runs_down_by_the_clock_and_never_below_nothing() -> None:
    run = Run(jobs=2)
    run.render("job1")
    run.now += 5
    assert run.progress.left_s() == pytest.approx(JOB_S - 5)
    run.now += 100

    assert run.progress.left_s() == 0


def test_jobs_under_way_at_once_share_the_time_left() -> None:
    learned = _learned()
    alone, three = Run(jobs=6, learned=learned), Run(jobs=6, slots=3, learned=learned)
    for run in (alone, three):
        run.tell(ModelLoaded("sprites", 1.0))

    assert alone.progress.left_s() == pytest.approx(6 * JOB_S)
    assert three.progress.left_s() == pytest.approx(2 * JOB_S)


def test_the_last_job_takes_its_time_however_many_slots_are_free() -> None:
    run = Run(jobs=1, slots=4, learned=_learned())
    run.start("job1")
    run.step("job1", 0)
    run.step("job1", 1)

    assert run.progress.left_s() == pytest.approx(JOB_S - 2 * STEP_S)


def _learned() -> object:
    run = Run(jobs=1)
    run.render("job1")
    return run.progress.learned


def test_another_thread_may_ask_for_the_time_left_and_the_line_while_jobs_come_and_go() -> None:
    run = Run(jobs=1, slots=50, learned=_learned())
    run.tell(ModelLoaded("sprites", 1.0))
    problems: list[BaseException] = []
    is_over = threading.Event()

    def ask() -> None:
        try:
            while not is_over.is_set():
                run.progress.line()
                assert run.progress.left_s() is not None
                assert len(run.progress.sampling) <= 50
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            problems.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(60):
            names = [f"more{number}" for number in range(50)]
            for name in names:
                run.start(name)
            for name in names:
                run.tell(JobReturned(name))
    finally:
        is_over.set()
        asking.join()

    assert not problems


def test_skipped_jobs_teach_nothing_and_are_no_longer_waited_for() -> None:
    run = Run(jobs=4, learned=_learned())
    run.tell(ModelLoaded("sprites", 1.0))
    before = run.progress.learned
    run.now += 1000
    run.tell(JobSkipped("job1", "s", 1, "/out/job1"))

    assert run.progress.learned == before
    assert run.progress.left_s() == pytest.approx(3 * JOB_S)


def test_jobs_that_ended_before_anything_was_loaded_are_not_waited_for() -> None:
    run = Run(jobs=5, learned=_learned())
    run.tell(JobFailed("job1", "s", 1, "it can't be planned"))
    run.tell(JobDropped("job2", "s", 1, "no promise", 0.1))
    run.tell(JobSkipped("job3", "s", 1, "/out/job3"))
    run.tell(ModelLoaded("sprites", 1.0))

    assert run.progress.left_s() == pytest.approx(2 * JOB_S)


@pytest.mark.parametrize("is_loaded_first", [True, False])
def test_further_jobs_that_are_there_already_are_not_waited_for(is_loaded_first: bool) -> None:
    run = Run(jobs=3, finished=2, learned=_learned())
    events: list[Event] = [
        JobSkipped("job1", "s", 1, "/out/job1"),
        JobsAdded(2),
        JobSkipped("job1-adapt1", "s", 1, "/out/job1-adapt1"),
        JobSkipped("job2", "s", 1, "/out/job2"),
    ]
    load = [ModelLoaded("sprites", 1.0)]
    run.tell(*([*load, *events] if is_loaded_first else [*events, *load]))
    assert run.progress.left_s() == pytest.approx(2 * JOB_S)  # job3, and job2's further one

    run.render("job2-adapt1")
    assert run.progress.left_s() == pytest.approx(JOB_S)


def test_a_job_begun_again_is_no_further_job() -> None:
    run = Run(jobs=1, learned=_learned())
    run.tell(ModelLoaded("sprites", 1.0), JobsAdded(3))
    for _ in range(3):
        run.start("job1-adapt1")

    assert run.progress.left_s() == pytest.approx(3 * JOB_S)


@pytest.mark.usefixtures("no_estimates")
def test_a_finished_batch_makes_no_estimates() -> None:
    run = Run(jobs=3, finished=3, learned=[["m", "large", 1.0, 2.0]])
    for name in run.names:
        run.tell(JobSkipped(name, "s", 1, f"/out/{name}"))
    run.tell(Message("a hint"), Waiting("a measurement"), Summary(0, 3, 0, 1.0), RunEnded())

    assert run.progress.left_s() is None
    assert run.progress.remaining_s() is None
    assert "time left unknown" in run.progress.line()
    assert run.progress.learned == [["m", "large", 1.0, 2.0]]  # the next run has it, too


def test_a_job_is_estimated_before_anything_is_loaded() -> None:
    assert Run().progress.seconds_of("job1") is None
    assert Run(learned=_learned()).progress.seconds_of("job1") == pytest.approx(JOB_S)
