"""One job at a time through the models in memory, and its frames into a finished file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli import __version__
from flowblend_cli.events import JobStarted, ModelLoaded
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.memory_ladder import MemoryLadder
from flowblend_cli.peaks import forget_peak_rss, peak_rss_bytes
from flowblend_cli.plan import plan_job
from flowblend_cli.progress import Reporter
from flowblend_cli.steptimes import StepTimes, slow_steps
from flowblend_plugin.stages import LETTERS

if TYPE_CHECKING:
    from flowblend_cli.artifacts.pixels import Frames
    from flowblend_cli.runtime import Runtime, Sampled


@dataclass(frozen=True)
class Render:
    """What one render of a job gave.

    Args:
        sampled: Its frames, and who ran which step.
        seed: Seed of its noise.
        elapsed_s: Seconds for sampling and decoding.
        step_s: Seconds of each step.
        pixels_sha256: Hash of its frames.
        peak_rss_bytes: Most main memory meanwhile.
    """

    sampled: Sampled
    seed: int
    elapsed_s: float
    step_s: tuple[float, ...]
    pixels_sha256: str
    peak_rss_bytes: int


@dataclass
class _Try:
    """How far one try of a job is."""

    began: float = 0.0
    steps: int = 0
    times: StepTimes = field(default_factory=StepTimes)

    def begin(self) -> None:
        """Begin anew."""
        self.began, self.steps, self.times = time.monotonic(), 0, StepTimes()


class Renderer:
    """The models of a batch, loaded when the first job needs them.

    Args:
        recipe_dir: Folder that model folders are relative to.
        reporter: Who is told what happens.
        warm_up: See ``engine.BatchRun``.
    """

    def __init__(self, recipe_dir: Path, reporter: Reporter, warm_up: Job | None) -> None:
        self._recipe_dir = recipe_dir
        self._reporter = reporter
        self._warm_up = warm_up
        self._runtime: Runtime | None = None
        self._model: ModelSpec | None = None
        self._ladder = MemoryLadder(self._place, reporter.message)

    @property
    def model(self) -> ModelSpec | None:
        """The models that are in memory, as their jobs name them."""
        return None if self._runtime is None else self._model

    def load(self, model: ModelSpec) -> Runtime:
        """Have these models in memory, and no others; the memory ladder may offload them more."""
        if self._runtime is None or self._model != model:
            self._place(model)
            self._model = model
        assert self._runtime is not None
        return self._runtime

    def _place(self, model: ModelSpec) -> Runtime:
        if self._runtime is None or self._runtime.model != model:
            from flowblend_cli.runtime import Runtime  # torch: only where something is to be done

            self._runtime = None  # free the former models before the next ones load
            self._runtime = Runtime(model, self._recipe_dir)
            elapsed = round(self._runtime.elapsed_s, 3)
            self._reporter.event(ModelLoaded(model.pipeline, elapsed))
            if self._runtime.note is not None:
                self._reporter.message(self._runtime.note)
        return self._runtime

    def render(self, job: Job, seed: int, check: Callable[[], None]) -> Render:
        """Sample and decode a job.

        Args:
            job: The job; its models are loaded.
            seed: Seed of its noise.
            check: Called after every step; may raise.
        """
        from flowblend_cli.artifacts.pixels import pixels_sha256

        runtime = self.load(job.model)
        if self._warm_up is not None:
            runtime.sample(self._warm_up, seed, lambda *_: check())
            self._warm_up = None
        planned = plan_job(job, self._recipe_dir)
        steps = job.num_inference_steps
        self._reporter.event(JobStarted(job.id, job.scene, seed, steps, planned, job.prompt))
        forget_peak_rss()
        tried = _Try()

        def on_step(index: int, role: str) -> None:
            tried.times.note(role)
            tried.steps = index + 1
            check()
            if index + 1 < len(planned):
                self._reporter.step(index + 1, len(planned), _role(planned, index + 1))

        def sample(runtime: Runtime) -> Sampled:
            tried.begin()
            self._reporter.step(0, len(planned), _role(planned, 0))
            return runtime.sample(job, seed, on_step)

        def in_vae() -> bool:
            return tried.steps >= len(planned) or (job.image is not None and not tried.steps)

        sampled, rungs = self._ladder.climb(job, sample, in_vae)
        sampled = replace(sampled, memory=rungs)
        elapsed, times = time.monotonic() - tried.began, tried.times
        check()
        slow = slow_steps(times.seconds, times.roles)
        if slow:
            self._reporter.message(f"{job.id}: {slow}")
        digest = pixels_sha256(sampled.frames)
        return Render(sampled, seed, elapsed, tuple(times.seconds), digest, peak_rss_bytes())

    def preview(self, job: Job, after_steps: int, check: Callable[[], None]) -> Frames:
        """What a job's first steps lead to, as frames.

        Args:
            job: The job; its seed isn't to be drawn.
            after_steps: How many steps to run.
            check: Called after every step; may raise.
        """
        runtime = self.load(job.model)
        self._reporter.waiting(f"{job.id}: a look after {after_steps} steps")
        try:
            return runtime.preview(job, job.seed, after_steps, lambda *_: check())
        finally:
            self._reporter.waiting("")

    def publish(self, job: Job, path: Path, render: Render, identity: Any, key: str) -> None:
        """Write a render as its job's finished file.

        Args:
            job: The job.
            path: Its file.
            render: What it gave.
            identity: Its models, see ``keys.model_identity``.
            key: Its job key.

        Raises:
            OutputError: The file can't be written.
        """
        from flowblend_cli.runtime import versions

        sampled = render.sampled
        document: dict[str, Any] = {
            "flowblend": __version__,
            "v": 1,
            "job": job.to_document(),
            "job_key": key,
            "resolved": {
                "seed": render.seed,
                "denoisers": sampled.denoisers,
                "device": str(self._runtime.device.type) if self._runtime else "cpu",
                "sampling_s": round(render.elapsed_s, 3),
                "source": str(self._recipe_dir),
            },
            "models": identity,
            "versions": versions(),
            "pixels_sha256": render.pixels_sha256,
        }
        if sampled.memory:
            document["resolved"]["memory"] = list(sampled.memory)
        if sampled.caches:
            document["resolved"]["caches"] = [asdict(report) for report in sampled.caches]
            self._report_caches(job, sampled)
        publish_frames(sampled.frames, path, job, document)

    def _report_caches(self, job: Job, sampled: Sampled) -> None:
        for report in sampled.caches:
            if report.computed == 1:
                where = f"stage {report.stage + 1} ({report.denoiser})"
                self._reporter.message(
                    f"{job.id}: cache {report.kind!r} of {where} skipped nothing", error=True
                )


def publish_frames(frames: Frames, path: Path, job: Job, document: dict[str, Any]) -> None:
    """Write a job's frames as what its recipe asks for: a picture, or a clip.

    Raises:
        OutputError: The file can't be written.
    """
    if path.suffix == ".png":
        from flowblend_cli.artifacts.image import publish_image

        publish_image(frames[0], path, document=document, scale=job.output.scale)
        return
    from flowblend_cli.artifacts.video import publish_video

    output = job.output
    publish_video(
        frames, path, fps=output.fps, document=document, scale=output.scale, crf=output.crf
    )


def _role(denoisers: str, index: int) -> str:
    return LETTERS.get(denoisers[index], denoisers[index])
