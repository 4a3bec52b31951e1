"""BatchRun's loop with an executor that answers out of order, late, twice, or never."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noise_executor import NoiseExecutor, render_of
from three_slots import ThreeSlots

from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.engine import batch_run
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import Answer, RenderFailure, RenderRequest
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import DeviceLostError, StopRequested
from flowblend_cli.events import (
    CapturedEvents,
    Event,
    JobAssigned,
    JobDone,
    JobFailed,
    JobReturned,
    JobSkipped,
    Message,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    captured_events,
)
from flowblend_cli.jobs import Batch, ModelSpec
from flowblend_cli.utils.files import temporary_path

LoadText = Callable[..., Batch]
SEEDS = ["scene.square.seeds=[1,2,3,4,5,6]", "metrics.names=[]"]
FAST = 0.01


@pytest.fixture
def batch(batch_of: LoadText, minimal: str) -> Batch:
    return batch_of(minimal, *SEEDS)


def run(batch: Batch, executor: Any, **options: Any) -> tuple[int, CapturedEvents]:
    told = captured_events()
    code = BatchRun(batch, told, executor=executor, options=RunOptions(**options)).run()
    assert isinstance(told[-1], RunEnded)
    assert isinstance(told[-2], Summary)
    return code, told


def counted(told: CapturedEvents) -> tuple[int, int, int, int]:
    (summary,) = told.of(Summary)
    return summary.rendered, summary.skipped, summary.failed, summary.remaining


def test_each_job_is_published_once_whatever_the_order_of_the_answers(batch: Batch) -> None:
    executor = ThreeSlots(NoiseExecutor(seconds=FAST))
    code, told = run(batch, executor)

    assert code == 0
    assert executor.most == 3
    assert Counter(done.job for done in told.of(JobDone)) == Counter(job.id for job in batch.jobs)
    assert [done.job for done in told.of(JobDone)] != [job.id for job in batch.jobs]
    assert counted(told) == (6, 0, 0, 0)
    for job in batch.jobs:
        found = inspect_final(batch.path_of(job))
        assert found.state is FileState.INTACT
        assert found.document is not None
        assert found.document["pixels_sha256"] == render_of(job.seed).pixels_sha256
    assert counted(run(batch, ThreeSlots(NoiseExecutor()))[1]) == (0, 6, 0, 0)


class Drawn:
    """Answers in a drawn order, each as often as is drawn; tells steps of jobs that are over, too.

    Args:
        order: Which of the requests under way is answered next.
        times: How often.
    """

    slots = 3

    def __init__(self, order: list[int], times: list[int]) -> None:
        self.order, self.times = order, times
        self.requests: list[RenderRequest] = []
        self.told: list[Answer | Event] = []

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        self.requests.append(request)
        assert len(self.requests) <= self.slots

    def poll(self, timeout_s: float) -> Answer | Event | None:
        if not self.told and self.requests:
            place = self.order.pop() if self.order else 0
            request = self.requests.pop(place % len(self.requests))
            answer = render_of(request.seed, (1, 16, 16, 3), request.number)
            times = self.times.pop() if self.times else 1
            self.told = [answer] * times + [StepStarted(request.job.id, 0, 2, "large")]
        return self.told.pop() if self.told else None

    def models_in_memory(self) -> tuple[ModelSpec, ...]:
        return ()

    def stop(self) -> None:
        raise AssertionError("nobody asked for it")

    def close(self) -> None:
        self.requests = []


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(1, 3), max_size=6))
def test_no_order_and_no_repetition_of_answers_loses_or_doubles_a_job(
    batch: Batch, order: list[int], times: list[int]
) -> None:
    for path in batch.output_dir.glob("*.mp4"):
        path.unlink()
    code, told = run(batch, Drawn(order, times))

    assert code == 0
    assert sorted(done.job for done in told.of(JobDone)) == sorted(job.id for job in batch.jobs)
    assert counted(told) == (6, 0, 0, 0)
    over: set[str] = set()
    for event in told:
        if isinstance(event, JobDone):
            over.add(event.job)
        assert not (isinstance(event, StepStarted) and event.job in over)


def test_a_request_that_is_never_answered_remains_once_the_run_stops(batch: Batch) -> None:
    executor = ThreeSlots(NoiseExecutor(seconds=FAST), lost=[2])
    code, told = run(batch, executor, max_time_s=3.0, stop_patience_s=0.3)

    assert code == 0
    assert counted(told) == (5, 0, 0, 1)
    assert [one.job for one in told.of(JobReturned)] == [batch.jobs[1].id]
    assert any("didn't stop in time" in text for text in told.messages)
    assert counted(run(batch, ThreeSlots(NoiseExecutor(seconds=FAST)))[1]) == (1, 5, 0, 0)


def test_a_signal_stops_every_slot_and_keeps_what_is_rendered(batch: Batch) -> None:
    does = {2: lambda: os.kill(os.getpid(), signal.SIGINT)}
    code, told = run(batch, ThreeSlots(NoiseExecutor(does, seconds=FAST)))

    assert code == 128 + signal.SIGINT
    rendered, skipped, failed, remaining = counted(told)
    assert (skipped, failed) == (0, 0)
    assert rendered == len(told.of(JobDone))
    assert remaining == 6 - rendered >= 1
    assert {one.job for one in told.of(JobAssigned)} == {
        one.job for one in (*told.of(JobDone), *told.of(JobReturned))
    }


def test_no_more_jobs_are_handed_out_than_may_be_rendered(batch: Batch) -> None:
    _, told = run(batch, ThreeSlots(NoiseExecutor(seconds=FAST)), max_jobs=2)

    assert len(told.of(JobAssigned)) == 2
    assert counted(told) == (2, 0, 0, 4)
    assert any("stopped after 2 rendered jobs (--max-jobs)" in text for text in told.messages)


class Failing(NoiseExecutor):
    """Fails the jobs of some seeds, in the way that is told."""

    def __init__(self, failures: dict[int, RenderFailure]) -> None:
        super().__init__(seconds=FAST)
        self.failures = failures

    def poll(self, timeout_s: float) -> Answer | None:
        failure = self.failures.get(self.requests[0].seed)
        if failure is not None and not self.is_stopped:
            (request,), self.requests = self.requests, []
            return replace(failure, number=request.number)
        return super().poll(timeout_s)


def test_what_fails_fails_alone_and_fail_fast_lets_the_other_slots_end(batch: Batch) -> None:
    executor = ThreeSlots(Failing({1: RenderFailure(0, ValueError("no paint"))}))
    code, told = run(batch, executor)
    assert code == 1
    assert [one.error for one in told.of(JobFailed)] == ["ValueError: no paint"]
    assert counted(told) == (5, 0, 1, 0)

    for job in batch.jobs:
        batch.path_of(job).unlink(missing_ok=True)
    no_paint = RenderFailure(0, ValueError("no paint"))
    executor = ThreeSlots(Failing(dict.fromkeys(range(1, 7), no_paint)))
    code, told = run(batch, executor, fail_fast=True)
    _, _, failed, remaining = counted(told)
    assert code == 1
    assert 1 <= failed == len(told.of(JobAssigned)) <= 3
    assert remaining == 6 - failed


def test_a_job_that_fails_leaves_its_place_among_those_that_may_be_rendered(batch: Batch) -> None:
    failures = {1: RenderFailure(0, ValueError("no paint"))}
    for executor in (Failing(failures), ThreeSlots(Failing(failures))):
        for job in batch.jobs:
            batch.path_of(job).unlink(missing_ok=True)
        _, told = run(batch, executor, max_jobs=5)
        assert counted(told) == (5, 0, 1, 0)


def test_a_failing_disk_lets_every_slot_end_and_give_its_job_back(batch: Batch) -> None:
    batch.output_dir.mkdir(parents=True)
    for job in batch.jobs[:2]:
        temporary_path(batch.path_of(job)).mkdir()
    code, told = run(batch, ThreeSlots(NoiseExecutor(seconds=FAST)))

    assert code == 4
    assert {one.job for one in told.of(JobAssigned)} == {
        one.job for one in (*told.of(JobDone), *told.of(JobReturned), *told.of(JobFailed))
    }


class Arriving(NoiseExecutor):
    """A worker that isn't there for some polls; it notes how many jobs it was told of."""

    def __init__(self, polls: int) -> None:
        super().__init__(seconds=FAST)
        self.polls, self.expected = polls, list[int]()

    @property
    def slots(self) -> int:  # type: ignore[override]
        return 0 if self.polls > 0 else 1

    def expect(self, jobs: int) -> None:
        self.expected.append(jobs)

    def poll(self, timeout_s: float) -> Answer | None:
        self.polls -= 1
        if not self.requests:
            time.sleep(FAST)
            return None
        return super().poll(timeout_s)


