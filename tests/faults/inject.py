"""Lets the Nth call of open, write, fsync, rename, mkdir or unlink fail, for every N.

``python -m tests.faults.inject [--every 1]``, from the root of the checkout, with the checkout on
PYTHONPATH. Needs a C compiler: the calls are failed below Python, in a library that is preloaded
(``injector.c``). A batch of two jobs is carried out once for each N and each of ENOSPC, EIO and
EACCES, in a process forked from one that has imported everything. After each fault no visible final
is bad, and the exit code tells of it (or the batch did without the call and is whole); the next run
heals everything and leaves nothing temporary. Prints one JSON object; exits 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import drawn
from tests.faults.survey import Night

SOURCE = Path(__file__).with_name("injector.c")
JOBS = 2
ERRORS = ("ENOSPC", "EIO", "EACCES")
SOME_FAILED, OUTPUT_ERROR = 1, 4


@dataclass
class Tally:
    """What was seen.

    Args:
        calls: Calls that a batch makes in its folder.
        faults: Runs in which a call failed.
        refused: Of these, runs that ended with exit code 4.
        unharmed: Of these, runs that did without the call and were whole.
        slowest_s: The longest that the next run took to heal a folder.
        wrong: Everything that shouldn't be.
    """

    calls: int = 0
    faults: int = 0
    refused: int = 0
    unharmed: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def attempt(recipe: Path, number: int, error: int) -> tuple[int, int]:
    """Carry the batch out with one failing call; its exit code, and how many calls there were."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the batch complains of, as it should
        try:
            injector = ctypes.CDLL(None)
            injector.counted.restype = ctypes.c_long
            batch = drawn.load(recipe)
            injector.arm(str(batch.output_dir).encode(), ctypes.c_long(number), error)
            code, _ = drawn.run(batch)
            os.write(writing, str(injector.counted()).encode())
        except BaseException as problem:  # noqa: BLE001 - its exit code is what the command's would be
            code = int(getattr(problem, "exit_code", 99))
            os.write(writing, b"0")
        finally:
            os._exit(code)
    os.close(writing)
    counted = os.read(reading, 100)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(counted or b"0")


def one_fault(number: int, name: str, tally: Tally) -> bool:
    """Fail one call; whether there was such a call."""
    with tempfile.TemporaryDirectory(prefix="inject-") as scratch:
        folder = Path(scratch)
        recipe = drawn.write_recipe(folder, JOBS)
        night = Night(folder / "clips", drawn.FRAMES)
        code, counted = attempt(recipe, number, getattr(errno, name))
        if code == 0 and counted < number:
            return False
        tally.faults += 1
        here = f"{name} at call {number}"
        is_whole = night.look() == JOBS
        tally.unharmed += code == 0
        tally.refused += code == OUTPUT_ERROR
        if code == 0 and not is_whole:
            tally.wrong.append(f"{here}: exit code 0, and {len(night.published)} clips of {JOBS}")
        elif code not in (0, SOME_FAILED, OUTPUT_ERROR):
            tally.wrong.append(f"{here}: exit code {code}")
        began = time.monotonic()
        code, _ = attempt(recipe, 0, 0)
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
        if code or night.look() != JOBS:
            tally.wrong.append(f"{here}: not healed, exit code {code}")
        tally.wrong += [f"{here}: {what}: {who}" for what, who in night.faults().items() if who]
    return True


def inject_all(every: int) -> Tally:
    """Fail each call (or each ``every``th) with each error."""
    tally, number = Tally(), 1
    with tempfile.TemporaryDirectory(prefix="inject-") as scratch:
        code, _ = attempt(drawn.write_recipe(Path(scratch), JOBS), 0, 0)
    if code:
        tally.wrong.append(f"exit code {code} without any fault")
    while not tally.wrong and one_fault(number, ERRORS[0], tally):
        tally.calls = number
        for name in ERRORS[1:]:
            one_fault(number, name, tally)
        number += every
    return tally


def main() -> int:
    """Fail and judge; starts itself again with the library preloaded."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    if not hasattr(ctypes.CDLL(None), "counted"):
        with tempfile.TemporaryDirectory() as scratch:
            library = Path(scratch) / "injector.so"
            build = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
            subprocess.run(build, check=True)
            again = [sys.executable, "-m", "tests.faults.inject", *sys.argv[1:]]
            environment = {**os.environ, "LD_PRELOAD": str(library)}
            return subprocess.run(again, env=environment, check=False).returncode
    began = time.monotonic()
    tally = inject_all(options.every)
    told = {**vars(tally), "seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
