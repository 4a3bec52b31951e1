"""What the benchmarks on sprites have in common: the pair, its prompts, distances, tables."""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel

from flowblend_plugin import DenoiserSwitch, StageSchedule
from flowblend_plugin.schedulers.factory import make_scheduler

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "recipes" / "models" / "sprites"
LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
GUIDANCE = 5.0
PROMPTS = (
    "a red circle moving right on a navy background",
    "a green square bouncing on a black background",
    "a blue star spinning on a gray background",
    "a yellow triangle growing on a olive background",
    "a purple ring orbiting on a black background",
    "a white circle moving up on a navy background",
    "an orange star moving left on a gray background",
    "a cyan square standing still on a olive background",
)


def load() -> tuple[Any, Any]:
    """The sprites pipeline and its small denoiser, in float32."""
    pipe = WanPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small = WanTransformer3DModel.from_pretrained(
        MODEL, subfolder="transformer_small", dtype=torch.float32
    )
    return pipe, small


class Sprites:
    """Runs of the pair that differ in what a benchmark varies."""

    def __init__(self) -> None:
        self.pipe, self.small = load()
        self._own = self.pipe.scheduler

    def latents(
        self,
        prompt: str,
        seed: int,
        steps: int,
        *,
        stages: StageSchedule = LSL,
        solver: str | None = None,
        mode: str = "ode",
        history: Any = "keep",
        noise: int = 0,
    ) -> tuple[torch.Tensor, DenoiserSwitch]:
        """Final latents of one clip, and the switch that ran it."""
        self.pipe.scheduler = make_scheduler(self._own, solver, mode=mode)
        try:
            with DenoiserSwitch(
                self.pipe, self.small, stages, solver_history=history, seed=noise
            ) as switch:
                found = self.pipe(
                    prompt,
                    height=64,
                    width=64,
                    num_frames=17,
                    num_inference_steps=steps,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator().manual_seed(seed),
                    output_type="latent",
                ).frames
        finally:
            self.pipe.scheduler = self._own
        return found, switch

    @torch.no_grad()
    def frames(self, latents: torch.Tensor) -> torch.Tensor:
        """The clip of some latents, (B, C, T, H, W) from 0 to 1."""
        vae = self.pipe.vae
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        clip = vae.decode(latents * deviation + mean, return_dict=False)[0]
        return (clip / 2 + 0.5).clamp(0, 1)


def relative(found: torch.Tensor, reference: torch.Tensor) -> float:
    """``|found - reference| / |reference|``."""
    return float((found - reference).norm() / reference.norm())


def psnr(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of clips from 0 to 1; infinite where they are equal."""
    error = float((found - reference).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation, as a table shows them."""
    if any(math.isinf(value) for value in values):
        return "equal" if all(math.isinf(value) for value in values) else "some equal"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, by Student's t."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    free, z = len(values) - 1, 1.959964
    # Cornish and Fisher's expansion of the quantile, right to 1 % from 5 values on.
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return statistics.fmean(values), quantile * statistics.stdev(values) / len(values) ** 0.5


def machine() -> str:
    """Where and when a table was measured."""
    name = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {name}, {torch.get_num_threads()} of {os.cpu_count()} "
        f"threads, torch {torch.__version__}"
    )


def undated(measured: str) -> str:
    """What ``machine`` says, without the date."""
    return measured.split(", ", 1)[1]


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Read the options, with ``--quick``, which has defaults of its own and publishes nothing."""
    parser.add_argument(
        "--quick", action="store_true", help="too little to be published, in a minute or two"
    )
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    options = parser.parse_args()
    if options.quick and getattr(options, "write", False):
        parser.error("--quick measures too little to be published: leave one of the two out")
    return options


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(page: str, name: str, text: str, *, write: bool) -> None:
    """Print what was measured, and put it between its markers of a page in docs/ if asked to."""
    print(text)
    if not write:
        return
    path = ROOT / "docs" / page
    begin, end = f"<!-- measured: {name} -->", "<!-- end of measured -->"
    before, rest = path.read_text("utf-8").split(begin)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")
