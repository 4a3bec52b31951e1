"""One run of the command's loop over a cluster in virtual time; see ``virtual_cluster``."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from virtual_cluster import Clock, Costs, VirtualCluster, VirtualPublisher

from flowblend_cli.console.run_state import RunState
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import RenderRequest
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.events import Event, JobFailed, chain
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.recipe.loader import load_batch

STEPS = 20
SIZES = tuple(range(9, 90, 8))  # frames, of which each takes the same time
SHORTEST_S, LONGEST_S = 60.0, 600.0
HEAD = f"""\
[recipe]
name = "cluster"
[model]
pipeline = "sprites"
[defaults]
num_inference_steps = {STEPS}
height = 32
width = 32
[metrics]
names = []
"""
SCENE = """
[[scene]]
name = "scene{index}"
prompt = "a red square number {index} moving right on a navy background"
num_frames = {frames}
seeds = {seeds}
"""


@dataclass(frozen=True)
class Case:
    """One simulated run.

    Args:
        workers: How many there are.
        jobs: How many jobs they render.
        encode: ``"driver"`` or ``"worker"``.
        every: A state is stored after so many of the 20 steps; 0 for none.
        is_spot: Whether workers are lost.
    """

    workers: int
    jobs: int
    encode: str = "worker"
    every: int = 0
    is_spot: bool = True


def write_recipe(folder: Path, jobs: int) -> Path:
    """A recipe of so many jobs, of all lengths equally many, as far as that goes."""
    scenes, left, index = [], jobs, 0
    most = max(1, min(100, jobs // len(SIZES)))
    while left:
        seeds = list(range(1, 1 + min(left, most)))
        frames = SIZES[index % len(SIZES)]
        scenes.append(SCENE.format(index=index, frames=frames, seeds=seeds))
        left, index = left - len(seeds), index + 1
    path = folder / "cluster.toml"
    path.write_text(HEAD + "".join(scenes), "utf-8")
    return path


def seconds_of(request: RenderRequest) -> float:
    """Seconds of a request's steps: by its frames, and a little by chance, as on real machines."""
    share = (int(request.job.argument("num_frames")) - SIZES[0]) / (SIZES[-1] - SIZES[0])
    chance = 1 + 0.05 * (2 * (crc32(request.job.id.encode()) % 1000) / 1000 - 1)
    return (SHORTEST_S + share * (LONGEST_S - SHORTEST_S)) * chance


def simulate(case: Case, costs: Costs, folder: Path) -> dict[str, float]:
    """Run a case to its end.

    Returns:
        Shares of the workers' time, from 0 to 1, and what the run took.
    """
    batch = load_batch(str(write_recipe(folder, case.jobs)), output_dir=folder / "out")
    clock, failed = Clock(), []
    cluster = VirtualCluster(
        clock, case.workers, costs, seconds_of, steps=STEPS, every=case.every, is_spot=case.is_spot
    )
    publisher = VirtualPublisher(cluster)
    progress = RunProgress(batch, clock)

    def tell(event: Event) -> None:
        if isinstance(event, JobFailed):
            failed.append(event.job)

    began = time.monotonic()
    run = BatchRun(
        batch,
        chain([RunState(progress, batch, ["flowblend"], tell), tell]),
        options=RunOptions(encode=case.encode, checkpoint_every=case.every),
        overrides=(),
        progress=progress,
        executor=cluster,
        publisher=publisher,
    )
    run.run()
    tally, took = cluster.tally, clock()
    assert progress.rendered + len(failed) == case.jobs, (progress.line(), len(failed))
    return {
        "useful": tally.rendered / tally.there,
        "lost": tally.lost / tally.there,
        "loading": tally.loading / tally.there,
        "encoding": tally.encoding / tally.there,
        "idle": 1 - (tally.rendered + tally.lost + tally.loading + tally.encoding) / tally.there,
        "losses": tally.losses,
        "failed": len(failed),
        "hours": took / 3600,
        "loop": clock.computed / took,
        "publishing": publisher.busy / took,
        "network": cluster.network.busy / took,
        "loop_ms": 1000 * clock.computed / case.jobs,
        "real_s": time.monotonic() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
