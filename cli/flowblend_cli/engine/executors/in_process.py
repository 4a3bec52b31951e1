"""One job at a time through the models in memory: its frames, and all that is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowblend_cli.engine.executors.base import Render
from flowblend_cli.engine.runtime.checkpoint_file import Keeping
from flowblend_cli.engine.runtime.oom_retry import MemoryLadder
from flowblend_cli.engine.runtime.resume import Progress, slow_steps
from flowblend_cli.events import JobStarted, ModelLoaded, Reporter
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.planning.plan import plan_job
from flowblend_cli.utils.process import forget_peak_rss, peak_rss_bytes
from flowblend_plugin.errors import CheckpointError
from flowblend_plugin.stages import LETTERS

if TYPE_CHECKING:
    from flowblend_cli.engine.runtime.pipeline import Runtime, Sampled
    from flowblend_cli.utils.frames import Frames


class Renderer:
    """The models of a batch in this process, loaded when the first job needs them.

    Args:
        recipe_dir: Folder that model folders are relative to.
        reporter: Who is told what happens.
        warm_up: See ``engine.BatchRun``.
        output_dir: Folder in which encoded prompts are kept; None keeps them in memory alone.
    """

    def __init__(
        self,
        recipe_dir: Path,
        reporter: Reporter,
        warm_up: Job | None = None,
        output_dir: Path | None = None,
    ) -> None:
        self._output_dir = output_dir
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

    def load(self, model: ModelSpec, check: Callable[[], None]) -> None:
        """See ``Renders``; loading isn't interrupted."""
        self._load(model)

    def render(
        self, job: Job, seed: int, check: Callable[[], None], keeping: Keeping | None = None
    ) -> Render:
        """See ``Renders``."""
        self._load(job.model)  # nobody but the ladder holds it: it may be placed anew
        if self._warm_up is not None:
            self._load(job.model).sample(self._warm_up, seed, lambda *_: check())
            self._warm_up = None
        planned = plan_job(job, self._recipe_dir)
        tries = _Tries(job, seed, check, keeping, planned, self._reporter)
        forget_peak_rss()
        sampled, rungs = self._ladder.climb(job, tries.sample, tries.is_in_vae)
        elapsed, times = tries.progress.elapsed_s, tries.progress.times
        slow = slow_steps(times.seconds, times.roles)
        if slow:
            self._reporter.message(f"{job.id}: {slow}")
        self._report_caches(job, sampled)
        render = _render_of(self._load(job.model), sampled, seed, elapsed, tuple(times.seconds))
        return replace(render, memory=rungs)

    def preview(self, job: Job, after_steps: int, check: Callable[[], None]) -> Frames:
        """See ``Renders``."""
        runtime = self._load(job.model)
        self._reporter.waiting(f"{job.id}: a look after {after_steps} steps")
        try:
            return runtime.preview(job, job.seed, after_steps, lambda *_: check())
        finally:
            self._reporter.waiting("")

    def close(self) -> None:
        """Let the models go."""
        self._runtime = None

    def _load(self, model: ModelSpec) -> Runtime:
        """Have these models in memory, and no others; the memory ladder may offload them more."""
        if self._runtime is None or self._model != model:
            self._place(model)
            self._model = model
        assert self._runtime is not None
        return self._runtime

    def _place(self, model: ModelSpec) -> Runtime:
        if self._runtime is None or self._runtime.model != model:
            from flowblend_cli.engine.runtime.pipeline import (
                Runtime,  # torch: only where something is to be done
            )

            self._runtime = None  # free the former models before the next ones load
            self._runtime = Runtime(model, self._recipe_dir)
            if self._output_dir is not None:
                from flowblend_cli.engine.runtime.prompt_cache import keep_embeddings

                tell = self._reporter.message
                keep_embeddings(self._runtime, self._recipe_dir, self._output_dir, tell)
            elapsed = round(self._runtime.elapsed_s, 3)
            self._reporter.event(ModelLoaded(model.pipeline, elapsed))
            if self._runtime.note is not None:
                self._reporter.message(self._runtime.note)
        return self._runtime

    def _report_caches(self, job: Job, sampled: Sampled) -> None:
        for report in sampled.caches:
            if report.computed == 1:
                where = f"stage {report.stage + 1} ({report.denoiser})"
                self._reporter.message(
                    f"{job.id}: cache {report.kind!r} of {where} skipped nothing", error=True
                )


class _Tries:
    """A job sampled from its beginning, or from its stored state, as often as memory runs out."""

    def __init__(
        self,
        job: Job,
        seed: int,
        check: Callable[[], None],
        keeping: Keeping | None,
        planned: str,
        reporter: Reporter,
    ) -> None:
        self._job, self._seed = job, seed
        self._check = check
        self._keeping = keeping
        self._planned = planned
        self._reporter = reporter
        self._is_told = False
        self._steps = 0
        self.progress: Progress

    def sample(self, runtime: Runtime) -> Sampled:
        """Try it."""
        job, self._steps = self._job, 0
        self.progress = Progress(job, self._seed, self._keeping, runtime, self._reporter)
        first = self.progress.first_step
        if not self._is_told:
            total, planned = job.num_inference_steps, self._planned
            begun = JobStarted(job.id, job.scene, self._seed, total, planned, job.prompt, first)
            self._reporter.event(begun)
            self._is_told = True
        self._begins(first)
        try:
            return runtime.sample(job, self._seed, self._on_step, self.progress.checkpoints)
        except CheckpointError as error:
            if not first:
                raise
            self.progress.forget(str(error))
        return self.sample(runtime)

    def is_in_vae(self) -> bool:
        """Whether it was the VAE's turn when the last try ended."""
        is_encoding = self._job.image is not None and not self._steps
        return self._steps >= len(self._planned) or is_encoding

    def _on_step(self, index: int, role: str) -> None:
        self._steps = index + 1
        self.progress.step_done(index, role, self._check)
        if index >= self.progress.first_step:
            self._begins(index + 1)

    def _begins(self, index: int) -> None:
        if index < len(self._planned):
            self._reporter.step(index, len(self._planned), _role(self._planned, index))


def _render_of(
    runtime: Runtime, sampled: Sampled, seed: int, elapsed_s: float, step_s: tuple[float, ...]
) -> Render:
    from flowblend_cli.engine.runtime.pipeline import versions
    from flowblend_cli.utils.frames import pixels_sha256

    return Render(
        frames=sampled.frames,
        seed=seed,
        elapsed_s=elapsed_s,
        step_s=step_s,
        denoisers=sampled.denoisers,
        device=runtime.device.type,
        caches=tuple(asdict(report) for report in sampled.caches),
        versions=versions(),
        pixels_sha256=pixels_sha256(sampled.frames),
        peak_rss_bytes=peak_rss_bytes(),
        peak_vram_bytes=sampled.peak_vram_bytes,
    )


def _role(denoisers: str, index: int) -> str:
    return LETTERS.get(denoisers[index], denoisers[index])
