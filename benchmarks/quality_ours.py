"""The rows of the quality table whose stages were chosen from data."""

from __future__ import annotations

import json
from functools import cache

import torch
from quality_rows import BOUNDARIES, STEPS, Row
from shared import MODEL, PROMPTS, Sprites, psnr

from flowblend_plugin import StageSchedule
from flowblend_plugin.calibration.calibration import Calibration, most_large_steps
from flowblend_plugin.calibration.criteria import Scores, choose, similarity_and_detail
from flowblend_plugin.schedulers.sigmas import noise_levels
from flowblend_plugin.stage_hooks.early_exit import SelfDifference

BUDGETED = ("contiguous", "free", "extrapolated")
BUDGETS = (0.7, 0.55, 0.4, 0.25)
# Computed steps of 50 that take about 2, 2.5 and 3 times less time.
COMPUTED = (24, 19, 16)
SHIFT = 3.0


@cache
def calibration() -> Calibration:
    """The bundled pair's own."""
    return Calibration.from_document(json.loads((MODEL / "calibration.json").read_text("utf-8")))


def equal_share() -> float:
    """What LSL at the paper's boundaries costs, relative to all large."""
    large = StageSchedule.parse("LSL", BOUNDARIES).denoisers(STEPS).count("large") / STEPS
    return large + (1 - large) * calibration().cost_ratio


def chosen(criterion: str, budget: float, name: str, *, headline: bool = False) -> Row:
    """A row of 50 Euler steps whose stages a criterion chose."""
    model = calibration().at(noise_levels("flow_match_euler", STEPS, SHIFT))
    # Half a thousandth of a step more, so that rounding takes no step away.
    choice = choose(model, min(1.0, budget + 1e-5), criterion)
    family = criterion if criterion in BUDGETED else "criteria"
    return Row(name, family, choice.schedule, headline=headline)


def solved(solver: str, steps: int, computed: int, name: str) -> Row:
    """A row of extrapolated steps under another solver."""
    model = calibration().at(noise_levels(solver, steps, SHIFT))
    choice = choose(model, computed / steps, "extrapolated")
    return Row(name, "extrapolated UniPC", choice.schedule, steps, solver)


def adaptive(budget: float) -> Row:
    """A row whose first stage ends when the trajectory says so."""
    large = most_large_steps(STEPS, calibration().cost_ratio, budget + 1e-5)
    latest = StageSchedule.parse("LSL", [(large - 1) / STEPS, (STEPS - 1) / STEPS])
    name = f"adaptive {budget:.2f}"
    return Row(name, "criteria", latest, together=False, adaptive=SelfDifference())


def by_data(rendered: tuple[float, float]) -> list[Row]:
    """Every row that a calibration, or rendered candidates, chose the stages of.

    Args:
        rendered: Boundaries that ``rendered_boundaries`` found.
    """
    equal = equal_share()
    every = {f"{budget}": budget for budget in BUDGETS}
    return [
        *(chosen(c, equal, f"{c} = LSL", headline=True)
          for c in BUDGETED),
        *(chosen(c, equal, f"{c} = LSL") for c in ("divergence", "complexity")),
        Row("similarity {}/{}".format(*rendered), "criteria", StageSchedule.parse("LSL", rendered)),
        *(chosen(c, budget, f"{c} {name}")
          for c in BUDGETED for name, budget in every.items()),
        *(chosen("extrapolated", n / STEPS, f"extrapolated {n}/{STEPS}", headline=True)
          for n in COMPUTED),
        *(solved("unipc", steps, count, f"extrapolated {count}/{steps} UniPC")
          for steps, count in ((50, 24), (50, 16), (25, 16), (25, 12))),
        adaptive(equal),
        adaptive(0.4),
    ]  # fmt: skip


def rendered_boundaries(prompts: int = 4) -> tuple[float, float]:
    """The paper's own criterion: render candidates, and compare them with all large."""
    sprites = Sprites()
    seeds = range(1000, 1000 + prompts)

    def clips(stages: StageSchedule) -> list[torch.Tensor]:
        return [
            sprites.frames(sprites.latents(prompt, seed, STEPS, stages=stages)[0])
            for prompt, seed in zip(PROMPTS, seeds, strict=False)
        ]

    large = clips(StageSchedule.parse("L"))

    def evaluate(stages: StageSchedule) -> Scores:
        found = list(zip(clips(stages), large, strict=True))
        near = sum(psnr(clip, wanted) for clip, wanted in found) / prompts
        kept = sum(detail(clip) / detail(wanted) for clip, wanted in found) / prompts
        return Scores(min(near, 99.0), kept)

    evidence = similarity_and_detail(evaluate).evidence
    early, late = evidence["boundaries"]
    return early, late


def detail(clip: torch.Tensor) -> float:
    """Mean square of the Laplacian of a clip (1, 3, T, H, W)."""
    frames = clip.transpose(1, 2).flatten(0, 2)[:, None]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return float(torch.nn.functional.conv2d(frames, kernel).square().mean())
