"""Give an existing script stages by giving its pipeline a scheduler that has them."""

from __future__ import annotations

import sys

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_gif

from flowblend_plugin import DenoiserSwitch, FlowBlendScheduler

MODEL = "recipes/models/sprites"


def main(path: str, steps: int = 50) -> None:
    """Render one blended clip; the stages are saved with the scheduler."""
    pipe = WanPipeline.from_pretrained(MODEL)
    pipe.scheduler = FlowBlendScheduler.from_config(
        pipe.scheduler.config, stages="LSL", boundaries=(0.4, 0.8)
    )
    switch = DenoiserSwitch(pipe, small=MODEL)  # takes the stages from the scheduler
    frames = pipe(
        "a green ring moving left on a black background",
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=steps,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(1),
        callback_on_step_end=switch,  # optional: the scheduler drives the swaps
        output_type="pil",
    ).frames[0]
    switch.detach()
    export_to_gif(frames, path, fps=8)
    print(path, " ".join(switch.denoisers_run))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "ring.gif", *map(int, sys.argv[2:3]))
