"""Large batches: what check, plan and the re-run of a finished folder cost, by the number of jobs.

The folder is finished for real: every clip goes through the publishing of a render, under its own
job key, with the record of its measurements beside it. Only the frames are drawn instead of
sampled, so that 10,000 of them take minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from shared import ROOT, machine, parse, publish, table

from flowblend_cli import __version__
from flowblend_cli.artifacts.existing import Finder
from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.manifest import Manifest
from flowblend_cli.artifacts.records import read_record, write_record
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.events import captured_events
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.models.identity import job_key, model_identity
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.utils.frames import Frames, pixels_sha256

SEEDS = 10
HEAD = """\
[recipe]
name = "scale"

[model]
pipeline = "sprites"

[defaults]
num_inference_steps = 50
num_frames = {frames}
height = 32
width = 32
"""
SCENE = """
[[scene]]
name = "square{index}"
prompt = "a red square number {index} moving right on a navy background"
seeds = {seeds}
"""
# The process tells its own peak: what the system says of a child begins with its parent's.
MEASURED = """\
import atexit, os, sys
from flowblend_cli.utils.process import peak_rss_bytes
def tell():
    print(sum(os.times()[:4]), peak_rss_bytes(), file=sys.stderr)
atexit.register(tell)
from flowblend_cli.main import main
main(prog_name="flowblend")
"""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, seconds of CPU, and most memory in bytes."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def write_recipe(folder: Path, jobs: int, frames: int) -> Path:
    """A recipe of so many jobs, ten seeds a scene."""
    seeds = list(range(1, 1 + min(SEEDS, jobs)))
    scenes = [SCENE.format(index=index, seeds=seeds) for index in range(jobs // len(seeds))]
    path = folder / f"scale-{jobs}.toml"
    path.write_text(HEAD.format(frames=frames) + "".join(scenes), "utf-8")
    return path


def finish(batch: Batch, tell: Callable[[int], None]) -> None:
    """Publish every job of a batch, as a render would, and keep what a run keeps beside it."""
    batch.output_dir.mkdir(parents=True, exist_ok=True)
    identity = model_identity(batch.jobs[0].model, batch.source.parent)
    finder = Finder(Manifest(batch.output_dir, print))
    frames = drawn(batch.jobs[0])
    pixels = pixels_sha256(frames)
    for number, job in enumerate(batch.jobs):
        key, path = job_key(job, identity), batch.path_of(job)
        document = {
            "flowblend": __version__,
            "v": 1,
            "job": job.to_document(),
            "job_key": key,
            "resolved": {"seed": job.seed, "denoisers": "L", "device": "cpu", "sampling_s": 1.0},
            "models": identity,
            "pixels_sha256": pixels,
        }
        if path.suffix == ".png":
            publish_image(frames[0], path, document=document)
        else:
            publish_video(frames, path, fps=job.output.fps, document=document, crf=job.output.crf)
        finder.published(job, path, key, pixels=pixels, seed=job.seed, sampling_s=1.0)
        tell(number + 1)
    finder.close()
    first = batch.jobs[0]
    BatchRun(replace(batch, jobs=(first,)), captured_events(), overrides=()).run()  # measures it
    record = read_record(batch.output_dir, first.id)
    assert record is not None
    for job in batch.jobs[1:]:
        write_record(batch.output_dir, replace(record, job=job.id))


def drawn(job: Job) -> Frames:
    """A few frames of a square that moves."""
    number, height, width = (int(job.argument(name)) for name in ("num_frames", "height", "width"))
    frames = np.full((number, height, width, 3), (20, 30, 90), np.uint8)
    for index in range(number):
        frames[index, 8:24, 2 * index : 2 * index + 12] = (220, 40, 40)
    return frames


def measure(*arguments: str) -> Cost:
    """Run the command in a process of its own; it has to end well."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wall_s = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    cpu_s, peak_bytes = done.stderr.splitlines()[-1].split()
    return Cost(wall_s, float(cpu_s), int(peak_bytes))


def commands(recipe: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """What is measured, by the name that the table has for it."""
    rendered = ("render", str(recipe), "--out", str(folder), "--no-report")
    return {
        "check": ("check", str(recipe)),
        "plan": ("plan", str(recipe)),
        "plan --json": ("plan", str(recipe), "--json"),
        "render, nothing to do": rendered,
        "render --verify, nothing to do": (*rendered, "--verify"),
    }


def costs_of(jobs: int, frames: int, repeats: int, work: Path) -> dict[str, Cost]:
    """What each command costs on a recipe of so many jobs: the fastest of some runs."""
    recipe, folder = write_recipe(work, jobs, frames), work / f"out-{jobs}"

    def tell(done: int) -> None:
        if sys.stderr.isatty() and (done % 50 == 0 or done == jobs):
            print(f"\r{done:,} of {jobs:,} clips", end="", file=sys.stderr)

    finish(load_batch(recipe, output_dir=folder), tell)
    found = {}
    for name, arguments in commands(recipe, folder).items():
        measure(*arguments)  # what is read once from the disk is read
        costs = [measure(*arguments) for _ in range(repeats)]
        found[name] = min(costs, key=lambda cost: cost.cpu_s)
    return found


def report(found: dict[int, dict[str, Cost]]) -> str:
    """The table: seconds by the number of jobs, how they grow, and memory."""
    sizes = sorted(found)
    low, high = sizes[0], sizes[-1]
    before = sizes[-2] if len(sizes) > 1 else low
    head = [
        "command",
        *(f"{jobs:,} jobs: s (CPU)" for jobs in sizes),
        f"{high:,} / {before:,}: CPU",
        f"peak memory, {low:,} jobs",
        f"{high:,} jobs",
    ]
    rows = [
        [
            f"`{name}`",
            *(f"{found[jobs][name].wall_s:.2f} ({found[jobs][name].cpu_s:.2f})" for jobs in sizes),
            f"{found[high][name].cpu_s / found[before][name].cpu_s:.1f}",
            *(f"{found[jobs][name].peak_bytes / 2**20:.0f} MiB" for jobs in (low, high)),
        ]
        for name in found[high]
    ]
    return f"{machine()}.\n\n{table(head, rows)}"


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--frames", type=int, default=5, help="of each clip; 1 makes pictures")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/cli.md")
    options = parse(parser, jobs=[20, 200], repeats=1)
    with tempfile.TemporaryDirectory() as work:
        found = {
            jobs: costs_of(jobs, options.frames, options.repeats, Path(work))
            for jobs in options.jobs
        }
    publish("cli.md", "scale", report(found), write=options.write)


if __name__ == "__main__":
    main()
