"""Whether measuring beside the next render slows a batch down, on sprites.

``python benchmarks/measuring.py [--jobs 8] [--steps 30] [--rounds 5] [--quick]``

The same batch is rendered by the command with and without measuring, in turns, each time into a
new folder by a new process. ``sampling`` is the sum of the jobs' own seconds, which a measuring
process that takes the denoiser's core would lengthen; ``whole run`` has loading, and measuring the
last clip, which nothing renders beside. Medians over the rounds, and the range of the ratios.
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
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = """\
[recipe]
name = "measuring"
output_dir = "out"

[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = {steps}
max_sequence_length = 64

[metrics]
{names}

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = {seeds}
"""
KINDS = {"without": "names = []", "with": ""}
WHAT = ("sampling", "whole run")


def batch(kind: str, steps: int, jobs: int) -> dict[str, float]:
    """Seconds of one run."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        seeds = list(range(1, jobs + 1))
        recipe.write_text(RECIPE.format(steps=steps, names=KINDS[kind], seeds=seeds), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "flowblend_cli", "render", str(recipe), "--json", "-q"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])},
        )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    of_jobs = [event["elapsed_s"] for event in events if event["event"] == "job_done"]
    measured = sum(event["event"] == "job_measured" for event in events)
    assert (len(of_jobs), measured) == (jobs, jobs if kind == "with" else 0)
    return {"sampling": sum(of_jobs), "whole run": events[-1]["elapsed_s"]}


def main() -> None:
    """Render in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.steps, options.rounds = 3, 4, 2
    rounds = [
        {kind: batch(kind, options.steps, options.jobs) for kind in KINDS}
        for _ in range(options.rounds)
    ]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"{options.rounds} rounds of {options.jobs} jobs of {options.steps} steps"
    )
    print("| seconds | without | with | ratio | range of the rounds' ratios |")
    print("|---|---|---|---|---|")
    for what in WHAT:
        medians = [statistics.median(one[kind][what] for one in rounds) for kind in KINDS]
        ratios = [one["with"][what] / one["without"][what] for one in rounds]
        print(
            f"| {what} | {medians[0]:.2f} | {medians[1]:.2f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
