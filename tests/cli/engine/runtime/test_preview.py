"""PipelineRuntime.preview: where a job's first steps lead, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models import identity
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import resolve_models
from flowblend_plugin import SwitchError
from flowblend_plugin.preview import PROJECTION_NAME

MODEL = ModelSpec("sprites", "sprites")


@pytest.fixture(scope="module")
def runtime() -> PipelineRuntime:
    torch.set_num_threads(1)
    return PipelineRuntime(resolve_models(MODEL, Path.cwd()))


@pytest.fixture
def job(batch_of: Any) -> Job:
    found: Job = batch_of().jobs[0]
    arguments = dict(found.arguments) | {"num_inference_steps": 6, "max_sequence_length": 32}
    return replace(found, arguments=tuple(sorted(arguments.items())))


def psnr(one: Any, other: Any) -> float:
    error = np.square((one.astype(float) - other.astype(float)) / 255).mean()
    return float(-10 * np.log10(error)) if error else float("inf")


def decoded(runtime: PipelineRuntime, job: Job, after: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(runtime, "_shown_by", Path("/nowhere"))
    return runtime.preview(job, 1, after, lambda *_: None)


def test_a_preview_runs_its_steps_only_and_leaves_the_next_render_as_it_was(
    runtime: PipelineRuntime, job: Job
) -> None:
    final = runtime.sample(job, 1, lambda *_: None).frames
    own, denoiser = runtime._pipe.scheduler, runtime._pipe.transformer
    told: list[tuple[int, str]] = []
    shown = runtime.preview(job, 1, 3, lambda index, role: told.append((index, role)))
    assert told == [(0, "large"), (1, "large"), (2, "small")]
    assert (shown.shape, shown.dtype) == (final.shape, np.uint8)
    assert runtime._pipe.scheduler is own
    assert runtime._pipe.transformer is denoiser
    assert np.array_equal(runtime.sample(job, 1, lambda *_: None).frames, final)


@pytest.mark.parametrize("scheduler", [None, "unipc", "heun"])
def test_after_all_steps_the_preview_is_the_clip(
    runtime: PipelineRuntime, job: Job, scheduler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job, sampling=replace(job.sampling, scheduler=scheduler))
    final = runtime.sample(job, 1, lambda *_: None).frames
    projected = runtime.preview(job, 1, 6, lambda *_: None)
    assert psnr(decoded(runtime, job, 6, monkeypatch), final) > 45
    assert psnr(projected, final) > 20


def test_previews_come_closer_to_the_clip_with_every_look(
    runtime: PipelineRuntime, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = runtime.sample(job, 1, lambda *_: None).frames
    early, late = (decoded(runtime, job, after, monkeypatch) for after in (1, 5))
    assert psnr(early, final) + 5 < psnr(late, final)


def test_an_exception_between_steps_of_a_preview_leaves_the_runtime_usable(
    runtime: PipelineRuntime, job: Job
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    own = runtime._pipe.scheduler
    with pytest.raises(KeyboardInterrupt):
        runtime.preview(job, 1, 3, stop)
    assert runtime._pipe.scheduler is own
    assert not runtime._pipe.interrupt
    with pytest.raises(SwitchError, match="at least 1"):
        runtime.preview(job, 1, 0, stop)


def test_the_bundled_projection_is_small_and_changes_no_job_key(tmp_path: Path) -> None:
    folder = bundled_dir() / "models" / "sprites"
    assert (folder / PROJECTION_NAME).stat().st_size < 200_000
    assert PROJECTION_NAME in identity._NO_MODEL
    for name in ("model_index.json", "weights.safetensors"):
        (tmp_path / name).write_text(name, "utf-8")
    before = identity.hash_folder(tmp_path)
    (tmp_path / PROJECTION_NAME).write_text("a", "utf-8")
    assert identity.hash_folder(tmp_path) == before


def test_the_noise_seed_moves_an_sdes_noise_and_nothing_else(
    runtime: PipelineRuntime, job: Job
) -> None:
    def frames(mode: Any, noise: int | None) -> Any:
        sampling = replace(job.sampling, mode=mode, noise_seed=noise)
        return runtime.sample(replace(job, sampling=sampling), 1, lambda *_: None).frames

    assert np.array_equal(frames("sde", None), frames("sde", 1))  # the job's seed is 1
    assert np.array_equal(frames("sde", 7), frames("sde", 7))
    assert not np.array_equal(frames("sde", 7), frames("sde", 1))
    assert np.array_equal(frames("ode", 7), frames("ode", None))
