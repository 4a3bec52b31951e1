"""Where models live: offloading as a recipe asks for it, and what is said when it can't be.

``cpu:0`` stands for the device of an accelerator: see ``fake_device``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fake_device import ACCELERATOR, FakeDevice
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.engine.runtime.placement import Placement
from flowblend_cli.engine.runtime.prompt_cache import keep_embeddings
from flowblend_cli.errors import DeviceLostError, StopRequested, UsageError
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.main import main
from flowblend_cli.models.identity import job_key, resolve_models
from flowblend_plugin import DenoiserSwitch, StageSchedule
from flowblend_plugin.denoisers.offloading import is_placed

WAYS = ("model", "group", "sequential")
LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


def spec(offload: str, device: str = "cpu:0") -> ModelSpec:
    return ModelSpec("sprites", "sprites", dtype="float32", device=device, offload=offload)


@pytest.fixture(autouse=True)
def layers_that_run_on_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let single layers run on ``cpu``: a parameter that is sent to ``cpu:0`` never gets there."""
    real = accelerate.cpu_offload

    @functools.wraps(real)
    def cpu_offload(module: Any, device: torch.device, **options: Any) -> Any:
        return real(module, torch.device("cpu") if device == ACCELERATOR else device, **options)

    monkeypatch.setattr(accelerate, "cpu_offload", cpu_offload)


def modules(runtime: PipelineRuntime) -> Iterator[torch.nn.Module]:
    parts = runtime._pipe.components.values()
    return (part for part in parts if isinstance(part, torch.nn.Module))


@pytest.fixture(scope="module")
def plain() -> PipelineRuntime:
    torch.set_num_threads(1)
    return PipelineRuntime(resolve_models(spec("none", "cpu"), Path.cwd()))


@pytest.fixture
def job(batch_of: Any) -> Job:
    """LSL in five steps; five frames, for which the VAE keeps a memory."""
    found: Job = batch_of().jobs[0]
    small = {"num_inference_steps": 5, "num_frames": 5, "height": 32, "width": 32}
    arguments = dict(found.arguments) | small | {"max_sequence_length": 32}
    return replace(found, arguments=tuple(sorted(arguments.items())))


def weights(runtime: PipelineRuntime) -> Iterator[torch.Tensor]:
    for module in (*modules(runtime), runtime._further["small"]):
        assert module is not None
        yield from module.parameters()


def sample(runtime: PipelineRuntime, job: Job, seed: int = 1) -> Any:
    return runtime.sample(job, seed, lambda *_: None)


@pytest.mark.parametrize("way", WAYS)
def test_offloading_changes_no_bit_in_any_job(way: str, plain: PipelineRuntime, job: Job) -> None:
    expected = [sample(plain, job, seed) for seed in (1, 2)]
    runtime = PipelineRuntime(resolve_models(spec(way), Path.cwd()))

    assert all(is_placed(module) for module in modules(runtime))
    for seed, one in enumerate(expected, start=1):
        again = sample(runtime, job, seed)
        assert again.denoisers == one.denoisers == "LLSSL"
        assert np.array_equal(again.frames, one.frames)
    assert runtime.note is None
    # An inference tensor would take other paths through a UNet's linear layers, and round there.
    assert not any(weight.is_inference() for weight in weights(runtime))


def test_layers_keep_no_weight_on_the_device_between_jobs(job: Job) -> None:
    runtime = PipelineRuntime(resolve_models(spec("sequential"), Path.cwd()))
    sample(runtime, job)

    for module in modules(runtime):
        assert all(parameter.is_meta for parameter in module.parameters())


def test_groups_are_leaves_everywhere_and_the_small_denoiser_has_them_while_it_runs(
    job: Job,
) -> None:
    runtime = PipelineRuntime(resolve_models(spec("group"), Path.cwd()))
    small = runtime._further["small"]
    assert small is not None
    kinds: set[tuple[str, torch.device]] = set()

    def look(*_: object) -> None:
        for module in (*modules(runtime), small):
            for part in module.modules():
                registry = part.__dict__.get("_diffusers_hook")
                hook = registry.get_hook("group_offloading") if registry is not None else None
                if hook is not None:
                    kinds.add((hook.config.offload_type.value, hook.config.onload_device))
        assert is_placed(small)

    runtime.sample(job, 1, look)
    assert kinds == {("leaf_level", ACCELERATOR)}
    assert not is_placed(small)


