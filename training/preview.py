"""Fit the pair's preview: a linear map from latents to pixels, far cheaper than the VAE.

``python training/preview.py [FOLDER]`` reads the VAE of a shipped folder, writes
``preview.safetensors`` into it, and prints how close the map comes to the VAE's own decoding of
clips that it wasn't fitted on, beside a map that gives each latent voxel a single colour.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from common import SEED
from diffusers import AutoencoderKLWan
from sprites_data import Spec, draw, split_specs
from torch import Tensor

from flowblend_plugin.preview import PROJECTION_NAME, LatentProjection

FOLDER = Path(__file__).parents[1] / "recipes" / "models" / "sprites"
FITTED, MEASURED = 96, 24


@torch.no_grad()
def pairs(vae: AutoencoderKLWan, specs: list[Spec]) -> tuple[Tensor, Tensor]:
    """Normalised latents of drawn clips, and their decoding, uint8, (N, T, H, W, 3)."""
    gen = torch.Generator().manual_seed(SEED)
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape)
    std = torch.tensor(vae.config.latents_std).view(shape)
    latents, frames = [], []
    for spec in specs:
        clip, _ = draw([spec], gen)
        raw = vae.encode(clip).latent_dist.mode()
        decoded = (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
        latents.append((raw - mean) / std)
        frames.append((decoded * 255).round().to(torch.uint8).movedim(1, -1))
    return torch.cat(latents), torch.cat(frames)


def single_colour(projection: LatentProjection) -> LatentProjection:
    """The map whose pixels of one latent voxel are all alike: nearest repetition."""

    def levelled(weights: Tensor) -> Tensor:
        return weights.mean(dim=(1, 2, 3), keepdim=True).expand_as(weights)

    return LatentProjection(levelled(projection.first), levelled(projection.rest))


def psnr(projection: LatentProjection, latents: Tensor, frames: Tensor) -> float:
    """Mean PSNR in dB over clips."""
    shown = torch.stack([torch.from_numpy(projection.project(one[None])) for one in latents])
    error = ((shown.float() - frames.float()) / 255).square().mean(dim=(1, 2, 3, 4))
    return float((-10 * torch.log10(error)).mean())


def main() -> None:
    """Fit, measure, write."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
    rng = random.Random(SEED)
    seen, held = split_specs()
    projection = LatentProjection.fit(*pairs(vae, rng.sample(seen, FITTED)))
    apart = pairs(vae, rng.sample(held, MEASURED))
    projection.save(folder / PROJECTION_NAME)
    told = {"patch": projection, "single_colour": single_colour(projection)}
    measured = {name: round(psnr(each, *apart), 1) for name, each in told.items()}
    print(json.dumps({"clips": MEASURED, "psnr_to_vae": measured}))


if __name__ == "__main__":
    main()
