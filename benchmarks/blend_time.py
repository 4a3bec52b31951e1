"""How long blending takes: LLL, LSL and SSS on sprites, against what their steps alone cost.

``python benchmarks/blend_time.py [--steps 50] [--repeats 7] [--quick]``

The variants take turns, so that a busy machine slows all of them alike; medians are reported.
``ideal`` is large steps x large step time + small steps x small step time + fixed cost, with the
step times and the fixed cost (text, latents; nothing is decoded) measured on the LLL and SSS runs.
LLL's own ratio to it is 1 by construction; LSL's is what blending costs.
``hand-written`` is the same trajectory in a plain loop over the same modules, without a pipeline.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from shared import load, parse

from flowblend_plugin import DenoiserSwitch, StageSchedule

PROMPT = "a red circle moving right on a navy background"
ROWS = {"LLL": None, "LSL": (0.4, 0.8), "SSS": None}
GUIDANCE = 5.0


def piped(pipe: Any, small: Any, row: str, steps: int) -> torch.Tensor:
    """One call of the pipeline through the switch."""
    stages = StageSchedule.parse(row, boundaries=ROWS[row])
    with DenoiserSwitch(pipe, small=small, stages=stages):
        return pipe(PROMPT, **arguments(steps)).frames


def arguments(steps: int) -> dict[str, Any]:
    """What every call is given."""
    return {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "max_sequence_length": 64,
        "generator": torch.Generator().manual_seed(1),
        "output_type": "latent",
    }


@torch.no_grad()
def by_hand(pipe: Any, small: Any, row: str, steps: int) -> torch.Tensor:
    """The same trajectory as plain Python would write it."""
    text, empty = pipe.encode_prompt(PROMPT, max_sequence_length=64)
    pipe.scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    channels = pipe.transformer.config.in_channels
    latents = pipe.prepare_latents(1, channels, 64, 64, 17, torch.float32, "cpu", generator)
    roles = StageSchedule.parse(row, boundaries=ROWS[row]).denoisers(steps)
    for role, t in zip(roles, pipe.scheduler.timesteps, strict=True):
        module = small if role == "small" else pipe.transformer
        time_step = t.expand(1)
        cond = module(latents, time_step, text, return_dict=False)[0]
        free = module(latents, time_step, empty, return_dict=False)[0]
        velocity = free + GUIDANCE * (cond - free)
        latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def step_seconds(pipe: Any, module: Any, small: Any, steps: int) -> float:
    """Seconds of one guided step of one denoiser, from two run lengths of it alone."""
    row = "LLL" if module is pipe.transformer else "SSS"
    long = timed(lambda: piped(pipe, small, row, 2 * steps))
    return (long - timed(lambda: piped(pipe, small, row, steps))) / steps


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=7)
    options = parse(parser, steps=20, repeats=2)
    pipe, small = load()
    steps = options.steps
    for row in ROWS:  # warm-up, and the two loops agree
        assert torch.equal(piped(pipe, small, row, 4), by_hand(pipe, small, row, 4))
    wall: dict[str, list[float]] = {row: [] for row in ROWS}
    hand: dict[str, list[float]] = {row: [] for row in ROWS}
    large_step, small_step = [], []
    for _ in range(options.repeats):
        for row in ROWS:
            wall[row].append(timed(lambda row=row: piped(pipe, small, row, steps)))
            hand[row].append(timed(lambda row=row: by_hand(pipe, small, row, steps)))
        large_step.append(step_seconds(pipe, pipe.transformer, small, steps))
        small_step.append(step_seconds(pipe, small, small, steps))
    report(wall, hand, statistics.median(large_step), statistics.median(small_step), steps)


def report(
    wall: dict[str, list[float]], hand: dict[str, list[float]], large: float, small: float, n: int
) -> None:
    """Print medians, ratios to LLL, the ideal, and the overhead against the plain loop."""
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, {n} steps")  # fmt: skip
    print(f"step: large {large * 1e3:.1f} ms, small {small * 1e3:.1f} ms")
    fixed = statistics.median(wall["LLL"]) - n * large
    base = statistics.median(wall["LLL"])
    for row, seconds in wall.items():
        roles = StageSchedule.parse(row, boundaries=ROWS[row]).denoisers(n)
        ideal = roles.count("large") * large + roles.count("small") * small + fixed
        middle, plain = statistics.median(seconds), statistics.median(hand[row])
        print(
            f"{row}: {middle:.3f} s ({middle / base:.3f} of LLL), ideal {ideal:.3f} s, "
            f"wall / ideal {middle / ideal:.3f}, wall / by hand {middle / plain:.3f}"
        )


if __name__ == "__main__":
    main()
