"""When a run stops by itself, told by a clock that the tests turn."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendered import a_job

from flowblend_cli.engine.limits import MARGIN, LimitReached, Limits
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.signals import StatusSignal
from flowblend_cli.events import (
    JobAssigned,
    JobDone,
    JobDropped,
    JobFailed,
    JobReturned,
    JobsAdded,
    JobSkipped,
    JobStarted,
    StepStarted,
)
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.estimates import Estimates, Speeds
from flowblend_cli.planning.run_progress import RunProgress

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


class Progress(RunProgress):
    """Counts as a run does; what is known of how long jobs take is as the test says."""

    def __init__(self, clock: Clock, seconds: float | None = None) -> None:
        super().__init__(Batch("r", Path(), tuple(JOBS), (), Path()), clock)
        self.seconds = seconds

    def seconds_of(self, job: str) -> float | None:
        assert job in {one.id for one in JOBS}
        return self.seconds

    def _begun(self) -> Estimates:
        return Estimates({}, Speeds())


def limited(progress: Progress, **options: Any) -> Limits:
    return Limits(RunOptions(**options), progress)


def render(progress: Progress, job: Job, clock: Clock, seconds: float) -> None:
    """A job that takes so many seconds, all steps alike."""
    progress(started(job))
    for step in range(job.num_inference_steps):
        progress(StepStarted(job.id, step, job.num_inference_steps, "large"))
        clock.now += seconds / job.num_inference_steps
    progress(done(job, seconds))


def test_without_limits_every_job_is_rendered() -> None:
    progress = Progress(Clock())
    run = limited(progress)
    for job in JOBS:
        assert run.may_start(job)
        assert run.has_time()
        progress(failed(job))
    assert (progress.failed, progress.remaining, run.reached, run.stop_reason()) == (6, 0, "", "")


def test_the_first_failure_ends_a_batch_that_is_to_fail_fast() -> None:
    progress = Progress(Clock())
    run = limited(progress, fail_fast=True)
    progress(done(JOBS[0]))
    assert run.may_start(JOBS[1])
    progress(failed(JOBS[1]))
    assert not run.may_start(JOBS[2])
    assert run.stop_reason().startswith(
        "stopped at the first job that failed (--fail-fast): 4 jobs"
    )


def test_jobs_that_are_there_already_dont_count_as_rendered() -> None:
    progress = Progress(Clock())
    run = limited(progress, max_jobs=2)
    progress(JobSkipped(JOBS[0].id, "square", 1, "p"))
    assert run.may_start(JOBS[1])
    progress(done(JOBS[1]))
    assert run.may_start(JOBS[2])
    progress(JobAssigned(JOBS[2].id))  # it may be published while the next one could begin
    assert not run.may_start(JOBS[3])
    progress(failed(JOBS[2]))
    assert run.may_start(JOBS[3])
    progress(done(JOBS[3]))
    assert not run.may_start(JOBS[4])
    counts = (progress.rendered, progress.skipped, progress.failed, progress.remaining)
    assert counts == (2, 1, 1, 2)
    assert "2 rendered jobs (--max-jobs): 2 jobs remain" in run.stop_reason()


@given(st.floats(0.5, 50), st.floats(1, 400))
def test_a_job_begins_only_where_it_will_end_in_time_and_all_that_fit_are_rendered(
    seconds: float, limit: float
) -> None:
    clock = Clock()
    progress = Progress(clock)
    run = limited(progress, max_time_s=limit)
    rendered = 0
    for job in JOBS:
        if not run.may_start(job):
            break
        assert rendered == 0 or clock.now + seconds * MARGIN < 1000 + limit
        render(progress, job, clock, seconds)
        progress.seconds = seconds
        rendered += 1
    if rendered < len(JOBS):
        assert clock.now + seconds * MARGIN >= 1000 + limit
        assert not run.may_start(JOBS[-1]), "what is over stays over"
        assert "--max-time" in run.stop_reason()


def test_time_that_runs_out_in_a_job_stops_it_before_the_step_that_has_none_left() -> None:
    clock = Clock()
    progress = Progress(clock)
    run = limited(progress, max_time_s=100)
    assert run.may_start(JOBS[0]), "nothing is known yet"
    progress(started(JOBS[0]))
    for step in range(4):
        progress(StepStarted(JOBS[0].id, step, 10, "large"))
        assert run.has_time()
        clock.now += 40 if step == 0 else 15  # the first one encodes the prompt
    assert clock.now == 1085
    progress(StepStarted(JOBS[0].id, 4, 10, "large"))
    assert not run.has_time()
    progress(JobReturned(JOBS[0].id))
    assert progress.remaining == 6
    assert "6 jobs remain" in run.stop_reason()


def test_of_several_jobs_under_way_the_slowest_step_decides() -> None:
    clock = Clock()
    progress = Progress(clock)
    run = limited(progress, max_time_s=100)
    for job in JOBS[:2]:
        progress(started(job))
        progress(StepStarted(job.id, 0, 10, "large"))
    clock.now += 5
    progress(StepStarted(JOBS[0].id, 1, 10, "large"))
    clock.now += 45
    progress(StepStarted(JOBS[1].id, 1, 10, "large"))
    assert not run.has_time(), "another 50 s of the slower one end when the time is up"


def test_what_is_known_of_a_job_before_it_begins_tells_whether_it_fits() -> None:
    assert not limited(Progress(Clock(), 60), max_time_s=65).may_start(JOBS[3])
    assert limited(Progress(Clock(), 60), max_time_s=67).may_start(JOBS[3])


def test_what_would_end_just_when_the_time_is_up_begins_no_more() -> None:
    clock = Clock()
    progress = Progress(clock, 64 / MARGIN)
    run = limited(progress, max_time_s=64)
    assert not run.may_start(JOBS[0])
    run = limited(progress, max_time_s=64)
    clock.now += 64
    assert not run.has_time()
    assert not limited(Progress(Clock(), 64 / MARGIN), max_time_s=0).has_time()
    with pytest.raises(LimitReached):
        run.check_time()
    limited(progress, max_time_s=1).check_time()


def test_one_job_that_remains_is_one_job() -> None:
    clock = Clock()
    progress = Progress(clock)
    for job in JOBS[:-1]:
        progress(JobSkipped(job.id, "square", 1, "p"))
    run = limited(progress, max_time_s=1)
    clock.now += 2
    assert not run.has_time()
    assert ": no job was rendered, 1 job remains: give more than --max-time 1s" in run.stop_reason()
    progress = Progress(clock)
    for job in JOBS[:-1]:
        progress(done(job))
    assert limited(progress, max_jobs=5).stop_reason() == (
        "stopped after 5 rendered jobs (--max-jobs): 1 job remains, and the same command goes on "
        "with them"
    )


def test_the_status_line_says_what_is_done_and_what_is_left() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert progress.line() == (
        "status: 0 done, 0 already there, 0 failed, 6 remaining; 0:00 elapsed, time left unknown"
    )
    render(progress, JOBS[0], clock, 600)
    progress(JobDropped(JOBS[1].id, "square", 1, "why", 0.1))
    progress(JobsAdded(1))
    progress(started(JOBS[2]))
    progress(StepStarted(JOBS[2].id, 3, 10, "large"))
    clock.now += 60
    assert progress.line().startswith(
        "status: 1 done, 0 already there, 0 failed, 5 remaining; j2 at step 4 of 10; 11:00 elapsed"
    )


def test_the_status_signal_is_answered_in_the_middle_of_a_computation_and_then_forgotten() -> None:
    former = signal.getsignal(signal.SIGUSR1)
    heard: list[str] = []
    progress = Progress(Clock())
    with StatusSignal(lambda: heard.append(progress.line())):
        for number in range(1, 4):
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while len(heard) < number and time.monotonic() < deadline:
                sum(range(10_000))
            assert len(heard) == number
    assert signal.getsignal(signal.SIGUSR1) == former
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("seconds", "options", "told"),
    [
        (40.0, {}, "6 jobs remain, and one takes about 0:44: give more than --max-time 25s"),
        (None, {}, "6 jobs remain: give more than --max-time 25s, or add --checkpoint-every 5"),
        (40.0, {"checkpoint_every": 2}, "the same command goes on where this one stopped"),
    ],
)
def test_time_that_is_too_short_for_any_job_says_so_and_what_to_do(
    seconds: float | None, options: dict[str, int], told: str
) -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.seconds = seconds
    run = limited(progress, max_time_s=25.0, **options)
    if seconds is None:
        assert run.may_start(JOBS[0])
        clock.now += 25
        assert not run.has_time()
    assert not run.may_start(JOBS[1])

    reason = run.stop_reason()

    assert reason.startswith("stopped before the time was up (--max-time): no job was rendered, ")
    assert told in reason
