"""The models of a batch in memory: what loads, what is remembered, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowblend_cli.errors import ModelMissingError
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.runtime import Runtime, SamplingError
from flowblend_plugin import SchedulerConfigError

MODEL = ModelSpec("sprites", "sprites")


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    torch.set_num_threads(1)
    return Runtime(MODEL, Path.cwd())


@pytest.fixture
def job(batch_of: Any) -> Job:
    found: Job = batch_of().jobs[0]
    arguments = dict(found.arguments) | {"num_inference_steps": 2, "max_sequence_length": 32}
    return replace(found, arguments=tuple(sorted(arguments.items())))


def sample(runtime: Runtime, job: Job, seed: int = 1) -> Any:
    return runtime.sample(job, seed, lambda *_: None)


def test_each_distinct_prompt_is_encoded_once(runtime: Runtime, job: Job) -> None:
    calls: list[int] = []
    handle = runtime._pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = sample(runtime, job)
    assert len(calls) == 2  # the prompt and the empty one
    again = sample(runtime, job)
    sample(runtime, job, seed=2)
    assert len(calls) == 2
    assert np.array_equal(first.frames, again.frames)
    sample(runtime, replace(job, prompt="a blue ring"))
    assert len(calls) > 2
    handle.remove()


def test_every_step_is_told_with_its_role(runtime: Runtime, job: Job) -> None:
    told: list[tuple[int, str]] = []
    arguments = dict(job.arguments) | {"num_inference_steps": 5}
    longer = replace(job, arguments=tuple(sorted(arguments.items())))
    sampled = runtime.sample(longer, 1, lambda index, role: told.append((index, role)))
    assert told == list(enumerate(["large", "large", "small", "small", "large"]))
    assert sampled.denoisers == "LLSSL"


def test_an_exception_between_steps_leaves_the_runtime_usable(runtime: Runtime, job: Job) -> None:
    before = sample(runtime, job).frames
    own = runtime._pipe.scheduler

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.sample(job, 1, stop)
    assert runtime._pipe.scheduler is own
    assert np.array_equal(sample(runtime, job).frames, before)


def test_numbers_that_are_no_numbers_fail_at_a_named_step(runtime: Runtime, job: Job) -> None:
    arguments = dict(job.arguments) | {"guidance_scale": 1e40}
    broken = replace(job, arguments=tuple(sorted(arguments.items())))
    with pytest.raises(SamplingError, match="after step 0"):
        sample(runtime, broken)


def test_a_solver_without_stochastic_form_is_refused(runtime: Runtime, job: Job) -> None:
    sampling = replace(job.sampling, mode="sde", scheduler="unipc")
    with pytest.raises(SchedulerConfigError, match="no stochastic form"):
        sample(runtime, replace(job, sampling=sampling))


def test_one_frame_gives_one_picture(runtime: Runtime, job: Job) -> None:
    arguments = dict(job.arguments) | {"num_frames": 1}
    picture = replace(job, arguments=tuple(sorted(arguments.items())))
    assert sample(runtime, picture).frames.shape == (1, 64, 64, 3)


def test_a_folder_with_missing_weights_is_a_missing_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}', "utf-8")
    with pytest.raises(ModelMissingError, match="can't be loaded"):
        Runtime(ModelSpec(str(tmp_path)), Path.cwd())
