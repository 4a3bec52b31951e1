"""How exact each solver is on a blended run, and whether it had better forget at a switch.

``python benchmarks/solvers.py [--steps 20] [--prompts 8] [--seeds 1] [--write] [--quick]``

Every clip is LSL at 0.4/0.8. The error of a run is its distance to the same solver's run of 200
steps (``--reference``) from the same noise; the distance to Euler's is beside it, as one measure
for all. Solvers that add noise have no such reference, since two step counts draw other noise: of
those, the distance between runs that differ in nothing but that noise is given.
``--write`` puts the tables into docs/solvers.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections import defaultdict

import torch
from shared import (
    PROMPTS,
    Sprites,
    interval,
    machine,
    parse,
    psnr,
    publish,
    relative,
    spread,
    table,
)

from flowblend_plugin.schedulers.factory import FLOW_NAMES, STOCHASTIC, make_scheduler

ALWAYS_STOCHASTIC = ("dpmpp_2m_sde", "lcm")
DETERMINISTIC = [name for name in FLOW_NAMES if name not in ALWAYS_STOCHASTIC]
# dpmpp_2m in mode sde is dpmpp_2m_sde.
NOISY = [name for name in FLOW_NAMES if name in STOCHASTIC and name != "dpmpp_2m"]
NOISES = (1, 2, 3)
Rows = dict[tuple[str, str], list[tuple[float, float, float]]]


def histories(sprites: Sprites, solver: str) -> tuple[str, ...]:
    """What a switch can do to a solver's memory, which Euler, Heun and LCM don't have."""
    made = make_scheduler(sprites.pipe.scheduler, solver)
    return ("keep", "reset") if hasattr(made, "lower_order_nums") else ("keep",)


def exact(sprites: Sprites, prompt: str, seed: int, steps: int, reference: int, rows: Rows) -> None:
    """Measure every deterministic solver on one clip."""
    euler = sprites.latents(prompt, seed, reference, solver="flow_match_euler")[0]
    for solver in DETERMINISTIC:
        own = euler
        if solver != "flow_match_euler":
            own = sprites.latents(prompt, seed, reference, solver=solver)[0]
        frames = sprites.frames(own)
        for history in histories(sprites, solver):
            found = sprites.latents(prompt, seed, steps, solver=solver, history=history)[0]
            rows[solver, history].append(
                (
                    relative(found, own),
                    relative(found, euler),
                    psnr(sprites.frames(found), frames),
                )
            )


def noisy(sprites: Sprites, prompt: str, seed: int, steps: int, rows: Rows) -> None:
    """Measure how far the noise of a stochastic solver takes one clip."""
    for solver in NOISY:
        for history in histories(sprites, solver):
            found = [
                sprites.latents(
                    prompt, seed, steps, solver=solver, mode="sde", history=history, noise=noise
                )[0]
                for noise in NOISES
            ]
            pairs = list(itertools.combinations(found, 2))
            frames = [psnr(*map(sprites.frames, pair)) for pair in pairs]
            distances = [relative(*pair) for pair in pairs]
            rows[solver, history].append(
                (statistics.fmean(distances), 0.0, statistics.fmean(frames))
            )


def verdict(rows: Rows, solver: str) -> str:
    """Whether resetting beats keeping, clip by clip."""
    kept, reset = rows[solver, "keep"], rows[solver, "reset"]
    mean, half = interval([b[0] - a[0] for a, b in zip(kept, reset, strict=True)])
    share = mean / statistics.fmean(a[0] for a in kept)
    if abs(mean) <= half:
        word = "no difference beyond chance"
    else:
        word = "**reset is better**" if mean < 0 else "keep is better"
    return f"- `{solver}`: {word} (resetting changes the error by {share:+.1%}, {mean:+.4f} ± {half:.4f})"  # noqa: E501


def report(exact_rows: Rows, noisy_rows: Rows, options: argparse.Namespace) -> str:
    """The tables, with where and how they were measured."""
    clips = options.prompts * options.seeds
    order = {"heun": 2 * options.steps - 1}
    first = table(
        ["solver", "memory", "forwards", "error to its own reference", "error to Euler's", "PSNR, dB"],  # noqa: E501
        [
            [f"`{solver}`", history, str(order.get(solver, options.steps)),
             spread([row[0] for row in found]), spread([row[1] for row in found]),
             spread([row[2] for row in found], 1)]
            for (solver, history), found in exact_rows.items()
        ],
    )  # fmt: skip
    second = table(
        ["solver", "memory", "distance between noises", "PSNR between noises, dB"],
        [
            [f"`{solver}`", history, spread([row[0] for row in found]),
             spread([row[2] for row in found], 1)]
            for (solver, history), found in noisy_rows.items()
        ],
    )  # fmt: skip
    with_memory = [solver for solver, history in exact_rows if history == "reset"]
    return "\n\n".join(
        [
            (
                f"{clips} clips of sprites, LSL 0.4/0.8, {options.steps} steps against "
                f"{options.reference}; mean ± standard deviation over clips. Measured {machine()}."
            ),
            first,
            "Resetting against keeping, paired by clip, with 95 % intervals:",
            "\n".join(verdict(exact_rows, solver) for solver in with_memory),
            "Solvers that add noise:",
            second,
        ]
    )


def main() -> None:
    """Measure, and print or publish the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--reference", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=8, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parse(parser, steps=10, reference=50, prompts=1)
    torch.manual_seed(0)
    sprites = Sprites()
    exact_rows: Rows = defaultdict(list)
    noisy_rows: Rows = defaultdict(list)
    for prompt in PROMPTS[: options.prompts]:
        for seed in range(1, options.seeds + 1):
            print(f"{prompt}, seed {seed}", file=sys.stderr, flush=True)
            exact(sprites, prompt, seed, options.steps, options.reference, exact_rows)
            noisy(sprites, prompt, seed, options.steps, noisy_rows)
    publish("solvers.md", "solvers", report(exact_rows, noisy_rows, options), write=options.write)


if __name__ == "__main__":
    main()
