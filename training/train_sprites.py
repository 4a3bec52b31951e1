"""Make the bundled pair from nothing: ``python training/train_sprites.py``.

Text encoder, VAE, latents, large and small denoiser, one after the other, each resumable at any
moment; then the diffusers folder. Checkpoints and logs lie in the user's cache folder
(``FLOWBLEND_TRAINING_DIR`` overrides). ``--export`` only writes the folder from what is there;
``--restore`` makes checkpoints of the shipped folder, to go on from it on another machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import denoisers
import text
import torch
import vae as vae_stage
from common import load_checkpoint, save_checkpoint, work_dir
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

TARGET = Path(__file__).parents[1] / "recipes" / "models" / "sprites"
LOGS = Path(__file__).with_name("logs")
FLOW_SHIFT = 3.0


def main() -> None:
    """Train what is missing and export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--export", action="store_true", help="only write the folder")
    parser.add_argument("--restore", action="store_true", help="checkpoints from the folder")
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args()
    if options.restore:
        restore(options.target)
        return
    if not options.export:
        text.train()
        vae_stage.train()
        for role, steps in denoisers.STEPS.items():
            denoisers.train(role, steps)
        steps = denoisers.STEPS["small"] + denoisers.DISTILLED_STEPS
        denoisers.train("small", steps, lr=0.015, distilled=True)
        vae_stage.train_decoder()  # leaves the latents, and so the denoisers, as they are
    export(options.target)


def export(target: Path) -> None:
    """Write the pipeline's folder, its small denoiser and the training logs, in float16."""
    tokenizer, encoder = text.train()
    vae = vae_stage.load()
    latents, _ = denoisers.latent_pool(vae)
    mean, std = denoisers.statistics(latents)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    pair: dict[str, Any] = {role: _denoiser(role) for role in denoisers.CONFIGS}
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.half(),
        vae=vae.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        transformer=pair["large"].half(),
    )
    pipe.save_pretrained(target)
    # transformers loads weights in the type that their config names; here, on a CPU, float32.
    config = target / "text_encoder" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")
    pair["small"].half().save_pretrained(target / "transformer_small")
    LOGS.mkdir(exist_ok=True)
    for path in work_dir().glob("*.jsonl"):
        shutil.copy(path, LOGS / path.name)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(json.dumps({"target": str(target), "bytes": size}))


def restore(source: Path) -> None:
    """Make every stage's checkpoint from a shipped folder, where there is none yet.

    The optimisers start afresh; step counts come from the shipped logs.
    """
    pipe = WanPipeline.from_pretrained(source, dtype=torch.float32)
    small = WanTransformer3DModel.from_pretrained(
        source, subfolder="transformer_small", dtype=torch.float32
    )
    parts = {
        "text": pipe.text_encoder,
        "vae": pipe.vae,
        "large": pipe.transformer,
        "small": small,
    }
    if load_checkpoint("text") is None:
        shutil.copy(source / "tokenizer" / "tokenizer.json", work_dir() / "tokenizer.json")
    for stage, module in parts.items():
        if load_checkpoint(stage) is None:
            weights = module.state_dict()
            save_checkpoint(stage, model=weights, ema=weights, step=_logged_step(stage))


def _logged_step(stage: str) -> int:
    path = LOGS / f"{stage}.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return max(int(line.get("step", 0)) for line in lines)


def _denoiser(role: str) -> torch.nn.Module:
    state = load_checkpoint(role)
    if state is None:
        raise SystemExit(f"no {role} denoiser yet: run without --export")
    return denoisers.averaged(role, state)


if __name__ == "__main__":
    main()
