"""Time that a batch of large files loses where the denoiser waits for the encoder, on sprites.

``python benchmarks/publishing.py [--jobs 8] [--steps 12] [--rounds 5] [--quick]``

The same batch is rendered by the command with clips published beside the next render, as always,
and with every clip published before the next render begins, in turns, each time into a new folder
by new processes: once with the models in a process of their own, as always, and once with
everything in one process. ``batch`` is from the first job's start to the last one's end, ``ideal``
the least that it could be: with nothing but the last clip's publishing left to wait for. Medians
over the rounds, and the range of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECIPE = """\
[recipe]
name = "publishing"
output_dir = "out"

[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = {steps}
num_frames = 33
height = 96
width = 96
max_sequence_length = 64

[output]
scale = 4

[metrics]
names = []

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = {seeds}
"""
WAYS = ("before the next render", "beside it")
WHERE = {"a process of its own": "1", "the command's process": "0"}


def batch(way: str, isolated: str, steps: int, jobs: int) -> dict[str, float]:
    """Seconds of one run."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(RECIPE.format(steps=steps, seeds=list(range(1, jobs + 1))), "utf-8")
        process = subprocess.Popen(
            [sys.executable, __file__, "--render", way, str(recipe)],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "FLOWBLEND_ISOLATE": isolated,
                 "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])},
        )  # fmt: skip
        assert process.stdout is not None
        seen = [(time.monotonic(), json.loads(line)) for line in process.stdout]
        assert process.wait() == 0
        documents = [_sampling_s(Path(event["path"])) for event in _of(seen, "job_done")]
    began = next(when for when, event in seen if event["event"] == "job_started")
    ended = max(when for when, event in seen if event["event"] == "job_done")
    done = _of(seen, "job_done")
    assert len(done) == jobs
    publishing = [event["elapsed_s"] - s for event, s in zip(done, documents, strict=True)]
    return {
        "batch": ended - began,
        "sampling": sum(documents),
        "publishing": sum(publishing),
        "ideal": sum(documents) + publishing[-1],
    }


def _of(seen: list[tuple[float, dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [event for _, event in seen if event["event"] == kind]


def _sampling_s(path: Path) -> float:
    sys.path[:0] = [str(ROOT), str(ROOT / "cli")]
    from flowblend_cli.artifacts.metadata import read_document

    return float((read_document(path) or {})["resolved"]["sampling_s"])


def render(way: str, recipe: str) -> None:
    """Render a recipe in one of the two ways, as the command does."""
    from flowblend_cli.engine import batch_run
    from flowblend_cli.engine.publisher import Publisher
    from flowblend_cli.main import main as command

    class Foreground(Publisher):
        def submit(self, pending: Any, render: Any, settle: Any) -> None:
            super().submit(pending, render, settle)
            while self.outstanding:
                settle(0.1)

    if way == WAYS[0]:
        batch_run.Publisher = Foreground  # type: ignore[misc]
    command(["render", recipe, "--json", "-q"])


def main() -> None:
    """Render in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--render", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.render:
        render(*options.render)
        return
    if options.quick:
        options.jobs, options.steps, options.rounds = 2, 2, 1
    rounds = [
        {(where, way): batch(way, WHERE[where], options.steps, options.jobs)
         for where in WHERE for way in WAYS}
        for _ in range(options.rounds)
    ]  # fmt: skip
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"{options.rounds} rounds of {options.jobs} jobs of {options.steps} steps"
    )
    print("| models in | published | batch | sampling | publishing | ideal | ratio | range |")
    print("|---|---|---|---|---|---|---|---|")
    for where in WHERE:
        ratios = [one[where, WAYS[1]]["batch"] / one[where, WAYS[0]]["batch"] for one in rounds]
        for way in WAYS:
            names = ("batch", "sampling", "publishing", "ideal")
            medians = [statistics.median(one[where, way][name] for one in rounds) for name in names]
            shown = " | ".join(f"{seconds:.2f}" for seconds in medians)
            compared = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
            print(f"| {where} | {way} | {shown} | {'1 | ' if way == WAYS[0] else compared} |")


if __name__ == "__main__":
    main()
