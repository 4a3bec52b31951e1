"""Publishing beside the next render: in order, behind a short queue, and nothing half written."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from noise_executor import NoiseExecutor, render_of

from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.engine import publisher as publisher_module
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.publisher import Pending, Publication, Publisher
from flowblend_cli.errors import OutputError
from flowblend_cli.events import CapturedEvents, Event, JobDone, JobFailed, RunEnded, Summary
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.utils.files import temporary_path

LoadText = Callable[..., Batch]
SEEDS = ["scene.square.seeds=[1,2,3,4,5,6]", "metrics.names=[]"]
PLENTY_S = 60.0


@pytest.fixture
def batch(batch_of: LoadText, minimal: str) -> Batch:
    loaded = batch_of(minimal, *SEEDS)
    loaded.output_dir.mkdir(parents=True)
    return loaded


def pending_of(batch: Batch, job: Job) -> Pending:
    return Pending(job, batch.path_of(job), f"key of {job.id}", {})


def never(wait_s: float) -> None:
    raise AssertionError("there was room in the queue")


def test_files_get_their_names_in_order_and_their_seconds_count(batch: Batch) -> None:
    publisher = Publisher(batch.source.parent)
    for job in batch.jobs[:3]:
        publisher.submit(pending_of(batch, job), render_of(job.seed), never)
    done = [publisher.published(PLENTY_S) for _ in range(3)]
    publisher.close()

    assert [one.pending.job.seed for one in done if one] == [1, 2, 3]
    for one in done:
        assert one is not None
        assert one.error is None
        assert one.record.elapsed_s == (round(2.0 + one.elapsed_s, 3),)
        assert one.elapsed_s > 0
        assert inspect_final(one.pending.path).state is FileState.INTACT
    assert publisher.outstanding == 0


def test_who_renders_faster_than_is_written_waits_for_room(batch: Batch) -> None:
    publisher = Publisher(batch.source.parent)
    done: list[Publication | None] = []
    most = 0
    for job in batch.jobs:
        publisher.submit(
            pending_of(batch, job),
            render_of(job.seed, (24, 128, 128, 3)),
            lambda wait_s: done.append(publisher.published(wait_s)),
        )
        most = max(most, publisher.outstanding)
    while publisher.outstanding:
        done.append(publisher.published(PLENTY_S))
    publisher.close()

    assert most == publisher_module.WAITING_CLIPS + 1
    assert [one.pending.job.seed for one in done if one] == [1, 2, 3, 4, 5, 6]


def test_what_isnt_encoded_when_the_run_is_ended_is_never_written(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_LAST_WORDS_S", 0.0)
    publisher = Publisher(batch.source.parent)
    for job in batch.jobs[:2]:
        publisher.submit(pending_of(batch, job), render_of(1, (48, 256, 256, 3)), never)
    publisher.close()
    time.sleep(0.5)

    assert not list(batch.output_dir.iterdir())


def test_what_is_half_written_when_the_run_is_ended_is_removed(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, goes_on = threading.Event(), threading.Event()

    def slow_disk(descriptor: int) -> None:
        writes.set()
        goes_on.wait(PLENTY_S)

    monkeypatch.setattr(publisher_module, "_LAST_WORDS_S", 0.1)
    monkeypatch.setattr(os, "fsync", slow_disk)
    publisher = Publisher(batch.source.parent)
    pending = pending_of(batch, batch.jobs[0])
    publisher.submit(pending, render_of(1), never)
    assert writes.wait(PLENTY_S)
    assert temporary_path(pending.path).exists()
    publisher.close()
    assert not list(batch.output_dir.iterdir())

    goes_on.set()
    done = publisher.published(PLENTY_S)
    assert done is not None
    assert isinstance(done.error, OutputError)
    assert not list(batch.output_dir.iterdir())


class Seen(CapturedEvents):
    """Keeps events, and finds at each ``job_done`` what lies under its final name."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobDone):
            assert inspect_final(Path(event.path)).state is FileState.INTACT
            assert threading.current_thread() is threading.main_thread()
        super().__call__(event)

    def seeds(self, kind: type[JobDone] | type[JobFailed]) -> list[int]:
        return [event.seed for event in self.of(kind)]


@pytest.fixture
def run(batch: Batch) -> Callable[..., tuple[int, Seen]]:
    """Carry out the batch with what its seeds do, or how large their frames are."""

    def carry_out(
        does: dict[int, Callable[[], None]] | None = None,
        shapes: dict[int, tuple[int, ...]] | None = None,
    ) -> tuple[int, Seen]:
        seen = Seen()
        executor = NoiseExecutor(does or {}, shapes or {})
        return BatchRun(batch, seen, executor=executor).run(), seen

    return carry_out


def test_what_the_encoder_refuses_fails_alone(run: Callable[..., tuple[int, Seen]]) -> None:
    code, seen = run(shapes={2: (3, 33, 33, 3)})

    assert code == 1
    assert seen.seeds(JobDone) == [1, 3, 4, 5, 6]
    assert seen.seeds(JobFailed) == [2]
    (failed,) = seen.of(JobFailed)
    assert failed.error.startswith("FramesError: ")


def test_a_disk_that_fails_beside_the_next_render_ends_the_batch(
    run: Callable[..., tuple[int, Seen]], batch: Batch
) -> None:
    temporary_path(batch.path_of(batch.jobs[1])).mkdir()
    code, seen = run()

    assert code == 4
    assert seen.seeds(JobFailed) == [2]
    assert seen.seeds(JobDone)[0] == 1
    assert 6 not in seen.seeds(JobDone)
    (last,) = seen.of(Summary)
    assert isinstance(seen[-1], RunEnded)
    assert last.rendered == len(seen.seeds(JobDone))
    temporary_path(batch.path_of(batch.jobs[1])).rmdir()
    assert run()[0] == 0


def test_after_the_first_signal_what_is_rendered_is_still_published(
    run: Callable[..., tuple[int, Seen]],
) -> None:
    code, seen = run({3: lambda: os.kill(os.getpid(), signal.SIGINT)}, {2: (48, 256, 256, 3)})

    assert code == 128 + signal.SIGINT
    assert seen.seeds(JobDone) == [1, 2]
    assert isinstance(seen[-2], Summary)
