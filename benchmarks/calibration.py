"""How many prompts a calibration of sprites needs, and whether its predictions rank schedules.

``python benchmarks/calibration.py [--prompts 16] [--steps 50] [--draws 20] [--write]``

The sensitivities of every prompt are measured once. Then schedules are chosen from some of the
prompts, drawn at random, and judged by the interactions of all the others: how much more error they
predict for such a schedule than for the one that they would have chosen themselves. Where
benchmarks/quality.jsonl holds rendered rows, their PSNR is ranked against what the bundled pair's
calibration predicts. ``--write`` puts both into docs/boundaries.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tomllib
from collections.abc import Sequence

import torch
from quality import RESULTS, row_inputs
from quality_rows import STEPS, Row, bundled_calibration, rows
from quality_store import Results
from shared import ROOT, Sprites, machine, parse, publish, spread, table

from flowblend_plugin.calibration.calibration import Calibration, ErrorModel
from flowblend_plugin.calibration.criteria import contiguous, free
from flowblend_plugin.calibration.probe import Probe, calibrate
from flowblend_plugin.schedulers.sigmas import noise_levels

RECIPE = ROOT / "training" / "calibration.toml"
BUDGET = 0.55
SIZES = (1, 2, 4, 8, 12)
Prompts = Sequence[int]


def measured(sprites: Sprites, prompts: int, steps: int) -> list[Calibration]:
    """A calibration of each prompt by itself."""
    ratio = bundled_calibration().cost_ratio
    scenes = tomllib.loads(RECIPE.read_text("utf-8"))["scene"][:prompts]
    found = []
    for number, scene in enumerate(scenes, 1):

        def sample(prompt: str = scene["prompt"], seed: int = scene["seeds"][0]) -> torch.Tensor:
            return sprites.pipe(
                prompt,
                height=64,
                width=64,
                num_frames=17,
                num_inference_steps=steps,
                guidance_scale=5.0,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).frames

        print(f"prompt {number} of {len(scenes)}", file=sys.stderr, flush=True)
        found.append(
            calibrate(sprites.pipe, sprites.small, [Probe(sample)], cost_ratio=ratio, conditions={})
        )
    return found


def joined(models: Sequence[ErrorModel], chosen: Prompts) -> ErrorModel:
    """What some prompts say together."""
    first = models[chosen[0]]
    gram = tuple(
        tuple(statistics.fmean(models[p].gram[i][j] for p in chosen) for j in range(len(first)))
        for i in range(len(first))
    )
    return ErrorModel(
        first.levels, first.widths, gram, first.divergence, first.acceleration, first.curvature,
        first.gain, first.cost_ratio,
    )  # fmt: skip


def excess(models: Sequence[ErrorModel], chosen: Prompts, others: Prompts) -> dict[str, float]:
    """How much more error the others predict for the choice of some, as a share."""
    mine, theirs = joined(models, chosen), joined(models, others)
    found = {}
    for name, criterion in (("free", free), ("contiguous", contiguous)):
        errors = [
            theirs.small_error([s for s, role in enumerate(roles) if role == "small"])
            for roles in (criterion(mine, BUDGET).denoisers, criterion(theirs, BUDGET).denoisers)
        ]
        found[name] = errors[0] / errors[1] - 1
    return found


def enough(models: Sequence[ErrorModel], draws: int) -> str:
    """The table of how many prompts are enough."""
    gen = random.Random(0)
    lines = []
    for size in (s for s in SIZES if s < len(models)):
        runs = []
        for _ in range(draws):
            chosen = gen.sample(range(len(models)), size)
            others = [p for p in range(len(models)) if p not in chosen]
            runs.append(excess(models, chosen, others))
        lines.append(
            [str(size), *(f"{spread([100 * run[name] for run in runs], 1)} %"
                          for name in ("free", "contiguous"))]
        )  # fmt: skip
    return table(["prompts", "free", "contiguous"], lines)


def ranked() -> str:
    """How well predictions rank what was rendered."""
    results = Results(RESULTS)
    model = bundled_calibration().at(noise_levels("flow_match_euler", STEPS, 3.0))
    pairs: dict[str, list[tuple[float, float]]] = {"small": [], "extrapolated": []}
    for row in rows(row_inputs(results, anew=False)) if results.lines else []:
        line = results.quality(row, results.device() or "")
        if line is None or not is_plain(row) or row.name == "LLL":
            continue
        roles = row.stages.denoisers(row.steps)
        kind = "extrapolated" if "extrapolated" in roles else "small"
        steps = [s for s, role in enumerate(roles) if role == ("small", "large")[kind != "small"]]
        error = model.small_error(steps) if kind == "small" else model.extrapolation_error(steps)
        pairs[kind].append((-error, statistics.fmean(line["psnr"])))
    both = {**pairs, "both": [*pairs["small"], *pairs["extrapolated"]]}
    lines = [[k, str(len(found)), f"{spearman(found):.2f}"] for k, found in both.items() if found]
    return table(["steps that large doesn't run", "schedules", "rank correlation"], lines)


def is_plain(row: Row) -> bool:
    """Whether a row is 50 steps of Euler that differ in who runs them, and in nothing else."""
    sets = any(stage.cache or stage.guidance_scale is not None for stage in row.stages.stages)
    euler = (row.steps, row.solver) == (STEPS, "flow_match_euler")
    return euler and not sets and row.adaptive is None


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation, ties in their order."""
    ranks = []
    for side in (0, 1):
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][side])
        ranks.append({i: place for place, i in enumerate(order)})
    count = len(pairs)
    apart = sum((ranks[0][i] - ranks[1][i]) ** 2 for i in range(count))
    return 1 - 6 * apart / (count * (count**2 - 1)) if count > 1 else 1.0


def main() -> None:
    """Measure, and print or publish the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=16, choices=range(2, 17), metavar="N")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--write", action="store_true")
    options = parse(parser, prompts=3, steps=10, draws=3)
    found = measured(Sprites(), options.prompts, options.steps)
    levels = noise_levels("flow_match_euler", options.steps, 3.0)
    text = (
        f"Error beyond the best choice, budget {BUDGET}, mean ± standard deviation of "
        f"{options.draws} draws out of {options.prompts} prompts, {options.steps} steps. Measured "
        f"{machine()}.\n\n{enough([one.at(levels) for one in found], options.draws)}"
    )
    text += f"\n\nPredicted error against the PSNR of [quality.md](quality.md):\n\n{ranked()}"
    publish("boundaries.md", "calibration", text, write=options.write)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
