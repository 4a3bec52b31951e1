"""JobRunner: loads models and renders one request after the other, at the far end of an executor.

It is what happens at the far end of an executor: in this process's thread, or in a worker process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from flowblend_cli.engine.executors.base import (
    Answer,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.encoding import with_file
from flowblend_cli.engine.runtime.embedding_files import EmbeddingHome
from flowblend_cli.engine.runtime.oom_retry import OomRetry
from flowblend_cli.engine.runtime.resume import ResumableJob, slow_steps
from flowblend_cli.errors import DeviceLostError, ModelMissingError, StopRequested
from flowblend_cli.events import JobStarted, Message, ModelLoaded, Reporter, StepStarted, Waiting
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models.identity import ResolvedModels
from flowblend_cli.utils.process import forget_peak_rss, peak_rss_bytes
from flowblend_plugin.errors import CheckpointError, FlowBlendError
from flowblend_plugin.stages import LETTERS

if TYPE_CHECKING:
    from flowblend_cli.engine.runtime.pipeline import PipelineRuntime, Sampled

Check = Callable[[], None]


class JobRunner:
    """Renders requests with the models in memory, which are loaded when a request needs them.

    Args:
        tell: Who is told what happens.
        warm_up: A job that is sampled and thrown away before the first one, so that what happens
            once (memory, kernels, the prompt's embedding) isn't in anybody's seconds.
        embeddings: Where encoded prompts are kept; None keeps them in memory alone. With it, text
            encoders are read once a prompt isn't there.
        memory_share: How many share the device's memory, of which this one takes its part.
    """

    def __init__(
        self,
        tell: Reporter,
        warm_up: Job | None = None,
        embeddings: EmbeddingHome | None = None,
        memory_share: int = 1,
    ) -> None:
        self._memory_share = memory_share
        self._tell = tell
        self._warm_up = warm_up
        self._embeddings = embeddings
        self._runtime: PipelineRuntime | None = None
        self._models: ResolvedModels | None = None
        self._retry = OomRetry(self._place, tell)

    @property
    def model(self) -> ModelSpec | None:
        """The models that are in memory, as their jobs name them."""
        return None if self._runtime is None or self._models is None else self._models.spec

    def run(self, request: RenderRequest, check: Check) -> Answer:
        """Carry a request out.

        Args:
            request: What to do.
            check: Called after every step, at least; where it raises ``StopRequested``, the
                present step is the last one.

        Returns:
            The result, or what went wrong.
        """
        try:
            self._load(request.models)
        except FlowBlendError as error:
            return RenderFailure(request.number, error, "models")
        except Exception as error:  # noqa: BLE001 - whoever asked decides
            return RenderFailure(request.number, _unloadable(request.models, error), "models")
        try:
            if request.kind == "preview":
                return self._preview(request, check)
            return self._render(request, check)
        except StopRequested as error:
            return RenderFailure(request.number, error, "stopped")
        except ModelMissingError as error:  # of text encoders that are read late
            return RenderFailure(request.number, error.with_traceback(None), "models")
        except Exception as error:  # noqa: BLE001 - likewise
            return RenderFailure(request.number, error.with_traceback(None))  # it holds tensors

    def close(self) -> None:
        """Let the models go."""
        self._runtime = None

    def _render(self, request: RenderRequest, check: Check) -> RenderResult:
        if self._warm_up is not None:
            self._load(request.models).sample(self._warm_up, request.seed, lambda *_: check())
            self._warm_up = None
        attempts = _Attempts(request, check, self._tell)
        forget_peak_rss()
        sampled, memory = self._retry.run(request.job, attempts.sample, attempts.is_in_vae)
        elapsed, times = attempts.resumable.elapsed_s, attempts.resumable.times
        if slow := slow_steps(times.seconds, times.roles):
            self._say(request.job, slow)
        self._report_caches(request.job, sampled)
        runtime = self._load(request.models)
        result = _result(request, runtime, sampled, elapsed, tuple(times.seconds), memory)
        return result if request.file is None else with_file(result, request, request.file)

    def _preview(self, request: RenderRequest, check: Check) -> PreviewResult:
        job, steps = request.job, request.after_steps
        began = time.monotonic()
        self._tell(Waiting(f"{job.id}: a look after {steps} steps"))
        try:
            runtime = self._load(request.models)
            began -= runtime.late_s
            frames = runtime.preview(job, request.seed, steps, lambda *_: check())
            began += runtime.late_s
        finally:
            self._tell(Waiting(""))
        return PreviewResult(request.number, frames, time.monotonic() - began)

    def _load(self, models: ResolvedModels) -> PipelineRuntime:
        """Have these models in memory, and no others; they may be offloaded more since."""
        former, self._models = self._models, models
        if self._runtime is None or former is None or former.spec != models.spec:
            self._place(models.spec)
        assert self._runtime is not None
        self._runtime.models = replace(models, spec=self._runtime.models.spec)
        return self._runtime

    def _place(self, spec: ModelSpec) -> PipelineRuntime:
        """Have the present models in memory, placed as a spec says."""
        assert self._models is not None
        if self._runtime is None or self._runtime.models.spec != spec:
            # torch: only where something is rendered
            from flowblend_cli.engine.runtime.pipeline import PipelineRuntime

            self._runtime = None  # free the former models before the next ones load
            if self._memory_share > 1:
                from flowblend_cli.engine.runtime.placement import share_memory

                share_memory(self._memory_share)
            home = self._embeddings
            self._runtime = PipelineRuntime(
                replace(self._models, spec=spec), encoders_later=home is not None
            )
            if home is not None:
                from flowblend_cli.engine.runtime.prompt_cache import keep_embeddings

                keep_embeddings(self._runtime, home, lambda text: self._tell(Message(text)))
            self._tell(ModelLoaded(spec.pipeline, round(self._runtime.elapsed_s, 3)))
            if self._runtime.note is not None:
                self._tell(Message(self._runtime.note))
        return self._runtime

    def _report_caches(self, job: Job, sampled: Sampled) -> None:
        for report in sampled.caches:
            if report.computed == 1:
                where = f"stage {report.stage + 1} ({report.denoiser})"
                self._say(job, f"cache {report.kind!r} of {where} skipped nothing", is_error=True)

    def _say(self, job: Job, text: str, *, is_error: bool = False) -> None:
        self._tell(Message(f"{job.id}: {text}", is_error=is_error, job=job.id))


class _Attempts:
    """A job sampled from its beginning, or from its stored state, as often as memory runs out."""

    def __init__(self, request: RenderRequest, check: Check, tell: Reporter) -> None:
        self._request = request
        self._check = check
        self._tell = tell
        self._is_told = False
        self._steps = 0
        self.resumable: ResumableJob

    def sample(self, runtime: PipelineRuntime) -> Sampled:
        """Try it."""
        request, self._steps = self._request, 0
        job, seed = request.job, request.seed
        self.resumable = ResumableJob(job, seed, request.checkpoint, runtime, self._tell)
        first = self.resumable.first_step
        if not self._is_told:
            total, planned = job.num_inference_steps, request.planned
            self._tell(JobStarted(job.id, job.scene, seed, total, planned, job.prompt, first))
            self._is_told = True
        self._begin(first)
        try:
            return runtime.sample(job, seed, self._on_step, self.resumable.checkpoints)
        except CheckpointError as error:
            if not first:
                raise
            self.resumable.forget(str(error))
        return self.sample(runtime)

    def is_in_vae(self) -> bool:
        """Whether it was the VAE's turn when the last attempt ended."""
        is_encoding = self._request.job.image is not None and not self._steps
        return self._steps >= len(self._request.planned) or is_encoding

    def _on_step(self, index: int, role: str) -> None:
        self._steps = index + 1
        self.resumable.step_done(index, role, self._check)
        if index >= self.resumable.first_step:
            self._begin(index + 1)

    def _begin(self, index: int) -> None:
        planned = self._request.planned
        if index < len(planned):
            role = LETTERS.get(planned[index], planned[index])
            self._tell(StepStarted(self._request.job.id, index, len(planned), role))


def _unloadable(models: ResolvedModels, error: Exception) -> DeviceLostError:
    """What nobody foresaw while models were loaded: a broken installation, above all."""
    what = "what renders" if isinstance(error, ImportError) else f"model {models.spec.pipeline!r}"
    return DeviceLostError(
        f"{what} can't be loaded ({type(error).__name__}: {error}): run flowblend doctor, mend the "
        "installation or the device, then run the same command again"
    )


def _result(
    request: RenderRequest,
    runtime: PipelineRuntime,
    sampled: Sampled,
    elapsed_s: float,
    step_s: tuple[float, ...],
    memory: tuple[str, ...],
) -> RenderResult:
    from flowblend_cli.engine.runtime.pipeline import versions
    from flowblend_cli.utils.frames import pixels_sha256

    return RenderResult(
        number=request.number,
        frames=sampled.frames,
        seed=request.seed,
        elapsed_s=elapsed_s,
        step_s=step_s,
        denoisers=sampled.denoisers,
        device=runtime.device.type,
        caches=tuple(asdict(report) for report in sampled.caches),
        versions=versions(runtime.device),
        pixels_sha256=pixels_sha256(sampled.frames),
        peak_rss_bytes=peak_rss_bytes(),
        peak_vram_bytes=sampled.peak_vram_bytes,
        memory=memory,
    )
