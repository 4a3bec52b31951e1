"""One run of drawn frames in a process of its own, for tests of several that share a folder.

``python -m tests.faults.lone_run RECIPE [--shard I/N] [--step S] [--without-locks] [--lease S]
[--stop-before NAME]`` prints a JSON line for each job that is begun, done, skipped or failed, and
one with the words that ended it; it exits as the command does.

``--without-locks`` makes it believe that the folder is on a network file system whose locks
everybody is given. ``--stop-before NAME`` stops the process (SIGSTOP) once, in the very moment
before that file gets its name, when all that is looked at before has been looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowblend_cli.console.run_state import RunState
from flowblend_cli.engine import lease, output_folder
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.errors import LockedError
from flowblend_cli.events import Event, JobAssigned, JobDone, JobFailed, JobSkipped, Message, chain
from flowblend_cli.jobs import Shard
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.planning.shards import divide
from tests.faults import drawn


def say(**told: Any) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def tell(event: Event) -> None:
    if isinstance(event, JobAssigned | JobDone | JobSkipped | JobFailed | Message):
        say(event=event.name, **asdict(event))


def without_locks(lease_s: float) -> None:
    """Give every lock to everybody, and let leases be short."""
    output_folder.fcntl.flock = lambda *_: None  # type: ignore[assignment]
    output_folder.network_file_system = lambda folder: "nfs4"
    lease.LEASE_S, lease.HEARTBEAT_S, lease.LOOK_S = lease_s, lease_s / 8, lease_s / 16


def stop_before(name: str) -> None:
    """Stop this process before a file gets its name, once."""
    rename, names = os.replace, [name]

    def stopping(source: Any, target: Any, **where: Any) -> None:
        if target in names:
            names.clear()
            signal.pthread_kill(
                threading.get_ident(), signal.SIGSTOP
            )  # this thread goes no step on
        rename(source, target, **where)

    os.replace = stopping


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--shard", type=Shard.parse)
    parser.add_argument("--step", type=float, default=0.0)
    parser.add_argument("--without-locks", action="store_true")
    parser.add_argument("--lease", type=float, default=0.8)
    parser.add_argument("--stop-before", default="")
    given = parser.parse_args()
    if given.without_locks:
        without_locks(given.lease)
    stop_before(given.stop_before)
    batch = drawn.load(given.recipe)
    if given.shard is not None:
        batch = divide(batch, given.shard)
    progress = RunProgress(batch)
    state = RunState(progress, batch, ["flowblend", "render", str(given.recipe)], tell)
    run = BatchRun(
        batch,
        chain([state, tell]),
        overrides=(),
        progress=progress,
        executor=drawn.DrawnFramesExecutor(given.step),
    )
    try:
        return run.run()
    except LockedError as error:
        say(event="locked", text=str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
