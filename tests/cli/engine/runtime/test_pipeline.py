"""The models of a batch in memory: what loads, what is remembered, what is refused."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from flowblend_cli.engine.runtime.pipeline import PipelineRuntime, SamplingError
from flowblend_cli.engine.runtime.placement import is_out_of_memory
from flowblend_cli.errors import DeviceFailedError, DeviceLostError, ModelMissingError
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.main import main
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import resolve_models
from flowblend_plugin import SchedulerConfigError

MODEL = ModelSpec("sprites", "sprites")


@pytest.fixture(scope="module")
def runtime() -> PipelineRuntime:
    torch.set_num_threads(1)
    return PipelineRuntime(resolve_models(MODEL, Path.cwd()))


@pytest.fixture
def job(batch_of: Any) -> Job:
    found: Job = batch_of().jobs[0]
    arguments = dict(found.arguments) | {"num_inference_steps": 2, "max_sequence_length": 32}
    return replace(found, arguments=tuple(sorted(arguments.items())))


def sample(runtime: PipelineRuntime, job: Job, seed: int = 1) -> Any:
    return runtime.sample(job, seed, lambda *_: None)


def test_each_distinct_prompt_is_encoded_once(runtime: PipelineRuntime, job: Job) -> None:
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


def test_every_step_is_told_with_its_role(runtime: PipelineRuntime, job: Job) -> None:
    told: list[tuple[int, str]] = []
    arguments = dict(job.arguments) | {"num_inference_steps": 5}
    longer = replace(job, arguments=tuple(sorted(arguments.items())))
    sampled = runtime.sample(longer, 1, lambda index, role: told.append((index, role)))
    assert told == list(enumerate(["large", "large", "small", "small", "large"]))
    assert sampled.denoisers == "LLSSL"


def test_an_exception_between_steps_leaves_the_runtime_usable(
    runtime: PipelineRuntime, job: Job
) -> None:
    before = sample(runtime, job).frames
    own = runtime._pipe.scheduler

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.sample(job, 1, stop)
    assert runtime._pipe.scheduler is own
    assert np.array_equal(sample(runtime, job).frames, before)


def test_numbers_that_are_no_numbers_fail_at_a_named_step(
    runtime: PipelineRuntime, job: Job
) -> None:
    arguments = dict(job.arguments) | {"guidance_scale": 1e40}
    broken = replace(job, arguments=tuple(sorted(arguments.items())))
    with pytest.raises(SamplingError, match=r"after step 0, in stage 1 \(large\): try"):
        sample(runtime, broken)


@pytest.mark.parametrize("has_callback", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_numbers_out_of_a_denoiser_name_its_stage_and_step_in_any_pipeline(
    runtime: PipelineRuntime,
    job: Job,
    value: float,
    has_callback: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_callback:
        takes = {key: p for key, p in runtime._takes.items() if key != "callback_on_step_end"}
        monkeypatch.setattr(runtime, "_takes", takes)
    small = runtime._further["small"]
    handle = small.proj_out.register_forward_hook(lambda _, __, out: torch.full_like(out, value))
    with pytest.raises(SamplingError, match=r"after step 1, in stage 2 \(small\): try"):
        sample(runtime, job)
    handle.remove()
    assert np.isfinite(sample(runtime, job).frames).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_numbers_out_of_the_vae_fail_the_job_also_where_the_pipeline_would_clip_them(
    runtime: PipelineRuntime, job: Job, value: float
) -> None:
    def spoil(_: object, __: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out.view(-1)[0] = value
        return out

    handle = runtime.vae.decoder.conv_out.register_forward_hook(spoil)
    with pytest.raises(SamplingError, match=r"VAE's pixels .* after step 1, in stage 2 \(small\)"):
        sample(runtime, job)
    handle.remove()
    assert "decode" not in vars(runtime.vae)
    sample(runtime, job)


def test_a_solver_without_stochastic_form_is_refused(runtime: PipelineRuntime, job: Job) -> None:
    sampling = replace(job.sampling, mode="sde", scheduler="unipc")
    with pytest.raises(SchedulerConfigError, match="no stochastic form"):
        sample(runtime, replace(job, sampling=sampling))


def test_one_frame_gives_one_picture(runtime: PipelineRuntime, job: Job) -> None:
    arguments = dict(job.arguments) | {"num_frames": 1}
    picture = replace(job, arguments=tuple(sorted(arguments.items())))
    assert sample(runtime, picture).frames.shape == (1, 64, 64, 3)


def test_a_folder_with_missing_weights_is_a_missing_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}', "utf-8")
    with pytest.raises(ModelMissingError, match="can't be loaded"):
        PipelineRuntime(resolve_models(ModelSpec(str(tmp_path)), Path.cwd()))


ON_CPU = ModelSpec("sprites", "sprites", dtype="float32", device="cpu")
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_memory_that_runs_out_on_the_way_to_the_device_says_what_was_tried_and_what_helps(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", fail)
    with pytest.raises(DeviceLostError) as caught:
        PipelineRuntime(resolve_models(ON_CPU, Path.cwd()))

    message = str(caught.value)
    assert message.startswith("out of main memory while model 'sprites' was moved to cpu as float3")
    for advice in (
        "offload = 'none'",
        'set model.dtype to "bfloat16"',
        "use a smaller denoiser, then a lower resolution",
    ):
        assert advice in message
    assert str(error).split(".")[0] in message


def test_a_device_that_fails_is_told_from_one_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: invalid device ordinal\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", fail)
    with pytest.raises(DeviceLostError) as caught:
        PipelineRuntime(resolve_models(ON_CPU, Path.cwd()))

    assert str(caught.value).startswith(
        "cpu failed while model 'sprites' was moved to cpu (CUDA er"
    )
    assert "check the device and its driver" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes don't match"), OSError(errno.ENOENT, "No such file"), ValueError(),
     KeyError("out of memory")],
    ids=repr,
)  # fmt: skip
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "text",
    ["CUDA error: device-side assert triggered", "CUDA error: unspecified launch failure",
     "CUDA-capable device(s) is/are busy or unavailable: CUDA error", "HIP error: invalid device",
     "cuDNN error: device not available"],
)  # fmt: skip
def test_a_device_that_fails_in_a_step_is_lost(
    runtime: PipelineRuntime, job: Job, text: str
) -> None:
    def fail(index: int, role: str) -> None:
        raise RuntimeError(text + "\nCompile with `TORCH_USE_CUDA_DSA`")

    with pytest.raises(DeviceFailedError) as caught:
        runtime.sample(job, 1, fail)
    assert text in str(caught.value)
    assert "TORCH_USE_CUDA_DSA" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: out of memory"), RuntimeError("shapes can't be multiplied"),
     ValueError("CUDA error: no error of a backend")],
)  # fmt: skip
def test_other_errors_in_a_step_cost_no_device(
    runtime: PipelineRuntime, job: Job, error: Exception
) -> None:
    def fail(index: int, role: str) -> None:
        raise error

    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is asked next
        runtime.sample(job, 1, fail)
    assert not isinstance(caught.value, DeviceLostError)


def test_a_lack_of_memory_is_found_behind_the_error_that_hides_it() -> None:
    hidden = OSError("Unable to load weights from checkpoint file")
    hidden.__context__ = ValueError("Unable to locate the file")
    hidden.__context__.__cause__ = MemoryError()

    assert is_out_of_memory(hidden)


LIMITED = """
import resource, sys
from pathlib import Path
from flowblend_cli.errors import DeviceLostError
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.main import main
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.models.identity import resolve_models
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line]
limit = int(line.split()[1]) * 1024 + 8 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    PipelineRuntime(resolve_models(ModelSpec(sys.argv[1], device="cpu"), Path.cwd()))
except DeviceLostError as error:
    print(error)
