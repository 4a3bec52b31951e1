"""A batch whose frames are drawn, not sampled: all of a run but the models, without torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowblend_cli.console.factory import make_reporter
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import Render
from flowblend_cli.engine.runtime.checkpoint_file import Keeping
from flowblend_cli.jobs import Batch, Job, ModelSpec
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.utils.frames import Frames, pixels_sha256

FRAMES = 3
STEPS = 4
RECIPE = """\
[recipe]
name = "drawn"
output_dir = "clips"

[model]
pipeline = "sprites"

[blend]
stages = "L"

[defaults]
num_inference_steps = {steps}
num_frames = 5
height = 32
width = 32

[metrics]
names = []

[[scene]]
name = "drawn"
prompt = "a red circle moving left on a navy background"
seeds = {seeds}
"""


def write_recipe(folder: Path, jobs: int) -> Path:
    """A recipe of so many jobs."""
    path = folder / "drawn.toml"
    path.write_text(RECIPE.format(steps=STEPS, seeds=list(range(1, jobs + 1))))
    return path


class Drawing:
    """Draws every job's frames from its seed; stands where the models would be.

    Args:
        step_s: Seconds that a step takes.
    """

    def __init__(self, step_s: float = 0.0) -> None:
        self.model: ModelSpec | None = None
        self.rendered: list[str] = []
        self._step_s = step_s

    def load(self, model: ModelSpec, check: Callable[[], None]) -> None:
        """Have the model."""
        self.model = model

    def render(
        self, job: Job, seed: int, check: Callable[[], None], keeping: Keeping | None = None
    ) -> Render:
        """Draw it, step by step."""
        for _ in range(STEPS):
            time.sleep(self._step_s)
            check()
        self.rendered.append(job.id)
        frames = draw(seed)
        return Render(
            frames=frames,
            seed=seed,
            elapsed_s=STEPS * self._step_s,
            step_s=(self._step_s,) * STEPS,
            denoisers="L" * STEPS,
            device="cpu",
            caches=(),
            versions={},
            pixels_sha256=pixels_sha256(frames),
            peak_rss_bytes=1,
            peak_vram_bytes=None,
        )

    def preview(self, job: Job, after_steps: int, check: Callable[[], None]) -> Frames:
        """The same frames."""
        return draw(job.seed)

    def close(self) -> None:
        """Nothing to free."""


def draw(seed: int) -> Frames:
    """Frames that only their seed decides, (T, H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (FRAMES, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def load(recipe: Path) -> Batch:
    """Its jobs."""
    return load_batch(str(recipe))


def run(batch: Batch, step_s: float = 0.0) -> tuple[int, list[str]]:
    """Carry the batch out as the command does; its exit code, and the jobs that were rendered."""
    drawing = Drawing(step_s)
    reporter = make_reporter(json=False, verbosity=-1, total_jobs=len(batch.jobs))
    batch_run = BatchRun(batch, reporter, overrides=())
    batch_run._renderer = drawing
    return batch_run.run(), drawing.rendered


def carry_out(recipe: Path, step_s: float) -> None:
    """A process that does nothing else, and leaves with the batch's exit code."""
    code, _ = run(load(recipe), step_s)
    os._exit(code)
