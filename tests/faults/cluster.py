"""A bad night of a cluster: its workers, machines, answers and driver are lost, again and again.

Three nodes of Ray on this machine, two of them with room for a worker of one thread. Batch after
batch is rendered by the real command; meanwhile, chosen by a seed that is printed, a worker is
killed or stopped, a node leaves or is killed with its object store, the driver is killed or
interrupted, a second driver tries, and answers are dropped, late, or come twice. Each batch must
end whole: no final lost, none written twice, nothing else left, and the pixels of one process.
Prints one JSON object; exits 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.survey import Night, pixels
from tests.three_nodes import ThreeNodes

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 5
RECIPE = f"""\
[recipe]
name = "cluster"
output_dir = "clips"
[model]
pipeline = "sprites"
[metrics]
names = []
[defaults]
num_inference_steps = 6
num_frames = {FRAMES}
height = 32
width = 32
[[scene]]
name = "clip"
prompt = "a red circle moving right on a navy background"
seeds = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
[[scene]]
name = "long"
prompt = "a blue star spinning on a black background"
num_inference_steps = 20
seeds = [1, 2, 3, 4, 5, 6, 7, 8]
"""
CLIPS = 20
BUSY, KILLED, INTERRUPTED, TERMINATED = 75, -9, 130, 143
PATIENCE_S = 240.0
# A stopped worker, or one whose answer is lost, is given up after so long.
JOB_TIMEOUT_S = 12


class Driver:
    """The command, whose events are read as they come.

    Args:
        folder: Where the recipe is.
        options: Further options.
        rough: What makes its link rough, see ``rough_link``; None for the usual link.
    """

    def __init__(self, folder: Path, *options: str, rough: int | None = None) -> None:
        module = "flowblend_cli" if rough is None else "tests.faults.rough_link"
        paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
        around = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ROUGH": f"{rough}"}
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "render", str(folder / "recipe.toml"), "--json",
             "--checkpoint-every", "3", *options],
            cwd=ROOT, env=around, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.said: list[str] = []
        self.impure: list[str] = []
        self._threads = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_for(self, kind: str) -> bool:
        """Wait for a new event of a kind; False if the command ends before."""
        before, until = self._count(kind), time.monotonic() + PATIENCE_S
        while self._count(kind) == before:
            if not self.is_running or time.monotonic() > until:
                return False
            try:
                self._news.get(timeout=0.2)
            except queue.Empty:
                continue
        return True

    def end(self) -> int | None:
        """Wait for its end; its exit code, or None where it had to be killed."""
        try:
            code: int | None = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
            self._process.kill()
        for thread in self._threads:
            thread.join(10)
        return code

    def _count(self, kind: str) -> int:
        return sum(event["event"] == kind for event in self.events)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self.events.append(json.loads(line))
                self._news.put(None)
            except ValueError:
                self.impure.append(line)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self.said.extend(self._process.stderr)


class BadNight:
    """Rounds of losses over batches, and what was wrong.

    Args:
        cluster: The cluster.
        scratch: A folder for the batches.
        seed: Chooses what is lost, and when.
    """

    def __init__(self, cluster: ThreeNodes, scratch: Path, seed: int) -> None:
        self._cluster, self._scratch = cluster, scratch
        self._chance = random.Random(seed)
        self._driver: Driver | None = None
        self._night: Night | None = None
        self._batches = 0
        self._expected: dict[str, str] = {}
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.lost = self.doubled = 0
        self._deeds: list[Callable[[Driver], None]] = []

    def quiet(self) -> None:
        """Render by one process: these are the pixels."""
        driver = Driver(self._folder("quiet"))
        if driver.end() != 0:
            self.wrong.append(f"one process failed: {driver.said}")
        self._expected = pixels(driver.folder / "clips")
        if len(self._expected) != CLIPS:
            self.wrong.append(f"one process rendered {len(self._expected)} of {CLIPS}")

    def round(self) -> None:
        """Lose something in the middle of a render, and see what is there."""
        if not self._deeds:  # each as often as the others, in any order
            self._deeds = [self.worker_killed, self.worker_stopped, self.node_leaves,
                           self.node_killed, self.driver_killed, self.driver_interrupted,
                           self.second_driver, self.rough_answers]  # fmt: skip
            self._chance.shuffle(self._deeds)
        driver = self._running()
        deed = self._deeds.pop()
        if driver.wait_for("job_started"):
            time.sleep(self._chance.uniform(0, 1.5))
        self.done[deed.__name__] += 1
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {deed.__name__}\n")
        deed(driver)
        if self._night is not None:
            self._night.look()
        if self._driver is not None and not self._driver.wait_for("job_done"):
            self._finish(self._driver)

    def end(self) -> None:
        """Let the last batch end."""
        while self._driver is not None or self._night is not None:
            self._finish(self._running())

    def close(self) -> None:
        """End the driver that still runs."""
        if self._driver is not None:
            self._driver.signal(signal.SIGKILL)

    def worker_killed(self, driver: Driver) -> None:
        for pid in self._cluster.actors()[:1]:
            os.kill(pid, signal.SIGKILL)

    def worker_stopped(self, driver: Driver) -> None:
        for pid in self._cluster.actors()[:1]:
            os.kill(pid, signal.SIGSTOP)
            until = time.monotonic() + 2 * JOB_TIMEOUT_S
            while pid in self._cluster.actors() and time.monotonic() < until:
                time.sleep(0.2)
            with contextlib.suppress(ProcessLookupError):  # it was loading, which may take longer
                os.kill(pid, signal.SIGKILL)

    def node_leaves(self, driver: Driver) -> None:
        self._cluster.remove(self._chance.randrange(2), politely=True)
        self._cluster.add()

    def node_killed(self, driver: Driver) -> None:
        self._cluster.remove(self._chance.randrange(2), politely=False)
        self._cluster.add()

    def driver_killed(self, driver: Driver) -> None:
        driver.signal(signal.SIGKILL)
        self._expect_end(driver, (KILLED,))

    def driver_interrupted(self, driver: Driver) -> None:
        number = self._chance.choice([signal.SIGINT, signal.SIGTERM])
        driver.signal(number)
        self._expect_end(driver, (128 + number,))

    def second_driver(self, driver: Driver) -> None:
        second = Driver(driver.folder, *self._options)
        code = second.end()
        if driver.is_running and (code != BUSY or second.events):
            self.wrong.append(f"the second of two drivers ended with {code}: {second.said[-5:]}")

    def rough_answers(self, driver: Driver) -> None:
        driver.signal(signal.SIGTERM)
        self._expect_end(driver, (TERMINATED,))
        self._driver = self._start(rough=self._chance.randrange(1 << 30))
        for _ in range(3):
            self._driver.wait_for("job_done")

    @property
    def _options(self) -> tuple[str, ...]:
        return ("--executor", "ray", "--address", self._cluster.address, "--workers", "2",
                "--job-timeout", f"{JOB_TIMEOUT_S}")  # fmt: skip

    def _running(self) -> Driver:
        if self._driver is None:
            self._driver = self._start()
        return self._driver

    def _start(self, rough: int | None = None) -> Driver:
        if self._night is None:
            self._batches += 1
            self._night = Night(self._folder(f"batch-{self._batches}") / "clips", FRAMES)
        return Driver(self._night.folder.parent, *self._options, rough=rough)

    def _expect_end(self, driver: Driver, codes: tuple[int, ...]) -> None:
        """See that a driver ends as it should; the next round begins another one."""
        self._driver = None
        code = driver.end()
        self._look_at_words(driver)
        if code == 0:
            self._judge()  # it had rendered everything before
        elif code not in codes:
            self.wrong.append(f"a driver ended with {code}: {driver.said[-8:]}")

    def _finish(self, driver: Driver) -> None:
        """See that a driver that wasn't disturbed ends its batch, or leaves only what failed."""
        self._driver = None
        code = driver.end()
        self._look_at_words(driver)
        if code == 1:  # a job was lost three times: the same command renders it
            self.done["again"] += 1
        elif code == 0:
            self._judge()
        else:
            self.wrong.append(f"a batch ended with {code}: {driver.said[-8:]}")

    def _look_at_words(self, driver: Driver) -> None:
        if driver.impure:
            self.wrong.append(f"standard output holds {driver.impure[:3]}")
        foreign = [line for line in driver.said if "Traceback" in line or "(raylet)" in line]
        if foreign:
            self.wrong.append(f"standard error holds {foreign[:3]}")

    def _judge(self) -> None:
        """A batch has ended: everything is there, once, with the pixels of one process."""
        night, self._night = self._night, None
        assert night is not None
        found = night.look()
        if found != CLIPS:
            self.wrong.append(f"{found} of {CLIPS} clips are there")
        if pixels(night.folder) != self._expected:
            self.wrong.append("the pixels differ from those of one process")
        self.lost, self.doubled = self.lost + len(night.lost), self.doubled + len(night.doubled)
        self.wrong += [f"{kind}: {names}" for kind, names in night.faults().items() if names]

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        folder.mkdir()
        (folder / "recipe.toml").write_text(RECIPE, "utf-8")
        return folder

    @property
    def batches(self) -> int:
        return self._batches


def main() -> int:
    """Run the rounds and judge them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    options = parser.parse_args()
    try:
        import ray  # noqa: F401
    except ImportError:
        sys.stdout.write('{"skipped": "Ray isn\'t installed"}\n')
        return 0
    sys.stderr.write(f"seed {options.seed}\n")
    scratch, began = Path(tempfile.mkdtemp(prefix="cluster-")), time.monotonic()
    try:
        with ThreeNodes() as cluster:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # nothing is left behind
            night = BadNight(cluster, scratch, options.seed)
            with contextlib.closing(night):
                night.quiet()
                for _ in range(options.rounds):
                    night.round()
                night.end()
            for _ in range(300):  # the last driver's actors end with it
                if not cluster.actors():
                    break
                time.sleep(0.1)
            else:
                night.wrong.append("workers outlived their driver")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    told = {
        "seed": options.seed, "rounds": options.rounds, "batches": night.batches,
        "what": dict(night.done), "finals lost": night.lost, "doubles": night.doubled,
        "seconds": round(time.monotonic() - began, 1), "wrong": night.wrong,
    }  # fmt: skip
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 1 if night.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
