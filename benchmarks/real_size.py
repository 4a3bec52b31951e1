"""What blending takes at the size of a published pair: seconds and memory, on random weights.

``python benchmarks/real_size.py [--pair wan2.1-t2v] [--steps 10] [--frames 81] [--quick]``

Needs a CUDA device; the pair of the paper, Wan 2.1 14B and 1.3B at 480p, needs about 50 GB of its
memory and 32 GB of main memory. The denoisers have the published shapes and random weights, which
decides nothing about seconds, and nothing that can be said of pictures. Text is random numbers of
the right shape, and nothing is decoded: this is the loop over the steps, and nothing else.

``ideal`` is what the rows' steps cost by themselves, by the medians of all steps of each denoiser.
``peak`` is the most that torch's allocator held on the device; for ``offload`` see docs/memory.md.
A row's ``change`` is how much longer than its denoiser's median the first step after a change of
denoisers took. The offloaded rows run in half the steps. ``--quick`` is a tiny pair, for a trial.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from shared import machine, parse

from flowblend_plugin import DenoiserSwitch, StageSchedule

CONFIGS = Path(__file__).parents[1] / "cli" / "flowblend_cli" / "data" / "denoiser_configs.json"
PAIRS = {"wan2.1-t2v": ("wan2.1-t2v-14b", "wan2.1-t2v-1.3b")}
BOUNDARIES = (0.4, 0.8)
ROWS = ("LLL", "LSL", "SSS")
OFFLOADED = ("model", "group")
TINY = {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 512}


@dataclass(frozen=True)
class Run:
    """One run: who ran each step, and what it took.

    Args:
        roles: The denoiser of each step.
        seconds: Seconds of each step, the first one from the call's beginning.
        peak_gb: Most memory of the device, in 1e9 bytes.
    """

    roles: tuple[str, ...]
    seconds: tuple[float, ...]
    peak_gb: float


def denoiser(name: str, *, is_tiny: bool) -> Any:
    """A denoiser of a published shape with random weights, in bfloat16 on the device."""
    config = json.loads(CONFIGS.read_text())[name]
    config = config.get("config", config) | (TINY if is_tiny else {})
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return WanTransformer3DModel.from_config(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def sample(pipe: Any, small: Any, row: str, steps: int, clip: dict[str, int]) -> Run:
    """The steps of one clip."""
    at, roles = [], []

    def on_step(_: int, role: str) -> None:
        torch.cuda.synchronize()
        at.append(time.perf_counter())
        roles.append(role)

    text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(1))
    text = text.to("cuda", torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    boundaries = BOUNDARIES if row == "LSL" else None
    stages = StageSchedule.parse(row[0] if len(set(row)) == 1 else row, boundaries=boundaries)
    began = time.perf_counter()
    with DenoiserSwitch(pipe, small, stages, on_step=on_step):
        pipe(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
            **clip,
        )
    seconds = tuple(b - a for a, b in zip([began, *at], at, strict=False))
    return Run(tuple(roles), seconds, torch.cuda.max_memory_allocated() / 1e9)


def offload(pipe: Any, way: str) -> None:
    """As a recipe's ``offload`` does it."""
    pipe.to("cpu")
    if way == "model":
        pipe.enable_model_cpu_offload(device="cuda")
    else:
        pipe.enable_group_offload(
            onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True
        )


def medians(runs: list[Run]) -> dict[str, float]:
    """Seconds of a step of each denoiser; first steps and those after a change left out."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for index in range(1, len(run.roles)):
            if run.roles[index] == run.roles[index - 1]:
                found.setdefault(run.roles[index], []).append(run.seconds[index])
    return {role: statistics.median(seconds) for role, seconds in found.items()}


def line(name: str, run: Run, steps: dict[str, float], base: float) -> str:
    """One row of the table."""
    total = sum(run.seconds)
    ideal = sum(steps.get(role, 0.0) for role in run.roles)
    changes = [
        run.seconds[i] - steps[run.roles[i]]
        for i in range(1, len(run.roles))
        if run.roles[i] != run.roles[i - 1] and run.roles[i] in steps
    ]
    told = ", ".join(f"{seconds:+.2f}" for seconds in changes) or "-"
    shares = f"{total / base:.3f} | {total / ideal:.3f}" if base else f"- | {total / ideal:.3f}"
    return f"| {name} | {len(run.roles)} | {total:.1f} | {shares} | {run.peak_gb:.1f} | {told} |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pair", choices=PAIRS, default="wan2.1-t2v")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--frames", type=int, default=81)
    options = parse(parser, steps=10, frames=5)
    if not torch.cuda.is_available():
        parser.exit(0, "no CUDA device: nothing to measure here\n")
    large, small = (denoiser(name, is_tiny=options.quick) for name in PAIRS[options.pair])
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=large, scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    clip = {"height": 480, "width": 832, "num_frames": options.frames}
    for row in ("LLL", "SSS"):
        sample(pipe, small, row, 1, clip)
    runs = {row: sample(pipe, small, row, options.steps, clip) for row in ROWS}
    steps, base = medians(list(runs.values())), sum(runs["LLL"].seconds)
    weights = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in (large, small)]
    print(f"{machine()}, {torch.cuda.get_device_name()}, {options.pair}, {clip}, bfloat16")
    print("weights: " + ", ".join(f"{size / 1e9:.1f} GB" for size in weights))
    print("step: " + ", ".join(f"{role} {seconds:.3f} s" for role, seconds in steps.items()))
    print("| row | steps | s | of LLL | of ideal | peak GB | change s |")
    print("|---" * 7 + "|")
    for row, run in runs.items():
        print(line(row, run, steps, base), flush=True)
    for way in OFFLOADED:
        offload(pipe, way)
        small.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()
        try:
            run = sample(pipe, small, "LSL", options.steps // 2, clip)
            print(line(f"LSL, offload {way}", run, steps, 0.0), flush=True)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            print(f"| LSL, offload {way} | {str(error).splitlines()[0]} |", flush=True)
        pipe.remove_all_hooks()


if __name__ == "__main__":
    main()
