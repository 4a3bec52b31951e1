"""WorkerPool: who gets which request, and what becomes of it where a worker fails."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.engine.executors import pool as pool_module
from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.pool import Heard, WorkerPool
from flowblend_cli.errors import DeviceFailedError, DeviceLostError, StopRequested, WorkerDiedError
from flowblend_cli.events import Event, JobStarted, Message
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.models.identity import ResolvedModels
from tests.noise_executor import render_of
from tests.rendered import a_job


class ScriptedWorker:
    """A worker that answers when it is told to, and as it is told to."""

    slots = 1

    def __init__(self, name: str, model: ModelSpec | None = None) -> None:
        self.name, self.model = name, model
        self.request: RenderRequest | None = None
        self.taken: list[int] = []
        self.waiting: deque[Answer | Event] = deque()
        self.is_stopped = self.is_closed = self.is_gone = False

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        assert self.request is None
        assert not self.is_closed
        self.request, self.model = request, request.job.model
        self.taken.append(request.number)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        return self.waiting.popleft() if self.waiting else None

    def answer(self, error: BaseException | None = None, kind: str = "job") -> None:
        assert self.request is not None
        number, self.request = self.request.number, None
        failure = None if error is None else RenderFailure(number, error, kind)  # type: ignore[arg-type]
        self.waiting.append(failure or render_of(number, number=number))

    def models_in_memory(self) -> Collection[ModelSpec]:
        return () if self.model is None else (self.model,)

    def stop(self) -> None:
        self.is_stopped = True

    def close(self) -> None:
        self.is_closed = True


def request(number: int, pipeline: str = "sprites") -> RenderRequest:
    job = replace(a_job(seed=number), id=f"job{number}")
    model = replace(job.model, pipeline=pipeline)
    job = replace(job, model=model)
    return RenderRequest(number, job, number, models=ResolvedModels.__new__(ResolvedModels))


def pool_of(*workers: ScriptedWorker) -> WorkerPool:
    return WorkerPool(workers, threading.Event())


def told(pool: WorkerPool) -> list[Answer | Event]:
    found = []
    while (one := pool.poll(0.0)) is not None:
        found.append(one)
    return found


LOST = DeviceFailedError("the device fell off the bus")


def test_each_worker_has_one_request_and_its_name_is_in_what_it_tells() -> None:
    one, two = workers = ScriptedWorker("cuda:0"), ScriptedWorker("cuda:1")
    pool = pool_of(*workers)
    assert pool.slots == 2
    pool.submit(request(1))
    pool.submit(request(2))
    two.waiting.append(JobStarted("job2", "s", 2, 2, "LS", "p"))
    two.answer()
    one.answer(KeyError("nobody can read this"))

    found = told(pool)

    by_kind = {type(each): each.worker for each in found}  # type: ignore[union-attr]
    assert by_kind == {RenderFailure: "cuda:0", JobStarted: "cuda:1", RenderResult: "cuda:1"}


def test_a_request_goes_to_the_free_worker_that_has_its_models() -> None:
    model = request(1, "b").job.model
    empty, other, right = (
        ScriptedWorker("0"), ScriptedWorker("1", request(1, "a").job.model),
        ScriptedWorker("2", model),
    )  # fmt: skip
    pool = pool_of(empty, other, right)
    assert list(pool.models_in_memory()) == [other.model, model]

    pool.submit(request(1, "b"))
    assert right.taken == [1]
    assert list(pool.models_in_memory()) == [other.model]  # what is free

    pool.submit(request(2, "b"))
    assert empty.taken == [2]  # rather than throw models out of a memory
    pool.submit(request(3, "b"))
    assert other.taken == [3]


@pytest.mark.parametrize("error", [LOST, DeviceLostError("no memory is left")])
def test_a_device_that_fails_at_what_another_manages_is_left_out(error: Exception) -> None:
    bad, good = ScriptedWorker("bad"), ScriptedWorker("good")
    pool = pool_of(bad, good)
    pool.submit(request(1))
    bad.answer(error, "models")

    (moved,) = told(pool)
    assert isinstance(moved, Message)
    assert "bad failed at job1, which goes to another worker" in moved.text
    assert good.taken == [1]
    good.answer()

    *words, result = told(pool)
    assert [word.text for word in words if isinstance(word, Message)] == [
        f"bad is left out from now on: {error}"
    ]
    assert isinstance(result, RenderResult)
    assert result.worker == "good"
    assert bad.is_closed
    assert pool.slots == 1
    assert pool.names == ("good",)
    pool.submit(request(2))
    assert good.taken == [1, 2]


def test_a_job_that_no_worker_manages_fails_alone_and_all_workers_stay() -> None:
    workers = [ScriptedWorker(str(n)) for n in range(5)]
    pool = pool_of(*workers)
    pool.submit(request(1))
    failures = []
    for _ in range(5):
        busy = [worker for worker in workers if worker.request is not None]
        if not busy:
            break
        busy[0].answer(LOST)
        failures += [each for each in told(pool) if isinstance(each, RenderFailure)]

    assert sum(len(worker.taken) for worker in workers) == 3  # the first, and two others
    assert [failure.error for failure in failures] == [LOST]
    assert pool.slots == 5
    assert not any(worker.is_closed for worker in workers)


@pytest.mark.parametrize("error", [KeyError("a prompt"), WorkerDiedError("it died, twice")])
def test_what_is_a_jobs_own_fault_goes_to_nobody_else(error: Exception) -> None:
    one, two = ScriptedWorker("0"), ScriptedWorker("1")
    pool = pool_of(one, two)
    pool.submit(request(1))
    one.answer(error)

    (failure,) = told(pool)
    assert isinstance(failure, RenderFailure)
    assert failure.error is error
    assert two.taken == []


def test_a_request_waits_for_another_worker_where_all_are_busy() -> None:
    one, two = ScriptedWorker("0"), ScriptedWorker("1")
    pool = pool_of(one, two)
    pool.submit(request(1))
    pool.submit(request(2))
    one.answer(LOST)
    told(pool)
    assert pool.slots == 1  # the loop hands out nothing more meanwhile
    assert two.taken == [2]
    two.answer()
    assert [each.number for each in told(pool) if isinstance(each, RenderResult)] == [2]
    assert two.taken == [2, 1]


def test_a_request_that_waits_for_another_worker_is_stopped_too() -> None:
    one, two = ScriptedWorker("0"), ScriptedWorker("1")
    pool = pool_of(one, two)
    pool.submit(request(1))
    pool.submit(request(2))
    one.answer(LOST)
    told(pool)

    pool.stop()

    (failure,) = told(pool)
    assert isinstance(failure, RenderFailure)
    assert (failure.number, failure.kind) == (1, "stopped")
    assert two.is_stopped


def test_previews_have_a_worker_too() -> None:
    one = ScriptedWorker("0")
    pool = pool_of(one)
    pool.submit(request(1))
    one.waiting.append(PreviewResult(1, render_of(1).frames, 1.0))
    (preview,) = told(pool)
    assert isinstance(preview, PreviewResult)
    assert preview.worker == "0"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_request_has_one_answer_whatever_workers_do(data: st.DataObject) -> None:
    workers = [ScriptedWorker(str(n)) for n in range(data.draw(st.integers(1, 4)))]
    pool = pool_of(*workers)
    left, under_way, answered = list(range(1, 12)), set[int](), []
    is_stopping = False
    for _ in range(400):
        if not left and not under_way:
            break
        if left and not is_stopping and len(under_way) < pool.slots:
            number = left.pop()
            under_way.add(number)
            pool.submit(request(number, data.draw(st.sampled_from("ab"))))
        elif busy := [worker for worker in workers if worker.request is not None]:
            how = data.draw(st.sampled_from(["fine", "fine", "lost", "own"]))
            error = {"lost": LOST, "own": KeyError("x")}.get(how)
            data.draw(st.sampled_from(busy)).answer(error)
        if not is_stopping and data.draw(st.integers(0, 40)) == 40:
            is_stopping = True
            pool.stop()
            left.clear()
        for each in told(pool):
            if isinstance(each, Answer):
                answered.append(each.number)
                under_way.remove(each.number)
                stopped = isinstance(each, RenderFailure) and each.kind == "stopped"
                assert not stopped or isinstance(each.error, StopRequested)
    assert not under_way
    assert len(answered) == len(set(answered))
    assert pool.slots >= 1


class CountingWorker(ScriptedWorker):
    asked = 0

    def poll(self, timeout_s: float) -> Answer | Event | None:
        self.asked += 1
        return super().poll(timeout_s)


def test_of_many_workers_those_are_asked_that_were_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    workers = [CountingWorker(f"worker {number}") for number in range(100)]
    pool = WorkerPool(workers, heard)
    for number in range(100):
        pool.submit(request(number))
    pool.poll(0.0)  # asks all of them, once
    monkeypatch.setattr(pool_module, "_ROUND_S", 1000.0)
    before = sum(worker.asked for worker in workers)
    workers[7].waiting.append(Message("one"))
    workers[7].answer()
    heard.by("worker 7")()
    heard.by("worker 7")()
    found = told(pool)
    assert [type(one).__name__ for one in found] == ["Message", "RenderResult"]
    assert sum(worker.asked for worker in workers) == before + 2
    workers[8].answer()
    assert not told(pool)
    monkeypatch.setattr(pool_module, "_ROUND_S", 0.0)  # who rang for nothing isn't forgotten
    assert len(told(pool)) == 1


def test_a_thread_that_calls_wakes_a_poll_that_waits() -> None:
    heard = Heard()
    worker = ScriptedWorker("one")
    pool = WorkerPool([worker], heard)
    pool.submit(request(1))
    pool.poll(0.0)

    def speak() -> None:
        worker.answer()
        heard.by("one")()

    threading.Timer(0.05, speak).start()
    assert isinstance(pool.poll(60.0), RenderResult)


def test_a_worker_that_is_gone_while_it_has_nothing_to_do_gets_no_request() -> None:
    one, two = ScriptedWorker("one"), ScriptedWorker("two")
    pool = pool_of(one, two)
    one.is_gone = True
    pool.submit(request(1))
    assert (one.taken, two.taken) == ([], [1])
    assert told(pool) == [Message("one is lost; it had no job")]
    assert one.is_closed
    assert pool.slots == 1
