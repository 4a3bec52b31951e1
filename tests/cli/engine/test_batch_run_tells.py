"""What BatchRun asks of an executor, and what it tells of each job: every field, by other means."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_executor import render_of

from flowblend_cli.artifacts.records import read_record, write_record
from flowblend_cli.engine.batch_run import BatchRun, draw_seed
from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
)
from flowblend_cli.engine.output_folder import output_lock
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile, CheckpointHeader
from flowblend_cli.errors import (
    DeviceLostError,
    LockedError,
    OutputError,
    RemoteError,
    StopRequested,
)
from flowblend_cli.events import (
    CapturedEvents,
    Event,
    JobAssigned,
    JobDone,
    JobFailed,
    JobRendered,
    JobReturned,
    JobSkipped,
    JobStarted,
    Message,
    StepStarted,
    Summary,
    captured_events,
)
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.models.identity import job_key, resolve_models
from flowblend_cli.planning.plan import plan_job
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.utils.files import temporary_path
from flowblend_cli.utils.folders import FOLDER

LoadText = Callable[..., Batch]
DRAFTS = "\n[draft]\nsteps = 2\nkeep = 1\nreject_after = 1\nreject_keep = 1\n"


class Asked:
    """Notes each request, and answers as it is told to; by default with noise of the seed.

    Args:
        answers: What to do with a job, by its id; called with the request.
    """

    slots = 1

    def __init__(
        self, answers: dict[str, Callable[[RenderRequest], Answer | None]] | None = None
    ) -> None:
        self.answers = answers or {}
        self.requests: list[RenderRequest] = []
        self.expected: list[int] = []
        self.told: list[Answer | Event] = []
        self.is_stopped = self.is_closed = False

    def expect(self, jobs: int) -> None:
        self.expected.append(jobs)

    def submit(self, request: RenderRequest) -> None:
        self.requests.append(request)
        answer = self.answers.get(request.job.id, usual)(request)
        if answer is not None:
            self.told.append(answer)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        return self.told.pop(0) if self.told else None

    def models_in_memory(self) -> tuple[Any, ...]:
        return ()

    def stop(self) -> None:
        self.is_stopped = True

    def close(self) -> None:
        self.is_closed = True


def usual(request: RenderRequest) -> Answer:
    if request.kind == "preview":
        return PreviewResult(request.number, render_of(request.seed, (9, 64, 64, 3)).frames, 0.5)
    render = render_of(request.seed, number=request.number)
    return replace(render, worker="cuda:1", peak_vram_bytes=5, peak_rss_bytes=7)


def failing(error: Exception, kind: Any = "job") -> Callable[[RenderRequest], Answer]:
    return lambda request: RenderFailure(request.number, error, kind, worker="cuda:2")


class Clock:
    """A clock that stands still until a request lets the time run out."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def run_out(self, request: RenderRequest) -> None:
        self.now = 1e6


