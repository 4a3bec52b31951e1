"""make_executor: chooses where the jobs of a run are rendered."""

from __future__ import annotations

from pathlib import Path

from flowblend_cli.engine.executors.base import Executor
from flowblend_cli.engine.executors.child_process import ChildProcessExecutor
from flowblend_cli.engine.executors.in_process import InProcessExecutor
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.jobs import Job


def make_executor(
    options: RunOptions, warm_up: Job | None = None, embeddings_dir: Path | None = None
) -> Executor:
    """Make the executor that a run's options ask for.

    Args:
        options: The options.
        warm_up: See ``JobRunner``.
        embeddings_dir: See ``JobRunner``.
    """
    kind = ChildProcessExecutor if options.isolated else InProcessExecutor
    return kind(warm_up, embeddings_dir)
