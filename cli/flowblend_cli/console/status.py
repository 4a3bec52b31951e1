"""RecipeStatus: how far each recipe of an output folder is, for ``flowblend status``.

It is read from the files that runs leave, without a lock and without writing.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.artifacts.existing import present_files
from flowblend_cli.artifacts.records import (
    own_folder,
    read_checked,
    recipe_path,
    shards_of,
)
from flowblend_cli.console.run_state import States, outcomes, read_states
from flowblend_cli.errors import UsageError
from flowblend_cli.utils.folders import FOLDER
from flowblend_cli.utils.process import is_running

STATUS_VERSION = 1
_SUFFIXES = (".mp4", ".png")


@dataclass(frozen=True)
class RecipeStatus:
    """How far a recipe is in one output folder.

    Args:
        recipe: Its name.
        state: ``"running"``; ``"ended"``; ``"killed"``, where the last run ended without its
            summary; ``"elsewhere"``, where it was begun by another machine and didn't say that it
            ended; ``"unknown"``, where no run kept a state.
        jobs: Its jobs, with those that measurements added.
        done: Those with a file.
        dropped: Drafts that aren't rendered.
        failures: Those that failed and have not succeeded since: scene, seed, error, by job.
        present: The first job that renders, and its step; None where none does.
        under_way: All jobs that render, each with its step.
        waiting: What the run waits for; may be empty.
        error: The last error that wasn't one job's; may be empty.
        elapsed_s: Seconds of the run so far, or until it was last heard of; None if unknown.
        remaining_s: Seconds that the jobs left will take; None if unknown.
        started: When the run began, in UTC; None if unknown.
        ended: When it ended, likewise.
        pid: Its process.
        host: The machine that it runs on.
        command: What goes on with it, typed in any folder; empty if unknown.
        shards: Where runs of shards share it, each of these runs: ``shard``, ``state``, ``host``,
            ``pid``, ``started``, ``ended``, ``error``; those that haven't begun are left out.
    """

    recipe: str
    state: str
    jobs: int
    done: int
    dropped: int
    failures: dict[str, dict[str, Any]]
    present: dict[str, Any] | None = None
    under_way: tuple[dict[str, Any], ...] = ()
    waiting: str = ""
    error: str = ""
    elapsed_s: float | None = None
    remaining_s: float | None = None
    started: str | None = None
    ended: str | None = None
    pid: int | None = None
    host: str | None = None
    command: str = ""
    shards: tuple[dict[str, Any], ...] = ()

    @property
    def remaining(self) -> int:
        """Jobs without a file that didn't fail and weren't dropped."""
        return max(0, self.jobs - self.done - self.dropped - len(self.failures))

    @property
    def is_well(self) -> bool:
        """Whether nothing failed, and no run was killed."""
        is_killed = any(one["state"] == "killed" for one in self.shards)
        return not self.failures and self.state != "killed" and not is_killed

    def to_document(self) -> dict[str, Any]:
        """The status as plain JSON values."""
        failures = [{"job": job, **told} for job, told in self.failures.items()]
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "failures": failures,
            "failed": len(failures),
            "remaining": self.remaining,
        }


def read_statuses(folder: Path, warn: Callable[[str], None]) -> list[RecipeStatus]:
    """Read how far each recipe of an output folder is.

    Args:
        folder: The output folder.
        warn: Called with what is wrong with a file that is left out.

    Returns:
        One status a recipe, in the order of their names.

    Raises:
        UsageError: There is no such folder, or nothing was rendered into it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder: name the one that a recipe renders into")
    places = [own_folder(folder, shard) for shard in (None, *shards_of(folder))]
    kept = [*(place / "runs" for place in places), folder / FOLDER / "recipes"]
    names = {path.stem for place in kept for path in place.glob("*.json")}
    found = [_status(folder, name, warn) for name in sorted(names)]
    statuses = [status for status in found if status is not None]
    if not statuses:
        raise UsageError(
            f"{folder}: no run of flowblend is kept there: name the folder that a recipe renders "
            "into, which `flowblend plan RECIPE` says in its first line"
        )
    return statuses


