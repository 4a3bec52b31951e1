"""A batch of pictures that take no time: what is left is the driver's own cost.

``run`` is for a process of its own, which imports no torch, so that its memory is the driver's.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowblend_cli.console.run_state import RunState
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import Answer, RenderRequest, RenderResult
from flowblend_cli.events import Event, JobStarted, StepStarted, chain
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.utils.frames import pixels_sha256
from flowblend_cli.utils.process import peak_rss_bytes

HEAD = """\
[recipe]
name = "nothing"
[model]
pipeline = "sprites"
[defaults]
num_inference_steps = 1
num_frames = 1
height = 16
width = 16
[metrics]
names = []
"""
SCENE = """
[[scene]]
name = "scene{index}"
prompt = "a red square number {index} moving right on a navy background"
seeds = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
"""


class NoTime:
    """Two slots, which answer at once with the same picture."""

    slots = 2

    def __init__(self) -> None:
        frames = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 3), np.uint8)
        self._told: deque[Answer | Event] = deque()
        self._render = RenderResult(
            number=0, frames=frames, seed=0, elapsed_s=1.0, step_s=(1.0,), denoisers="L",
            device="cpu", caches=(), versions={}, pixels_sha256=pixels_sha256(frames),
            peak_rss_bytes=1, peak_vram_bytes=None,
        )  # fmt: skip

    def submit(self, request: RenderRequest) -> None:
        job = request.job
        self._told.append(JobStarted(job.id, job.scene, request.seed, 1, "L", job.prompt))
        self._told.append(StepStarted(job.id, 0, 1, "large"))
        self._told.append(replace(self._render, number=request.number, seed=request.seed))

    def poll(self, timeout_s: float) -> Answer | Event | None:
        return self._told.popleft() if self._told else None

    def models_in_memory(self) -> Collection[ModelSpec]:
        return ()

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def run(folder: str, jobs: int) -> None:
    """Render so many jobs into a folder, and print what that took as JSON."""
    recipe = Path(folder) / "nothing.toml"
    scenes = "".join(SCENE.format(index=index) for index in range(max(1, jobs // 10)))
    recipe.write_text(HEAD + scenes, "utf-8")
    began = time.monotonic()
    batch = load_batch(recipe, output_dir=Path(folder) / "out")
    loaded_s = time.monotonic() - began
    loaded_bytes = peak_rss_bytes()
    progress = RunProgress(batch)
    state = RunState(progress, batch, ["flowblend"], lambda event: None)
    wall, cpu, loop = time.monotonic(), time.process_time(), time.thread_time()
    code = BatchRun(
        batch,
        chain([state, lambda event: None]),
        overrides=(),
        progress=progress,
        executor=NoTime(),
    ).run()
    assert code == 0
    print(
        json.dumps(
            {
                "jobs": progress.rendered,
                "loaded_s": loaded_s,
                "wall_s": time.monotonic() - wall,
                "cpu_s": time.process_time() - cpu,
                "loop_s": time.thread_time() - loop,
                "loaded_bytes": loaded_bytes,
                "peak_bytes": peak_rss_bytes(),
            }
        )
    )
