"""RayPool: workers on the machines of a cluster, as actors of Ray.

Ray only places actors and carries documents and frames; nothing is retried by it. Who gets which
request is decided in ``pool``, what becomes of a process that died in ``child_process``, and what a
worker does is ``worker``'s body: the same as on one machine.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.engine.executors.base import Answer, RenderFailure, RenderRequest
from flowblend_cli.engine.executors.child_process import ChildProcessExecutor, Process
from flowblend_cli.engine.executors.pool import OF_THE_WORKER, WorkerPool
from flowblend_cli.engine.executors.ray_worker import RayWorker, installed_versions
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles, EmbeddingHome
from flowblend_cli.errors import DeviceLostError, OutputError, UsageError, WorkerDiedError
from flowblend_cli.events import Message
from flowblend_cli.jobs import Job
from flowblend_cli.text import shorten
from flowblend_cli.utils.worker_process import Document, worker_environment
from flowblend_plugin.errors import FlowBlendError

if TYPE_CHECKING:
    from flowblend_cli.events import Event

_TAKE_S = 1.0
# What decides how a worker computes, and is set before it starts.
_PASSED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "PYTHONPATH", "HF_HUB_OFFLINE")


class ActorProcess:
    """A worker on some machine, as ``child_process`` uses one; a thread fetches what it sends.

    Args:
        actor: Ray's handle of a ``RayWorker``.
        name: What messages call it.
        on_document: Called where ``receive`` has something.
    """

    def __init__(self, actor: Any, name: str, on_document: Callable[[], None]) -> None:
        self._actor = actor
        self._name = name
        self._on_document = on_document
        self._incoming: queue.SimpleQueue[Document | WorkerDiedError] = queue.SimpleQueue()
        self.is_alive = True
        self._sent = 0
        threading.Thread(target=self._fetch, name=f"news of {name}", daemon=True).start()

    def send(self, document: Document) -> None:
        """See ``Process``."""
        with contextlib.suppress(_ray().exceptions.RayError):  # told by ``receive``
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
        with contextlib.suppress(Exception):  # it, or its machine, may be gone
            _ray().kill(self._actor, no_restart=True)

    def _fetch(self) -> None:
        ray = _ray()
        while self.is_alive:
            try:
                for document in ray.get(self._actor.take.remote(_TAKE_S)):
                    self._incoming.put(document)
            except Exception as error:  # noqa: BLE001 - whatever a cluster makes of a loss
                if self.is_alive:
                    self.is_alive = False
                    self._incoming.put(WorkerDiedError(f"{self._name} is lost ({_short(error)})"))
            self._on_document()


class RayExecutor(ChildProcessExecutor):
    """A worker of a cluster: one actor. What it fails at by its death, another one tries.

    Args:
        process: The actor.
        embeddings: Where this end keeps encoded prompts for all workers; None keeps none.
        given: See ``ChildProcessExecutor``.
    """

    def __init__(
        self,
        process: ActorProcess,
        name: str,
        embeddings: EmbeddingHome | None = None,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self.name = name
        self._process = process
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
        if kept is None:
            return {}
        try:
            return {"state": kept.read_bytes()}
        except OSError:
            return {"state": None}

    def _heard(self, request: RenderRequest, document: Document) -> Answer | Event | None:
        match document["say"]:
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


class Cluster:
    """A cluster of Ray, joined or started: it is asked for actors, and left at the end.

    Args:
        options: Where it is, and what a worker gets of it.

    Raises:
        UsageError: Ray isn't installed, or the cluster isn't there.
    """

    def __init__(self, options: RunOptions) -> None:
        if not options.address:  # read where Ray is imported: nothing listens beyond the loopback
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray = _ray()
        self._options = options
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray prints what its machines say to standard output, which carries results.
        self._elsewhere = contextlib.ExitStack()
        self._elsewhere.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        try:
            if options.address:
                ray.init(address=options.address, **quiet)
            else:
                ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:
            self._elsewhere.close()
            where = options.address or "this machine"
            raise UsageError(
                f"--address: no cluster of Ray can be used at {where} ({_short(error)})"
            ) from error
        self._threads = self._threads_of_worker()

    @property
    def room(self) -> int:
        """How many workers the cluster's machines have room for."""
        there = _ray().cluster_resources()
        if there.get("GPU"):
            return max(1, int(there["GPU"] / self._options.gpus_per_worker))
        return max(1, int(there.get("CPU", 1) / self._threads))

    def start(self, number: int) -> Any:
        """Ask for an actor, which starts once there is room for it."""
        ray = _ray()
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        threads = {"OMP_NUM_THREADS": str(self._threads)}
        around = {name: value for name, value in worker_environment().items() if name in _PASSED_ON}
        kind = ray.remote(RayWorker).options(
            name=None,
            num_cpus=1 if has_gpus else self._threads,
            num_gpus=self._options.gpus_per_worker if has_gpus else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=4,
            runtime_env={"env_vars": {**around, **({} if has_gpus else threads)}},
        )
        return kind.remote()

    def leave(self) -> None:
        """Leave the cluster, which ends this run's actors; end it where this run started it."""
        with contextlib.suppress(Exception):
            _ray().shutdown()
        self._elsewhere.close()

    def _threads_of_worker(self) -> int:
        given = os.environ.get("OMP_NUM_THREADS", "")
        if given.isdecimal() and int(given):
            return int(given)
        there = _ray().cluster_resources()
        if there.get("GPU") or self._options.address:
            return 1
        return max(1, int(there.get("CPU", 1)) // max(1, self._options.workers))


class RayPool(WorkerPool):
    """A pool whose workers are a cluster's: lost ones are replaced, and new ones join.

    Args:
        options: Where the cluster is, and how many workers are wanted.
        warm_up: See ``JobRunner``.
        embeddings_dir: Output folder in which encoded prompts are kept; None keeps none.
    """

    def __init__(
        self,
        options: RunOptions,
        warm_up: Job | None = None,
        embeddings_dir: Path | None = None,
    ) -> None:
        heard = threading.Event()
        super().__init__([], heard)
        self._options = options
        self._given: dict[str, Any] = {"warm_up": warm_up, "on_told": heard.set}
        self._given["patience_s"] = options.job_timeout_s
        if embeddings_dir is not None:
            self._given["embeddings"] = EmbeddingFiles(embeddings_dir)
        self._cluster = Cluster(options)
        self._starting: dict[Any, tuple[Any, str]] = {}  # by what tells that it is there
        self._started = 0
        self._versions = installed_versions()
        self._device: str | None = None
        self._refused = 0

    @property
    def slots(self) -> int:
        """See ``Executor``; 0 while no worker is there yet."""
        return len(self.names)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """See ``Executor``.

        Raises:
            DeviceLostError: No machine of the cluster may take a job.
        """
        self._grow()
        self._welcome()
        if self._refused and not self._workers and not self._starting and not self._told:
            raise DeviceLostError(
                "no worker of the cluster may take a job: mend what was said of each, then run the "
                "same command again"
            )
        return super().poll(min(timeout_s, _TAKE_S))

    def close(self) -> None:
        """See ``Executor``."""
        super().close()
        self._cluster.leave()

    def _grow(self) -> None:
        wanted = (self._options.workers or self._cluster.room) - self._refused
        while len(self._workers) + len(self._starting) < wanted:
            self._started += 1
            actor = self._cluster.start(self._started)
            self._starting[actor.about.remote()] = actor, f"worker {self._started}"

    def _welcome(self) -> None:
        """Take the actors that are there by now as workers, if they make the same bits."""
        ray = _ray()
        if not self._starting:
            return
        ready, _ = ray.wait([*self._starting], num_returns=len(self._starting), timeout=0)
        for one in ready:
            actor, name = self._starting.pop(one)
            try:
                about = ray.get(one)
            except Exception as error:  # noqa: BLE001 - it died while it started
                self._told.append(Message(f"{name} is lost ({_short(error)})", is_error=True))
                continue
            name = f"{about['host']}/{name.split()[-1]}"
            if problem := self._problem_of(about):
                self._refused += 1
                self._told.append(Message(f"{name} gets no job: {problem}", is_error=True))
                ray.kill(actor, no_restart=True)
                continue
            process = ActorProcess(actor, name, self._heard.set)
            self._workers[name] = RayExecutor(process, name, **self._given)

    def _problem_of(self, about: dict[str, Any]) -> str:
        theirs, ours = about["versions"], self._versions
        other = [name for name in ours if theirs.get(name) != ours[name]]
        if other:
            told = ", ".join(f"{name} {theirs.get(name)} (here {ours[name]})" for name in other)
            return f"it has {told}, which makes other bits: install the same versions"
        self._device = self._device or about["device"]
        if about["device"] != self._device and not self._options.allow_mixed_devices:
            return (
                f"it renders on {about['device']}, the first one on {self._device}, which makes "
                "other bits: allow that by --allow-mixed-devices"
            )
        return ""

    def _is_there_another(self, task: Any) -> bool:
        return True  # one is there, or will be


def _ray() -> Any:
    """Ray, which is imported only where it is asked for.

    Raises:
        UsageError: It isn't installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            '--executor ray needs Ray: install it with pip install "flowblend[ray]"'
        ) from error
    return ray


def _short(error: BaseException) -> str:
    return shorten(str(error).strip().split("\n")[0] or type(error).__name__, 160)
