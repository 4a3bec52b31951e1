"""Blend in a modular pipeline: a block chooses the denoiser, the small one is a component."""

from __future__ import annotations

import sys

import torch
from diffusers import WanBlocks, WanTransformer3DModel
from diffusers.utils import export_to_gif

from flowblend_plugin import FlowBlendBlock

MODEL = "recipes/models/sprites"


def main(path: str, steps: int = 50) -> None:
    """Render one blended clip; the pipeline itself is never changed."""
    blocks = WanBlocks()
    loop = blocks.sub_blocks["denoise"].sub_blocks["denoise"]
    loop.sub_blocks.insert("flowblend", FlowBlendBlock("LSL", boundaries=(0.4, 0.8)), 0)
    pipe = blocks.init_pipeline(MODEL)
    pipe.load_components()
    small = WanTransformer3DModel.from_pretrained(MODEL, subfolder="transformer_small")
    pipe.update_components(transformer_small=small)
    made = pipe(
        prompt="a blue square moving right on a black background",
        height=16,  # comes out as 64: diffusers' modular Wan takes no VAE to cut pixels into
        width=16,  # patches (here of 4), so it counts a fourth; of Wan's own VAE it counts right
        num_frames=17,
        num_inference_steps=steps,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(1),
        output_type="pil",
        output=["videos", "denoisers_run"],
    )
    export_to_gif(made["videos"][0], path, fps=8)
    print(path, " ".join(made["denoisers_run"]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "square.gif", *map(int, sys.argv[2:3]))
