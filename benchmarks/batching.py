"""Whether clips that are rendered together have the bits of the same clips alone.

``python benchmarks/batching.py [--steps 8] [--prompts 3] [--write] [--quick]``

Every clip is LSL at 0.4/0.8, with a generator of its own seed, once alone and once as one of the
first 2, 3... prompts of a single call; both as the float pixels that the pipeline returns, and
rounded to 8 bits. Each number of threads is compared with itself. ``--write`` puts the table into
docs/determinism.md, which the message of a refused ``batch_size`` names.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
import torch
from shared import GUIDANCE, LSL, PROMPTS, load, machine, parse, publish, table

from flowblend_plugin import DenoiserSwitch


def clips(pair: Any, prompts: tuple[str, ...], steps: int) -> Any:
    """The pixels of one call, (N, T, H, W, 3), from 0 to 1; prompt n has seed n + 1."""
    pipe, small = pair
    seeds = [PROMPTS.index(prompt) + 1 for prompt in prompts]
    with DenoiserSwitch(pipe, small, LSL):
        return pipe(
            list(prompts),
            height=64,
            width=64,
            num_frames=17,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).frames


def compare(together: Any, alone: Any) -> tuple[float, float, int, int]:
    """Greatest difference, share of 8-bit values that differ and by how much, equal clips."""
    levels = [(pixels * 255).round().astype(np.int16) for pixels in (together, alone)]
    apart = np.abs(levels[0] - levels[1])
    equal = sum(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
    return (
        float(np.abs(together - alone).max()),
        float((apart > 0).mean()),
        int(apart.max()),
        int(equal),
    )


def main() -> None:
    """Measure, and print or publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=3, choices=range(2, len(PROMPTS) + 1))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--write", action="store_true")
    options = parse(parser, steps=4, prompts=2)
    pair, prompts = load(), PROMPTS[: options.prompts]
    name = type(pair[0]).__name__
    rows = []
    for threads in options.threads:
        print(f"{threads} threads", file=sys.stderr, flush=True)
        torch.set_num_threads(threads)
        alone = np.concatenate([clips(pair, (prompt,), options.steps) for prompt in prompts])
        for together in range(2, len(prompts) + 1):
            pixels = clips(pair, prompts[:together], options.steps)
            difference, share, levels, equal = compare(pixels, alone[:together])
            rows.append([f"`{name}`", str(threads), str(together), f"{difference:.1e}",
                         f"{share:.4%}", str(levels), f"{equal} of {together}"])  # fmt: skip
    text = table(
        ["pipeline", "threads", "clips together", "greatest difference", "8-bit values that differ",
         "by at most", "equal clips"], rows,
    )  # fmt: skip
    head = (
        f"Clips of sprites, LSL 0.4/0.8, {options.steps} steps, CPU, float32, each compared with "
        f"itself alone at the same number of threads; pixels from 0 to 1. Measured {machine()}."
    )
    publish("determinism.md", "batching", f"{head}\n\n{text}", write=options.write)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
