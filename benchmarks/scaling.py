"""What several workers of one machine reach, and what the driver itself costs.

``python benchmarks/scaling.py [--jobs 24] [--rounds 3] [--no-time 1000 10000 100000] [--quick]``

Sprites are rendered by the command with one thread a worker: by two commands beside each other,
which know nothing of each other, by one command with one and two worker processes, and by one
command with one and two workers of Ray, in turns. Jobs an hour count from the first step of the
first job to the last file. The driver's own cost is that of jobs which take no time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shared import ROOT, machine, parse, publish, table

TOGETHER = "two commands, a worker each"
WAYS: dict[str, tuple[str, ...]] = {
    "one process": ("--devices", "cpu*1"),
    "two processes": ("--devices", "cpu*2"),
    "Ray, one worker": ("--executor", "ray", "--workers", "1"),
    "Ray, two workers": ("--executor", "ray", "--workers", "2"),
}
RECIPE = """\
[recipe]
name = "scaling"
[model]
pipeline = "sprites"
[defaults]
num_inference_steps = {steps}
num_frames = 17
height = 64
width = 64
[metrics]
names = []
[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = {seeds}
"""


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "benchmarks")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(folder: Path, seeds: list[int], steps: int, *options: str) -> subprocess.Popen[str]:
    """The command, which renders so many seeds into a folder."""
    folder.mkdir()
    recipe = folder / "scaling.toml"
    recipe.write_text(RECIPE.format(steps=steps, seeds=seeds), "utf-8")
    command = [sys.executable, "-m", "flowblend_cli", "render", str(recipe), "--json", "-q"]
    return subprocess.Popen(
        [*command, "--no-report", "--out", str(folder / "out"), *options],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def spans(command: subprocess.Popen[str]) -> tuple[float, float, int]:
    """When its first job began, when its last one was done, and how many there are."""
    began = ended = 0.0
    done = 0
    assert command.stdout is not None
    assert command.stderr is not None
    for line in command.stdout:
        now, event = time.monotonic(), json.loads(line)
        if event["event"] == "job_started":
            began = began or now
        if event["event"] == "job_done":
            ended, done = now, done + 1
    if command.wait() or not done:
        raise SystemExit(f"{command.args}: {command.stderr.read()[-2000:]}")
    return began, ended, done


def jobs_per_hour(work: Path, way: str, jobs: int, steps: int) -> float:
    """Jobs an hour in one of the ways, in new processes."""
    folder = Path(tempfile.mkdtemp(dir=work))
    if way != TOGETHER:
        seeds = list(range(1, 1 + jobs))
        began, ended, done = spans(start(folder / "one", seeds, steps, *WAYS[way]))
        return 3600 * done / (ended - began)
    halves = [list(range(1 + half, 1 + jobs, 2)) for half in range(2)]
    commands = [
        start(folder / f"{half}", seeds, steps, "--executor", "child")
        for half, seeds in enumerate(halves)
    ]
    found = [_read_beside(command) for command in commands]
    rates = [3600 * done / (ended - began) for began, ended, done in (one() for one in found)]
    return sum(rates)


def _read_beside(command: subprocess.Popen[str]) -> Any:
    """Read a command's events while others are read, too."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1).submit(spans, command).result


def no_time(folder: Path | None, jobs: int) -> dict[str, float]:
    """What the driver needs for so many jobs that take no time, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        code = f"import no_time_jobs; no_time_jobs.run({work!r}, {jobs})"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def throughput(rounds: list[dict[str, float]]) -> str:
    rows = []
    for way in rounds[0]:
        shares = [one[way] / one[TOGETHER] for one in rounds]
        rows.append([
            way, f"{statistics.median(one[way] for one in rounds):,.0f}",
            f"{100 * statistics.median(shares):.0f} %",
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %",
        ])  # fmt: skip
    return table(["rendered by", "jobs an hour", f"of {TOGETHER}", "range"], rows)


def costs(found: list[tuple[str, dict[str, float]]]) -> str:
    rows = [
        [
            f"{one['jobs']:,.0f}", where, f"{one['jobs'] / one['wall_s']:,.0f}",
            f"{1000 * one['wall_s'] / one['jobs']:.1f} ms",
            f"{1000 * one['cpu_s'] / one['jobs']:.1f} ms",
            f"{1000 * one['loop_s'] / one['jobs']:.1f} ms",
            f"{one['loaded_bytes'] / 2**20:.0f} MiB", f"{one['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for where, one in found
    ]  # fmt: skip
    head = ["jobs", "folder", "jobs a second", "a job", "its CPU", "of the loop",
            "memory, recipe read", "at the end"]  # fmt: skip
    return table(head, rows)


def main() -> None:
    """Measure, and print Markdown tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=24, help="of each way")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="in turns; 0 for none")
    parser.add_argument("--no-time", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--on-disk", type=int, default=1000, help="jobs without time on the disk")
    parser.add_argument("--ram", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    parser.add_argument("--without-ray", action="store_true")
    options = parse(parser, jobs=2, steps=2, rounds=1, no_time=[100, 1000], on_disk=100)
    has_ray = find_spec("ray") is not None and not options.without_ray
    ways = [TOGETHER, *(way for way in WAYS if has_ray or not way.startswith("Ray"))]
    rounds = []
    with tempfile.TemporaryDirectory() as work:
        for _ in range(options.rounds):
            measured = {
                way: jobs_per_hour(Path(work), way, options.jobs, options.steps) for way in ways
            }
            rounds.append(measured)
            print(json.dumps(measured), file=sys.stderr, flush=True)
    ram = options.ram if options.ram.is_dir() else None
    found = [("disk", no_time(None, options.on_disk))] if options.on_disk else []
    found += [("RAM disk" if ram else "disk", no_time(ram, jobs)) for jobs in options.no_time]
    parts = [f"{machine()}. {options.rounds} rounds of {options.jobs} jobs."]
    parts += [throughput(rounds)] if rounds else []
    parts += [costs(found)] if found else []
    publish("scaling.md", "workers", "\n\n".join(parts), write=options.write)
    print(
        json.dumps({"jobs_per_hour": rounds, "no_time": [{"folder": w, **one} for w, one in found]})
    )


if __name__ == "__main__":
    main()
