"""Boundaries of LSL by the paper's criterion, for the quality table: candidates are rendered."""

from __future__ import annotations

import torch
from quality_rows import STEPS
from shared import PROMPTS, Sprites, psnr

from flowblend_plugin import StageSchedule
from flowblend_plugin.calibration.criteria import Scores, similarity_and_detail


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
