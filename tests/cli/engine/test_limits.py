"""When a run stops by itself, told by a clock that the tests turn."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendered import a_job

from flowblend_cli.engine.limits import MARGIN, LimitReached, Limits, Tally
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.signals import StatusSignal, StopSignals
from flowblend_cli.events import JobDone, JobDropped, JobFailed, JobSkipped, JobStarted
from flowblend_cli.jobs import Job

JOBS = [a_job(f"j{number}", steps=10) for number in range(6)]


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def started(job: Job) -> JobStarted:
    steps = job.num_inference_steps
    return JobStarted(job.id, job.scene, job.seed, steps, "L" * steps, job.prompt)


def done(job: Job, seconds: float = 1.0) -> JobDone:
    steps = job.num_inference_steps
    return JobDone(job.id, job.scene, job.seed, steps, "p", seconds, "L" * steps, 1, None, "0" * 64)


def failed(job: Job) -> JobFailed:
    return JobFailed(job.id, job.scene, job.seed, "no")


class Learned:
    """What is known of how long jobs take: nothing before one was rendered."""

    def __init__(self, seconds: float | None = None, left: float | None = None) -> None:
        self.seconds, self.left = seconds, left

    def seconds_of(self, job_id: str) -> float | None:
        return self.seconds

    def left_s(self) -> float | None:
        return self.left


def limits(clock: Clock, learned: Learned | None = None, **options: Any) -> Limits:
    return Limits(RunOptions(**options), len(JOBS), learned, clock)


def render(run: Limits, job: Job, clock: Clock, seconds: float) -> None:
    """A job that takes so many seconds, all steps alike."""
    run.event(started(job))
    for step in range(job.num_inference_steps):
        run.step(step, job.num_inference_steps, "large")
        clock.now += seconds / job.num_inference_steps
    run.event(done(job, seconds))


def test_without_limits_every_job_is_rendered() -> None:
    clock = Clock()
    run = limits(clock)
    for job in JOBS:
        assert run.lets(job)
        run.check()
        run.event(failed(job))
    assert (run.failed, run.remaining, run.reached, run.told()) == (6, 0, "", "")


def test_the_first_failure_ends_a_batch_that_is_to_fail_fast() -> None:
    run = limits(Clock(), fail_fast=True)
    run.event(done(JOBS[0]))
    assert run.lets(JOBS[1])
    run.event(failed(JOBS[1]))
    assert not run.lets(JOBS[2])
    assert run.told().startswith("stopped at the first job that failed (--fail-fast): 4 jobs")


def test_jobs_that_are_there_already_dont_count_as_rendered() -> None:
    run = limits(Clock(), max_jobs=2)
    run.event(JobSkipped(JOBS[0].id, "square", 1, "p"))
    assert run.lets(JOBS[1])
    run.event(done(JOBS[1]))
    assert run.lets(JOBS[2])
    run.event(started(JOBS[2]))  # it may be published while the next one could begin
    assert not run.lets(JOBS[3])
    run.event(failed(JOBS[2]))
    assert run.lets(JOBS[3])
    run.event(done(JOBS[3]))
    assert not run.lets(JOBS[4])
    assert (run.rendered, run.skipped, run.failed, run.remaining) == (2, 1, 1, 2)
    assert "2 rendered jobs (--max-jobs): 2 jobs remain" in run.told()


@given(st.floats(0.5, 50), st.floats(1, 400))
def test_a_job_begins_only_where_it_will_end_in_time_and_all_that_fit_are_rendered(
    seconds: float, limit: float
) -> None:
    clock = Clock()
    learned = Learned()
    run = limits(clock, learned, max_time_s=limit)
    rendered = 0
    for job in JOBS:
        if not run.lets(job):
            break
        assert rendered == 0 or clock.now + seconds * MARGIN < 1000 + limit
        render(run, job, clock, seconds)
        learned.seconds = seconds
        rendered += 1
    if rendered < len(JOBS):
        assert clock.now + seconds * MARGIN >= 1000 + limit
        assert not run.lets(JOBS[-1]), "what is over stays over"
        assert "--max-time" in run.told()


def test_time_that_runs_out_in_a_job_stops_it_before_the_step_that_has_none_left() -> None:
    clock = Clock()
    run = limits(clock, max_time_s=100)
    stop = StopSignals(lambda _: None, run.check)
    assert run.lets(JOBS[0]), "nothing is known yet"
    run.event(started(JOBS[0]))
    for step in range(4):
        run.step(step, 10, "large")
        clock.now += 40 if step == 0 else 15  # the first one encodes the prompt
        if step < 3:
            stop.check()
    assert clock.now == 1085
    with pytest.raises(LimitReached):
        stop.check()
    assert run.remaining == 6
    stop.check_signals()
    assert stop.exit_code is None
    assert "6 jobs remain" in run.told()


def test_what_is_known_of_a_job_before_it_begins_tells_whether_it_fits() -> None:
    assert not limits(Clock(), Learned(60), max_time_s=65).lets(JOBS[3])
    assert limits(Clock(), Learned(60), max_time_s=67).lets(JOBS[3])


def test_the_status_line_says_what_is_done_and_what_is_left() -> None:
    clock = Clock()
    learned = Learned()
    run = limits(clock, learned)
    assert run.line() == (
        "status: 0 done, 0 already there, 0 failed, 6 remaining; 0:00 elapsed, time left unknown"
    )
    render(run, JOBS[0], clock, 600)
    run.event(JobDropped(JOBS[1].id, "square", 1, "why", 0.1))
    run.grow(1)
    run.event(started(JOBS[2]))
    run.step(3, 10, "large")
    clock.now += 60
    learned.left = 2940
    assert run.line() == (
        "status: 1 done, 0 already there, 0 failed, 5 remaining; j2 at step 4 of 10; "
        "11:00 elapsed, about 49:00 left"
    )


def test_the_status_signal_is_answered_in_the_middle_of_a_computation_and_then_forgotten() -> None:
    former = signal.getsignal(signal.SIGUSR1)
    heard: list[str] = []
    with StatusSignal(lambda: heard.append(Tally(1).line())):
        for number in range(1, 4):
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while len(heard) < number and time.monotonic() < deadline:
                sum(range(10_000))
            assert len(heard) == number
    assert signal.getsignal(signal.SIGUSR1) == former
    assert signal.set_wakeup_fd(-1) == -1