def test_of_whole_models_only_the_one_that_runs_is_on_the_device_in_every_job(job: Job) -> None:
    runtime = PipelineRuntime(resolve_models(spec("model"), Path.cwd()))
    pipe = runtime._pipe
    pipe.remove_all_hooks()
    for module in modules(runtime):
        module.__dict__.pop("forward", None)  # which accelerate leaves behind, unwatched
    device = FakeDevice(
        encoder=pipe.text_encoder,
        large=pipe.transformer,
        small=runtime._further["small"],
        vae=pipe.vae,
    )
    runtime._placement.place("sprites", pipe, "transformer")
    pipe.vae.post_quant_conv.register_forward_pre_hook(lambda *_: device.ran("vae"))
    for prompt in ("a red star", "a blue ring"):
        device.forwards.clear()
        sample(runtime, replace(job, prompt=prompt))
        ran = list(dict.fromkeys(name for name, _ in device.forwards))
        assert ran == ["encoder", "large", "small", "vae"]
        assert all(resident == {name} for name, resident in device.forwards)
        assert not device.resident


@pytest.mark.parametrize("way", ["none", *WAYS])
def test_a_text_encoder_that_comes_in_mid_job_lives_where_the_other_models_do(
    way: str, plain: PipelineRuntime, job: Job, tmp_path: Path
) -> None:
    jobs = [replace(job, prompt=prompt) for prompt in ("a red star", "a blue ring")]
    expected = [sample(plain, one).frames for one in jobs]
    for run in range(2):
        runtime = PipelineRuntime(resolve_models(spec(way), Path.cwd()), encoders_later=True)
        keep_embeddings(runtime, EmbeddingFiles(tmp_path), pytest.fail)
        for one, frames in zip(jobs, expected, strict=True):
            assert np.array_equal(sample(runtime, one).frames, frames)
            assert all(is_placed(module) for module in modules(runtime)) or way == "none"
        assert len(list(modules(runtime))) == (2 if run else 3)  # the VAE, the large one
    assert runtime.late_s == 0


def test_of_whole_models_one_that_comes_late_leaves_before_the_next_one_runs(job: Job) -> None:
    runtime = PipelineRuntime(resolve_models(spec("model"), Path.cwd()), encoders_later=True)
    pipe, load = runtime._pipe, runtime._encoders._load
    pipe.remove_all_hooks()
    for module in modules(runtime):
        module.__dict__.pop("forward", None)  # which accelerate leaves behind, unwatched
    device = FakeDevice(large=pipe.transformer, small=runtime._further["small"], vae=pipe.vae)
    runtime._placement.place("sprites", pipe, "transformer")
    pipe.vae.post_quant_conv.register_forward_pre_hook(lambda *_: device.ran("vae"))

    def watched(others: dict[str, Any]) -> Any:
        holder = load(others)
        device.watch(encoder=holder.text_encoder)
        return holder

    runtime._encoders._load = watched
    # The first one is given up after a step: nothing that ends a call is done.
    with pytest.raises(StopRequested):
        runtime.sample(job, 1, stop)
    for prompt in ("a red star", "a blue ring"):
        device.forwards.clear()
        sample(runtime, replace(job, prompt=prompt))
        ran = list(dict.fromkeys(name for name, _ in device.forwards))
        assert ran == ["encoder", "large", "small", "vae"]
        assert all(resident == {name} for name, resident in device.forwards)
        assert not device.resident


def stop(*_: object) -> None:
    raise StopRequested


def blended(pipe: Any, other: Any) -> torch.Tensor:
    with DenoiserSwitch(pipe, other, LSL):
        return run_wan(pipe)


@pytest.mark.parametrize("way", WAYS)
def test_a_further_denoiser_stays_in_main_memory_where_the_pipeline_is_offloaded(way: str) -> None:
    pipe, other = wan_pipe(), wan_denoiser(seed=1)
    expected = blended(wan_pipe(), wan_denoiser(seed=1))
    device = FakeDevice(small=other)
    placement = Placement(spec(way))
    placement.move("small", other)
    assert device.moves == []
    placement.place("large", pipe, "transformer")
    assert torch.equal(blended(pipe, other), expected)


def test_without_offloading_both_go_to_the_device() -> None:
    pipe, other = wan_pipe(), wan_denoiser(seed=1)
    device = FakeDevice(large=pipe.transformer, small=other)
    placement = Placement(spec("none"))
    placement.move("small", other)
    placement.place("large", pipe, "transformer")

    assert device.resident == {"large", "small"}
    assert not is_placed(pipe.transformer)


# What can't be offloaded.


