"""make_executor: chooses where the jobs of a run are rendered."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from flowblend_cli.engine.executors.base import Executor
from flowblend_cli.engine.executors.child_process import ChildProcessExecutor
from flowblend_cli.engine.executors.devices import find_devices
from flowblend_cli.engine.executors.in_process import InProcessExecutor
from flowblend_cli.engine.executors.pool import Heard, WorkerPool
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.jobs import Job
from flowblend_cli.models.identity import ResolvedModels
from flowblend_cli.text import count
from flowblend_cli.utils.devices import Device


def make_executor(
    options: RunOptions,
    warm_up: Job | None = None,
    embeddings_dir: Path | None = None,
    models: Collection[ResolvedModels] = (),
) -> Executor:
    """Make the executor that a run's options ask for.

    Args:
        options: The options.
        warm_up: See ``JobRunner``.
        embeddings_dir: Output folder in which encoded prompts are kept; None keeps none.
        models: All models of the run, which are known once it polls.

    Raises:
        UsageError: A device isn't there.
    """
    if options.executor == "in-process":
        return InProcessExecutor(warm_up, embeddings_dir)
    if options.executor == "ray":
        from flowblend_cli.engine.executors.ray import RayPool

        return RayPool(options, warm_up, embeddings_dir, models)
    if not options.devices:
        return ChildProcessExecutor(warm_up, embeddings_dir, patience_s=options.job_timeout_s)
    heard = Heard()
    devices = find_devices(options.devices)
    workers = [
        ChildProcessExecutor(
            warm_up, embeddings_dir, one, heard.by(one.name), options.job_timeout_s
        )
        for one in devices
    ]
    return WorkerPool(workers, heard, _said_of(devices))


def _said_of(devices: Sequence[Device]) -> str:
    """What people should know of workers that share a CPU's threads; empty for nothing."""
    if len(devices) < 2 or devices[0].kind != "cpu":
        return ""
    threads = devices[0].threads()
    return (
        f"{len(devices)} workers with {count(threads, 'thread')} each: bits depend on the number "
        f"of threads, and are those of one process with OMP_NUM_THREADS={threads}"
    )