def test_workers_that_come_later_are_told_of_the_jobs_that_are_left_and_of_no_others(
    batch: Batch,
) -> None:
    code, told = run(batch, executor := Arriving(5))
    assert code == 0
    assert counted(told) == (6, 0, 0, 0)
    assert executor.expected[0] == 6
    assert sorted(executor.expected, reverse=True) == executor.expected
    assert executor.expected[-1] <= 1

    for job in batch.jobs[4:]:
        batch.path_of(job).unlink()
    code, told = run(batch, executor := Arriving(5))
    assert counted(told) == (2, 4, 0, 0)
    assert max(executor.expected) == 2

    code, told = run(batch, executor := Arriving(10**9))  # nobody is waited for
    assert (code, counted(told)) == (0, (0, 6, 0, 0))
    assert set(executor.expected) == {0}


def test_a_run_whose_workers_never_come_ends_when_its_time_is_up(batch: Batch) -> None:
    code, told = run(batch, Arriving(10**9), max_time_s=0.5)
    assert (code, counted(told)) == (0, (0, 0, 0, 6))
    assert not told.of(JobAssigned)


def test_a_download_that_takes_longer_than_the_time_ends_with_it(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(batch: Batch, may: bool, tell: Any, check: Callable[[], None]) -> None:
        while True:
            check()

    monkeypatch.setattr("flowblend_cli.engine.batch_run.prepare_models", download)
    code, told = run(batch, NoiseExecutor(), max_time_s=0.2)

    assert code == 0
    assert counted(told) == (0, 0, 0, 6)
    assert any("--max-time" in text for text in told.messages)


def test_the_last_event_comes_whatever_happens_at_the_end(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(NoiseExecutor):
        def close(self) -> None:
            raise KeyboardInterrupt

    told = captured_events()
    with pytest.raises(KeyboardInterrupt):
        BatchRun(batch, told, executor=Impatient(seconds=FAST)).run()
    assert isinstance(told[-2], Summary)
    assert isinstance(told[-1], RunEnded)


def test_models_that_cant_be_loaded_end_the_batch_and_no_job_fails_of_it(batch: Batch) -> None:
    failure = RenderFailure(0, DeviceLostError("no memory for it"), "models")
    code, told = run(batch, ThreeSlots(Failing({3: failure})))

    assert code == DeviceLostError.exit_code
    assert not told.of(JobFailed)
    assert "no memory for it" in told.messages
    rendered, _, _, remaining = counted(told)
    assert rendered + remaining == 6


def test_a_job_of_models_in_memory_goes_first(batch: Batch) -> None:
    other = replace(batch.jobs[0].model, dtype="float32")
    jobs = tuple(replace(job, model=other) if job.seed % 2 else job for job in batch.jobs)

    class Loaded(NoiseExecutor):
        def models_in_memory(self) -> tuple[ModelSpec, ...]:
            return (other,)

    _, told = run(replace(batch, jobs=jobs), Loaded(seconds=FAST))

    seeds = [done.seed for done in told.of(JobDone)]
    assert seeds == [1, 3, 5, 2, 4, 6]


def test_an_answer_that_comes_after_the_run_was_stopped_is_published_still(batch: Batch) -> None:
    class Slow(NoiseExecutor):
        """Ends its present job although it was told to stop: it was at its last step."""

        def poll(self, timeout_s: float) -> Answer | None:
            (request,), self.requests = self.requests, []
            if request.seed == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return render_of(request.seed, number=request.number)

    code, told = run(batch, Slow())

    assert code == 128 + signal.SIGTERM
    assert [done.seed for done in told.of(JobDone)] == [1, 2]
    assert not told.of(JobSkipped)
    assert StopRequested not in [type(one) for one in told]


def said(told: CapturedEvents) -> list[tuple[str, bool]]:
    return [(message.text, message.is_error) for message in told.of(Message)]


def test_a_damaged_file_is_named_and_rendered_again_and_a_whole_one_isnt_mentioned(
    batch: Batch,
) -> None:
    _, told = run(batch, ThreeSlots(NoiseExecutor()))
    assert said(told) == []
    path = batch.path_of(batch.jobs[2])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    code, told = run(batch, ThreeSlots(NoiseExecutor()))

    assert code == 0
    assert said(told) == [(f"{path.name} is damaged and is rendered again", True)]
    assert counted(told) == (1, 5, 0, 0)
    assert [done.job for done in told.of(JobDone)] == [batch.jobs[2].id]
    assert path.read_bytes() == whole


def test_the_run_tells_first_which_jobs_have_no_file_yet(batch: Batch) -> None:
    _, told = run(batch, ThreeSlots(NoiseExecutor()))
    assert told[0] == RunStarted(6, tuple(job.id for job in batch.jobs), 3)
    batch.path_of(batch.jobs[4]).unlink()
    _, told = run(batch, ThreeSlots(NoiseExecutor()))
    assert told[0] == RunStarted(6, (batch.jobs[4].id,), 3)


def test_a_network_file_system_is_told_of_by_its_kind_and_folder(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "network_file_system", lambda folder: "nfs4")
    _, told = run(batch, ThreeSlots(NoiseExecutor()))
    ((text, is_error),) = said(told)
    assert text.startswith(f"{batch.output_dir} is on a network file system (nfs4), ")
    assert not is_error


def test_a_status_is_told_once_a_signal_asks_for_it(batch: Batch) -> None:
    class Asked(NoiseExecutor):
        def poll(self, timeout_s: float) -> Answer | Event | None:
            if not self.asked:
                self.asked = True
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().poll(timeout_s)

        asked = False

    _, told = run(batch, Asked())
    (answer,) = [message for message in told.of(Message) if message.is_answer]
    assert answer.text.startswith("status: 0 done, 0 already there, 0 failed, 6 remaining; ")
    assert not answer.is_error


def test_every_missing_model_is_named_once_and_nothing_is_rendered(
    batch_of: LoadText, minimal: str
) -> None:
    text = minimal.replace('"sprites"', '"some/hub-model"').replace("LSL", "L")
    batch = batch_of(text.replace("boundaries = [0.4, 0.8]", ""), *SEEDS)
    code, told = run(batch, ThreeSlots(NoiseExecutor()))

    assert code == 3
    assert counted(told) == (0, 0, 0, 6)
    errors = [text for text, is_error in said(told) if is_error]
    assert len(errors) == len(set(errors))
    (missing,) = [text for text in errors if "isn't in the local Hub cache" in text]
    assert missing.startswith("model 'some/hub-model' ")


class Noting(NoiseExecutor):
    """Notes what it is asked for."""

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        self.noted = [*getattr(self, "noted", []), request]
        super().submit(request)


def test_asked_for_anew_finished_jobs_are_rendered_again_and_others_files_never(
    batch: Batch,
) -> None:
    def anew() -> tuple[int, CapturedEvents]:
        told = captured_events()
        executor = Noting(seconds=FAST)
        options = RunOptions(checkpoint_every=1)
        code = BatchRun(batch, told, executor=executor, anew=True, options=options).run()
        assert all(request.checkpoint is None for request in executor.noted)
        return code, told

    first = Noting(seconds=FAST)
    assert run(batch, first, checkpoint_every=1)[0] == 0
    assert [request.checkpoint is None for request in first.noted] == [False] * 6
    assert [request.seed for request in first.noted] == [job.seed for job in batch.jobs]
    code, told = anew()
    assert (code, *counted(told)) == (0, 6, 0, 0, 0)

    foreign = batch.path_of(batch.jobs[1])
    foreign.write_bytes(b"somebody's own")
    code, told = anew()
    (failed,) = told.of(JobFailed)
    assert (code, failed.job) == (1, batch.jobs[1].id)
    assert foreign.name in failed.error
    assert foreign.read_bytes() == b"somebody's own"