def test_a_denoiser_that_cant_be_split_is_refused_and_another_part_stays_whole() -> None:
    pipe = wan_pipe()
    placement = Placement(spec("group"))
    pipe.vae = torch.nn.Linear(1, 1)
    pipe.vae._supports_group_offloading = False
    placement.place("large", pipe, "transformer")
    assert is_placed(pipe.transformer)
    assert not is_placed(pipe.vae)

    pipe = wan_pipe()
    pipe.transformer._supports_group_offloading = False
    with pytest.raises(
        UsageError, match=r"'large' can't be .* 'group' .*does not support.*'model'"
    ):
        placement.place("large", pipe, "transformer")


def test_a_pipeline_without_an_order_of_models_is_refused() -> None:
    pipe = wan_pipe()
    pipe.model_cpu_offload_seq = None
    with pytest.raises(UsageError, match=r"offload = 'model' .*model_cpu_offload_seq"):
        Placement(spec("model")).place("large", pipe, "transformer")


# Memory that runs out: each answer names what needs less.


@pytest.mark.parametrize(
    ("way", "advice"),
    [
        ("none", ': free what else holds it, set model.offload to "model", set model.dtype to'),
        ("model", 'set model.offload to "group" or "sequential", '),
        ("group", 'set model.offload to "sequential", '),
        ("sequential", 'set model.device to "cpu" and model.offload to "none", use a smaller'),
    ],
)
def test_memory_that_runs_out_names_the_next_way_to_offload(way: str, advice: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    placement = Placement(spec(way))

    told = placement.no_memory("x was rendered", ACCELERATOR, error)
    assert told.startswith("out of memory on cpu:0 while x was rendered as float32 with offload = ")
    assert f"offload = {way!r}" in told
    assert advice in told
    in_main_memory = placement.no_memory("x was loaded", torch.device("cpu"), error)
    assert "set model." not in in_main_memory.replace("set model.dtype", "")


@pytest.mark.parametrize("way", WAYS)
def test_what_fails_while_offloading_is_set_up_is_told(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to pin 2.00 GiB.")

    pipe = wan_pipe()
    name = "group_offload" if way == "group" else f"{way}_cpu_offload"
    monkeypatch.setattr(type(pipe), f"enable_{name}", fail)
    with pytest.raises(DeviceLostError, match=r"out of memory on cpu:0 while model 'large' was pr"):
        Placement(spec(way)).place("large", pipe, "transformer")


# From a recipe.


def render(path: Path, *options: str) -> tuple[Result, list[dict[str, Any]]]:
    quick = {"num_inference_steps": 2, "num_frames": 1, "max_sequence_length": 32}
    settings = [part for k, v in quick.items() for part in ("--set", f"defaults.{k}={v}")]
    result = CliRunner().invoke(main, ["render", str(path), "--json", *settings, *options])
    return result, [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="auto is the CPU"
)
def test_a_recipe_made_for_a_gpu_renders_on_a_cpu_and_says_that_nothing_is_offloaded(
    recipe_file: Callable[[], Path],
) -> None:
    result, events = render(recipe_file(), "--set", "model.offload=sequential")

    assert result.exit_code == 0
    assert "offload = 'sequential' does nothing here: the device is the CPU" in result.stderr
    assert events[-1]["rendered"] == 1
    again, events = render(recipe_file(), "--set", "model.offload=sequential")
    assert (again.exit_code, events[-1]["skipped"]) == (0, 1)


def test_offloading_beside_a_written_cpu_is_refused(problems_of: Any, minimal: str) -> None:
    text = minimal.replace('"sprites"', '"sprites"\ndevice = "cpu"\noffload = "model"', 1)
    told = (
        "recipe.toml:7:11: model.offload: 'model' isn't possible with device = 'cpu', where models "
        "stay in main memory anyway: remove offload, or set device to 'auto'"
    )
    assert problems_of(text) == [told]
    swept = minimal + '\n[sweep]\n"model.offload" = ["none", "group"]\n'
    (problem,) = problems_of(swept, "model.device=cpu")
    assert "'group' isn't possible with device = 'cpu'" in problem


@pytest.mark.parametrize("way", ["none", *WAYS])
def test_every_way_is_checked_and_part_of_the_jobs_key(
    way: str, batch_of: Any, minimal: str
) -> None:
    (asked,) = batch_of().jobs
    (job,) = batch_of(minimal, f"model.offload={way}").jobs

    assert job.model == replace(asked.model, offload=way)
    assert (job_key(job, {}) == job_key(asked, {})) == (way == "none")
