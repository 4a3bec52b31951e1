"""Memory that runs out while a job renders: tried again with less, with the same seed.

Real modules of the bundled pair raise what an allocator would; ``cpu:0`` stands for the device of
an accelerator, see ``fake_device``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from fake_device import ACCELERATOR

from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import (
    Answer,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.engine.runtime.finite_checks import SamplingError
from flowblend_cli.engine.runtime.oom_retry import can_tile, tiled
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.events import CapturedEvents, JobDone, JobFailed, captured_events
from flowblend_cli.jobs import Batch, Job, ModelSpec
from flowblend_cli.models.identity import ResolvedModels, resolve_models

WAYS = ("none", "model", "group", "sequential")


class Device:
    """A device with too little memory: forwards and decodes fail as often as is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[str] = []
        self.failures: dict[str, int] = {}
        self.fits = "never"  # the offloading under which everything fits
        self.tiles: list[bool] = []
        real = PipelineRuntime.__init__

        def load(runtime: PipelineRuntime, models: ResolvedModels, **how: Any) -> None:
            real(runtime, models, **how)
            self.loaded.append(models.spec.offload)
            pipe = runtime._pipe
            pipe.transformer.proj_out.register_forward_pre_hook(self._fails("denoiser"))
            pipe.vae.post_quant_conv.register_forward_pre_hook(self._fails("vae", pipe.vae))

        monkeypatch.setattr(PipelineRuntime, "__init__", load)

    def _fails(self, part: str, vae: Any = None) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            if vae is not None:
                self.tiles.append(vae.use_tiling)
            if self.failures.get(part, 0) and self.loaded[-1] != self.fits:
                self.failures[part] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        return fail


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    real = accelerate.cpu_offload

    @functools.wraps(real)
    def cpu_offload(module: Any, device: torch.device, **options: Any) -> Any:
        return real(module, torch.device("cpu") if device == ACCELERATOR else device, **options)

    monkeypatch.setattr(accelerate, "cpu_offload", cpu_offload)
    torch.set_num_threads(1)
    return Device(monkeypatch)


@pytest.fixture
def job(batch_of: Any) -> Job:
    found: Job = batch_of().jobs[0]
    small = {"num_inference_steps": 2, "num_frames": 1, "height": 32, "width": 32}
    arguments = dict(found.arguments) | small | {"max_sequence_length": 32}
    model = ModelSpec("sprites", "sprites", dtype="float32", device="cpu")
    return replace(found, arguments=tuple(sorted(arguments.items())), model=model)


def on_device(job: Job, **arguments: Any) -> Job:
    settings = dict(job.arguments) | arguments
    model = replace(job.model, device="cpu:0")
    return replace(job, model=model, arguments=tuple(sorted(settings.items())))


def runner(told: CapturedEvents | None = None) -> JobRunner:
    return JobRunner(captured_events() if told is None else told)


def answer(runner: JobRunner, job: Job) -> Answer:
    models = resolve_models(job.model, Path.cwd())
    return runner.run(RenderRequest(1, job, 7, models, planned="LS"), lambda: None)


def render(runner: JobRunner, job: Job) -> RenderResult:
    result = answer(runner, job)
    assert isinstance(result, RenderResult)
    return result


def test_memory_that_runs_out_once_costs_no_bit_and_no_other_seed(device: Device, job: Job) -> None:
    told = captured_events()
    renderer = runner(told)
    expected = render(renderer, job)
    device.failures = {"denoiser": 1}
    once = render(renderer, job)

    assert np.array_equal(once.frames, expected.frames)
    assert (expected.memory, once.memory, once.seed) == ((), ("freed",), 7)
    assert len(once.step_s) == 2, "only the steps of the try that worked"
    assert [text for text in told.messages if "out of memory" in text] == [
        f"{job.id}: out of memory, tried again with the same seed: freed"
    ]
    assert render(renderer, job).memory == (), "what was freed for one is no matter to others"


