"""How many workers a cluster is asked for, and which machines get none; no Ray is needed.

The cluster and its actors are scripted here; ``test_ray`` has real ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from noise_executor import render_of
from rendered import a_job

import flowblend_cli.engine.executors.ray as ours
from flowblend_cli.engine.executors import ray_cluster
from flowblend_cli.engine.executors.base import Answer, RenderFailure, RenderRequest
from flowblend_cli.engine.executors.ray_cluster import Start, short
from flowblend_cli.engine.executors.ray_worker import installed_versions
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import DeviceLostError, ModelMissingError, StopRequested
from flowblend_cli.events import Event, Message
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.utils.worker_process import Document


class ScriptedCluster:
    """A cluster of machines with some room each, on which actors arrive when a test says so."""

    def __init__(self, room: dict[str, int]) -> None:
        self.rooms, self.left_out = room, set[str]()
        self.asked: list[Start] = []
        self.arriving: list[Start] = []
        self.cancelled: list[Start] = []
        self.loss, self.is_left, self.place = "", False, "1 CPU"

    @property
    def room(self) -> int:
        return sum(room for node, room in self.rooms.items() if node not in self.left_out)

    @property
    def most(self) -> int:
        return self.room

    def ask(self, name: str, repositories: Sequence[Document] = ()) -> Start:
        self.asked.append(Start(name, time.monotonic(), actor=object()))
        return self.asked[-1]

    def cancel(self, start: Start) -> None:
        self.cancelled.append(start)
        start.is_unwanted = True

    def arrived(self) -> Iterator[Start]:
        while self.arriving:
            yield self.arriving.pop(0)

    def leave_out(self, node: str) -> None:
        self.left_out.add(node)

    def host_of(self, node: str) -> str:
        return f"host of {node}" if node in self.rooms else ""

    def leave(self) -> None:
        self.is_left = True

    @property
    def waiting(self) -> list[Start]:
        return [one for one in self.asked if not one.is_unwanted and not one.node]

    def let_in(self, node: str, error: Exception | None = None, **about: Any) -> Start:
        start = self.waiting[0]
        start.node, start.error = node, error
        if error is None:
            start.told = {"host": node, "device": "cpu", "versions": installed_versions(), **about}
        self.arriving.append(start)
        return start


class ScriptedProcess:
    """An actor that renders nothing, and may be lost."""

    def __init__(
        self, actor: object, name: str, on_document: Callable[[], None], *_: object
    ) -> None:
        self.name, self.is_alive, self._on_document = name, True, on_document
        self._waiting: deque[Document] = deque()

    def tell(self, document: Document) -> None:
        self._waiting.append(document)
        self._on_document()

    def send(self, document: Document) -> None:
        pass

    def receive(self, timeout_s: float) -> Document | None:
        if not self.is_alive:
            raise ours.WorkerDiedError(f"{self.name} is lost")
        return self._waiting.popleft() if self._waiting else None

    def end(self) -> None:
        self.is_alive = False
        self._on_document()


Made = tuple[ours.RayPool, ScriptedCluster]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def made(room: dict[str, int], **options: Any) -> Made:
        cluster = ScriptedCluster(room)
        monkeypatch.setattr(ours, "Cluster", lambda *_: cluster)
        monkeypatch.setattr(ours, "ActorProcess", ScriptedProcess)
        monkeypatch.setattr(ours, "kill", lambda actor: None)
        return ours.RayPool(RunOptions(executor="ray", **options)), cluster

    return made


def told(pool: ours.RayPool) -> list[Answer | Event]:
    found = []
    while (one := pool.poll(0.0)) is not None:
        found.append(one)
    return found


def words(pool: ours.RayPool) -> list[str]:
    return [one.text for one in told(pool) if isinstance(one, Message)]


def request(number: int) -> RenderRequest:
    job = a_job(seed=number)
    return RenderRequest(number, job, number, resolve_models(job.model, Path()))


@pytest.mark.parametrize(("jobs", "workers", "asked"), [(2, 0, 2), (500, 0, 100), (500, 7, 7),
                                                        (0, 7, 0)])  # fmt: skip
def test_there_are_never_more_workers_than_jobs(
    make: Any, jobs: int, workers: int, asked: int
) -> None:
    pool, cluster = make({"a": 100}, workers=workers)
    pool.expect(jobs)
    told(pool)
    assert len(cluster.waiting) == asked
    assert pool.slots == 0


def test_workers_that_wait_for_room_are_asked_for_no_more_where_jobs_run_out(make: Any) -> None:
    pool, cluster = make({"a": 4})
    pool.expect(4)
    told(pool)
    cluster.let_in("a")
    told(pool)
    assert pool.slots == 1

    pool.expect(2)
    told(pool)

    assert len(cluster.waiting) == 1
    assert len(cluster.cancelled) == 2
    assert pool.slots == 1


def test_workers_without_a_job_end_after_a_while_and_busy_ones_stay(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, cluster = make({"a": 3})
    pool.expect(3)
    told(pool)
    for _ in range(3):
        cluster.let_in("a")
    told(pool)
    pool.submit(request(1))
    pool.expect(1)
    told(pool)
    assert pool.slots == 3  # measurements may lead to more jobs soon

    monkeypatch.setattr(ours, "_SPARE_S", 0.0)
    told(pool)
    assert pool.slots == 1
    assert not pool._free()
    pool.expect(3)
    told(pool)
    assert len(cluster.waiting) == 2


def test_machines_that_join_are_used(make: Any) -> None:
    pool, cluster = make({"a": 1})
    pool.expect(9)
    told(pool)
    assert len(cluster.waiting) == 1
    cluster.rooms["b"] = 4
    told(pool)
    assert len(cluster.waiting) == 5


def test_a_machine_on_which_workers_do_not_start_is_named_and_tried_no_more(make: Any) -> None:
    pool, cluster = make({"bad": 1, "good": 1})
    pool.expect(9)
    said = []
    for _ in range(2):
        told(pool)
        cluster.let_in("bad", ImportError("No module named 'flowblend_cli'"))
        said += words(pool)
    assert cluster.left_out == {"bad"}
    assert "worker 1 didn't start on host of bad (No module named 'flowblend_cli')" in said
    assert "no further worker is started on host of bad" in said
    assert cluster.room == len(cluster.waiting) == 1
    cluster.let_in("good")
    told(pool)
    assert pool.slots == 1


def test_a_cluster_on_which_nothing_starts_ends_the_run_and_not_the_night(make: Any) -> None:
    pool, cluster = make({f"n{number}": 2 for number in range(50)})
    pool.expect(100)
    told(pool)
    for number in range(5):
        cluster.let_in(f"n{number}", ImportError("No module named 'flowblend_cli'"))
        told(pool)
    cluster.let_in("n5", ImportError("No module named 'flowblend_cli'"))
    assert isinstance(pool.poll(0.0), Message)
    with pytest.raises(DeviceLostError, match="no worker starts on the cluster") as ended:
        told(pool)
    assert "No module named 'flowblend_cli'" in str(ended.value)
    assert len(cluster.asked) < 110


def test_where_no_machine_may_take_a_job_the_run_ends_with_what_was_said(make: Any) -> None:
    pool, cluster = make({"old": 1})
    pool.expect(2)
    told(pool)
    cluster.let_in("old", versions={**installed_versions(), "torch": "1.0"})
    said = pool.poll(0.0)
    assert isinstance(said, Message)
    assert "old/1 gets no job: it has torch 1.0" in said.text
    with pytest.raises(DeviceLostError, match="may take a job"):
        pool.poll(0.0)
    assert cluster.left_out == {"old"}


def test_where_every_machine_lacks_the_models_that_is_what_ends_the_run(make: Any) -> None:
    pool, cluster = make({"first": 1, "second": 1}, address="a:1")
    pool.expect(2)
    told(pool)
    cluster.let_in("first", lacking=["owner/name isn't in /cache"])
    assert words(pool) == ["first/1 gets no job: owner/name isn't in /cache"]
    cluster.let_in("second", lacking=["owner/name is only half there"])
    assert isinstance(pool.poll(0.0), Message)
    with pytest.raises(ModelMissingError, match="executor ray --address a:1 fetches them"):
        pool.poll(0.0)


def test_where_some_machines_have_other_code_models_alone_are_no_remedy(make: Any) -> None:
    pool, cluster = make({"first": 1, "second": 1})
    pool.expect(2)
    told(pool)
    lacking = ["owner/name isn't in /cache"]
    cluster.let_in("first", lacking=lacking)
    code = {**installed_versions(), "flowblend's code": "0123456789ab"}
    cluster.let_in("second", lacking=lacking, versions=code)
    for _ in range(2):
        assert isinstance(pool.poll(0.0), Message)
    with pytest.raises(DeviceLostError, match="may take a job"):
        pool.poll(0.0)


def test_a_lost_head_gives_every_job_back_once_and_ends_the_run(make: Any) -> None:
    pool, cluster = make({"a": 2})
    pool.expect(2)
    told(pool)
    cluster.let_in("a")
    told(pool)
    pool.submit(request(1))
    pool.submit(request(2))  # waits
    cluster.loss = "the head of the cluster is gone"

    with pytest.raises(DeviceLostError, match="the head of the cluster is gone"):
        pool.poll(0.0)
    answers = told(pool)

    assert sorted(one.number for one in answers if isinstance(one, RenderFailure)) == [1, 2]
    assert {type(one.error) for one in answers if isinstance(one, RenderFailure)} == {StopRequested}
    assert told(pool) == []
    pool.close()
    assert cluster.is_left


def test_a_worker_that_is_lost_without_a_job_is_told_once_and_replaced(make: Any) -> None:
    pool, cluster = make({"a": 1})
    pool.expect(5)
    told(pool)
    cluster.let_in("a")
    told(pool)
    (worker,) = pool._workers.values()
    worker._process.end()

    assert words(pool) == ["a/1 is lost; it had no job"]
    assert pool.slots == 0
    assert len(cluster.waiting) == 1


def test_a_lost_job_goes_to_another_machine_and_not_to_the_same_again(make: Any) -> None:
    pool, cluster = make({"bad": 1, "good": 1})
    pool.expect(9)
    told(pool)
    cluster.let_in("bad")
    cluster.let_in("good")
    told(pool)
    bad, good = pool._workers.values()
    pool.submit(request(1))
    pool.submit(request(2))
    bad._process.end()
    for _ in range(3):
        told(pool)
    cluster.let_in("bad")  # the new one there is free before the good one is
    told(pool)

    assert pool._free() == ["bad/3"]
    assert [task.request.number for task in pool._waiting] == [1]
    good._process.end()  # now there is no other machine
    for _ in range(3):
        told(pool)
    assert pool._busy["bad/3"].request.number in (1, 2)


def test_of_what_ray_says_the_reason_is_told() -> None:
    raised = """The actor died because of an error raised in its creation task, \x1b[36mA\x1b[39m
        File x
        ImportError: no flowblend
        """
    died = """The actor died unexpectedly before finishing this task.
        class_name: A
        The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
        The actor never ran - it was cancelled before it started running."""
    assert short(RuntimeError(raised)) == "ImportError: no flowblend"
    assert short(RuntimeError(died)).startswith("The actor is dead because its worker process has")
    assert short(RuntimeError()) == "RuntimeError"


def cluster_of(nodes: list[dict[str, float]], **options: Any) -> ray_cluster.Cluster:
    cluster = ray_cluster.Cluster.__new__(ray_cluster.Cluster)
    cluster._options, cluster._left_out = RunOptions(executor="ray", **options), set()
    cluster._nodes = [
        {"NodeID": f"n{number}", "Alive": there.get("alive", 1), "Resources": there}
        for number, there in enumerate(nodes)
    ]
    cluster._has_gpus = cluster._wants_gpus()
    cluster._threads = cluster._threads_of_worker()
    return cluster


def test_room_is_counted_machine_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    head, box = {"CPU": 0.0}, {"CPU": 64.0, "GPU": 8.0}
    for nodes, options, room in [
        ([head, box, box], {}, 16),
        ([head, box, box], {"gpus_per_worker": 0.5}, 32),
        ([head, box, box], {"gpus_per_worker": 3.0}, 4),
        ([head, {"CPU": 2.0, "GPU": 4.0}], {}, 2),  # each needs a CPU, too
        ([head, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], {"gpus_per_worker": 2.0}, 0),
        ([head, box, {**box, "alive": 0}], {}, 8),
        ([head, box], {"gpus_per_worker": 0.0, "address": "auto"}, 64),
        ([head], {"gpus_per_worker": 1.0, "address": "auto"}, 0),
        ([{"CPU": 8.0}], {"workers": 2}, 2),  # of four threads each
    ]:
        assert cluster_of(nodes, **options).room == room, (nodes, options)


def test_a_cluster_that_may_grow_is_asked_for_more_than_it_has_room_for() -> None:
    alone = cluster_of([{"CPU": 4.0, "GPU": 2.0}])
    assert alone.most == alone.room == 2
    for boxes, most in [(0, 8), (1, 16), (8, 128)]:
        nodes = [{"CPU": 0.0}, *[{"CPU": 64.0, "GPU": 8.0}] * boxes]
        joined = cluster_of(nodes, address="auto", gpus_per_worker=1.0)
        assert joined.most == most


def test_an_answer_that_comes_twice_is_not_that_of_the_next_request(make: Any) -> None:
    pool, cluster = make({"a": 1})
    pool.expect(2)
    told(pool)
    cluster.let_in("a")
    told(pool)
    (worker,) = pool._workers.values()
    for number in (1, 2):
        pool.submit(request(number))
        first = render_of(1, number=1)
        answer = {"say": "result", "number": 1, "result": first.to_document()}
        worker._process.tell({**answer, "frames": first.frames})
        found = [one.number for one in told(pool) if isinstance(one, Answer)]
        assert found == ([1] if number == 1 else [])
    second = {"say": "failure", "number": 2, "kind": "job", "error": "KeyError", "text": "x"}
    worker._process.tell({**second, "exit_code": 1})
    assert [one.number for one in told(pool) if isinstance(one, Answer)] == [2]
