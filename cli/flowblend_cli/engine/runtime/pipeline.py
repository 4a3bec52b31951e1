"""PipelineRuntime: a pipeline and its denoisers in memory, through which jobs go one at a time."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Set before diffusers and transformers read them: nothing that a recipe names is run.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import torch
import transformers

from flowblend_cli import __version__
from flowblend_cli.engine.runtime.finite_checks import (
    SamplingError,
    Soundness,
    check_latents,
    to_uint8,
)
from flowblend_cli.engine.runtime.placement import (
    Placement,
    is_device_lost,
    is_out_of_memory,
    reason,
)
from flowblend_cli.engine.runtime.text_encoders import LateEncoders, late_parts
from flowblend_cli.errors import DeviceLostError, ModelMissingError
from flowblend_cli.jobs import Job
from flowblend_cli.models.identity import ResolvedModel, ResolvedModels
from flowblend_cli.utils.frames import Frames
from flowblend_cli.utils.images import load_image
from flowblend_plugin import DenoiserSwitch, FlowBlendError
from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.calibration.probe import Probe, calibrate
from flowblend_plugin.checkpoints.checkpoint import Checkpoints
from flowblend_plugin.denoisers.loading import denoiser_name, load_denoiser
from flowblend_plugin.numerics import recorded_settings
from flowblend_plugin.preview import PROJECTION_NAME, EarlyLook, LatentProjection
from flowblend_plugin.prompt_cache import EmbeddingStore, keep_text_model, remember_embeddings
from flowblend_plugin.schedulers.factory import make_scheduler
from flowblend_plugin.schedulers.flow_blend import begin_at
from flowblend_plugin.stage_hooks.cache import CacheReport
from flowblend_plugin.stage_hooks.early_exit import SelfDifference
from flowblend_plugin.stages import letters

# What the library warns of, the plan has said already.
logging.getLogger("flowblend_plugin").addHandler(logging.NullHandler())
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

OnStep = Callable[[int, str], None]


@dataclass(frozen=True)
class Sampled:
    """What one trajectory gave.

    Args:
        frames: Pixels, (T, H, W, 3), uint8.
        denoisers: Who ran each step, one letter a step.
        peak_vram_bytes: Most accelerator memory during the job; None on a CPU.
        caches: What the stages' caches saved.
    """

    frames: Frames
    denoisers: str
    peak_vram_bytes: int | None
    caches: tuple[CacheReport, ...] = ()


class PipelineRuntime:
    """A pipeline and its further denoisers, loaded once and used for every job that names them.

    Args:
        models: Their files, and those of the LoRA adapters that jobs name. Jobs with other adapters
            set ``models`` anew.
        encoders_later: Whether text encoders are read once a prompt has to be encoded; with
            ``keep_embeddings`` that may be never.

    Raises:
        ModelMissingError: A model is broken.
        DeviceLostError: The device isn't there, or the models don't fit into its memory.
        PairMismatchError: The two denoisers don't fit.
        UsageError: The pipeline can't be offloaded as the recipe asks.
    """

    def __init__(self, models: ResolvedModels, *, encoders_later: bool = False) -> None:
        began = time.monotonic()
        self.models = models
        self._placement = Placement(models.spec)
        self.device = self._placement.device
        self.note = self._placement.note
        self.surroundings = {**versions(self.device), **self._placement.surroundings}
        large = models.pipeline
        late = self._load(large, lambda: late_parts(Path(large.folder))) if encoders_later else ()
        self._pipe = self._load_pipeline(dict.fromkeys(late))
        self._pipe.set_progress_bar_config(disable=True)
        self._own_scheduler = self._pipe.scheduler
        self._shown_by = Path(large.folder) / PROJECTION_NAME
        self._further = dict(self._load_further())
        self._placement.place(large.name, self._pipe, denoiser_name(self._pipe))
        keep_text_model(self._pipe)
        self._encoders = LateEncoders(
            self._pipe, late, Path(large.folder), self._load_pipeline, self._place_encoders
        )
        remember_embeddings(self._pipe, before=self._encoders.arrive)
        self._takes = inspect.signature(self._pipe.__call__).parameters
        self.elapsed_s = time.monotonic() - began

    @property
    def vae(self) -> Any:
        """The pipeline's VAE; None where it has none."""
        return getattr(self._pipe, "vae", None)

    @property
    def late_s(self) -> float:
        """Seconds that text encoders took to load since ``elapsed_s``: they are no job's."""
        return self._encoders.elapsed_s

    @property
    def stronger_offload(self) -> str:
        """The next way of offloading, with less in the device's memory; empty for none."""
        return self._placement.stronger

    def keep_embeddings(self, store: EmbeddingStore) -> None:
        """Look for prompts in a store before they are encoded, and keep them there."""
        remember_embeddings(self._pipe, store)

    def _load_pipeline(self, parts: Mapping[str, Any]) -> Any:
        """Read the pipeline into main memory, but for the parts that are given, or left out."""
        source = self.models.pipeline
        return self._load(source, lambda: _load_pipeline(source, self._placement.dtype, parts))

    def _place_encoders(self, holder: Any) -> None:
        """Place text encoders that came late, which another pipeline holds, too."""
        # Under model offloading all models are one chain, which is built anew with them.
        pipe = self._pipe if self._placement.offload == "model" else holder
        self._placement.place(self.models.pipeline.name, pipe, denoiser_name(self._pipe))

    def _load_further(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The denoisers beside the pipeline's own, each with its role."""
        for role, source in self.models.denoisers:
            module = self._load(source, partial(_load_denoiser, source, self._pipe))
            self._placement.move(source.name, module)
            yield role, module

    def sample(
        self, job: Job, seed: int, on_step: OnStep, checkpoints: Checkpoints | None = None
    ) -> Sampled:
        """Render one job's frames.

        Args:
            job: The job.
            seed: Seed of the initial latents, and of an SDE's noise where the job has no
                ``noise_seed``.
            on_step: Called after every step with its index and the role that ran it; may raise.
            checkpoints: Stores the trajectory's state, or goes on from a stored one.

        Returns:
            The frames, and who ran which step.

        Raises:
            SamplingError: The latents or the pixels hold NaN or infinity, or memory ran out.
            FlowBlendError: The job asks for what its models can't do.
        """
        with self._memory_told(f"{job.id} was rendered"):
            return self._sample(job, seed, on_step, checkpoints or Checkpoints(0, lambda _: None))

    def preview(self, job: Job, seed: int, after_steps: int, on_step: OnStep) -> Frames:
        """Show where a job's first steps lead: what they predict of the finished clip.

        Args:
            job: The job.
            seed: See ``sample``.
            after_steps: Number of steps to run, at least 1.
            on_step: See ``sample``.

        Returns:
            Frames as ``sample``'s, by the pipeline's own latent projection where its folder brings
            one, which is rough and takes no time, and otherwise decoded.

        Raises:
            SamplingError: See ``sample``.
            FlowBlendError: See ``sample``; or the pipeline can't be looked into early.
        """
        shown_by = self._shown_by
        projection = LatentProjection.load(shown_by) if shown_by.is_file() else None
        with self._memory_told(f"{job.id} was looked at"):
            look = EarlyLook(self._pipe, after_steps, on_step)
            sound = Soundness(look.on_step)
            with self._switched(job, seed, sound), look.watching():

                def after_step(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
                    kwargs = sound.after_step(pipe, index, timestep, kwargs)
                    return look.after_step(pipe, index, timestep, kwargs)

                arguments = self._arguments(job, seed, after_step)
                if projection is None:
                    return to_uint8(self._pipe(**arguments), job.id)
                self._pipe(**(arguments | {"output_type": "latent"}))
                return projection.project(look.latents)

    def calibrate(
        self,
        jobs: Sequence[Job],
        *,
        cost_ratio: float,
        conditions: Mapping[str, Any],
        sensitivity_prompts: int,
        positions: int,
        on_step: Callable[[int], None],
        on_run: Callable[[str], None],
    ) -> Calibration:
        """Measure the small denoiser beside the large one, along the large one's trajectories.

        Args:
            jobs: What to probe with, each with its seed; alike but for prompt and picture. Their
                stages don't matter.
            cost_ratio: See ``flowblend_plugin.calibration.probe.calibrate``, as all that follows.
            conditions: Likewise.
            sensitivity_prompts: Likewise.
            positions: Likewise.
            on_step: Called after every step with its index, by pipelines with a callback; may
                raise.
            on_run: Called after every run with what it was for; may raise.

        Raises:
            SamplingError: See ``sample``.
            FlowBlendError: The pair can't be measured.
        """
        with self._memory_told("the pair was probed"), self._solver(jobs[0]):
            return calibrate(
                self._pipe,
                self._further["small"],
                [Probe(partial(self._latents, job, on_step), job.seed) for job in jobs],
                cost_ratio=cost_ratio,
                conditions=conditions,
                sensitivity_prompts=sensitivity_prompts,
                positions=positions,
                on_run=on_run,
            )

    def _latents(self, job: Job, on_step: Callable[[int], None]) -> torch.Tensor:
        """The final latents of one job, under whichever switch is attached."""

        def after_step(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Mapping[str, Any]:
            on_step(index)
            return check_latents(pipe, index, timestep, kwargs)

        arguments = self._arguments(job, job.seed, after_step)
        output = self._pipe(**(arguments | {"output_type": "latent"}))
        latents: torch.Tensor = output.frames if hasattr(output, "frames") else output.images
        return latents

    @contextmanager
    def _memory_told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Text encoders that come in mid-job may find too little memory; then less is tried.
            is_of_late = isinstance(error, DeviceLostError) and is_out_of_memory(error)
            if isinstance(error, FlowBlendError) and not is_of_late:
                raise
            if not is_out_of_memory(error):
                if is_device_lost(error):
                    raise self._placement.device_failed(doing, error) from error
                raise
            told = self._placement.no_memory(doing, self.device, error)
            raise SamplingError(
                f"{told}, or ask for a smaller height and width, or fewer num_frames"
            ) from error

    @contextmanager
    def _solver(self, job: Job) -> Iterator[None]:
        """Give the pipeline a job's solver for a while."""
        sampling = job.sampling
        self._pipe.scheduler = make_scheduler(
            self._own_scheduler, sampling.scheduler, sampling.flow_shift, sampling.mode
        )
        sigma_max = sampling.sigma_max
        try:
            with nullcontext() if sigma_max is None else begin_at(self._pipe, sigma_max):
                yield
        finally:
            self._pipe.scheduler = self._own_scheduler

    @contextmanager
    def _switched(self, job: Job, seed: int, sound: Soundness) -> Iterator[DenoiserSwitch]:
        """Give the pipeline a job's solver and stages for a while."""
        with (
            torch.no_grad(),  # in inference_mode, weights that move round differently
            self._solver(job),
            DenoiserSwitch(
                self._pipe,
                denoisers=self._further,
                stages=job.schedule,
                solver_history=job.sampling.solver_history,
                adapters=self._adapters(job),
                adaptive=None if job.adaptive is None else SelfDifference(job.adaptive),
                seed=seed if job.sampling.noise_seed is None else job.sampling.noise_seed,
                on_step=sound.on_step,
            ) as switch,
            sound.watching(self._pipe, switch, has_callback="callback_on_step_end" in self._takes),
        ):
            self._pipe.scheduler.own_noise = job.sampling.noise_seed is not None
            yield switch

    def _sample(self, job: Job, seed: int, on_step: OnStep, checkpoints: Checkpoints) -> Sampled:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        sound = Soundness(on_step)
        with self._switched(job, seed, sound) as switch:
            arguments = self._arguments(job, seed, sound.after_step)
            with checkpoints.keep(switch, [arguments["generator"]]):
                output = self._pipe(**arguments)
        frames = to_uint8(output, job.id)
        vram = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return Sampled(frames, letters(switch.denoisers_run), vram, switch.cache_reports)

    def _adapters(self, job: Job) -> dict[str, dict[str, Path]]:
        """The file of each LoRA adapter of a job for each denoiser."""
        files = {(name, role): Path(path) for name, role, path in self.models.adapters}
        found: dict[str, dict[str, Path]] = {}
        for adapter in job.adapters:
            path = files[adapter.name, adapter.role]
            found.setdefault(adapter.name, {})[adapter.role] = path
        return found

    def _load(self, source: ResolvedModel, load: Callable[[], Any]) -> Any:
        """Read a model into main memory."""
        try:
            return load()
        except FlowBlendError:
            raise
        except Exception as error:  # whatever a broken folder makes its loaders raise
            if is_out_of_memory(error):
                doing = f"model {source.name!r} was loaded"
                told = self._placement.no_memory(doing, torch.device("cpu"), error)
                raise DeviceLostError(told) from error
            raise _missing(source, error) from error

    def _arguments(self, job: Job, seed: int, after_step: Callable[..., Any]) -> dict[str, Any]:
        arguments = job.pipeline_arguments()
        if job.image is not None:
            arguments["image"] = load_image(
                job.image.path, Path(self.models.recipe_dir), job.image.sha256
            )
            # I2VGen-XL draws the picture's latents from torch's own generator.
            torch.manual_seed(seed)
        unknown = sorted(set(arguments) - set(self._takes))
        if unknown:
            raise SamplingError(
                f"{type(self._pipe).__name__} takes no {', '.join(unknown)}: remove it from the "
                "recipe"
            )
        arguments |= {
            "prompt": job.prompt,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "np",
        }
        if job.negative_prompt is not None:
            arguments["negative_prompt"] = job.negative_prompt
        if "callback_on_step_end" in self._takes:
            arguments["callback_on_step_end"] = after_step
        return arguments


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """Versions and numeric settings that decide bits, for the file's document."""
    return {
        "flowblend": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        **recorded_settings(device),
    }


def _load_pipeline(source: ResolvedModel, dtype: torch.dtype, parts: Mapping[str, Any]) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(
        source.folder,
        dtype=dtype,
        variant=source.variant,
        use_safetensors=True,
        local_files_only=True,
        **parts,
    )


def _load_denoiser(source: ResolvedModel, pipe: Any) -> torch.nn.Module:
    name = denoiser_name(pipe)
    vae_config = getattr(getattr(pipe, "vae", None), "config", None)
    large, where = getattr(pipe, name), source.subfolder
    return load_denoiser(source.folder, large, name, vae_config, where, source.variant)


def _missing(source: ResolvedModel, error: Exception) -> ModelMissingError:
    return ModelMissingError(
        f"model {source.name!r} can't be loaded ({reason(error)}): check that it is complete, "
        "with safetensors weights (`flowblend models verify`)"
    )
