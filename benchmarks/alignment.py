"""What equal bits at every address cost: renders under the settings of MKL_CBWR.

``python benchmarks/alignment.py [--steps 10] [--rounds 5] [--write] [--quick]``

Each setting has a process of its own, since MKL reads it once, and they take turns, a clip each, so
that a busy machine slows all of them. A clip is LSL at 0.4/0.8 of sprites. ``--write`` puts the
table into docs/determinism.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shared import GUIDANCE, LSL, PROMPTS, load, machine, parse, publish, table

from flowblend_plugin import DenoiserSwitch
from flowblend_plugin.numerics import products_agree

SETTINGS = ("unset", "AUTO", "AVX2", "COMPATIBLE")


def answer(steps: int) -> None:
    """Be one setting's process: a clip, its seconds and its hash, for each line that is read."""
    import torch

    pipe, small = load()
    print(products_agree(), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        with DenoiserSwitch(pipe, small, LSL):
            frames = pipe(
                PROMPTS[0],
                height=64,
                width=64,
                num_frames=17,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(1),
                output_type="np",
            ).frames
        seconds = time.perf_counter() - began
        print(seconds, hashlib.sha256(frames.tobytes()).hexdigest(), flush=True)


class Setting:
    """A process that renders under one value of MKL_CBWR."""

    def __init__(self, value: str, steps: int) -> None:
        environ = {name: text for name, text in os.environ.items() if name != "MKL_CBWR"}
        self._process: Any = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--answer", "--steps", str(steps)],
            env=environ if value == "unset" else {**environ, "MKL_CBWR": value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.agrees = self._process.stdout.readline().strip() == "True"
        self.render()  # warm

    def render(self) -> tuple[float, str]:
        """Seconds of one clip, and the hash of its pixels."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, pixels = self._process.stdout.readline().split()
        return float(seconds), pixels

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Measure, and print or publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true")
    options = parse(parser, steps=5, rounds=2)
    if options.answer:
        answer(options.steps)
        return
    settings = {value: Setting(value, options.steps) for value in SETTINGS}
    seconds: dict[str, list[float]] = {value: [] for value in SETTINGS}
    pixels: dict[str, str] = {}
    for _ in range(options.rounds):
        for value, setting in settings.items():
            took, pixels[value] = setting.render()
            seconds[value].append(took)
    for setting in settings.values():
        setting.close()
    rows = []
    for value, setting in settings.items():
        ratios = [one / base for one, base in zip(seconds[value], seconds["unset"], strict=True)]
        rows.append([
            "not set" if value == "unset" else f"`{value}`",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            "yes" if setting.agrees else "no",
            pixels[value][:8],
        ])  # fmt: skip
    text = table(
        ["`MKL_CBWR`", "time, against not set: median (range)", "equal at five alignments",
         "hash of the pixels"], rows,
    )  # fmt: skip
    head = (
        f"Clips of sprites, LSL 0.4/0.8, {options.steps} steps, float32, {options.rounds} rounds "
        f"in which the settings take turns. Measured {machine()}."
    )
    publish("determinism.md", "alignment", f"{head}\n\n{text}", write=options.write)


if __name__ == "__main__":
    main()