"""


@pytest.mark.night
@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_weights_larger_than_the_memory_are_no_missing_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_dir() / "models" / "sprites", folder)
    config = json.loads((folder / "transformer" / "config.json").read_text("utf-8"))
    config["ffn_dim"] = 5 * 2**18
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        large = diffusers.WanTransformer3DModel.from_config(config).state_dict()
    offsets, size = {}, 0  # a sparse file: it takes no room on the disk
    for name, tensor in large.items():
        offsets[name] = [size, size + 4 * tensor.numel()]
        size += 4 * tensor.numel()
    assert size > 8 * 2**30
    table = json.dumps(
        {
            name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets[name]}
            for name, tensor in large.items()
        }
    ).encode()
    with (folder / "transformer" / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(table)) + table)
        file.truncate(8 + len(table) + size)

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out of main memory while model ")
    assert "use a smaller denoiser, then a lower resolution" in done.stdout


def test_memory_that_runs_out_while_sampling_fails_that_job_and_no_other(
    runtime: PipelineRuntime, job: Job
) -> None:
    arguments = dict(job.arguments) | {"height": 2**24, "width": 2**24}
    huge = replace(job, arguments=tuple(sorted(arguments.items())))

    with pytest.raises(SamplingError, match=r"out of .* while .* a smaller height and wid"):
        sample(runtime, huge)
    assert sample(runtime, job).denoisers == "LS"


QUICK = ["--set", "defaults.num_inference_steps=2", "--set", "defaults.num_frames=1",
         "--set", "defaults.max_sequence_length=32"]  # fmt: skip


def render(path: Path, *options: str) -> tuple[Result, list[dict[str, Any]]]:
    result = CliRunner().invoke(main, ["render", str(path), "--json", *QUICK, *options])
    return result, [json.loads(line) for line in result.stdout.splitlines()]


def test_models_that_dont_fit_into_memory_are_exit_5_and_one_line(
    recipe_file: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", fail)
    result, events = render(recipe_file(), "--set", "model.device=cpu")

    assert result.exit_code == 5
    (told,) = [line for line in result.stderr.splitlines() if "Tried to allocate 20.00 GiB" in line]
    assert "out of main memory while model 'sprites' was moved to cpu as float32" in told
    assert "Traceback" not in result.stderr
    assert [event["event"] for event in events] == ["summary"]
