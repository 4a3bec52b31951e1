"""Cluster: a cluster of Ray, joined or started; it is asked for actors, and left at the end.

Whatever may wait for the cluster's head is done by a thread of its own, so that a head that is gone
holds nobody up: the run ends with what it has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from flowblend_cli.engine.executors.ray_address import find_cluster
from flowblend_cli.engine.executors.ray_worker import RayWorker
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import UsageError
from flowblend_cli.text import shorten
from flowblend_cli.utils.worker_process import Document, worker_environment

# A head that answers nothing for so long is gone.
HEAD_PATIENCE_S = 30.0
# At least so many actors may wait for machines that an autoscaler is to start.
ASKED_AHEAD = 8
_LOOK_S = 1.0
_LEAVING_S = 10.0
# What decides how a worker computes, and is set before it starts.
_PASSED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "PYTHONPATH", "HF_HUB_OFFLINE")
# A mirror of the Hub is one for all machines; a login isn't passed on.
_PASSED_TO_FETCH = ("HF_ENDPOINT",)


@dataclass
class Start:
    """An actor that was asked for.

    Args:
        name: What messages call it.
        asked_at: When, by the monotonic clock.
        repositories: See ``RayWorker.about``.
        actor: Ray's handle; None before there is one.
        about: Ray's promise of what it tells of itself.
        is_unwanted: Whether it is to be ended, whether it has begun or not.
        told: What it told of itself; None where it died before.
        error: Why it died.
        node: The node that it was on; empty where that isn't known.
    """

    name: str
    asked_at: float
    repositories: Sequence[Document] = ()
    actor: Any = None
    about: Any = None
    is_unwanted: bool = False
    told: dict[str, Any] | None = None
    error: BaseException | None = None
    node: str = ""


class Cluster:
    """A cluster of Ray.

    Args:
        options: Where it is, and what a worker gets of it.
        heard: Called where ``arrived`` may have something.

    Raises:
        UsageError: Ray isn't installed, or the cluster isn't there.
    """

    def __init__(self, options: RunOptions, heard: Callable[[], None] = lambda: None) -> None:
        self._options = options
        self._heard = heard
        self._elsewhere = contextlib.ExitStack()
        self._join()
        self._left_out: set[str] = set()
        self._nodes: list[dict[str, Any]] = _ray().nodes()
        self._here = _ray().get_runtime_context().get_node_id()
        self.heard_at = time.monotonic()
        self._has_gpus = self._wants_gpus()
        self._threads = self._threads_of_worker()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending: list[Start] = []
        self._arrived: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="cluster", daemon=True)
        self._thread.start()

    @property
    def loss(self) -> str:
        """What of it is gone without which no run goes on, in words; empty where it is there."""
        if time.monotonic() - self.heard_at > HEAD_PATIENCE_S:
            return "the head of the cluster is gone"
        if not any(node["NodeID"] == self._here and node["Alive"] for node in self._nodes):
            return "this machine has lost its place in the cluster, and with it all workers"
        return ""

    @property
    def room(self) -> int:
        """How many workers its machines have room for, but for those that were left out."""
        return sum(self._room_of(node) for node in self._nodes if self._is_usable(node))

    @property
    def most(self) -> int:
        """How many workers are worth asking for: others wait for machines that may join.

        A cluster that grows by itself does so because of actors that wait. As many as there is room
        for already may wait, so that it doubles, as Ray's own autoscaler does.
        """
        return self.room + max(ASKED_AHEAD, self.room) if self._options.address else self.room

    @property
    def place(self) -> str:
        """What a worker asks a machine for, in words."""
        if self._has_gpus:
            return f"{self._per_worker:g} GPU and a CPU"
        return f"{self._threads} CPU"

    def ask(self, name: str, repositories: Sequence[Document] = ()) -> Start:
        """Ask for an actor, which starts once there is room for it.

        Args:
            name: What messages call it.
            repositories: See ``RayWorker.about``.
        """
        start = Start(name, time.monotonic(), repositories)
        self._commands.put(lambda: self._place(start))
        return start

    def cancel(self, start: Start) -> None:
        """Ask for an actor no more."""
        start.is_unwanted = True
        self._commands.put(lambda: self._forget(start))

    def arrived(self) -> Iterator[Start]:
        """The actors that are there by now, or died before, each once."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._arrived.get_nowait()

    def leave_out(self, node: str) -> None:
        """Place no further actor on a node."""
        self._left_out.add(node)

    def host_of(self, node: str) -> str:
        """What a node's machine is called; empty for a node that is gone."""
        for one in self._nodes:
            if one["NodeID"] == node and one["Alive"]:
                return str(one["NodeManagerHostname"])
        return ""

    def on_nodes(self, task: Callable[..., Any], *given: Any) -> Iterator[tuple[str, Any]]:
        """Have every machine carry a task out once; gives each one's name, and Ray's handle."""
        ray = _ray()
        around = {name: os.environ[name] for name in _PASSED_TO_FETCH if name in os.environ}
        around["PYTHONPATH"] = worker_environment()["PYTHONPATH"]
        for node in ray.nodes():
            if node["Alive"]:
                there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                )
                kind = ray.remote(task).options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=there,
                    runtime_env={"env_vars": around},
                )
                yield node["NodeManagerHostname"], kind.remote(*given)

    def leave(self) -> None:
        """Leave the cluster, which ends this run's actors; end it where this run started it."""
        self._is_left.set()

        def shut_down() -> None:
            with contextlib.suppress(Exception):
                _ray().shutdown()

        if not self.loss:  # else it would be waited for
            self._thread.join(_LEAVING_S)
        leaving = threading.Thread(target=shut_down, name="leaving", daemon=True)
        leaving.start()
        leaving.join(_LEAVING_S)
        if leaving.is_alive():  # this process is left to itself, and Ray with it
            import atexit

            from ray._private import worker

            atexit.unregister(worker.shutdown)
        self._elsewhere.close()

    def _join(self) -> None:
        options = self._options
        if find_spec("ray") is None:
            _ray()
        address, is_loopback = find_cluster(options.address) if options.address else ("", True)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if is_loopback:  # read where Ray is imported: nothing listens beyond the loopback
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if address:  # else this very process would be ended when the head is gone for a minute
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "86400")
        ray = _ray()
        if is_loopback:  # where Ray was imported before
            with contextlib.suppress(AttributeError):
                ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._elsewhere.enter_context(_unprinted())
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:
            self._elsewhere.close()
            where = options.address or "this machine"
            raise UsageError(
                f"--address: no cluster of Ray can be used at {where} ({short(error)})"
            ) from error

    def _tend(self) -> None:
        """Do what is asked for, look at the nodes, and see who has arrived, until it is left."""
        looked_at = 0.0
        while not self._is_left.is_set():
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=_LOOK_S / 5)()
            with contextlib.suppress(Exception):
                self._see_arrivals()
                if time.monotonic() - looked_at > _LOOK_S:
                    self._nodes = _ray().nodes()
                    self.heard_at = looked_at = time.monotonic()

    def _place(self, start: Start) -> None:
        if start.is_unwanted:
            return
        try:
            start.actor = self._actor()
            start.about = start.actor.about.remote(start.repositories)
            self._pending.append(start)
        except Exception as error:  # noqa: BLE001 - told as the end of this start
            self._arrive(start, error)

    def _actor(self) -> Any:
        threads = {"OMP_NUM_THREADS": str(self._threads)}
        around = {name: value for name, value in worker_environment().items() if name in _PASSED_ON}
        elsewhere = {}
        if self._left_out:
            elsewhere = {"label_selector": {"ray.io/node-id": f"!in({','.join(self._left_out)})"}}
        kind = (
            _ray()
            .remote(RayWorker)
            .options(
                name=None,
                num_cpus=1 if self._has_gpus else self._threads,
                num_gpus=self._per_worker if self._has_gpus else 0,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=4,
                runtime_env={"env_vars": {**around, **({} if self._has_gpus else threads)}},
                **elsewhere,
            )
        )
        return kind.remote()

    def _forget(self, start: Start) -> None:
        if start in self._pending:
            self._pending.remove(start)
        if start.actor is not None:
            kill(start.actor)

    def _see_arrivals(self) -> None:
        if not self._pending:
            return
        ray = _ray()
        promises = [start.about for start in self._pending]
        ready = set(ray.wait(promises, num_returns=len(promises), timeout=0)[0])
        for start in [start for start in self._pending if start.about in ready]:
            self._pending.remove(start)
            try:
                start.told = ray.get(start.about)
                self._arrive(start)
            except Exception as error:  # noqa: BLE001 - it died while it started
                self._arrive(start, error)

    def _arrive(self, start: Start, error: BaseException | None = None) -> None:
        start.error = error
        if start.actor is not None:
            with contextlib.suppress(Exception):  # Ray has no public way without its dashboard
                from ray._private import state

                start.node = state.actors(start.actor._actor_id.hex())["Address"]["NodeID"]
        self._arrived.put(start)
        self._heard()

    def _is_usable(self, node: dict[str, Any]) -> bool:
        return bool(node["Alive"]) and node["NodeID"] not in self._left_out

    def _room_of(self, node: dict[str, Any]) -> int:
        there = node["Resources"]
        if self._has_gpus:
            gpus = int(there.get("GPU", 0) / self._per_worker)
            return min(gpus, int(there.get("CPU", 0)))
        return int(there.get("CPU", 0) / self._threads)

    @property
    def _per_worker(self) -> float:
        asked = self._options.gpus_per_worker
        return 1.0 if asked is None else asked

    def _wants_gpus(self) -> bool:
        """Whether workers get GPUs: as was said, or where the cluster has some."""
        if self._options.gpus_per_worker is not None:
            return self._options.gpus_per_worker > 0
        return any(node["Resources"].get("GPU") for node in self._nodes if node["Alive"])

    def _threads_of_worker(self) -> int:
        given = os.environ.get("OMP_NUM_THREADS", "")
        if given.isdecimal() and int(given):
            return int(given)
        if self._has_gpus or self._options.address:
            return 1
        cpus = sum(int(node["Resources"].get("CPU", 0)) for node in self._nodes)
        return max(1, cpus // max(1, self._options.workers))


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Print nothing: Ray prints what its machines say to standard output, which carries results."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def kill(actor: Any) -> None:
    """End an actor, without waiting for that."""

    def do() -> None:
        with contextlib.suppress(Exception):  # it, its machine, or the head may be gone
            _ray().kill(actor, no_restart=True)

    threading.Thread(target=do, name="ending", daemon=True).start()


def short(error: BaseException) -> str:
    """What Ray says of a loss, in one short line: of an error in a worker, what it was."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    because = ("The actor is dead because", "The actor died because")
    telling = [line for line in lines if line.startswith(because)]
    if lines and ("creation task" in lines[0] or "ray::" in lines[0]):
        return shorten(lines[-1], 160)
    return shorten((telling or lines or [type(error).__name__])[0], 160)


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
