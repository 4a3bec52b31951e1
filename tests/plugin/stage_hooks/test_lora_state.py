"""LoRA adapters of the user's own are put back to the very numbers, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families.unets import run_sdxl, sdxl_denoiser, sdxl_pipe
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from snapshots import Snapshot, check, every_switch_checked
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import Adapter, AdapterError, DenoiserSwitch, Stage, StageSchedule

STEPS = 4
STYLE = (Adapter("style", 0.5),)
# The large one with the style, the small one without, the large one without.
MIXED = StageSchedule((Stage("large", 0.4, adapters=STYLE), Stage("small", 0.8), Stage("large")))


@pytest.fixture
def checked() -> Iterator[None]:
    with every_switch_checked():
        yield


@pytest.fixture
def style(tmp_path: Path) -> Path:
    return lora_file(tmp_path / "style.safetensors", ".attn1.to_v", seed=3)


def lora_file(path: Path, ending: str, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in wan_denoiser().named_modules():
        if name.endswith(ending):
            rows, columns = layer.weight.shape
            for half, shape in (("A", (2, columns)), ("B", (rows, 2))):
                key = f"transformer.{name}.lora_{half}.weight"
                weights[key] = torch.randn(*shape, generator=generator)
    save_file(weights, str(path))
    return path


def add(module: Any, name: str, seed: int = 0, layers: Any = ("to_q", "to_k"), **more: Any) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 3, "target_modules": list(layers), **more}, init_lora_weights=False
    )
    module.add_adapter(config, name)


def scalings(module: Any, name: str) -> set[float]:
    layers = (layer for layer in module.modules() if isinstance(layer, BaseTunerLayer))
    return {layer.scaling[name] for layer in layers if name in layer.scaling}


# What users set: each changes a denoiser in its own way.


def nothing(module: Any) -> None:
    pass


def rslora(module: Any) -> None:
    add(module, "a", use_rslora=True)
    module.set_adapters(["a"], [0.3])


def by_block(module: Any) -> None:
    add(module, "a")
    module.set_adapters(["a"], [{"blocks.0": 0.2, "blocks.1": 1.5}])


def patterns(module: Any) -> None:
    add(module, "a", rank_pattern={"to_q": 2}, alpha_pattern={"to_k": 7})
    module.set_adapters(["a"], [0.7])


def awkward_weight(module: Any) -> None:
    add(module, "a", lora_alpha=1, r=7)
    module.set_adapters(["a"], [0.1])  # 0.1 / 7 isn't what comes back of dividing and multiplying


def scaled_by_hand(module: Any) -> None:
    add(module, "a")
    for i, layer in enumerate(m for m in module.modules() if isinstance(m, BaseTunerLayer)):
        layer.scaling["a"] = 0.1 + i / 7


def two_on_other_layers(module: Any) -> None:
    add(module, "b", 2, ["to_k"])
    add(module, "a", 1, ["to_q"])
    module.set_adapters(["a", "b"], [0.3, 0.9])


def one_inactive(module: Any) -> None:
    add(module, "a", 1)
    add(module, "b", 2)
    module.set_adapters(["a", "b"], [0.3, 0.9])
    module.set_adapter("b")


def disabled(module: Any) -> None:
    add(module, "a")
    module.set_adapters(["a"], [0.3])
    module.disable_lora()


def on_the_same_layers(module: Any) -> None:
    add(module, "a", layers=["to_v"])
    module.set_adapters(["a"], [0.6])


def deleted(module: Any) -> None:
    add(module, "a")
    add(module, "b", 2)
    module.delete_adapters("b")


def trained(module: Any) -> None:
    add(module, "a")
    module.blocks[0].ffn.requires_grad_(True)
    module.blocks[1].requires_grad_(False)


USERS: list[Callable[[Any], None]] = [
    nothing, rslora, by_block, patterns, awkward_weight, scaled_by_hand, two_on_other_layers,
    one_inactive, disabled, on_the_same_layers, deleted, trained,
]  # fmt: skip


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("called", [True, False], ids=["called", "attached"])
def test_what_the_user_set_is_what_is_put_back(
    user: Any, called: bool, style: Path, checked: None
) -> None:
    pipe, other = wan_pipe(), wan_denoiser(layers=1, seed=1)
    user(pipe.transformer)
    user(other) if user is not trained and user is not by_block else None
    expected = run_wan(pipe, STEPS)
    for _ in range(2):
        with DenoiserSwitch(pipe, other, MIXED, adapters={"style": style}):
            if called:
                run_wan(pipe, STEPS)
    assert torch.equal(run_wan(pipe, STEPS), expected)


@pytest.mark.parametrize("user", [one_inactive, disabled])
def test_adapters_that_come_back_to_life_have_the_weights_of_before(user: Any, style: Path) -> None:
    def woken(pipe: Any) -> torch.Tensor:
        pipe.transformer.enable_lora()
        pipe.transformer.set_adapter("a")
        return run_wan(pipe, STEPS)

    plain, pipe = wan_pipe(), wan_pipe()
    user(plain.transformer)
    user(pipe.transformer)
    stages = StageSchedule(
        (Stage("large", 0.5, adapters=(Adapter("a", 2.0), *STYLE)), Stage("large"))
    )
    with DenoiserSwitch(pipe, stages=stages, adapters={"style": style}):
        run_wan(pipe, STEPS)
    assert torch.equal(woken(pipe), woken(plain))


def test_weights_by_block_of_a_unet_are_put_back(checked: None) -> None:
    pipe = sdxl_pipe()
    add(pipe.unet, "a", 1, ["to_q", "to_k", "to_v"])
    add(pipe.unet, "b", 2, ["to_q"])
    pipe.set_adapters(["a"], [{"unet": {"down": 0.2, "mid": 1.0, "up": 1.7}}])
    expected = run_sdxl(pipe)
    stages = StageSchedule((Stage("large", 0.5, adapters=(Adapter("b", 0.5),)), Stage("small")))
    with DenoiserSwitch(pipe, sdxl_denoiser(seed=1), stages):
        run_sdxl(pipe)
    assert torch.equal(run_sdxl(pipe), expected)


def test_a_stage_gives_an_rslora_the_weight_that_set_adapters_gives_it() -> None:
    pipe = wan_pipe()
    rslora(pipe.transformer)
    pipe.set_adapters(["a"], [0.8])
    expected = run_wan(pipe, STEPS)
    pipe.set_adapters(["a"], [0.1])
    stages = StageSchedule((Stage("large", adapters=(Adapter("a", 0.8),)),))
    with DenoiserSwitch(pipe, stages=stages):
        assert torch.equal(run_wan(pipe, STEPS), expected)


# While the switch is attached.


def loads(pipe: Any, mine: Path) -> None:
    pipe.load_lora_weights(mine, adapter_name="mine")


def loads_and_weighs(pipe: Any, mine: Path) -> None:
    loads(pipe, mine)
    pipe.set_adapters(["mine"], [0.4])


def weighs(pipe: Any, mine: Path) -> None:
    pipe.set_adapters(["a"], [0.9])


def turns_off(pipe: Any, mine: Path) -> None:
    pipe.disable_lora()


def deletes(pipe: Any, mine: Path) -> None:
    loads(pipe, mine)
    pipe.delete_adapters("a")


def combines(pipe: Any, mine: Path) -> None:
    loads(pipe, mine)
    pipe.set_adapters(["mine", "a"], [0.4, 0.2])


CHANGES = [loads, loads_and_weighs, weighs, turns_off, deletes, combines]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "when", ["before the call", "after the call", "in the call", "after a failure"]
)
def test_what_the_user_changes_meanwhile_stays(
    change: Any, when: str, style: Path, tmp_path: Path
) -> None:
    mine = lora_file(tmp_path / "mine.safetensors", ".attn1.to_q", seed=8)
    plain, pipe = wan_pipe(), wan_pipe()
    for one in (plain, pipe):
        add(one.transformer, "a", layers=["to_q"])
        one.set_adapters(["a"], [0.3])
    change(plain, mine)
    expected = run_wan(plain, STEPS)

    def at_the_first_step(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        if step == 0 and when == "in the call":
            change(pipe, mine)
        if step == 0 and when == "after a failure":
            raise ZeroDivisionError
        return kwargs

    with DenoiserSwitch(pipe, wan_denoiser(layers=1, seed=1), MIXED, adapters={"style": style}):
        if when == "before the call":
            change(pipe, mine)
        if when == "after a failure":
            with pytest.raises(ZeroDivisionError):
                run_wan(pipe, STEPS, callback_on_step_end=at_the_first_step)
            change(pipe, mine)
        run_wan(
            pipe,
            STEPS,
            callback_on_step_end=at_the_first_step if when != "after a failure" else None,
        )
        if when == "after the call":
            change(pipe, mine)
        if when != "after the call":
            assert pipe.get_active_adapters() == plain.get_active_adapters()
    assert pipe.get_list_adapters() == plain.get_list_adapters()
    assert pipe.get_active_adapters() == plain.get_active_adapters()
    for name in plain.transformer.peft_config:
        assert scalings(pipe.transformer, name) == scalings(plain.transformer, name)
    assert list(pipe.transformer.state_dict()) == list(plain.transformer.state_dict())
    assert torch.equal(run_wan(pipe, STEPS), expected)


def test_all_loras_unloaded_meanwhile_is_an_error_that_names_the_one_that_lacks(
    style: Path,
) -> None:
    pipe = wan_pipe()
    expected = run_wan(pipe, STEPS)
    with DenoiserSwitch(pipe, wan_denoiser(layers=1), MIXED, adapters={"style": style}):
        pipe.unload_lora_weights()
        with pytest.raises(AdapterError, match="'style' isn't loaded in the large denoiser any m"):
            run_wan(pipe, STEPS)
    assert torch.equal(run_wan(pipe, STEPS), expected)


def test_another_adapter_of_the_same_name_is_the_users(style: Path, tmp_path: Path) -> None:
    pipe = wan_pipe()
    mine = lora_file(tmp_path / "mine.safetensors", ".attn1.to_q", seed=8)
    with DenoiserSwitch(pipe, wan_denoiser(layers=1), MIXED, adapters={"style": style}):
        pipe.unload_lora_weights()
        pipe.load_lora_weights(mine, adapter_name="style")
    assert list(pipe.transformer.peft_config) == ["style"]
    plain = wan_pipe()
    plain.load_lora_weights(mine, adapter_name="style")
    assert torch.equal(run_wan(pipe, STEPS), run_wan(plain, STEPS))


# Fused adapters.


@pytest.mark.parametrize("fused", [("a",), ("a", "b")])
@pytest.mark.parametrize("where", ["large", "small"])
def test_fused_adapters_are_refused_and_left_as_they_are(
    fused: tuple[str, ...], where: str, style: Path
) -> None:
    pipe, other = wan_pipe(), wan_denoiser(seed=1)
    module = pipe.transformer if where == "large" else other
    for seed, name in enumerate("ab"):
        add(module, name, seed)
    module.set_adapters(list("ab"), [1.0, 0.5])
    module.fuse_lora(0.7, adapter_names=list(fused))
    expected, before = run_wan(pipe, STEPS), Snapshot(pipe, small=other)
    with pytest.raises(AdapterError, match=rf"{', '.join(fused)} are fused.*{where}.*unfuse_lora"):
        DenoiserSwitch(pipe, other, MIXED, adapters={"style": style})
    after = Snapshot(pipe, small=other)
    assert torch.equal(run_wan(pipe, STEPS), expected)
    assert not [line for line in after.differences(before) if "scheduler" not in line]


def test_adapters_fused_meanwhile_are_refused_too(style: Path) -> None:
    pipe = wan_pipe()
    add(pipe.transformer, "a")
    with DenoiserSwitch(pipe, wan_denoiser(layers=1), MIXED, adapters={"style": style}):
        pipe.fuse_lora(adapter_names=["a"])
        with pytest.raises(AdapterError, match="are fused"):
            run_wan(pipe, STEPS)
    assert list(pipe.transformer.peft_config) == ["a"]
    assert pipe.transformer.blocks[0].attn1.to_q.merged_adapters == ["a"]


def test_stages_without_adapters_leave_fused_ones_at_work(checked: None) -> None:
    pipe = wan_pipe()
    add(pipe.transformer, "a")
    pipe.fuse_lora(adapter_names=["a"])
    expected = run_wan(pipe, STEPS)
    with DenoiserSwitch(pipe, wan_denoiser(layers=1), "LLL"):
        assert torch.equal(run_wan(pipe, STEPS), expected)


# Beside other things.


@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_adapters_and_groups_go_together(way: str, style: Path) -> None:
    results = []
    for grouped in (False, True):
        pipe, other = wan_pipe(), wan_denoiser(layers=1, seed=1)
        add(pipe.transformer, "a")
        if grouped:
            options = {
                "blocks": {"num_blocks_per_group": 1},
                "leaves": {"offload_type": "leaf_level"},
            }
            pipe.transformer.enable_group_offload(torch.device("cpu"), **options[way])
        results.append([run_wan(pipe, STEPS)])
        with DenoiserSwitch(pipe, other, MIXED, adapters={"style": style}):
            results[-1].append(run_wan(pipe, STEPS))
        results[-1].append(run_wan(pipe, STEPS))
        assert list(pipe.transformer.peft_config) == ["a"]
    for one, two in itertools.pairwise(results):
        assert all(map(torch.equal, one, two))


def test_an_attachment_that_fails_leaves_no_layer_wrapped(style: Path) -> None:
    pipe, other = wan_pipe(), wan_denoiser(layers=1, seed=1)
    add(pipe.transformer, "a")
    before = Snapshot(pipe, small=other)
    stages = StageSchedule((Stage("large", 0.5, adapters=STYLE), Stage("small", adapters=STYLE)))
    with pytest.raises(AdapterError, match="small"):
        DenoiserSwitch(pipe, other, stages, adapters={"style": {"large": style}})
    check(before, Snapshot(pipe, small=other))


def test_adapters_are_set_in_inference_mode(style: Path) -> None:
    pipe = wan_pipe()
    add(pipe.transformer, "a")
    expected = run_wan(pipe, STEPS)
    with (
        torch.inference_mode(),
        DenoiserSwitch(pipe, wan_denoiser(layers=1), MIXED, adapters={"style": style}),
    ):
        run_wan(pipe, STEPS)
    assert torch.equal(run_wan(pipe, STEPS), expected)
