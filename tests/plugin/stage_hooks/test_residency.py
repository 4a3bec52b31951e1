"""Further denoisers live as the pipe's own: offloaded, dispatched, cast, and put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from fake_device import ACCELERATOR, FakeDevice
from safetensors.torch import save_file
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import (
    Adapter,
    DenoiserSwitch,
    FlowBlendScheduler,
    Stage,
    StageSchedule,
    SwitchError,
)
from flowblend_plugin.denoisers.offloading import is_placed, scaled_device_map

SPRITES = Path(__file__).parents[3] / "recipes" / "models" / "sprites"
LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


def small(seed: int = 1, layers: int = 1) -> Any:
    return wan_denoiser(layers=layers, heads=1, seed=seed)


def blended(pipe: Any, other: Any, stages: Any = LSL, **kwargs: Any) -> torch.Tensor:
    with DenoiserSwitch(pipe, other, stages):
        return run_wan(pipe, **kwargs)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """LSL of the tiny pair, nothing offloaded; the small one has four blocks."""
    return blended(wan_pipe(), small(layers=4))


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def hooked(module: Any, name: str) -> list[str]:
    return [
        place
        for place, part in module.named_modules()
        if "_diffusers_hook" in vars(part) and part._diffusers_hook.get_hook(name) is not None
    ]


# Model offloading, on a device that writes down who is on it.


def offloaded(**modules: Any) -> tuple[Any, FakeDevice]:
    parts = {k: modules.pop(k) for k in ("transformer_2", "boundary_ratio") if k in modules}
    pipe = wan_pipe(**parts)
    own = {"large": pipe.transformer}
    if "transformer_2" in parts:
        own["low"] = parts["transformer_2"]
    device = FakeDevice(**own, **modules)
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe, device


def alone(device: FakeDevice) -> list[str]:
    """Who ran, after checking that nobody else was on the device at any forward."""
    for name, resident in device.forwards:
        assert resident == {name}
    ran = [name for name, _ in device.forwards]
    device.forwards.clear()
    return ran


@pytest.mark.parametrize("letters", ["LSL", "SSS", "SLS", "LLS", "LLL", "SL"])
def test_one_denoiser_is_on_the_device_at_any_time_and_in_every_run(letters: str) -> None:
    other = small()
    pipe, device = offloaded(small=other)
    stages = StageSchedule.parse(letters, boundaries=(0.4, 0.8)[: len(letters) - 1])
    roles = [role for role in stages.denoisers(5) for _ in range(2)]
    with DenoiserSwitch(pipe, other, stages):
        for _ in range(2):
            run_wan(pipe, steps=5)
            assert alone(device) == roles
            assert not device.resident
    assert not hasattr(other, "_hf_hook")
    run_wan(pipe, steps=2)
    assert alone(device) == ["large"] * 4


def test_offloading_changes_no_bit(expected: torch.Tensor) -> None:
    other = small(layers=4)
    pipe, _ = offloaded(small=other)
    assert torch.equal(blended(pipe, other), expected)


def test_each_denoiser_moves_once_a_stage() -> None:
    other = small()
    pipe, device = offloaded(small=other)
    with DenoiserSwitch(pipe, other, LSL):
        device.moves.clear()
        run_wan(pipe)
    onto = [name for name, where in device.moves if where == str(ACCELERATOR)]
    assert onto == ["large", "small", "large"]


def test_three_denoisers_take_turns_on_the_device() -> None:
    first, second = small(1), small(2)
    pipe, device = offloaded(first=first, second=second)
    stages = StageSchedule(
        (Stage("b", 0.2), Stage("a", 0.4), Stage("large", 0.6), Stage("b", 0.8), Stage("a"))
    )
    with DenoiserSwitch(pipe, stages=stages, denoisers={"a": first, "b": second}):
        for _ in range(2):
            run_wan(pipe, steps=5, guidance_scale=1.0)
            assert alone(device) == ["second", "first", "large", "second", "first"]


@pytest.mark.parametrize("given", ["one", "pair"])
@pytest.mark.parametrize("letters", ["LSL", "SSS", "SLS"])
def test_experts_leave_the_device_too(given: str, letters: str) -> None:
    one, two = small(1), small(2)
    pipe, device = offloaded(
        transformer_2=wan_denoiser(seed=3), boundary_ratio=0.9, one=one, two=two
    )
    stages = StageSchedule.parse(letters, boundaries=(0.125, 0.75))
    with DenoiserSwitch(pipe, (one, two) if given == "pair" else one, stages):
        for _ in range(2):
            run_wan(pipe, steps=8)
            ran = alone(device)
            assert len(ran) == 16
            assert not device.resident
    assert ("two" in ran) == (given == "pair")


def test_an_expert_with_a_name_of_its_own_leaves_the_device() -> None:
    low = wan_denoiser(seed=3)
    pipe, device = offloaded(transformer_2=low, boundary_ratio=0.9)
    stages = StageSchedule((Stage("low", until=0.125), Stage("large")))
    with DenoiserSwitch(pipe, denoisers={"low": low}, stages=stages):
        for _ in range(2):
            run_wan(pipe, steps=8)
            assert alone(device)[:4] == ["low", "low", "large", "large"]


def failing(at: int) -> Callable[..., Any]:
    def fail(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == at:
            raise RuntimeError("out of memory")
        return kwargs

    return fail


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_after_a_failure_one_denoiser_is_on_the_device(inside: bool, at: int) -> None:
    other = small()
    pipe, device = offloaded(small=other)
    switch = DenoiserSwitch(pipe, other, LSL)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_wan(pipe, steps=5, callback_on_step_end=failing(at))
    alone(device)
    if inside:
        switch.detach()
        assert "small" not in device.resident
        switch = DenoiserSwitch(pipe, other, LSL)
    run_wan(pipe, steps=5)
    assert alone(device) == [role for role in LSL.denoisers(5) for _ in range(2)]
    switch.detach()


def test_a_pipe_that_begins_to_offload_after_a_failure_is_followed() -> None:
    other, pipe = small(), wan_pipe()
    device = FakeDevice(large=pipe.transformer, small=other)
    with DenoiserSwitch(pipe, other, LSL):
        with pytest.raises(RuntimeError, match="out of memory"):
            run_wan(pipe, steps=5, callback_on_step_end=failing(2))
        pipe.enable_model_cpu_offload(device="cpu")  # while the small one sits in the pipe
        device.forwards.clear()
        for _ in range(2):
            run_wan(pipe, steps=5)
            assert alone(device) == [role for role in LSL.denoisers(5) for _ in range(2)]
    run_wan(pipe, steps=2)
    assert alone(device) == ["large"] * 4


def test_a_small_denoiser_left_on_the_device_leaves_it_before_the_first_step() -> None:
    other = small()
    pipe, device = offloaded(small=other)
    other.to(ACCELERATOR)
    with DenoiserSwitch(pipe, other, LSL):
        run_wan(pipe, steps=5)
    assert alone(device)[0] == "large"


def sprites() -> Any:
    pipe = WanPipeline.from_pretrained(SPRITES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_models_before_and_after_leave_as_they_do_beside_the_large_one() -> None:
    pipe = sprites()
    other = WanTransformer3DModel.from_pretrained(SPRITES, subfolder="transformer_small")
    device = FakeDevice(
        encoder=pipe.text_encoder, large=pipe.transformer, small=other, vae=pipe.vae
    )
    pipe.vae.post_quant_conv.register_forward_pre_hook(lambda *_: device.ran("vae"))
    pipe.enable_model_cpu_offload(device="cpu")

    def run() -> list[str]:
        pipe(
            "a red star", height=16, width=16, num_frames=1, num_inference_steps=3,
            max_sequence_length=8, guidance_scale=1.0, output_type="np",
        )  # fmt: skip
        return alone(device)

    assert run() == ["encoder", "large", "large", "large", "vae"]
    for letters, ran in {"SSS": ["small"] * 3, "LSL": ["large", "small", "large"]}.items():
        stages = StageSchedule.parse(letters, boundaries=(0.34, 0.67))
        with DenoiserSwitch(pipe, other, stages):
            for _ in range(2):
                assert run() == ["encoder", *ran, "vae"]
    assert not device.resident


def write_lora(module: Any, path: Path) -> Path:
    values = {}
    for name, layer in module.named_modules():
        if name.endswith("to_q"):
            rows, columns = layer.weight.shape
            values[f"transformer.{name}.lora_A.weight"] = torch.ones(2, columns)
            values[f"transformer.{name}.lora_B.weight"] = torch.ones(rows, 2)
    save_file(values, str(path))
    return path


def test_adapters_are_loaded_before_the_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers rebuilds the pipe's hooks around a LoRA, on the machine's own accelerator.
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.get_device", lambda: "cpu:0")
    stages = StageSchedule(
        (Stage("large", 0.4), Stage("small", 0.8, adapters=(Adapter("style"),)), Stage("large"))
    )
    lora = write_lora(small(), tmp_path / "style.safetensors")
    results = []
    for offload in (False, True):
        other, pipe = small(), wan_pipe()
        device = FakeDevice(large=pipe.transformer, small=other)
        if offload:
            pipe.enable_model_cpu_offload(device="cpu")
        with DenoiserSwitch(pipe, other, stages, adapters={"style": lora}):
            results += [run_wan(pipe), run_wan(pipe)]
        if offload:
            alone(device)
        assert not any("lora" in name for name, _ in other.named_modules())
    assert all(torch.equal(result, results[0]) for result in results)


# Sequential offloading.


def offload_layers(pipe: Any) -> None:
    """What ``enable_sequential_cpu_offload`` does to a denoiser; it takes no plain CPU."""
    pipe.remove_all_hooks()
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True)


def test_sequential_offloading_keeps_the_small_weights_away_too(expected: torch.Tensor) -> None:
    pipe, other = wan_pipe(), small(layers=4)
    before = weights(other)
    offload_layers(pipe)
    with DenoiserSwitch(pipe, other, LSL):
        for _ in range(2):
            assert torch.equal(run_wan(pipe), expected)
            assert all(p.is_meta for p in other.parameters())
    assert not is_placed(other)
    assert is_placed(pipe.transformer)
    assert same(weights(other), before)


def test_a_choice_that_changes_between_two_calls_is_followed(expected: torch.Tensor) -> None:
    other = small(layers=4)
    pipe, device = offloaded(small=other)
    with DenoiserSwitch(pipe, other, LSL):
        assert torch.equal(run_wan(pipe), expected)
        offload_layers(pipe)
        assert torch.equal(run_wan(pipe), expected)
        assert all(p.is_meta for p in other.state_dict().values())
        pipe.remove_all_hooks()
        assert torch.equal(run_wan(pipe), expected)
        assert not is_placed(other)
        device.forwards.clear()
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(run_wan(pipe), expected)
        alone(device)


# Group offloading.


@pytest.mark.parametrize(
    "options",
    [
        {"offload_type": "block_level", "num_blocks_per_group": 2},
        {"offload_type": "leaf_level", "non_blocking": True},
        {"offload_type": "block_level", "num_blocks_per_group": 1, "offload_to_disk_path": "x"},
    ],
    ids=["blocks", "leaves", "disk"],
)
def test_group_offloading_is_the_same_for_both(
    options: dict[str, Any], tmp_path: Path, expected: torch.Tensor
) -> None:
    if "offload_to_disk_path" in options:
        options = {**options, "offload_to_disk_path": str(tmp_path)}
    pipe, other = wan_pipe(), small(layers=4)
    before = weights(other)
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), **options)
    mine = hooked(pipe.transformer, "group_offloading")
    with DenoiserSwitch(pipe, other, LSL):
        configs = [
            next(m for m in module.modules() if "_diffusers_hook" in vars(m))
            ._diffusers_hook.get_hook("group_offloading").config
            for module in (pipe.transformer, other)
        ]  # fmt: skip
        for _ in range(2):
            assert torch.equal(run_wan(pipe), expected)
    assert all(
        getattr(configs[0], k) == getattr(configs[1], k) for k in options if k[-4:] != "path"
    )
    assert not hooked(other, "group_offloading")
    assert hooked(pipe.transformer, "group_offloading") == mine
    assert same(weights(other), before)
    assert not list(tmp_path.glob("flowblend-*"))


def test_groups_that_the_user_made_are_left_alone() -> None:
    pipe, other = wan_pipe(), small()
    for module, count in ((pipe.transformer, 2), (other, 1)):
        module.enable_group_offload(torch.device("cpu"), num_blocks_per_group=count)
    mine = hooked(other, "group_offloading")
    blended(pipe, other)
    assert hooked(other, "group_offloading") == mine


# Device maps.


def test_a_device_map_is_scaled_to_the_small_ones_blocks(
    tmp_path: Path, expected: torch.Tensor
) -> None:
    large, other = wan_denoiser(), small(layers=4)
    before = weights(other)
    parts = [name for name, _ in large.named_children() if name != "blocks"]
    chosen = dict.fromkeys([*parts, "scale_shift_table", "blocks.0"], "cpu") | {"blocks.1": "disk"}
    accelerate.dispatch_model(large, chosen, offload_dir=tmp_path)
    pipe = wan_pipe(transformer=large)
    with DenoiserSwitch(pipe, other, LSL):
        assert other.hf_device_map["blocks.1"] == "cpu"
        assert other.hf_device_map["blocks.2"] == other.hf_device_map["blocks.3"] == "disk"
        for _ in range(2):
            assert torch.equal(run_wan(pipe), expected)
            assert all(p.is_meta for p in other.blocks[2:].parameters())
            assert not any(p.is_meta for p in other.blocks[:2].parameters())
    assert not is_placed(other)
    assert not hasattr(other, "hf_device_map")
    assert large.hf_device_map == chosen
    assert same(weights(other), before)


def test_parts_of_the_map_may_be_coarse_or_fine() -> None:
    large, other = wan_denoiser(layers=4), small(layers=2)
    coarse = scaled_device_map({"": 3}, large, other)
    assert coarse == {"": 3}
    by_part = scaled_device_map({"blocks": 1, "rope": 0, "proj_out": 2}, large, other)
    assert (by_part["blocks.0"], by_part["blocks.1"], by_part["proj_out"]) == (1, 1, 2)
    fine = {"rope": 0, "blocks.0": 0, "blocks.1": 0, "blocks.2.attn1": 1, "blocks.2.ffn": 2}
    assert scaled_device_map(fine, large, other)["blocks.1"] == 1
    accelerate.utils.modeling.check_device_map(other, by_part)


# Layerwise casting.

FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize("patterns", [None, ("ffn",)])
def test_casting_is_the_same_for_both_and_can_be_undone(patterns: Any) -> None:
    options = {"storage_dtype": FLOAT8, "compute_dtype": torch.float32}
    by_hand, other_by_hand = wan_pipe(), small(layers=4)
    for module in (by_hand.transformer, other_by_hand):
        module.enable_layerwise_casting(**options, skip_modules_pattern=patterns)
    by_itself = blended(by_hand, other_by_hand)

    pipe, other = wan_pipe(), small(layers=4)
    before = weights(other)
    pipe.transformer.enable_layerwise_casting(**options, skip_modules_pattern=patterns)
    with DenoiserSwitch(pipe, other, LSL):
        for _ in range(2):
            assert torch.equal(run_wan(pipe), by_itself)
        assert same(weights(other), weights(other_by_hand))
        assert other.blocks[3].attn1.to_q.weight.dtype == FLOAT8
    assert not hooked(other, "layerwise_casting")
    assert same(weights(other), before)


def test_casting_goes_with_model_offloading_and_groups() -> None:
    options = {"storage_dtype": FLOAT8, "compute_dtype": torch.float32}
    plain = wan_pipe()
    plain.transformer.enable_layerwise_casting(**options)
    expected = blended(plain, small())

    other = small()
    pipe, device = offloaded(small=other)
    pipe.transformer.enable_layerwise_casting(**options)
    assert torch.equal(blended(pipe, other), expected)
    alone(device)

    pipe, other = wan_pipe(), small()
    pipe.transformer.enable_layerwise_casting(**options)
    pipe.transformer.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
    assert torch.equal(blended(pipe, other), expected)
    assert same(weights(other), weights(small()))


# From a folder, after failures, and without gradients.


def test_a_denoiser_from_a_folder_is_offloaded_like_one_that_was_given(
    tmp_path: Path,
) -> None:
    small().save_pretrained(tmp_path)
    pipe, device = offloaded()
    with DenoiserSwitch(pipe, tmp_path, LSL) as switch:
        device.watch(small=switch._slots["small"]["transformer"])
        for _ in range(2):
            run_wan(pipe, steps=5)
            assert alone(device) == [role for role in LSL.denoisers(5) for _ in range(2)]
    pipe = wan_pipe()
    pipe.transformer.enable_layerwise_casting(FLOAT8, torch.float32)
    expected = blended(pipe, small())
    assert torch.equal(blended(pipe, tmp_path), expected)


def test_a_failed_attachment_takes_the_hooks_away_again() -> None:
    other = small()
    shared = FlowBlendScheduler.from_config(
        wan_pipe().scheduler.config, stages="LSL", boundaries=(0.4, 0.8)
    )
    busy, pipe = wan_pipe(shared), wan_pipe(shared)
    offload_layers(pipe)
    switch = DenoiserSwitch(busy, small())
    with pytest.raises(SwitchError, match="drives another pipe"):
        DenoiserSwitch(pipe, other)
    assert not is_placed(other)
    switch.detach()


@pytest.mark.parametrize("way", ["model", "layers", "groups", "casting"])
def test_everything_works_and_comes_back_in_inference_mode(way: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    pipe, other = wan_pipe(), small()
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif way == "layers":
        offload_layers(pipe)
    elif way == "groups":
        pipe.transformer.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
    else:
        pipe.transformer.enable_layerwise_casting(FLOAT8, torch.float32)
    expected = blended(pipe, small())
    with torch.inference_mode():
        for given in (other, other, tmp_path):
            assert torch.equal(blended(pipe, given), expected)
    assert torch.equal(blended(pipe, other), expected)
    assert same(weights(other), weights(small()))
