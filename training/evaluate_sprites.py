"""Read what the sprites pair renders, without a human, and print the table of README.

``python training/evaluate_sprites.py [--prompts N] [--steps N] [--model FOLDER] [--json FILE]``

For held-out prompts and each stage string: prompt adherence (all four attributes, and each
alone), PSNR to the all-large clip of the same seed, and a Frechet distance of the reader's
features to real held-out clips, each with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import reader as reader_stage
import torch
import vae as vae_stage
from common import SEED
from diffusers import WanPipeline, WanTransformer3DModel
from sprites_data import ATTRIBUTES, Spec, draw, split_specs
from torch import Tensor

from flowblend_plugin import DenoiserSwitch, StageSchedule

MODEL = Path(__file__).parents[1] / "recipes" / "models" / "sprites"
ROWS = {"LLL": None, "LSL": (0.4, 0.8), "LSS": (0.4, 0.8), "SLL": (0.4, 0.8), "SSS": None}
BOOTSTRAPS = 400


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def bootstrap(values: Tensor) -> tuple[float, float]:
    """95 % interval of a mean, by resampling the prompts."""
    gen = torch.Generator().manual_seed(SEED)
    draws = torch.randint(0, len(values), (BOOTSTRAPS, len(values)), generator=gen)
    means = values[draws].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between two sets of features, each taken as a Gaussian."""
    a, b = a.double(), b.double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(ca)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross)


def frechet_interval(a: Tensor, b: Tensor, draws: int = 40) -> tuple[float, float]:
    """95 % interval of the distance: the basic bootstrap over the rendered clips.

    Resampling repeats clips, which inflates the distance; the basic interval mirrors that away.
    """
    point = frechet(a, b)
    gen = torch.Generator().manual_seed(SEED)
    found = sorted(
        frechet(a[torch.randint(0, len(a), (len(a),), generator=gen)], b) for _ in range(draws)
    )
    return max(0.0, 2 * point - found[-1]), max(0.0, 2 * point - found[0])


def accuracy(labels: Tensor, wanted: Tensor) -> dict[str, dict[str, Any]]:
    """Share of clips in which each attribute, and all of them, are read as wanted."""
    right = labels == wanted
    columns = {name: right[:, i] for i, name in enumerate(ATTRIBUTES)} | {"all four": right.all(1)}
    return {
        name: {
            "share": float(column.float().mean()),
            "interval": wilson(int(column.sum()), len(column)),
        }
        for name, column in columns.items()
    }


def psnr_each(got: Tensor, want: Tensor) -> Tensor:
    """PSNR in dB of each clip in [-1, 1]."""
    error = (got - want).square().mean((1, 2, 3, 4)).clamp(min=1e-10)
    return 10 * torch.log10(4 / error)


def render(pipe: Any, small: Any, row: str, specs: list[Spec], steps: int, batch: int) -> Tensor:
    """Clips (N, 3, 17, 64, 64) in [-1, 1] of one stage string, prompt i with seed i."""
    stages = StageSchedule.parse(row, boundaries=ROWS[row])
    parts = []
    for start in range(0, len(specs), batch):
        chosen = specs[start : start + batch]
        with DenoiserSwitch(pipe, small=small, stages=stages):
            frames = pipe(
                prompt=[s.prompt for s in chosen],
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(chosen))],
                height=64,
                width=64,
                num_frames=17,
                num_inference_steps=steps,
                guidance_scale=5.0,
                max_sequence_length=64,
                output_type="pt",
            ).frames
        parts.append(frames.transpose(1, 2) * 2 - 1)
    return torch.cat(parts)


def features(model: Any, clips: Tensor) -> Tensor:
    """The reader's appearance and motion features, (N, 192)."""
    with torch.no_grad():
        return torch.cat([torch.cat(model.features(c), 1) for c in clips.split(32)])


def on_real_clips(model: Any, vae: Any, specs: list[Spec]) -> tuple[dict[str, Any], Tensor]:
    """The reader on real held-out clips and on the VAE's reconstructions of them."""
    clips, masks = draw(specs, torch.Generator().manual_seed(SEED + 7))
    wanted = torch.tensor([s.labels for s in specs])
    with torch.no_grad():
        rebuilt = torch.cat([vae.decode(vae.encode(c).latent_dist.mode()).sample
                             for c in clips.split(16)])  # fmt: skip
    whole, region = vae_stage.psnr(rebuilt, clips), vae_stage.psnr(rebuilt, clips, masks)
    moving = vae_stage.psnr(rebuilt, clips, vae_stage.moving_region(masks))
    return {
        "reader": accuracy(model.read(clips), wanted),
        "vae": accuracy(model.read(rebuilt), wanted),
        "vae_psnr": whole,
        "vae_psnr_shape": region,
        "vae_psnr_moving_region": moving,
    }, clips


def evaluate(folder: Path, count: int, steps: int, batch: int) -> dict[str, Any]:
    """Everything the table says, as JSON-able values."""
    _, held = split_specs()
    specs = random.Random(SEED).sample(held, min(count, len(held)))
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small = WanTransformer3DModel.from_pretrained(
        folder, subfolder="transformer_small", dtype=torch.float32
    )
    model = reader_stage.train()
    real, clips = on_real_clips(model, pipe.vae, specs)
    result: dict[str, Any] = {"prompts": len(specs), "steps": steps, **real, "rows": {}}
    wanted, reference = torch.tensor([s.labels for s in specs]), features(model, clips)
    print_real(result)
    large = None
    for row in ROWS:
        began = time.time()
        made = render(pipe, small, row, specs, steps, batch)
        large = made if large is None else large
        mine = features(model, made)
        entry: dict[str, Any] = {"adherence": accuracy(model.read(made), wanted)}
        if row != "LLL":
            each = psnr_each(made, large)
            entry["psnr"] = {"mean": float(each.mean()), "interval": bootstrap(each)}
        entry["frechet"] = {
            "value": frechet(mine, reference),
            "interval": frechet_interval(mine, reference),
        }
        entry["seconds"] = time.time() - began
        result["rows"][row] = entry
        print(line(row, entry), flush=True)
    return result


def print_real(result: dict[str, Any]) -> None:
    """Say what reader and VAE are worth before any rendered clip is judged."""
    for what in ("reader", "vae"):
        shares = ", ".join(f"{k} {v['share']:.1%}" for k, v in result[what].items())
        print(f"{what} on {result['prompts']} real held-out clips: {shares}")
    print(
        f"VAE PSNR {result['vae_psnr']:.2f} dB, moving region "
        f"{result['vae_psnr_moving_region']:.2f} dB, shape {result['vae_psnr_shape']:.2f} dB"
    )


def line(row: str, entry: dict[str, Any]) -> str:
    """One row of the table as Markdown."""

    def share(name: str) -> str:
        low, high = entry["adherence"][name]["interval"]
        return f"{entry['adherence'][name]['share']:.1%} [{low:.1%}, {high:.1%}]"

    cells = [row, *(share(name) for name in ("all four", *ATTRIBUTES))]
    if "psnr" in entry:
        low, high = entry["psnr"]["interval"]
        cells.append(f"{entry['psnr']['mean']:.2f} [{low:.2f}, {high:.2f}]")
    else:
        cells.append("-")
    low, high = entry["frechet"]["interval"]
    cells.append(f"{entry['frechet']['value']:.1f} [{low:.1f}, {high:.1f}]")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Parse the options, evaluate, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=216)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    result = evaluate(options.model, options.prompts, options.steps, options.batch)
    options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