def run(
    batch: Batch,
    executor: Any,
    *,
    kept: bool = True,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> tuple[int, CapturedEvents]:
    told = captured_events()
    run = BatchRun(
        batch, told, executor=executor, overrides=() if kept else None,
        options=RunOptions(**options), progress=RunProgress(batch, clock),
    )  # fmt: skip
    return run.run(), told


def said(told: CapturedEvents) -> list[Message]:
    return [event for event in told if isinstance(event, Message)]


def with_steps(job: Job, steps: int) -> Job:
    arguments = dict(job.arguments) | {"num_inference_steps": steps}
    return replace(job, arguments=tuple(arguments.items()))


@pytest.fixture
def batch(batch_of: LoadText, minimal: str) -> Batch:
    return batch_of(minimal, "scene.square.seeds=[3,4]", "metrics.names=[]")


def test_a_request_has_all_that_its_job_needs_and_its_end_is_told_in_full(batch: Batch) -> None:
    first, second = batch.jobs
    batch = replace(batch, jobs=(first, with_steps(second, 4)))
    executor = Asked()
    code, told = run(batch, executor, checkpoint_every=2)

    assert code == 0
    assert executor.expected[-1] == 0
    assert len({request.number for request in executor.requests}) == 2
    for job, request, done in zip(batch.jobs, executor.requests, told.of(JobDone), strict=True):
        models = resolve_models(job.model, batch.source.parent, job.adapters)
        key = job_key(job, models.identity)
        assert request == RenderRequest(
            request.number, job, job.seed, models, "render", plan_job(job, batch.source.parent), 0,
            CheckpointFile.of(batch.output_dir, job.id, key, 2),
        )  # fmt: skip
        record = read_record(batch.output_dir, job.id)
        assert record is not None
        assert done == JobDone(
            job.id, job.scene, job.seed, job.num_inference_steps, str(batch.path_of(job)),
            record.elapsed_s[0], "LS", 7, 5, render_of(job.seed).pixels_sha256, "cuda:1",
        )  # fmt: skip
        assert done.elapsed_s >= 2.0
        assert record.pixels == (done.pixels_sha256,)
        order = [one for one in told if getattr(one, "job", None) == job.id]
        assert [type(one) for one in order] == [JobAssigned, JobRendered, JobDone]

    again = Asked()
    code, told = run(batch, again)
    assert (code, again.requests) == (0, [])
    assert told.of(JobSkipped) == [
        JobSkipped(job.id, job.scene, job.seed, str(batch.path_of(job))) for job in batch.jobs
    ]


def test_a_job_that_fails_is_told_with_its_seed_its_error_and_its_worker(batch: Batch) -> None:
    first, second = batch.jobs
    told_there = RemoteError("KeyError", "'paint'", 1)
    code, told = run(
        batch, Asked({first.id: failing(ValueError("no")), second.id: failing(told_there)})
    )
    assert code == 1
    assert told.of(JobFailed) == [
        JobFailed(first.id, "square", 3, "ValueError: no", "cuda:2"),
        JobFailed(second.id, "square", 4, "KeyError: 'paint'", "cuda:2"),
    ]


def test_a_job_whose_plan_cant_be_made_fails_alone_and_is_never_handed_out(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = batch.jobs
    batch = replace(batch, jobs=(first, with_steps(second, 4)))

    def plan(job: Job, folder: Path) -> str:
        if job.id == first.id:
            raise ValueError("no plan")
        return plan_job(job, folder)

    monkeypatch.setattr("flowblend_cli.engine.batch_run.plan_job", plan)
    executor = Asked()
    code, told = run(batch, executor)
    assert code == 1
    assert told.of(JobFailed) == [JobFailed(first.id, "square", 3, "ValueError: no plan")]
    assert [(one.job.id, len(one.planned)) for one in executor.requests] == [(second.id, 4)]


def test_an_error_that_ends_the_batch_is_told_once_and_its_job_says_to_see_it(
    batch: Batch,
) -> None:
    first, second = batch.jobs
    code, told = run(batch, Asked({first.id: failing(DeviceLostError("it is gone\nfor good"))}))
    assert code == DeviceLostError.exit_code
    assert told.of(JobFailed) == [
        JobFailed(first.id, "square", 3, "not rendered: see the error of the batch", "cuda:2")
    ]
    assert said(told) == [Message("it is gone", is_error=True), Message("for good", is_error=True)]
    assert second.id not in [getattr(event, "job", "") for event in told]


def test_a_file_that_cant_be_encoded_fails_its_job_with_seed_and_worker(batch: Batch) -> None:
    first, _ = batch.jobs

    def odd(request: RenderRequest) -> Answer:
        render = usual(request)
        return replace(render, frames=np.zeros((3, 63, 63, 3), np.uint8))  # type: ignore[arg-type]

    code, told = run(batch, Asked({first.id: odd}))
    assert code == 1
    (failed,) = told.of(JobFailed)
    assert (failed.job, failed.seed, failed.worker) == (first.id, 3, "cuda:1")
    assert failed.error.startswith("FramesError: ")
    assert len(told.of(JobDone)) == 1


def test_a_disk_that_fails_ends_the_batch_and_its_job_says_to_see_the_error(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("flowblend_cli.utils.files.os.fsync", full)
    first, _ = batch.jobs
    code, told = run(batch, Asked(), kept=False)
    assert code == OutputError.exit_code
    failed = told.of(JobFailed)[0]
    assert (failed.job, failed.error) == (first.id, "not rendered: see the error of the batch")
    assert "the disk is full" in told.messages


# Before the first job, and after the last.


def test_models_are_fetched_where_that_is_allowed_and_it_is_told(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def prepare(given: Batch, may: bool, tell: Any, check: Callable[[], None]) -> None:
        check()
        tell("fetching")
        asked.extend((given, may))

    monkeypatch.setattr("flowblend_cli.engine.batch_run.prepare_models", prepare)
    for may in (True, False):
        _, told = run(batch, Asked(), allow_download=may)
        assert asked[-2:] == [batch, may]
        assert said(told) == [Message("fetching")]


@pytest.mark.parametrize("anew", [False, True])
def test_the_executor_is_made_of_the_options_and_told_where_embeddings_lie(
    batch: Batch, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def make(*how: Any) -> Asked:
        given.extend(how)
        return Asked()

    monkeypatch.setattr("flowblend_cli.engine.batch_run.make_executor", make)
    options, warm_up = RunOptions(executor="child"), batch.jobs[0]
    BatchRun(batch, captured_events(), options=options, anew=anew, warm_up=warm_up).run()
    *how, models = given
    assert how == [options, warm_up, None if anew else batch.output_dir]
    assert list(models) == [resolve_models(warm_up.model, batch.source.parent)]


def test_what_killed_runs_left_beside_any_job_s_file_is_removed(drafts: Batch) -> None:
    drafts.output_dir.mkdir(parents=True)
    assert drafts.reserve
    ours = [temporary_path(drafts.path_of(job)) for job in (*drafts.jobs, *drafts.reserve)]
    other = temporary_path(drafts.output_dir / "other.mp4")
    for path in (*ours, other):
        path.touch()
    run(drafts, Asked(), max_jobs=0)
    assert [path.exists() for path in (*ours, other)] == [False] * len(ours) + [True]


def test_a_run_holds_the_folder_and_says_whose_it_is(batch: Batch) -> None:
    def beside(request: RenderRequest) -> Answer:
        with pytest.raises(LockedError), output_lock(batch.output_dir):
            pass
        return usual(request)

    run(batch, executor := Asked({batch.jobs[0].id: beside}))
    assert executor.is_closed
    with output_lock(batch.output_dir):
        pass


def test_files_are_looked_into_where_all_is_to_be_verified(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowblend_cli.artifacts.manifest.HASHED_BYTES", 0)
    run(batch, Asked())
    path = batch.path_of(batch.jobs[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert len(run(batch, Asked())[1].of(JobSkipped)) == 2  # by their sizes
    _, told = run(batch, Asked(), verify=True)
    assert [done.job for done in told.of(JobDone)] == [batch.jobs[0].id]


def test_a_manifest_that_cant_be_written_is_complained_of_once(batch: Batch) -> None:
    (batch.output_dir / FOLDER / "manifest.jsonl").mkdir(parents=True)
    code, told = run(batch, Asked())
    assert code == 0
    (message,) = said(told)
    assert "manifest.jsonl: can't be written" in message.text
    assert message.is_error


def test_the_summary_counts_in_thousandths_of_a_second(batch: Batch) -> None:
    ticks = itertools.count()
    progress = RunProgress(batch, lambda: next(ticks) / 8.1)
    told = captured_events()
    BatchRun(batch, told, executor=Asked(), progress=progress).run()
    (summary,) = told.of(Summary)
    assert summary.elapsed_s == round(summary.elapsed_s, 3) != round(summary.elapsed_s, 2)


def test_a_signal_is_answered_in_words_and_what_is_rendered_is_kept(batch: Batch) -> None:
    def interrupt(request: RenderRequest) -> Answer:
        os.kill(os.getpid(), signal.SIGINT)
        return usual(request)

    code, told = run(batch, Asked({batch.jobs[0].id: interrupt}))
    assert code == 128 + signal.SIGINT
    assert said(told) == [Message("stopping after this step; the same signal again stops at once")]
    assert [done.job for done in told.of(JobDone)] == [batch.jobs[0].id]


# Seeds that are drawn.


@pytest.mark.parametrize(("drawn", "seed"), [(0, 1), (-1, 2**31 - 1)])
def test_a_drawn_seed_is_any_from_1_to_the_largest_of_31_bits(
    drawn: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda below: drawn % below)
    assert draw_seed() == seed


def test_a_drawn_seed_is_told_recorded_and_kept(batch_of: LoadText, minimal: str) -> None:
    batch = batch_of(minimal, "scene.square.seeds=[0]", "metrics.names=[]")
    executor = Asked()
    _, told = run(batch, executor)
    (request,), (done,) = executor.requests, told.of(JobDone)
    assert done.seed == request.seed > 0
    _, told = run(batch, Asked())
    assert [one.seed for one in told.of(JobSkipped)] == [done.seed]

    batch.path_of(batch.jobs[0]).unlink()
    _, told = run(batch, executor := Asked({done.job: failing(ValueError("no"))}))
    assert [one.seed for one in told.of(JobFailed)] == [executor.requests[0].seed]
    assert executor.requests[0].seed != done.seed


def store_state(batch: Batch, seed: int) -> Path:
    """Leave what tells of a job's stored state; nothing here reads the state itself."""
    (job,) = batch.jobs
    key = job_key(job, resolve_models(job.model, batch.source.parent).identity)
    kept = CheckpointFile.of(batch.output_dir, job.id, key, 0)
    about = CheckpointHeader(key, seed, 3, 10, {}, 1.0, (0.5,), ("large",))
    header = json.dumps({"__metadata__": about.to_metadata()}).encode()
    kept.path.parent.mkdir(parents=True, exist_ok=True)
    kept.path.write_bytes(len(header).to_bytes(8, "little") + header)
    return kept.path


def test_a_stored_state_gives_its_seed_and_goes_once_its_job_has_a_file(
    batch_of: LoadText, minimal: str
) -> None:
    batch = batch_of(minimal, "scene.square.seeds=[0]", "metrics.names=[]")
    (job,) = batch.jobs
    path = store_state(batch, 77)
    run(batch, executor := Asked({job.id: failing(ValueError("no"))}))
    assert path.exists()
    run(batch, rendering := Asked())
    assert not path.exists()
    assert [one.seed for one in (*executor.requests, *rendering.requests)] == [77, 77]

    store_state(batch, 77)  # a run that is killed right after publishing leaves it
    run(batch, Asked())
    assert not path.exists()


# Answers that are none of a job's frames.


def test_events_of_jobs_that_arent_under_way_arent_told_and_others_are(batch: Batch) -> None:
    first, second = batch.jobs

    def chatty(request: RenderRequest) -> Answer:
        for job in (first, second):
            executor.told.append(StepStarted(job.id, 0, 10, "large"))
            executor.told.append(JobStarted(job.id, job.scene, job.seed, 10, "L" * 10, job.prompt))
        executor.told.append(Message("hot"))
        return usual(request)

    executor = Asked(dict.fromkeys((first.id, second.id), chatty))
    _, told = run(batch, executor)
    for kind in (StepStarted, JobStarted):
        assert [one.job for one in told.of(kind)] == [first.id, second.id]  # type: ignore[attr-defined]
    assert told.messages.count("hot") == 2


def test_an_executor_that_never_stops_is_closed_and_its_job_remains(batch: Batch) -> None:
    clock = Clock()
    executor = Asked({batch.jobs[0].id: clock.run_out})
    code, told = run(batch, executor, clock=clock, max_time_s=60, stop_patience_s=0.1)
    assert code == 0
    assert (executor.is_stopped, executor.is_closed) == (True, True)
    assert told.of(JobReturned) == [JobReturned(batch.jobs[0].id)]
    assert said(told)[0] == Message(
        "what renders didn't stop in time and was ended; its jobs remain", is_error=True
    )


# Renders for seconds alone.


@pytest.fixture
def timed(batch_of: LoadText, minimal: str) -> Batch:
    text = minimal + "\n[sweep]\ntime_repeats = 3\n[metrics]\nnames = []\n"
    return batch_of(text)


def test_a_repeat_has_the_same_seed_and_steps_and_its_seconds_are_kept(timed: Batch) -> None:
    (job,) = timed.jobs
    executor = Asked()
    code, told = run(timed, executor)
    assert code == 0
    one, *others = executor.requests
    for request in others:
        assert request == replace(one, number=request.number, checkpoint=None)
    assert len(others) == 2
    record = read_record(timed.output_dir, job.id)
    assert record is not None
    assert len(set(record.elapsed_s)) == 1  # the seconds of publishing count in each
    (done,) = told.of(JobDone)
    assert done.elapsed_s == record.elapsed_s[0]
    assert [message.text for message in said(told)] == [
        f"{job.id}: 3 of 3 renders have the same pixels"
    ]


def test_a_finished_file_is_timed_as_often_as_is_lacking(timed: Batch) -> None:
    (job,) = timed.jobs
    run(replace(timed, study=replace(timed.study, time_repeats=1)), Asked())
    record = read_record(timed.output_dir, job.id)
    assert record is not None
    write_record(timed.output_dir, replace(record, elapsed_s=(2.5,)))

    executor = Asked()
    code, told = run(timed, executor)
    assert (code, len(executor.requests)) == (0, 2)
    record = read_record(timed.output_dir, job.id)
    assert record is not None
    assert record.elapsed_s == (2.5, 2.5, 2.5)
    assert [type(event) for event in told if getattr(event, "job", "") == job.id][-1] is JobSkipped

    for path in (timed.output_dir / ".flowblend").rglob(f"{job.id}.json"):
        path.unlink()
    run(timed, Asked())
    record = read_record(timed.output_dir, job.id)
    assert record is not None
    assert record.elapsed_s == (2.0, 2.0, 2.0)  # nothing is known of publishing


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (failing(ValueError("hot")), 0, "render 2 of 3 for its seconds failed: hot"),
        (failing(DeviceLostError("gone")), 5, "gone"),
        (failing(DeviceLostError("no room"), "models"), 5, "no room"),
    ],
)
def test_a_repeat_that_fails_costs_its_seconds_and_not_the_file(
    timed: Batch, failure: Callable[[RenderRequest], Answer], code: int, says: str
) -> None:
    (job,) = timed.jobs
    found, told = run(
        timed, Asked({job.id: lambda one: (failure if one.number > 1 else usual)(one)})
    )
    assert found == code
    assert [done.job for done in told.of(JobDone)] == [job.id]
    assert not told.of(JobFailed)
    (message,) = said(told)
    assert message.text.endswith(says)
    assert message.is_error
    record = read_record(timed.output_dir, job.id)
    assert record is not None
    assert len(record.elapsed_s) == 1


def test_time_that_runs_out_in_a_repeat_keeps_what_is_timed(timed: Batch) -> None:
    (job,) = timed.jobs

    clock = Clock()

    def slow(request: RenderRequest) -> Answer | None:
        return usual(request) if request.number < 3 else clock.run_out(request)

    executor = Asked({job.id: slow})
    code, told = run(timed, executor, clock=clock, max_time_s=60, stop_patience_s=0.1)
    assert code == 0
    assert [done.job for done in told.of(JobDone)] == [job.id]
    assert not any("failed" in text or "same pixels" in text for text in told.messages)
    record = read_record(timed.output_dir, job.id)
    assert record is not None
    assert len(record.elapsed_s) == 2


def test_a_limit_that_is_reached_times_nothing_of_a_finished_file(timed: Batch) -> None:
    run(replace(timed, study=replace(timed.study, time_repeats=1)), Asked())
    executor = Asked()
    code, told = run(timed, executor, max_jobs=0)
    assert (code, executor.requests) == (0, [])
    assert len(told.of(JobSkipped)) == 1


# Previews of drafts.


@pytest.fixture
def drafts(batch_of: LoadText, minimal: str) -> Batch:
    return batch_of(minimal + DRAFTS, 'scene.square.seeds="explore 2"', "metrics.names=[]")


def test_every_draft_is_previewed_after_so_many_steps_before_one_is_rendered(
    drafts: Batch,
) -> None:
    executor = Asked()
    run(drafts, executor)
    asked = [(one.job.id, one.kind, one.seed) for one in executor.requests]
    previews = [(job.id, "preview", job.seed) for job in drafts.jobs]
    assert asked[:2] == previews
    assert all(kind == "render" for _, kind, _ in asked[2:])
    for one in executor.requests[:2]:
        assert (one.after_steps, one.planned, one.checkpoint) == (1, "", None)
        assert one.models == resolve_models(one.job.model, drafts.source.parent)


def test_a_draft_that_cant_be_previewed_is_told_and_goes_on(drafts: Batch) -> None:
    first = drafts.jobs[0]

    def once(request: RenderRequest) -> Answer:
        preview = request.kind == "preview"
        return failing(ValueError("too dark"))(request) if preview else usual(request)

    executor = Asked({first.id: once})
    _, told = run(drafts, executor)
    text = f"{first.id} can't be looked at after 1 steps and goes on: too dark"
    assert Message(text, is_error=True, job=first.id) in said(told)
    assert ("render", first.id) in [(one.kind, one.job.id) for one in executor.requests]


@pytest.mark.parametrize("kind", ["job", "models"])
def test_a_preview_without_a_device_ends_the_batch(drafts: Batch, kind: str) -> None:
    executor = Asked({drafts.jobs[0].id: failing(DeviceLostError("gone"), kind)})
    code, told = run(drafts, executor)
    assert code == DeviceLostError.exit_code
    assert "gone" in told.messages
    assert len(executor.requests) == 1


def test_a_preview_that_is_stopped_says_nothing_and_its_draft_remains(drafts: Batch) -> None:
    clock = Clock()

    class Stopped(Asked):
        def stop(self) -> None:
            super().stop()
            (request,) = self.requests
            self.told.append(RenderFailure(request.number, StopRequested(), "stopped"))

    executor = Stopped({drafts.jobs[0].id: clock.run_out})
    code, told = run(drafts, executor, clock=clock, max_time_s=60)
    assert code == 0
    assert not told.of(JobFailed)
    assert not any("looked at" in text for text in told.messages)
    assert {one.kind for one in executor.requests} == {"preview"}
