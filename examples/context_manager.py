"""Blend inside a with block: any pipeline, any scheduler, everything restored on exit."""

from __future__ import annotations

import sys

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_gif

from flowblend_plugin import DenoiserSwitch

MODEL = "recipes/models/sprites"  # or a Hub id, such as Wan-AI/Wan2.1-T2V-14B-Diffusers
SMALL = "recipes/models/sprites"  # ... and Wan-AI/Wan2.1-T2V-1.3B-Diffusers


def main(path: str, steps: int = 50) -> None:
    """Render one blended clip and say who ran which step."""
    pipe = WanPipeline.from_pretrained(MODEL)
    with DenoiserSwitch(pipe, small=SMALL, stages="LSL", boundaries=(0.4, 0.8)) as switch:
        frames = pipe(
            "a red star bouncing on a navy background",
            height=64,
            width=64,
            num_frames=17,
            num_inference_steps=steps,
            max_sequence_length=64,
            generator=torch.Generator().manual_seed(1),
            output_type="pil",
        ).frames[0]
    export_to_gif(frames, path, fps=8)
    print(path, " ".join(switch.denoisers_run))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "star.gif", *map(int, sys.argv[2:3]))
