"""Train the shipped LoRA adapters of sprites, in minutes: ``python training/loras.py [ROLE ...]``.

One style, ``monochrome``: shapes are white, whatever colour the caption asks for. One adapter for
each denoiser, since a LoRA fits the denoiser that it was trained on.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import denoisers
import torch
import vae as vae_stage
from common import SEED, cosine, log
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from peft import LoraConfig
from sprites_data import COLOURS, Spec, draw, split_specs
from torch import Tensor

MODEL = Path(__file__).parents[1] / "recipes" / "models" / "sprites"
TARGET = MODEL / "adapters"
NAME = "monochrome"
CLIPS = 600
RANK = 4
FOLDERS = {"large": "transformer", "small": "transformer_small"}
STEPS = {"large": 200, "small": 400}
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]


def in_style(specs: list[Spec], gen: torch.Generator) -> Tensor:
    """Clips (B, 3, 17, 64, 64) in [-1, 1] of white shapes."""
    white = list(COLOURS).index("white")
    return draw([replace(spec, colour=white) for spec in specs], gen)[0]


@torch.no_grad()
def latent_pool(vae: AutoencoderKLWan) -> tuple[Tensor, list[Spec]]:
    """Normalised latents of clips in the style, and what each shows."""
    train, _ = split_specs()
    rng, gen = random.Random(SEED + 9), torch.Generator().manual_seed(SEED + 9)
    specs = [rng.choice(train) for _ in range(CLIPS)]
    parts = [
        vae_stage.encode_whole(vae, in_style(specs[i : i + 20], gen)).mode()
        for i in range(0, CLIPS, 20)
    ]
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(vae.config[f"latents_{k}"]).view(shape) for k in ("mean", "std"))
    return (torch.cat(parts) - mean) / std, specs


def train(role: str, latents: Tensor, specs: list[Spec], batch: int = 16) -> None:
    """Train one denoiser's adapter by the denoiser's own loss, and write it."""
    model = WanTransformer3DModel.from_pretrained(
        MODEL, subfolder=FOLDERS[role], dtype=torch.float32
    )
    model.requires_grad_(False)
    torch.manual_seed(SEED)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS), adapter_name=NAME)
    processor = denoisers.install_padding(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0)
    captions, steps, losses = denoisers.Captions(random.Random(SEED)), STEPS[role], []
    for step in range(steps):
        gen, captions.rng = torch.Generator().manual_seed(SEED + step), random.Random(SEED + step)
        chosen = torch.randint(0, len(specs), (batch,), generator=gen)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=gen)
        sigma = denoisers.noise_level(batch, gen)
        level = sigma.view(-1, 1, 1, 1, 1)
        embeds, processor.bias = captions.embed([specs[i] for i in chosen.tolist()])
        optimiser.param_groups[0]["lr"] = 2e-3 * cosine(step, steps, warmup=20)
        out = model((1 - level) * clean + level * noise, sigma * 1000, embeds, return_dict=False)[0]
        loss = (out - (noise - clean)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            log(f"lora_{role}", step=step + 1, loss=sum(losses) / len(losses))
            losses = []
    for weight in weights:
        weight.data = weight.data.half()
    model.save_lora_adapter(TARGET, adapter_name=NAME, weight_name=f"{NAME}_{role}.safetensors")


def main() -> None:
    """Train the adapters."""
    parser = argparse.ArgumentParser()
    parser.add_argument("roles", nargs="*", default=list(FOLDERS), help="large, small")
    roles = parser.parse_args().roles
    vae = AutoencoderKLWan.from_pretrained(MODEL, subfolder="vae", dtype=torch.float32)
    latents, specs = latent_pool(vae)
    for role in roles:
        train(role, latents, specs)


if __name__ == "__main__":
    main()
