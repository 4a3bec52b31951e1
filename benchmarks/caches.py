"""What each cache saves on a blended run, and what it costs in likeness.

``python benchmarks/caches.py [--steps 50] [--prompts 4] [--write] [--quick]``

Every clip is LSL at 0.4/0.8, once with the cache in the middle stage, once in all three. Seconds
are divided by those of the same clip without a cache, rendered right before. ``computed`` is the
share of the linear layers' calls that ran in the cached stages. ``--write`` puts the table into
docs/caches.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from shared import LSL, PROMPTS, Sprites, machine, parse, psnr, publish, spread, table

from flowblend_plugin import Cache, Stage, StageSchedule

# diffusers' and cache-dit's defaults, but where a small denoiser and short stages need others.
OPTIONS: dict[str, dict[str, Any]] = {
    "first_block": {"threshold": 0.1},
    "mag": {},
    "taylorseer": {
        "cache_identifiers": (r"blocks\.\d+\.(attn1|attn2|ffn)",),
        "cache_interval": 3,
        "taylor_factors_dtype": "float32",
    },
    "pab": {"spatial_attention_block_skip_range": 2},
    "faster": {},
    "sea": {},
    "cache_dit": {"Fn_compute_blocks": 1, "max_warmup_steps": 4},
}
WHERE = {"middle": (1,), "all": (0, 1, 2)}


def ratios(sprites: Sprites, role: str, steps: int) -> tuple[float, ...]:
    """MagCache's ratios of one denoiser, which its calibration prints."""
    calibrating = Stage(role, cache=Cache.of("mag", {"calibrate": True}))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        sprites.latents(PROMPTS[0], 1, steps, stages=StageSchedule((calibrating,)))
    found = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
    return tuple(ast.literal_eval(found[0]))


def cached(kind: str, stages: tuple[int, ...], mag: dict[str, tuple[float, ...]]) -> StageSchedule:
    """LSL with one kind of cache in some stages."""
    made = []
    for index, stage in enumerate(LSL.stages):
        options = dict(OPTIONS[kind])
        if kind == "mag":
            options["mag_ratios"] = mag[stage.denoiser]
        cache = Cache.of(kind, options) if index in stages else None
        made.append(Stage(stage.denoiser, stage.until, cache=cache))
    return StageSchedule(tuple(made))


def timed(sprites: Sprites, prompt: str, steps: int, stages: StageSchedule) -> Any:
    """Seconds, frames and cache reports of one clip."""
    began = time.perf_counter()
    latents, switch = sprites.latents(prompt, 1, steps, stages=stages)
    return time.perf_counter() - began, sprites.frames(latents), switch.cache_reports


def main() -> None:
    """Measure, and print or publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=4, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--write", action="store_true")
    options = parse(parser, steps=20, prompts=1)
    kinds = list(OPTIONS)
    if importlib.util.find_spec("cache_dit") is None:
        kinds.remove("cache_dit")
    sprites = Sprites()
    mag = {role: ratios(sprites, role, options.steps) for role in ("large", "small")}
    rows: dict[tuple[str, str], list[tuple[float, float, float, float]]] = defaultdict(list)
    for prompt in PROMPTS[: options.prompts]:
        print(prompt, file=sys.stderr, flush=True)
        for kind in kinds:
            for where, stages in WHERE.items():
                plain, expected, _ = timed(sprites, prompt, options.steps, LSL)
                seconds, frames, reports = timed(
                    sprites, prompt, options.steps, cached(kind, stages, mag)
                )
                forwards = sum(r.forwards for r in reports)
                computed = sum(r.computed * r.forwards for r in reports) / forwards
                skipped = sum(r.skipped for r in reports) / forwards
                rows[kind, where].append(
                    (seconds / plain, computed, skipped, psnr(frames, expected))
                )
    text = table(
        ["cache", "stages", "seconds / uncached", "computed", "forwards cut short", "PSNR to uncached, dB"],  # noqa: E501
        [
            [f"`{kind}`", where, f"{statistics.median(r[0] for r in found):.2f}",
             f"{statistics.fmean(r[1] for r in found):.0%}",
             f"{statistics.fmean(r[2] for r in found):.0%}", spread([r[3] for r in found], 1)]
            for (kind, where), found in rows.items()
        ],
    )  # fmt: skip
    head = (
        f"{options.prompts} clips of sprites, LSL 0.4/0.8, {options.steps} steps; seconds are "
        f"medians, PSNR mean ± standard deviation. Measured {machine()}."
    )
    publish("caches.md", "caches", f"{head}\n\n{text}", write=options.write)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
