"""Batches whose frames are drawn instead of sampled: a whole run but for models and torch."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path

import numpy as np

from flowblend_cli.console.factory import make_reporter
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event, JobStarted, StepStarted
from flowblend_cli.jobs import Batch, ModelSpec
from flowblend_cli.planning.run_progress import RunProgress
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
    """Write a recipe of so many jobs."""
    path = folder / "drawn.toml"
    path.write_text(RECIPE.format(steps=STEPS, seeds=list(range(1, jobs + 1))))
    return path


class DrawnFramesExecutor:
    """An ``Executor`` that draws every job's frames from its seed, one step a poll.

    Args:
        step_s: Seconds that a step takes.
    """

    slots = 1

    def __init__(self, step_s: float = 0.0) -> None:
        self.rendered: list[str] = []
        self._step_s = step_s
        self._request: RenderRequest | None = None
        self._told: deque[Event] = deque()
        self._is_stopping = False

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        """Begin with a job."""
        job = request.job
        self._request, self._is_stopping = request, False
        self._told.clear()
        if request.kind == "render":
            self._told.append(
                JobStarted(job.id, job.scene, request.seed, STEPS, "L" * STEPS, job.prompt)
            )
            self._told.extend(StepStarted(job.id, step, STEPS, "large") for step in range(STEPS))

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """Draw one step further."""
        request = self._request
        if request is None:
            return None
        if self._is_stopping:
            self._request = None
            return RenderFailure(request.number, StopRequested(), "stopped")
        if self._told:
            event = self._told.popleft()
            time.sleep(self._step_s if isinstance(event, StepStarted) else 0)
            return event
        self._request = None
        frames = draw(request.seed)
        if request.kind == "preview":
            return PreviewResult(request.number, frames, 0.0)
        self.rendered.append(request.job.id)
        return RenderResult(
            number=request.number,
            frames=frames,
            seed=request.seed,
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

    def models_in_memory(self) -> Collection[ModelSpec]:
        """None: nothing is sampled."""
        return ()

    def stop(self) -> None:
        """End after the present step."""
        self._is_stopping = True

    def close(self) -> None:
        """Forget the present job; there is nothing else to free."""
        self._request = None


def draw(seed: int) -> Frames:
    """Frames that only their seed decides, (T, H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (FRAMES, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def load(recipe: Path) -> Batch:
    """Load the recipe's jobs."""
    return load_batch(str(recipe))


def run(batch: Batch, step_s: float = 0.0) -> tuple[int, list[str]]:
    """Carry the batch out as the command does; its exit code, and the jobs that were rendered."""
    executor, progress = DrawnFramesExecutor(step_s), RunProgress(batch)
    reporter = make_reporter(progress, json=False, verbosity=-1)
    batch_run = BatchRun(batch, reporter, overrides=(), progress=progress, executor=executor)
    return batch_run.run(), executor.rendered


def carry_out(recipe: Path, step_s: float) -> None:
    """Carry a recipe out, and end the process with the batch's exit code."""
    code, _ = run(load(recipe), step_s)
    os._exit(code)
