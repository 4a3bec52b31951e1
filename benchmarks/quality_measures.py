"""Measures of a row's clips against the all-large clips, for the quality table."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# training/ is no package: its scripts find each other beside themselves.
sys.path.append(str(Path(__file__).parents[1] / "training"))

import reader as reader_stage
from common import SEED
from evaluate_sprites import features, frechet, psnr_each, wilson
from sprites_data import Spec, draw, split_specs

__all__ = ["Reference", "held_out", "measure", "real_features", "trained_reader", "wilson"]

REAL_SEED = SEED + 7  # of the real clips, as in training/evaluate_sprites.py


def held_out() -> list[Spec]:
    """The held-out combinations in the order in which they are measured: the i-th with seed i."""
    held = split_specs()[1]
    return random.Random(SEED).sample(held, len(held))


def real_features(model: Any) -> Tensor:
    """The reader's features of a real clip of every held-out combination, (216, 192)."""
    return features(model, draw(held_out(), torch.Generator().manual_seed(REAL_SEED))[0])


@dataclass(frozen=True)
class Reference:
    """What a row is compared with.

    Args:
        clips: The all-large clips, (N, 3, 17, 64, 64) in [-1, 1].
        real: The reader's features of real clips of the same combinations, (at least N, 192).
    """

    clips: Tensor
    real: Tensor


def measure(clips: Tensor, reference: Reference, model: Any) -> dict[str, Any]:
    """Every measure of a row's clips against the all-large ones, as JSON values.

    Args:
        clips: The row's clips, (n, 3, 17, 64, 64) in [-1, 1]; the i-th is held-out combination i.
        reference: At least n clips to compare with.
        model: The trained reader.

    Returns:
        Per clip ``psnr`` (dB, at most 106), ``ssim``, ``features`` (relative distance), ``right``
        (1 where all four attributes are read as asked for), ``change`` and ``flicker`` (mean
        absolute first and second difference over time); of all clips together ``frechet``, by how
        much it exceeds the all-large clips' own (``frechet_excess``) and the 95 % interval of that
        (``frechet_interval``), or None of fewer than two clips.
    """
    count = len(clips)
    large, real = reference.clips[:count].clone(), reference.real[:count]
    mine, theirs = features(model, clips), features(model, large)
    wanted = torch.tensor([spec.labels for spec in held_out()[:count]])
    apart = (mine - theirs).norm(dim=1) / theirs.norm(dim=1)
    several = count > 1  # one clip has no covariance
    return {
        "psnr": rounded(psnr_each(clips, large)),
        "ssim": rounded(ssim_each(clips, large)),
        "features": rounded(apart),
        "right": (model.read(clips) == wanted).all(1).int().tolist(),
        "change": rounded(change_each(clips)),
        "flicker": rounded(flicker_each(clips)),
        "frechet": frechet(mine, real) if several else None,
        "frechet_excess": excess(mine, theirs, real) if several else None,
        "frechet_interval": excess_interval(mine, theirs, real) if several else None,
    }


def excess(mine: Tensor, theirs: Tensor, real: Tensor) -> float:
    """By how much one set's Frechet distance to real clips exceeds another's."""
    return frechet(mine, real) - frechet(theirs, real)


def excess_interval(
    mine: Tensor, theirs: Tensor, real: Tensor, draws: int = 40
) -> tuple[float, float]:
    """95 % interval of the excess: the basic bootstrap over prompts, the same for both sets."""
    point, gen, count = excess(mine, theirs, real), torch.Generator().manual_seed(SEED), len(mine)
    found = torch.tensor(
        [
            excess(mine[chosen], theirs[chosen], real)
            for chosen in (torch.randint(0, count, (count,), generator=gen) for _ in range(draws))
        ]
    )
    low, high = found.quantile(torch.tensor([0.025, 0.975])).tolist()
    return 2 * point - high, 2 * point - low


def rounded(values: Tensor) -> list[float]:
    """Values with six digits, which is more than any of them is exact to."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def change_each(clips: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring frames of each clip, pixels from 0 to 1."""
    return clips.diff(dim=2).abs().mean((1, 2, 3, 4)) / 2


def flicker_each(clips: Tensor) -> Tensor:
    """Mean ``|x[t + 1] - 2 x[t] + x[t - 1]|`` of each clip, pixels from 0 to 1."""
    return clips.diff(n=2, dim=2).abs().mean((1, 2, 3, 4)) / 2


def ssim_each(clips: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity of each clip, the mean over its frames."""
    from skimage.metrics import structural_similarity

    pairs = zip((clips + 1) / 2, (wanted + 1) / 2, strict=True)
    return torch.tensor(
        [
            math.fsum(
                structural_similarity(a, b, channel_axis=-1, data_range=1.0)
                for a, b in zip(*(c.permute(1, 2, 3, 0).numpy() for c in pair), strict=True)
            )
            / clips.shape[2]
            for pair in pairs
        ]
    )


def trained_reader() -> Any:
    """The reader that judges clips."""
    return reader_stage.train()
