"""RunState: what a run is doing, kept in ``DIR/.flowblend/runs`` for ``flowblend status`` to read.

The file is written where a job begins or ends, and at most once a second beside that; more rarely
where jobs end every moment, or a thousand are under way. It is written whole or not at all, and
without waiting for the disk. Where it can't be written, the run says so once and goes on.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.artifacts.records import read_checked, run_path, shards_of, write_json
from flowblend_cli.errors import OutputError
from flowblend_cli.events import (
    Event,
    JobAssigned,
    JobDone,
    JobFailed,
    JobSkipped,
    Message,
    Reporter,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    Waiting,
)
from flowblend_cli.jobs import Batch, Shard
from flowblend_cli.text import utc_now
from flowblend_cli.utils.files import remove
from flowblend_cli.utils.process import process_mark

if TYPE_CHECKING:
    from flowblend_cli.planning.run_progress import JobProgress, RunProgress

STATE_VERSION = 1
_SECONDS_BETWEEN = 1.0
# Each time costs some of the seconds that have passed, of which so many are saved up.
_COST_S = 0.2
_COST_OF_JOB_S = 0.004
_SAVED_S = 10.0


class RunState:
    """A reporter that keeps how far a run is on the disk.

    Args:
        progress: How far the run is; it must be told each event before this reporter. It begins
            with the speeds that the last run on this machine learned.
        batch: The jobs.
        command: The command line that goes on with this batch.
        complain: Told once if the state can't be written.
    """

    def __init__(
        self, progress: RunProgress, batch: Batch, command: Sequence[str], complain: Reporter
    ) -> None:
        self._progress = progress
        self._complain = complain
        self._output_dir, self._shard = batch.output_dir, batch.shard
        self._recipe = batch.recipe_name
        self._path = run_path(batch.output_dir, batch.recipe_name, batch.shard)
        self._fixed = {
            "v": STATE_VERSION,
            "recipe": batch.recipe_name,
            "command": list(command),
            "folder": os.getcwd(),
            "output_dir": os.path.abspath(batch.output_dir),
            "shard": None if batch.shard is None else str(batch.shard),
            "jobs": len(batch.jobs),
            "started": utc_now(),
            "process": process_mark(os.getpid()),
        }
        self._ids = {job.id for job in batch.jobs}
        self._known = self._ids | {job.id for job in batch.reserve}
        self._failed: dict[str, dict[str, Any]] = {}
        self._taken_over: list[str] = []
        self._waiting = self._error = ""
        self._ended: str | None = None
        self._written = progress.now() - _SECONDS_BETWEEN
        self._saved_s = _SAVED_S
        self._is_old = False  # whether a job has begun or ended since it was written
        self._is_broken = False

    def __call__(self, event: Event) -> None:
        """Keep what happened; steps and skipped jobs at most once a second."""
        match event:
            case RunStarted():
                self._begin()
                self._write()
                self._replace_shards()
                return
            case JobDone() | JobSkipped():
                self._failed.pop(event.job, None)
            case JobFailed():
                self._failed[event.job] = {
                    "scene": event.scene, "seed": event.seed, "error": event.error, "at": utc_now(),
                }  # fmt: skip
            case Waiting():
                self._waiting = event.text
            case Message():
                self._error = event.text if event.is_error else self._error
                return
            case Summary():
                self._ended = utc_now()
            case RunEnded():
                self._waiting = ""
        self._is_old |= not isinstance(event, JobSkipped | JobAssigned | StepStarted)
        if isinstance(event, Summary | RunEnded) or self._is_due():
            self._write()

    def _is_due(self) -> bool:
        """Whether the file is to be written now, which isn't to take the run's time."""
        passed = self._progress.now() - self._written
        cost = _COST_S + _COST_OF_JOB_S * len(self._progress.under_way)
        is_wanted = self._is_old or passed >= _SECONDS_BETWEEN
        if not is_wanted or self._saved_s + passed < cost:
            return False
        self._saved_s = min(_SAVED_S, self._saved_s + passed) - cost
        return True

    def _begin(self) -> None:
        """Begin where the last runs ended: with the jobs that failed, and the speeds they learned.

        What runs of another division say of these jobs is taken over, and no longer counts there.
        """
        mine = self._shard
        others = [one for one in shards_of(self._output_dir) if not _is_beside(one, mine)]
        wanted = [None, *(one for one in others if one != mine), mine]  # its own counts most
        states = read_states(self._output_dir, self._recipe, wanted)
        failed, _ = outcomes(states)
        self._failed = {job: told for job, told in failed.items() if job in self._known}
        taken: set[str] = set()
        for shard, state in states:
            if mine is not None and shard != mine:
                taken.update(state["failed"], state["dropped"])
            if state["process"].get("host") == platform.node():
                self._progress.recall(state.get("learned"))
        self._taken_over = sorted(taken & self._known)

    def _replace_shards(self) -> None:
        """Where all jobs are rendered, remove the states of shards, which are in this one now."""
        for shard in shards_of(self._output_dir) if self._shard is None else ():
            if not self._is_broken:
                with contextlib.suppress(OSError):
                    remove(run_path(self._output_dir, self._recipe, shard))

    def _write(self) -> None:
        progress = self._progress
        self._written, self._is_old = progress.now(), False
        if self._is_broken:
            return
        under_way = [_present(one) for one in progress.sampling.values()]
        document = {
            **self._fixed,
            "ended": self._ended,
            "elapsed_s": round(progress.elapsed_s, 3),
            "clock_s": round(time.monotonic(), 3),
            "rendered": progress.rendered,
            "skipped": progress.skipped,
            "added": progress.added,
            "added_done": len(progress.done - self._ids),
            "dropped": progress.dropped,
            "failed": self._failed,
            "taken_over": self._taken_over,
            "present": under_way[0] if under_way else None,
            "under_way": under_way,
            "waiting": self._waiting,
            "error": self._error,
            "remaining_s": progress.remaining_s(),
            "learned": progress.learned,
        }
        try:
            write_json(self._path, document, durable=False)
        except (OutputError, ValueError) as error:
            self._is_broken = True
            told = f"flowblend status will not see this run: {error}".split(": nothing was")[0]
            self._complain(Message(told))


def _present(job: JobProgress) -> dict[str, Any]:
    assert job.started is not None
    return {
        "job": job.started.job,
        "scene": job.started.scene,
        "step": job.step + 1 if job.ran else 0,
        "num_inference_steps": job.total,
        "role": job.role,
        "worker": job.started.worker,
    }


def _is_beside(shard: Shard, mine: Shard | None) -> bool:
    """Whether a shard is another one of the same division, whose jobs are others."""
    return mine is not None and shard != mine and shard.count == mine.count


States = list[tuple[Shard | None, dict[str, Any]]]


def read_states(
    output_dir: Path,
    recipe: str,
    shards: Iterable[Shard | None],
    warn: Callable[[str], None] | None = None,
) -> States:
    """Read the states of a recipe's runs, see ``read_state``.

    Args:
        output_dir: The output folder.
        recipe: Name of the recipe.
        shards: Whose states; None for that of a run of all jobs.
        warn: Called with what is wrong with one.

    Returns:
        Those that are there, each with its shard.
    """
    wanted = dict.fromkeys(shards)
    found = [(one, read_state(run_path(output_dir, recipe, one), warn)) for one in wanted]
    # Whose it is, its place says, whatever stands in it.
    return [(one, state | {"shard": one and str(one)}) for one, state in found if state]


def outcomes(states: States) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The jobs that failed, each with how, and the drafts that were dropped, over several runs.

    Where a later run of another division has taken a job over, its own word counts.
    """
    taken: dict[int, set[str]] = {}
    latest: dict[int, str] = {}
    for shard, state in states:
        division = shard.count if shard else 0
        taken.setdefault(division, set()).update(state.get("taken_over", ()))
        latest[division] = max(latest.get(division, ""), state["started"])
    failed: dict[str, dict[str, Any]] = {}
    dropped: set[str] = set()
    for shard, state in states:
        own = shard.count if shard else 0
        gone = {
            job
            for division, jobs in taken.items()
            if division != own and latest[division] >= state["started"]
            for job in jobs
        }
        failed |= {job: told for job, told in state["failed"].items() if job not in gone}
        dropped |= {*state["dropped"]} - gone
    return failed, dropped


def read_state(path: Path, warn: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Read a run's state; empty where the file isn't there or doesn't hold what it should.

    Args:
        path: The file.
        warn: Called with what is wrong with it.
    """
    from flowblend_cli.artifacts.schema.records import RunStateDocument

    return read_checked(path, RunStateDocument, warn) or {}
