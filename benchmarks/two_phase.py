"""Whether 25 coarse and 15 fine steps, each phase on its own grid, beat 40 plain ones.

``python benchmarks/two_phase.py [--prompts 6] [--write] [--quick]``

All steps are the large denoiser's, so that nothing but grids and solvers differs. The reference of
each clip is a run of 200 plain UniPC steps from the same noise. ``--write`` puts the table into
docs/solvers.md.
"""

from __future__ import annotations

import argparse
import sys

import torch
from shared import PROMPTS, Sprites, interval, machine, parse, psnr, publish, spread, table

from flowblend_plugin import Stage, StageSchedule

PLAIN = ("flow_match_euler", "dpmpp_2m", "unipc")
SOLVERS = (
    ("flow_match_euler", "flow_match_euler"),
    ("flow_match_euler", "unipc"),
    ("unipc", "flow_match_euler"),
    ("unipc", "unipc"),
)
SIGMAS = (0.9, 0.8, 0.65)
Row = tuple[str, str, list[float]]


def two_phases(first: str, second: str, sigma: float, coarse: int, fine: int) -> StageSchedule:
    """The large denoiser twice: coarse steps down to a noise level, fine ones from there."""
    return StageSchedule(
        (
            Stage("large", until_sigma=sigma, steps=coarse, scheduler=first),
            Stage("large", steps=fine, scheduler=second),
        )
    )


def plain_end(coarse: int, fine: int, shift: float = 3.0) -> float:
    """The noise level at which so many steps of a plain grid end, roughly."""
    time = fine / (coarse + fine)
    return shift * time / (1 + (shift - 1) * time)


def measure(sprites: Sprites, options: argparse.Namespace) -> list[Row]:
    """PSNR to the reference of every way to spend the steps, one number a prompt."""
    coarse, fine = options.coarse, options.fine
    ways: list[tuple[str, str, StageSchedule, str | None]] = [
        (f"{coarse + fine} plain", f"`{name}`", StageSchedule.parse("L"), name) for name in PLAIN
    ]
    for first, second in SOLVERS[: options.solvers]:
        for sigma in SIGMAS[: options.sigmas]:
            stages = two_phases(first, second, sigma, coarse, fine)
            told = f"{coarse} to {sigma}, {fine} from there"
            ways.append((told, f"`{first}`, `{second}`", stages, None))
    found: list[Row] = [(steps, solver, []) for steps, solver, _, _ in ways]
    for prompt in PROMPTS[: options.prompts]:
        print(prompt, file=sys.stderr, flush=True)
        large = StageSchedule.parse("L")
        last, _ = sprites.latents(prompt, 1, options.reference, stages=large, solver="unipc")
        exact = sprites.frames(last)
        for (_, _, stages, solver), (_, _, values) in zip(ways, found, strict=True):
            latents, _ = sprites.latents(prompt, 1, coarse + fine, stages=stages, solver=solver)
            values.append(psnr(sprites.frames(latents), exact))
    return found


def report(rows: list[Row], options: argparse.Namespace) -> str:
    """The table, each way beside the plain Euler steps of the same prompts."""
    euler = rows[0][2]

    def against(values: list[float]) -> str:
        mean, half = interval([a - b for a, b in zip(values, euler, strict=True)])
        return f"{mean:+.1f} ± {half:.1f}" if values is not euler else ""

    level = plain_end(options.coarse, options.fine)
    shown = table(
        ["steps", "solvers", "PSNR, dB", "against plain Euler, dB"],
        [[steps, solver, spread(values, 1), against(values)] for steps, solver, values in rows],
    )
    return "\n\n".join(
        [
            (
                f"{len(euler)} clips of sprites, all large, against {options.reference} plain "
                "UniPC steps; mean ± standard deviation over clips, and the paired difference "
                f"with its 95 % interval. The plain grid's first {options.coarse} steps end at "
                f"about {level:.2f}. Measured {machine()}."
            ),
            shown,
        ]
    )


def main() -> None:
    """Measure, and print or publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=4, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--coarse", type=int, default=25)
    parser.add_argument("--fine", type=int, default=15)
    parser.add_argument("--reference", type=int, default=200)
    parser.add_argument("--solvers", type=int, default=len(SOLVERS))
    parser.add_argument("--sigmas", type=int, default=len(SIGMAS))
    parser.add_argument("--write", action="store_true")
    options = parse(parser, prompts=1, coarse=6, fine=4, reference=20, solvers=2, sigmas=1)
    torch.manual_seed(0)
    sprites = Sprites()
    publish(
        "solvers.md", "two phases", report(measure(sprites, options), options), write=options.write
    )


if __name__ == "__main__":
    main()