def test_a_vae_without_memory_is_tiled_for_that_size_and_larger_ones_only(
    device: Device, job: Job
) -> None:
    renderer = runner()
    device.failures = {"vae": 2}
    assert render(renderer, job).memory == ("freed", "tiled")
    larger = replace(job, arguments=tuple(sorted({**dict(job.arguments), "width": 64}.items())))
    smaller = replace(job, arguments=tuple(sorted({**dict(job.arguments), "width": 16}.items())))
    assert render(renderer, larger).memory == ("tiled",)
    assert render(renderer, smaller).memory == ()
    assert device.tiles == [False, False, True, True, False]


def test_a_denoiser_without_memory_is_offloaded_ever_more_and_keeps_its_bits(
    device: Device, job: Job
) -> None:
    plain = render(runner(), job).frames
    device.loaded.clear()
    renderer = runner()
    device.failures, device.fits = {"denoiser": 99}, "sequential"
    last = render(renderer, on_device(job))

    assert last.memory == ("freed", "offload=sequential")
    assert np.array_equal(last.frames, plain)
    assert tuple(device.loaded) == WAYS
    assert not any(device.tiles), "tiles would help no denoiser"
    again = render(renderer, on_device(job))
    assert again.memory == ("offload=sequential",)
    assert tuple(device.loaded) == WAYS, "nothing is loaded again"
    device.failures = {}
    assert render(renderer, on_device(job, width=16)).memory == ()
    assert device.loaded[-1] == "none"


def test_a_text_encoder_without_memory_in_mid_job_is_offloaded_and_then_fits(
    device: Device, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = render(runner(), job).frames
    device.loaded.clear()
    real = DiffusionPipeline.to

    def move(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        is_encoder_alone = pipe.transformer is None
        if is_encoder_alone and ACCELERATOR in args:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 11.00 GiB.")
        return real(pipe, *args, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "to", move)
    told = captured_events()
    renderer = JobRunner(told, None, EmbeddingFiles(tmp_path))
    first = render(renderer, on_device(job))
    assert first.memory == ("freed", "offload=model")
    assert np.array_equal(first.frames, plain)
    assert tuple(device.loaded) == ("none", "model")

    second = render(JobRunner(told, None, EmbeddingFiles(tmp_path)), on_device(job))
    assert second.memory == ()
    assert np.array_equal(second.frames, plain)


def test_a_job_that_never_fits_fails_alone_and_says_so(
    device: Device, job: Job, tmp_path: Path
) -> None:
    other = replace(job, id="other", prompt="a blue ring")
    batch = Batch("harbour", tmp_path / "out", (job, other), (), tmp_path / "recipe.toml")
    device.failures = {"denoiser": 2}
    told = captured_events()

    assert BatchRun(batch, told).run() == 1
    (failed,), (done,) = told.of(JobFailed), told.of(JobDone)
    assert (failed.job, done.job) == (job.id, "other")
    assert "out of main memory while" in failed.error
    assert "fewer num_frames" in failed.error
    document = read_document(tmp_path / "out" / other.filename)
    assert document is not None
    assert "memory" not in document["resolved"]


def test_the_finished_file_records_what_was_done(device: Device, job: Job, tmp_path: Path) -> None:
    batch = Batch("harbour", tmp_path / "out", (job,), (), tmp_path / "recipe.toml")
    device.failures = {"vae": 2}
    assert BatchRun(batch, captured_events()).run() == 0
    document = read_document(tmp_path / "out" / job.filename)
    assert document is not None
    assert document["resolved"]["memory"] == ["freed", "tiled"]
    device.failures = {}
    told = captured_events()
    assert BatchRun(batch, told).run() == 0
    assert not told.of(JobDone), "the key is the same"


def test_another_failure_is_not_tried_with_less_memory(device: Device, job: Job) -> None:
    wrong = replace(job, arguments=tuple(sorted((*job.arguments, ("nonsense", 1)))))
    failed = answer(runner(), wrong)
    assert isinstance(failed, RenderFailure)
    assert isinstance(failed.error, SamplingError)
    assert "takes no nonsense" in str(failed.error)
    assert device.loaded == ["none"]


def test_a_vae_that_cant_tile_or_does_already_is_left_as_it_is() -> None:
    class Vae:
        use_tiling = True

        def enable_tiling(self) -> None:
            raise AssertionError

    vae = Vae()
    with tiled(vae, True):
        assert vae.use_tiling
    assert vae.use_tiling
    assert not can_tile(None)
    assert not can_tile(object())
