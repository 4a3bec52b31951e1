"""A server: requests at the same time, with denoisers that they share and a switch each."""

from __future__ import annotations

import asyncio
import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_gif

from flowblend_plugin import DenoiserSwitch
from flowblend_plugin.denoisers.loading import load_denoiser

MODEL = "recipes/models/sprites"  # or a Hub id, such as Wan-AI/Wan2.1-T2V-14B-Diffusers
SMALL = "recipes/models/sprites"  # ... and Wan-AI/Wan2.1-T2V-1.3B-Diffusers
COLOURS = ("red", "green", "blue", "yellow")


class Server:
    """Loads a pair once, and renders requests in threads."""

    def __init__(self) -> None:
        self.pipe = WanPipeline.from_pretrained(MODEL)
        self.pipe.set_progress_bar_config(disable=True)
        self.small = load_denoiser(SMALL, self.pipe.transformer, "transformer")
        self.text = threading.Lock()  # tokenizers serve one thread at a time

    def render(self, prompt: str, seed: int, steps: int) -> tuple[Any, list[str]]:
        """Render one request; returns its frames and who ran which step."""
        pipe = copy.copy(self.pipe)  # the same weights
        pipe.scheduler = copy.deepcopy(self.pipe.scheduler)  # counts the steps of one call
        pipe.vae = copy.copy(self.pipe.vae)  # remembers frames while it decodes
        with self.text, torch.no_grad():
            embeds, negative = pipe.encode_prompt(prompt, "", max_sequence_length=64)
        with DenoiserSwitch(pipe, self.small, "LSL", boundaries=(0.4, 0.8)) as switch:
            frames = pipe(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                height=64,
                width=64,
                num_frames=17,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="pil",
            ).frames[0]
        return frames, switch.denoisers_run


async def main(path: str, steps: int = 50) -> None:
    """Serve four requests at once, and save the first one's clip."""
    server, loop = Server(), asyncio.get_running_loop()
    with ThreadPoolExecutor(2) as threads:
        clips = await asyncio.gather(
            *(
                loop.run_in_executor(
                    threads,
                    server.render,
                    f"a {colour} star bouncing on a navy background",
                    1,
                    steps,
                )
                for colour in ("red", "green", "blue", "yellow")
            )
        )
    frames, denoisers_run = clips[0]
    export_to_gif(frames, path, fps=8)
    print(path, " ".join(denoisers_run))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "star.gif", *map(int, sys.argv[2:3])))
