"""Kills the publishing path at random moments, and looks at what it leaves.

``python -m tests.faults.kill_publishing [--kills 150] [--seed 1]``, from the root of the checkout,
with the checkout on PYTHONPATH. Everything of a render takes part but the models: recipe, lock,
looking for what is done, encoding, publishing, records. A fresh process a try, forked from one that
has imported it all (and no torch). After each kill every visible final must be whole; what was
there stays as it is; every batch ends complete, with nothing left over. Prints one JSON object;
exits 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import drawn
from tests.faults.survey import Night

JOBS = 40
STEP_S = 0.001
LONGEST_S = 0.35


@dataclass
class Tally:
    """What was seen over all batches.

    Args:
        kills: Processes that were killed.
        batches: Batches that ended complete.
        finals: Finals that were looked at.
        temporaries: Kills that left a temporary file behind, for the next run to remove.
        slowest_s: Longest time that a run took from its start to its first new final after a kill.
        wrong: Everything that shouldn't be.
    """

    kills: int = 0
    batches: int = 0
    finals: int = 0
    temporaries: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def start(recipe: Path) -> int:
    """Carry the batch out in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            drawn.carry_out(recipe, STEP_S)
        finally:
            os._exit(99)
    return child


def one_batch(folder: Path, tally: Tally, kills: int, moment: random.Random) -> None:
    """Kill a batch again and again, then let it end."""
    recipe = drawn.write_recipe(folder, JOBS)
    night = Night(folder / "clips", drawn.FRAMES)
    while tally.kills < kills and len(night.published) < JOBS:
        child = start(recipe)
        time.sleep(moment.uniform(0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        tally.kills += os.WIFSIGNALED(status)
        night.look()
        tally.temporaries += bool(night.leftovers())
    began = time.monotonic()
    _, status = os.waitpid(start(recipe), 0)
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
    if os.waitstatus_to_exitcode(status) != 0:
        tally.wrong.append(f"a last run ended with {os.waitstatus_to_exitcode(status)}")
    if night.look() != JOBS:
        tally.wrong.append(f"{len(night.published)} of {JOBS} clips are there")
    tally.finals += len(night.published)
    tally.batches += 1
    tally.wrong += [f"{kind}: {names}" for kind, names in night.faults().items() if names]


def kill_all(kills: int, seed: int) -> Tally:
    """Kill so many runs, over as many batches as that takes."""
    tally, moment = Tally(), random.Random(seed)
    while tally.kills < kills and not tally.wrong:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            one_batch(Path(folder), tally, kills, moment)
    return tally


def main() -> int:
    """Kill and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    tally = kill_all(options.kills, options.seed)
    if "torch" in sys.modules:
        tally.wrong.append("torch was imported")
    told = {**vars(tally), "seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
