"""RayPool: workers on the machines of a cluster, as actors of Ray.

Ray only places actors and carries documents and frames; nothing is retried by it. Who gets which
request is decided in ``pool``, what becomes of a process that died in ``child_process``, and what a
worker does is ``worker``'s body: the same as on one machine.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.engine.executors.base import (
    Answer,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.child_process import ChildProcessExecutor, Process
from flowblend_cli.engine.executors.inputs import FilePieces, InputList
from flowblend_cli.engine.executors.pool import OF_THE_WORKER, Heard, Task, WorkerPool
from flowblend_cli.engine.executors.ray_cluster import Cluster, Start, kill, short
from flowblend_cli.engine.executors.ray_worker import installed_versions
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles, EmbeddingHome
from flowblend_cli.errors import (
    DeviceLostError,
    ModelMissingError,
    OutputError,
    StopRequested,
    WorkerDiedError,
)
from flowblend_cli.events import Message
from flowblend_cli.jobs import Job
from flowblend_cli.models.identity import ResolvedModels
from flowblend_cli.utils.worker_process import Document
from flowblend_plugin.errors import FlowBlendError

if TYPE_CHECKING:
    from flowblend_cli.events import Event

_TAKE_S = 1.0
# Workers that have had no job for so long, while there are fewer jobs than workers, are ended.
_SPARE_S = 15.0
# After which people are told what a run without workers waits for.
_WAIT_S = 30.0
_NEVER_S = 1e9
# Workers in a row that may die before they are there.
_MOST_FAILED_STARTS = 6
# Faults in a row after which a machine gets no further worker.
_MOST_FAULTS = 2


class ActorProcess:
    """A worker on some machine, as ``child_process`` uses one; a thread fetches what it sends.

    Args:
        actor: Ray's handle of a ``RayWorker``.
        name: What messages call it.
        on_document: Called where ``receive`` has something.
        files: The files that it may ask for.
    """

    def __init__(
        self, actor: Any, name: str, on_document: Callable[[], None], files: FilePieces
    ) -> None:
        self._actor = actor
        self._files = files
        self._name = name
        self._on_document = on_document
        self._incoming: queue.SimpleQueue[Document | WorkerDiedError] = queue.SimpleQueue()
        self.is_alive = True
        self._sent = 0
        threading.Thread(target=self._fetch, name=f"news of {name}", daemon=True).start()

    def send(self, document: Document) -> None:
        """See ``Process``."""
        with contextlib.suppress(Exception):  # told by ``receive``
            self._actor.hand.remote(self._sent, document)
        self._sent += 1

    def receive(self, timeout_s: float) -> Document | None:
        """See ``Process``."""
        try:
            found = (
                self._incoming.get(timeout=timeout_s) if timeout_s else self._incoming.get_nowait()
            )
        except queue.Empty:
            return None
        if isinstance(found, WorkerDiedError):
            self._incoming.put(found)
            raise found
        return found

    def end(self) -> None:
        """See ``Process``."""
        self.is_alive = False
        kill(self._actor)

    def _fetch(self) -> None:
        import ray

        while self.is_alive:
            try:
                for document in ray.get(self._actor.take.remote(_TAKE_S)):
                    if document["say"] == "lacks":
                        asked = document["sha256"], document["piece"]
                        self._actor.give.remote(*asked, self._files.get(*asked))
                    self._incoming.put(document)
            except Exception as error:  # noqa: BLE001 - whatever a cluster makes of a loss
                if self.is_alive:
                    self.is_alive = False
                    self._incoming.put(WorkerDiedError(f"{self._name} is lost ({short(error)})"))
            self._on_document()


class RayExecutor(ChildProcessExecutor):
    """A worker of a cluster: one actor. What it fails at by its death, another one tries.

    Args:
        process: The actor.
        inputs: Tells the files that a request reads.
        embeddings: Where this end keeps encoded prompts for all workers; None keeps none.
        given: See ``ChildProcessExecutor``.
    """

    def __init__(
        self,
        process: ActorProcess,
        name: str,
        inputs: Callable[[RenderRequest], dict[str, Document]],
        embeddings: EmbeddingHome | None = None,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self.name = name
        self._process = process
        self._inputs = inputs
        self._embeddings = embeddings
        self._begin["asks_embeddings"] = embeddings is not None

    @property
    def is_gone(self) -> bool:  # type: ignore[override]
        """Whether its actor has ended."""
        return not self._process.is_alive

    def close(self) -> None:
        """See ``Executor``."""
        super().close()
        self._process.end()

    def _start_process(self) -> Process:
        return self._process

    def _sent_beside(self, request: RenderRequest) -> Document:
        kept = request.checkpoint
        beside: Document = {"inputs": self._inputs(request)}
        if kept is not None:
            try:
                beside["state"] = kept.read_bytes()
            except OSError:
                beside["state"] = None
        return beside

    def _heard(self, request: RenderRequest, document: Document) -> Answer | Event | None:
        match document["say"]:
            case "lacks" | "waits":
                return None  # it lives
            case "state":
                return self._heard_state(request, document)
            case "embedding?" | "embedding":
                return self._heard_embedding(document)
        return super()._heard(request, document)

    def _heard_embedding(self, document: Document) -> Message | None:
        """Give, or keep, an encoded prompt: only this end writes."""
        home, key = self._embeddings, document["key"]
        if home is None:
            return None
        if document["say"] == "embedding?":
            self._process.send({"do": "embedding", "key": key, "data": home.read(key)})
            return None
        try:
            home.write(key, document["data"])
        except OutputError as error:
            return Message(str(error))
        return None

    def _heard_state(self, request: RenderRequest, document: Document) -> Message | None:
        kept, state = request.checkpoint, document["state"]
        if kept is not None and document["number"] == request.number:
            try:
                kept.forget() if state is None else kept.write(state)
            except OutputError as error:
                told = f"{request.job.id}: its state isn't stored: {error}"
                return Message(told, is_error=True, job=request.job.id)
        return None

    def _try_again(self, request: RenderRequest, error: FlowBlendError) -> Answer:
        return self._answer(RenderFailure(request.number, error))

    def _answer(self, answer: Answer) -> Answer:
        if isinstance(answer, RenderFailure) and isinstance(answer.error, OF_THE_WORKER):
            self._process.end()  # another actor takes its place, maybe on another machine
        return super()._answer(answer)


class RayPool(WorkerPool):
    """A pool whose workers are a cluster's: there are as many as jobs, or as machines for them.

    Lost workers are replaced. A machine on which two workers don't start, or fail at what another
    machine manages, gets no further one.

    Args:
        options: Where the cluster is, and how many workers are wanted.
        warm_up: See ``JobRunner``.
        embeddings_dir: Output folder in which encoded prompts are kept; None keeps none.
        models: All models of the run, which are known once it polls.
    """

    def __init__(
        self,
        options: RunOptions,
        warm_up: Job | None = None,
        embeddings_dir: Path | None = None,
        models: Collection[ResolvedModels] = (),
    ) -> None:
        self._calls = heard = Heard()
        super().__init__([], heard)
        self._options = options
        self._given: dict[str, Any] = {"warm_up": warm_up, "on_told": heard.set}
        self._given["patience_s"] = options.job_timeout_s
        if embeddings_dir is not None:
            self._given["embeddings"] = EmbeddingFiles(embeddings_dir)
        self._cluster = Cluster(options, heard.set)
        self._starting: list[Start] = []
        self._started = 0
        self._versions = installed_versions()
        self._models = models
        self._inputs = InputList([] if warm_up is None else [warm_up])
        self._files = FilePieces(_put)
        self._lack_models = True  # all that were left out, alone because of that
        self._device: str | None = None
        self._jobs = 0
        self._spare_since: float | None = None
        self._waits_since = time.monotonic()  # without any worker
        self._node_of: dict[str, str] = {}  # by worker
        self._faults: Counter[str] = Counter()  # by node, since something went well there
        self._failed_starts = 0  # since one went well
        self._reason = ""  # why the last one that isn't there isn't
        self._is_over = False

    @property
    def slots(self) -> int:
        """See ``Executor``; 0 while no worker is there yet."""
        return len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """See ``WorkerPool``; those whose actor has ended aren't among them."""
        return tuple(name for name in super().names if not self._workers[name].is_gone)

    def expect(self, jobs: int) -> None:
        """See ``Executor``: there are never more workers than jobs, for long."""
        self._jobs = jobs

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """See ``Executor``.

        Raises:
            ModelMissingError: No machine of the cluster has the models.
            DeviceLostError: The cluster is lost, or no machine of it may take a job.
        """
        self._check()
        self._welcome()
        self._resize()
        return super().poll(min(timeout_s, _TAKE_S))

    def close(self) -> None:
        """See ``Executor``."""
        for start in self._starting:
            self._cluster.cancel(start)
        super().close()
        self._cluster.leave()

    def _check(self) -> None:
        """See that it can go on; where it can't, everything under way comes back, once."""
        if self._told or self._is_over:
            return
        lost = self._cluster.loss
        if not lost and self._jobs and not self._workers:
            if self._failed_starts >= _MOST_FAILED_STARTS:
                lost = f"no worker starts on the cluster ({self._reason})"
            elif self._reason and not self._cluster.room:
                lost = "no worker of the cluster may take a job"
        if lost:
            self._is_over = True
            stopped = [*self._busy.values(), *self._waiting]
            self._busy.clear()
            self._waiting.clear()
            for task in stopped:
                number = task.request.number
                self._told.append(RenderFailure(number, StopRequested(), "stopped"))
            raise self._end_of(lost)

    def _end_of(self, lost: str) -> FlowBlendError:
        again = "then run the same command again"
        if not self._lack_models or self._cluster.loss or self._cluster.room:
            return DeviceLostError(f"{lost}: mend what was said, {again}")
        at = f" --address {self._options.address}" if self._options.address else ""
        return ModelMissingError(
            "no worker of the cluster has the models: `flowblend models fetch` with the recipe "
            f"and --executor ray{at} fetches them on every machine, {again}"
        )

    def _resize(self) -> None:
        """Ask for workers, or for fewer, as jobs are left and machines are there."""
        most = self._options.workers or self._cluster.most
        surplus = len(self._workers) + len(self._starting) - min(self._jobs, most)
        may_start = not self._is_over and self._failed_starts < _MOST_FAILED_STARTS
        while surplus < 0 and may_start and not self._is_stopping:
            self._started += 1
            surplus += 1
            self._starting.append(self._cluster.ask(f"worker {self._started}", self._repositories))
        while surplus > 0 and self._starting:
            surplus -= 1
            self._cluster.cancel(self._starting.pop())
        self._end_spare(surplus)
        self._say_wait()

    def _end_spare(self, surplus: int) -> None:
        """End workers without a job, once there have been too many for a while."""
        if surplus <= 0:
            self._spare_since = None
            return
        now = time.monotonic()
        self._spare_since = self._spare_since or now
        if now - self._spare_since < _SPARE_S:
            return
        for name in [name for name in self._workers if name not in self._busy][:surplus]:
            self._aside.pop(name, None)
            self._workers.pop(name).close()

    def _say_wait(self) -> None:
        """Say once what is waited for where no worker comes."""
        now = time.monotonic()
        if self._workers or not self._starting:
            self._waits_since = now
        elif now - self._waits_since > _WAIT_S:
            self._waits_since = now + _NEVER_S
            self._told.append(
                Message(f"no worker is there yet: {len(self._starting)} asked for, of "
                        f"{self._cluster.place} each; the cluster has room for "
                        f"{self._cluster.room} where nobody else works. Waiting for machines; "
                        "Ctrl-C ends it")
            )  # fmt: skip

    @cached_property
    def _repositories(self) -> list[Document]:
        """What the run needs of the Hub, which every worker has to have by itself."""
        found = (one for models in self._models for one in self._inputs.of_models(models).values())
        return [one.to_document() for one in dict.fromkeys(found) if one.repo]

    def _inputs_of(self, request: RenderRequest) -> dict[str, Document]:
        found = self._inputs.of_request(request)
        self._files.know(found.values())
        return {place: one.to_document() for place, one in found.items()}

    def _welcome(self) -> None:
        """Take the actors that are there by now as workers, if they make the same bits."""
        for start in self._cluster.arrived():
            if start.is_unwanted:
                continue
            self._starting.remove(start)
            if start.told is None:
                self._note_failed(start)
                continue
            about = start.told
            name = f"{about['host']}/{start.name.split()[-1]}"
            if problem := self._problem_of(about):
                self._reason = problem
                self._lack_models &= problem == "; ".join(about.get("lacking", ()))
                self._cluster.leave_out(start.node)
                self._told.append(Message(f"{name} gets no job: {problem}", is_error=True))
                kill(start.actor)
                continue
            self._failed_starts = 0
            self._node_of[name] = start.node
            process = ActorProcess(start.actor, name, self._calls.by(name), self._files)
            self._workers[name] = RayExecutor(process, name, self._inputs_of, **self._given)

    def _note_failed(self, start: Start) -> None:
        """Say that an actor didn't start; where it happens again, nothing more is tried there."""
        host = self._cluster.host_of(start.node)
        self._reason = "" if start.error is None else short(start.error)
        self._failed_starts += bool(host or not start.node)  # a lost machine is no fault of it
        where = f" on {host}" if host else ""
        if start.actor is not None:
            kill(start.actor)
        told = f"{start.name} didn't start{where} ({self._reason})"
        self._told.append(Message(told, is_error=True))
        if host:
            self._blame_node(start.node)

    def _blame_node(self, node: str) -> None:
        self._lack_models = False
        self._faults[node] += 1
        if node and self._faults[node] == _MOST_FAULTS:
            self._cluster.leave_out(node)
            told = f"no further worker is started on {self._cluster.host_of(node) or node[:8]}"
            self._told.append(Message(told, is_error=True))

    def _take(self, name: str, found: Answer | Event) -> None:
        if isinstance(found, RenderResult):
            self._faults.pop(self._node_of.get(name, ""), None)
        super()._take(name, found)

    def _leave_out(self, task: Task) -> None:
        for name in task.failed:
            if self._node_of.get(name, ""):
                self._blame_node(self._node_of[name])
        super()._leave_out(task)

    def _problem_of(self, about: dict[str, Any]) -> str:
        theirs, ours = about["versions"], self._versions
        other = [name for name in ours if theirs.get(name) != ours[name]]
        if other:
            told = ", ".join(f"{name} {theirs.get(name)} (here {ours[name]})" for name in other)
            return f"it has {told}, which makes other bits: install the same versions"
        if about.get("lacking"):
            return "; ".join(about["lacking"])
        self._device = self._device or about["device"]
        if about["device"] != self._device and not self._options.allow_mixed_devices:
            return (
                f"it renders on {about['device']}, the first one on {self._device}, which makes "
                "other bits: allow that by --allow-mixed-devices"
            )
        return ""

    def _is_there_another(self, task: Task) -> bool:
        return True  # one is there, or will be

    def _may_take(self, name: str, task: Task) -> bool:
        """Whether a worker may take what has failed: on another machine, if there is one."""
        failed = {self._node_of.get(one) for one in task.failed}
        elsewhere = {self._node_of.get(one) for one in self.names} - failed
        return not elsewhere or self._node_of.get(name) not in failed


def _put(data: bytes) -> Any:
    """Put bytes into the cluster's store."""
    import ray

    return ray.put(data)
