"""Workers, a network and a disk in virtual time, around the command's real loop.

What is real: the batch loop, its queue, the pool that hands requests out, records, the manifest,
the state for ``status``, counts and estimates. What is made up: how long renders, encoding, the
network and the disk take, and when workers are lost. The seconds of CPU that all of it takes here,
the simulation's own among them, pass in virtual time too, so that a slow loop shows.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowblend_cli.engine.executors.base import (
    Answer,
    EncodedFile,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.pool import Heard, WorkerPool
from flowblend_cli.engine.publisher import Pending, Publication, Publisher
from flowblend_cli.errors import StopRequested, WorkerDiedError
from flowblend_cli.events import Event, JobStarted, ModelLoaded, StepStarted
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.utils.files import publish

# They say that they have as many bytes as those of a real clip, and take none.
FRAMES = np.broadcast_to(np.zeros(1, np.uint8), (81, 480, 832, 3))
FILE = EncodedFile(bytes(6_000_000), FRAMES.shape, 0.0)


@dataclass(frozen=True)
class Costs:
    """What things take in virtual time: seconds, bytes, and bytes a second.

    A clip is 81 frames of 832x480. Encoding and checking were measured on one core here; a state
    is that of Wan 2.1 at this size, latents and the solver's memory of them.
    """

    encode_s: float = 3.0
    decode_s: float = 0.5
    check_s: float = 0.03
    load_s: float = 60.0
    state_bytes: float = 25e6
    network: float = 1.25e9
    disk: float = 0.5e9
    lifetime_s: float = 7200.0
    replaced_s: float = 240.0


@dataclass
class Tally:
    """Seconds of workers, by what they did meanwhile."""

    there: float = 0.0
    rendered: float = 0.0
    lost: float = 0.0
    loading: float = 0.0
    encoding: float = 0.0
    losses: int = 0


class Clock:
    """Virtual seconds: those that were waited for, and those that this process has computed."""

    def __init__(self) -> None:
        self._waited, self._began = 0.0, time.thread_time()

    @property
    def computed(self) -> float:
        return time.thread_time() - self._began

    def __call__(self) -> float:
        return self._waited + self.computed

    def wait_until(self, moment: float) -> None:
        self._waited += max(0.0, moment - self())


@dataclass
class Line:
    """A network or a disk: one thing after the other."""

    clock: Clock
    free_at: float = 0.0
    busy: float = 0.0

    def take(self, seconds: float) -> float:
        """When something that takes so long is over."""
        self.busy += seconds
        self.free_at = max(self.clock(), self.free_at) + seconds
        return self.free_at


@dataclass
class Present:
    """A request, and how far its render is."""

    request: RenderRequest
    step: int
    began: float
    first: int = 0
    kept: int = 0


class VirtualWorker:
    """A worker of one slot. ``happen`` is called where the time of what it waits for has come."""

    slots = 1

    def __init__(self, cluster: VirtualCluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.is_gone = False
        self.model: ModelSpec | None = None
        self.present: Present | None = None
        self.told: deque[Answer | Event] = deque()
        self.joined = cluster.clock()
        self.turn = 0  # what was waited for before it changed is nothing any more
        self._heard = cluster.heard.by(name)
        self.dies_at = self.joined + cluster.random.expovariate(1 / cluster.costs.lifetime_s)
        if cluster.is_spot:
            cluster.at(self.dies_at, self.die)

    def submit(self, request: RenderRequest) -> None:
        first = self.cluster.states.get(request.job.id, 0)
        self.present = Present(request, first - 1, self.cluster.clock(), first, first)
        self._wait(self.cluster.costs.load_s if self.model is None else 0.0)

    def poll(self, timeout_s: float) -> Answer | Event | None:
        return self.told.popleft() if self.told else None

    def models_in_memory(self) -> Collection[ModelSpec]:
        return () if self.model is None else (self.model,)

    def stop(self) -> None:
        if self.present is not None:
            self._say(RenderFailure(self.present.request.number, StopRequested(), "stopped"))
            self.present, self.turn = None, self.turn + 1

    def close(self) -> None:
        self.present, self.turn = None, self.turn + 1

    def die(self) -> None:
        """Be lost, with whatever it worked at."""
        cluster, present = self.cluster, self.present
        if self.is_gone:
            return
        self.is_gone, self.turn = True, self.turn + 1
        cluster.tally.there += cluster.clock() - self.joined
        cluster.tally.losses += 1
        cluster.at(cluster.clock() + cluster.costs.replaced_s, cluster.join)
        if present is not None:
            kept = cluster.states.get(present.request.job.id, 0)
            of_step = cluster.seconds_of(present.request) / cluster.steps
            cluster.tally.lost += max(0, present.step - max(kept, present.first)) * of_step
            number = present.request.number
            self._say(RenderFailure(number, WorkerDiedError(f"{self.name} is lost")))

    def _wait(self, seconds: float) -> None:
        turn = self.turn

        def happen() -> None:
            if turn == self.turn and self.present is not None:
                self._step(self.present)

        self.cluster.at(self.cluster.clock() + seconds, happen)

    def _step(self, present: Present) -> None:
        """A step is over: the next one begins, or what comes after the last."""
        cluster, request = self.cluster, present.request
        job, steps = request.job, cluster.steps
        if self.model is None:
            self.model = job.model
            cluster.tally.loading += cluster.costs.load_s
            self._say(ModelLoaded(job.model.pipeline, cluster.costs.load_s))
        if present.step == present.first - 1:
            said = JobStarted(
                job.id, job.scene, request.seed, steps, "L" * steps, "", present.first
            )
            self._say(said)
        present.step += 1
        of_step = cluster.seconds_of(request) / steps
        done = present.step
        if cluster.every and done > present.first and done < steps and done % cluster.every == 0:
            cluster.send_state(job.id, done)
        if done < steps:
            self._say(StepStarted(job.id, done, steps, "large"))
            self._wait(of_step)
        elif done == steps and request.file is not None:
            cluster.tally.encoding += cluster.costs.encode_s + cluster.costs.decode_s
            self._wait(cluster.costs.encode_s + cluster.costs.decode_s)
        else:
            self._answer(present)

    def _answer(self, present: Present) -> None:
        """Send the frames or the file; whoever waits for it works at nothing meanwhile."""
        cluster, request = self.cluster, present.request
        cluster.tally.rendered += cluster.seconds_of(request)
        result = cluster.result_of(request)
        size = result.nbytes
        turn = self.turn

        def arrive() -> None:
            if turn == self.turn:
                self.present = None
                self._say(result)

        cluster.at(cluster.network.take(size / cluster.costs.network), arrive)

    def _say(self, what: Answer | Event) -> None:
        self.told.append(what)
        self._heard()


@dataclass(order=True)
class _Moment:
    at: float
    number: int
    happen: Callable[[], None] = field(compare=False)


class VirtualCluster(WorkerPool):
    """A pool of such workers, whose lost ones are replaced after some minutes.

    Args:
        clock: The time.
        number: How many workers there are.
        costs: What things take.
        seconds_of: How long a request's steps take, all of them.
        steps: How many steps a job has.
        every: A job's state is stored after so many steps; 0 stores none.
        is_spot: Whether workers are lost.
        seed: Of what happens by chance.
    """

    def __init__(
        self,
        clock: Clock,
        number: int,
        costs: Costs,
        seconds_of: Callable[[RenderRequest], float],
        *,
        steps: int,
        every: int = 0,
        is_spot: bool = True,
        seed: int = 1,
    ) -> None:
        self.heard = Heard()
        super().__init__([], self.heard)
        self.clock, self.costs, self.seconds_of = clock, costs, seconds_of
        self.steps, self.every, self.is_spot = steps, every, is_spot
        self.random = random.Random(seed)
        self.network, self.disk = Line(clock), Line(clock)
        self.tally = Tally()
        self.states: dict[str, int] = {}
        self.next_published: Callable[[], float | None] = lambda: None
        self._moments: list[_Moment] = []
        self._numbers = 0
        for _ in range(number):
            self.join()

    @property
    def slots(self) -> int:
        return self._ready

    def join(self) -> None:
        self._numbers += 1
        name = f"worker {self._numbers}"
        self._workers[name] = VirtualWorker(self, name)

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        """Have something happen then."""
        self._numbers += 1
        heapq.heappush(self._moments, _Moment(moment, self._numbers, happen))

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """The next thing that is told; time passes until then, or until a file has its name."""
        while (found := super().poll(0.0)) is None and self._moments:
            published = self.next_published()
            if published is not None and published < self._moments[0].at:
                self.clock.wait_until(published)
                return None
            moment = heapq.heappop(self._moments)
            self.clock.wait_until(moment.at)
            moment.happen()
        return found

    def send_state(self, job: str, step: int) -> None:
        """A state travels to the driver, whose loop writes it: that takes its time, too."""

        def arrive() -> None:
            self.clock.wait_until(self.disk.take(self.costs.state_bytes / self.costs.disk))
            self.states[job] = step

        self.at(self.network.take(self.costs.state_bytes / self.costs.network), arrive)

    def result_of(self, request: RenderRequest) -> RenderResult:
        seconds = self.seconds_of(request)
        return RenderResult(
            number=request.number, frames=None if request.file else FRAMES, seed=request.seed,
            elapsed_s=seconds, step_s=(seconds / self.steps,) * self.steps,
            denoisers="L" * self.steps, device="cuda", caches=(), versions={},
            pixels_sha256=f"{request.seed:064x}", peak_rss_bytes=1, peak_vram_bytes=1,
            file=FILE if request.file else None,
        )  # fmt: skip

    def _is_there_another(self, task: object) -> bool:
        return True

    def close(self) -> None:
        for worker in self._workers.values():
            assert isinstance(worker, VirtualWorker)
            self.tally.there += self.clock() - worker.joined
        super().close()


class VirtualPublisher(Publisher):
    """Publishes in virtual time: a small file takes the name that a clip would have.

    Args:
        cluster: Whose clock, disk and costs it has.
    """

    def __init__(self, cluster: VirtualCluster) -> None:
        super().__init__(Path())
        self._cluster = cluster
        self._thread_line = Line(cluster.clock)
        self._done: deque[tuple[float, Publication]] = deque()
        self.busy = 0.0
        cluster.next_published = lambda: self._done[0][0] if self._done else None

    def _begin(self, pending: Pending, render: RenderResult) -> None:
        costs = self._cluster.costs
        seconds = len(FILE.data) / costs.disk
        seconds += costs.check_s if render.file else costs.encode_s + costs.decode_s
        self.busy += seconds
        done = Publication(pending, render, seconds)
        self._done.append((self._thread_line.take(seconds), done))

    def _finished(self, timeout_s: float) -> Publication | None:
        clock = self._cluster.clock
        if not self._done:
            return None
        at, done = self._done[0]
        if at > clock() + timeout_s:
            clock.wait_until(clock() + timeout_s)
            return None
        clock.wait_until(at)
        self._done.popleft()
        publish(done.pending.path, done.pending.key.encode(), durable=False)
        return done

    def close(self) -> None:
        self._done.clear()