def _status(folder: Path, recipe: str, warn: Callable[[str], None]) -> RecipeStatus | None:
    from flowblend_cli.artifacts.schema.records import KeptRecipeDocument

    kept = read_checked(recipe_path(folder, recipe), KeptRecipeDocument, warn) or {}
    ids: list[str] = kept.get("jobs", [])
    states = read_states(folder, recipe, (None, *shards_of(folder)), warn)
    runs = _present(states)
    if not ids and not runs:
        return None
    there = present_files(folder)
    failures, dropped = outcomes(states)
    done = [job for job in ids if any(job + suffix in there for suffix in _SUFFIXES)]
    present = {one["job"] for run in runs for one in _under_way(run)}
    ready = sum(job not in {*failures, *dropped, *present} for job in done)
    jobs = (len(ids) or _sum(runs, "jobs")) + _sum(runs, "added")
    if not runs:
        return RecipeStatus(recipe, "unknown", jobs, ready, 0, {})
    if not ids:
        ready = _sum(runs, "rendered") + _sum(runs, "skipped")
    return RecipeStatus(
        recipe,
        jobs=jobs,
        done=ready + _sum(runs, "added_done"),
        dropped=len(dropped),
        failures=failures,
        command=_command(runs[0], os.path.abspath(folder)),
        **_of_runs(runs),
    )


def _present(states: States) -> list[dict[str, Any]]:
    """The states that tell of the present: of all jobs, or of the division that began last.

    The newest one comes first. A run of all jobs removes the states of shards, so those that are
    there came after it.
    """
    newest = sorted(states, key=lambda one: one[1]["started"], reverse=True)
    shards = [(shard, state) for shard, state in newest if shard is not None]
    if not shards:
        return [state for _, state in states]
    return [state for shard, state in shards if shard.count == shards[0][0].count]


def _sum(runs: Iterable[dict[str, Any]], name: str) -> int:
    return sum(run[name] for run in runs)


def _of_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is told of a run; of several, which share the jobs, what is told of all of them."""
    told = [_of_run(run) for run in runs]
    order = ("running", "killed", "elsewhere", "ended")
    first = min(told, key=lambda one: order.index(one["state"]))
    if not runs[0].get("shard"):
        return first
    under_way = [
        {**job, "shard": run["shard"], "host": one["host"]}
        for run, one in zip(runs, told, strict=True)
        for job in one["under_way"]
    ]
    left = [one["remaining_s"] for one in told if one["remaining_s"] is not None]
    keys = ("state", "host", "pid", "started", "ended", "error")
    shards = [
        {"shard": run["shard"], **{key: one[key] for key in keys}}
        for run, one in zip(runs, told, strict=True)
    ]
    is_over = all(one["ended"] for one in told)
    return first | {
        "present": under_way[0] if under_way else None,
        "under_way": tuple(under_way),
        "waiting": "; ".join(dict.fromkeys(one["waiting"] for one in told if one["waiting"])),
        "error": next((one["error"] for one in told if one["error"]), ""),
        "elapsed_s": max(one["elapsed_s"] for one in told),
        "remaining_s": max(left, default=None),
        "started": min(one["started"] for one in told),
        "ended": max(one["ended"] for one in told) if is_over else None,
        "shards": tuple(sorted(shards, key=lambda one: int(one["shard"].partition("/")[0]))),
    }


def _of_run(run: dict[str, Any]) -> dict[str, Any]:
    process = run["process"]
    lives = None if run["ended"] else is_running(process)
    if run["ended"]:
        state = "ended"
    else:
        state = "elsewhere" if lives is None else "running" if lives else "killed"
    # Clocks of one boot can be compared, and never jump.
    since = max(0.0, time.monotonic() - run["clock_s"]) if state == "running" else 0.0
    left = run["remaining_s"]
    return {
        "state": state,
        "present": run["present"],
        "under_way": _under_way(run),
        "waiting": run["waiting"],
        "error": run["error"],
        "elapsed_s": round(run["elapsed_s"] + since, 3),
        "remaining_s": None if left is None else round(max(0.0, left - since), 3),
        "started": run["started"],
        "ended": run["ended"],
        "pid": process.get("pid"),
        "host": process.get("host"),
    }


def _under_way(run: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    present = run.get("present")
    return tuple(run.get("under_way", [present] if present else []))


def _command(run: dict[str, Any], today: str) -> str:
    """What goes on with a run, whose output folder may have been moved since."""
    words, folder, former = _of_all(run), run["folder"], run.get("output_dir")
    if former is not None and former != today:
        inside = os.path.relpath(former, folder)
        around = today.removesuffix(os.sep + inside)
        is_all_moved = around != today and not inside.startswith(os.pardir)
        folder = around if is_all_moved else folder
        if not is_all_moved or any(word.startswith("--out") for word in words):
            words += ["--out", today]
    told = shlex.join(words)
    return f"cd {shlex.quote(folder)} && {told}" if folder != os.sep else told


def _of_all(run: dict[str, Any]) -> list[str]:
    """The words of a run's command; of a shard's, those that go on with all shards."""
    words: list[str] = [*run["command"]]
    if run.get("shard") and "--shard" in words:
        place = words.index("--shard")
        del words[place : place + 2]
    return [word for word in words if not word.startswith("--shard=")]
