"""Adapters on a denoiser that switches share: each stays until its last holder goes."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from fake_device import ACCELERATOR, FakeDevice
from peft import LoraConfig
from safetensors.torch import save_file
from snapshots import Snapshot, check
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import Adapter, AdapterError, DenoiserSwitch, Stage, StageSchedule
from flowblend_plugin.denoisers.offloading import is_placed

STEPS = 4
CPU = torch.device("cpu")


def small() -> Any:
    return wan_denoiser(layers=1, heads=1, seed=1)


def lora_file(path: Path, ending: str = ".attn1.to_v", seed: int = 3) -> Path:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in small().named_modules():
        if name.endswith(ending):
            rows, columns = layer.weight.shape
            for half, shape in (("A", (2, columns)), ("B", (rows, 2))):
                key = f"transformer.{name}.lora_{half}.weight"
                weights[key] = torch.randn(*shape, generator=generator)
    save_file(weights, str(path))
    return path


@pytest.fixture
def style(tmp_path: Path) -> Path:
    return lora_file(tmp_path / "style.safetensors")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return lora_file(tmp_path / "other.safetensors", ".attn1.to_q", seed=8)


def using(*adapters: tuple[str, float]) -> StageSchedule:
    """Large, then small with these adapters, then large again."""
    named = tuple(Adapter(*one) for one in adapters)
    return StageSchedule(
        (Stage("large", 0.25), Stage("small", 0.75, adapters=named), Stage("large"))
    )


def pipes(count: int = 2) -> list[Any]:
    return [wan_pipe(transformer=wan_denoiser(seed=seed)) for seed in range(count)]


def add(module: Any, name: str) -> None:
    torch.manual_seed(5)
    module.add_adapter(
        LoraConfig(r=4, target_modules=["to_k", "to_v"], init_lora_weights=False), name
    )
    module.set_adapters([name], [0.3])


# What is on the shared denoiser before.


def bare(module: Any) -> None:
    pass


def with_one(module: Any) -> None:
    add(module, "mine")


def frozen(module: Any) -> None:
    module.requires_grad_(False)
    module.blocks[0].ffn.requires_grad_(True)


def emptied(module: Any) -> None:
    add(module, "mine")
    module.delete_adapters("mine")


# How the pipes keep their own.


def plainly(pipe: Any) -> None:
    pass


def cast(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def by_group(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(CPU, num_blocks_per_group=1)


def by_leaf(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(CPU, offload_type="leaf_level")


def by_layer(pipe: Any) -> None:
    accelerate.cpu_offload(pipe.transformer, CPU, offload_buffers=True)


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device=ACCELERATOR)


WAYS = [plainly, cast, by_group, by_leaf, by_layer, by_model]
MIXED = [
    *((way, way) for way in WAYS),
    *((plainly, way) for way in WAYS[1:]),
    (cast, by_layer),
    (by_group, by_model),
]
NAMES = [
    [[("style", 0.5)], [("style", 1.5)], [("style", 0.5)]],
    [[("style", 0.5)], [("other", 0.7)], [("other", 0.2), ("style", 1.0)]],
]


@pytest.mark.parametrize("before", [bare, with_one, frozen, emptied])
@pytest.mark.parametrize("names", NAMES, ids=["one", "two"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_adapters_stay_until_their_last_switch_is_detached(
    before: Callable[[Any], None], names: Any, order: tuple[int, ...], style: Path, other: Path
) -> None:
    module, files = small(), {"style": style, "other": other}
    before(module)
    here, former = pipes(3), Snapshot(None, small=module)
    plain = run_wan(wan_pipe(transformer=module), STEPS)

    def attached(i: int) -> DenoiserSwitch:
        sources = {name: files[name] for name, _ in names[i]}
        return DenoiserSwitch(here[i], module, using(*names[i]), adapters=sources)

    expected = []
    for i, pipe in enumerate(here):
        with attached(i):
            expected.append(run_wan(pipe, STEPS))
    check(former, Snapshot(None, small=module))
    switches, left = [attached(i) for i in range(3)], set(order)
    for one in order:
        switches[one].detach()
        left.remove(one)
        for i in left:
            assert torch.equal(run_wan(here[i], STEPS), expected[i])
        loaded = {name for i in left for name, _ in names[i]}
        assert set(getattr(module, "peft_config", ())) - {"mine"} == loaded
        assert torch.equal(run_wan(wan_pipe(transformer=module), STEPS), plain)
    check(former, Snapshot(None, small=module))


@pytest.mark.parametrize(("one", "two"), MIXED)
@pytest.mark.parametrize("first", [0, 1])
def test_adapters_and_offloading_of_a_shared_denoiser_go_in_any_order(
    one: Callable[[Any], None], two: Callable[[Any], None], first: int, style: Path, other: Path
) -> None:
    module, here = small(), pipes()
    FakeDevice(a=here[0].transformer, b=here[1].transformer, small=module)
    for way, pipe in zip((one, two), here, strict=True):
        way(pipe)
    asked = [{"style": style}, {"style": style, "other": other}]
    stages = [using(("style", 0.5)), using(("style", 1.0), ("other", 0.5))]
    former = Snapshot(None, small=module)

    def attached(i: int) -> DenoiserSwitch:
        return DenoiserSwitch(here[i], module, stages[i], adapters=asked[i])

    switches = [attached(0), attached(1)]
    for pipe in here:
        run_wan(pipe, STEPS)
    switches[first].detach()
    left = 1 - first
    found = run_wan(here[left], STEPS)
    switches[left].detach()
    check(former, Snapshot(None, small=module))
    if one is two:
        with attached(left):
            assert torch.equal(run_wan(here[left], STEPS), found)
    assert not is_placed(module)


def test_two_denoisers_that_are_shared_by_two_pipes_keep_their_adapters(style: Path) -> None:
    large, module = small(), small()
    stages = StageSchedule(
        (
            Stage("large", 0.5, adapters=(Adapter("style"),)),
            Stage("small", adapters=(Adapter("style"),)),
        )
    )
    pipe = wan_pipe(transformer=large)
    again = copy.copy(pipe)
    again.scheduler = copy.deepcopy(pipe.scheduler)
    former = Snapshot(pipe, small=module)
    switches = [DenoiserSwitch(p, module, stages, adapters={"style": style}) for p in (pipe, again)]
    expected = run_wan(pipe, STEPS)
    switches[0].detach()
    assert torch.equal(run_wan(again, STEPS), expected)
    switches[1].detach()
    check(former, Snapshot(pipe, small=module))


def test_a_switch_without_a_file_holds_what_another_has_loaded(style: Path) -> None:
    module, (one, two) = small(), pipes()
    former = Snapshot(None, small=module)
    first = DenoiserSwitch(one, module, using(("style", 0.5)), adapters={"style": style})
    second = DenoiserSwitch(two, module, using(("style", 0.5)))
    expected = run_wan(two, STEPS)
    first.detach()
    assert torch.equal(run_wan(two, STEPS), expected)
    second.detach()
    check(former, Snapshot(None, small=module))
    with pytest.raises(AdapterError, match="isn't loaded in the small denoiser and has no source"):
        DenoiserSwitch(two, module, using(("style", 0.5)))


def test_a_copy_of_the_file_is_the_same_adapter(style: Path, tmp_path: Path) -> None:
    module, (one, two) = small(), pipes()
    copied = shutil.copy(style, tmp_path / "copy.safetensors")
    with (
        DenoiserSwitch(one, module, using(("style", 0.5)), adapters={"style": style}),
        DenoiserSwitch(two, module, using(("style", 0.5)), adapters={"style": copied}),
    ):
        assert list(module.peft_config) == ["style"]


@pytest.mark.parametrize("is_written_over", [False, True])
def test_another_file_under_the_same_name_is_refused_and_changes_nothing(
    is_written_over: bool, style: Path, other: Path
) -> None:
    module, (one, two) = small(), pipes()
    with DenoiserSwitch(one, module, using(("style", 0.5)), adapters={"style": style}):
        expected, now = run_wan(one, STEPS), Snapshot(two, small=module)
        file = shutil.copy(other, style) if is_written_over else other
        with pytest.raises(AdapterError, match=r"'style' lies on this Wan.* another name, or det"):
            DenoiserSwitch(two, module, using(("style", 0.5)), adapters={"style": file})
        check(now, Snapshot(two, small=module))
        assert torch.equal(run_wan(one, STEPS), expected)
    with DenoiserSwitch(two, module, using(("style", 0.5)), adapters={"style": file}):
        run_wan(two, STEPS)


def test_two_files_of_one_name_for_two_roles_of_one_module_are_refused(
    style: Path, other: Path
) -> None:
    module = small()
    pipe, named = wan_pipe(transformer=module), (Adapter("style"),)
    stages = StageSchedule((Stage("large", 0.5, adapters=named), Stage("small", adapters=named)))
    former = Snapshot(pipe)
    with pytest.raises(AdapterError, match="another name"):
        DenoiserSwitch(pipe, module, stages, adapters={"style": {"large": style, "small": other}})
    check(former, Snapshot(pipe))


def test_what_a_forgotten_switch_left_gives_way_to_the_next_ones(style: Path, other: Path) -> None:
    module, (one, two) = small(), pipes()
    former = Snapshot(None, small=module)
    with DenoiserSwitch(two, module, using(("style", 0.5)), adapters={"style": other}):
        expected = run_wan(two, STEPS)
    forgotten = DenoiserSwitch(one, module, using(("style", 0.5)), adapters={"style": style})
    run_wan(one, STEPS)
    del forgotten
    with DenoiserSwitch(two, module, using(("style", 0.5)), adapters={"style": other}):
        assert torch.equal(run_wan(two, STEPS), expected)
    check(former, Snapshot(None, small=module))


def test_an_attachment_that_fails_leaves_the_adapters_of_another(style: Path, other: Path) -> None:
    module, (one, two) = small(), pipes()
    with DenoiserSwitch(one, module, using(("style", 0.5)), adapters={"style": style}):
        expected, now = run_wan(one, STEPS), Snapshot(two, small=module)
        wanted = using(("style", 0.5), ("other", 1.0), ("third", 1.0))
        with pytest.raises(AdapterError, match="third"):
            DenoiserSwitch(two, module, wanted, adapters={"style": style, "other": other})
        check(now, Snapshot(two, small=module))
        assert torch.equal(run_wan(one, STEPS), expected)


def deletes(module: Any, file: Path) -> None:
    module.delete_adapters("style")


def replaces(module: Any, file: Path) -> None:
    module.delete_adapters("style")
    module.load_lora_adapter(str(file), adapter_name="style", prefix="transformer")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("change", [deletes, replaces])
def test_what_the_user_does_to_a_shared_adapter_stays(
    change: Callable[[Any, Path], None], first: int, style: Path, other: Path
) -> None:
    module, here = small(), pipes()
    stages, sources = using(("style", 0.5)), {"style": style}
    switches = [DenoiserSwitch(pipe, module, stages, adapters=sources) for pipe in here]
    change(module, other)
    for i in (first, 1 - first):
        if change is deletes:
            with pytest.raises(AdapterError, match="isn't loaded in the small denoiser any more"):
                run_wan(here[i], STEPS)
        else:
            run_wan(here[i], STEPS)
        switches[i].detach()
    assert list(getattr(module, "peft_config", ())) == (["style"] if change is replaces else [])


def test_an_adapter_that_was_deleted_is_loaded_again_for_the_next_switch(style: Path) -> None:
    module, (one, two) = small(), pipes()
    former, stages = Snapshot(None, small=module), using(("style", 0.5))
    first = DenoiserSwitch(one, module, stages, adapters={"style": style})
    expected = run_wan(one, STEPS)
    module.delete_adapters("style")
    second = DenoiserSwitch(two, module, stages, adapters={"style": style})
    second.detach()
    assert torch.equal(run_wan(one, STEPS), expected)
    first.detach()
    check(former, Snapshot(None, small=module))


def test_adapters_that_come_and_go_change_no_bit_of_a_call_in_another_thread(style: Path) -> None:
    module, (one, two) = small(), pipes()
    with DenoiserSwitch(one, module, "SSS"):
        expected, found = run_wan(one, 30), []

        def work() -> None:
            found.append(run_wan(one, 30))

        thread = threading.Thread(target=work)
        thread.start()
        times = 0
        while thread.is_alive():
            DenoiserSwitch(two, module, using(("style", 0.5)), adapters={"style": style}).detach()
            times += 1
        thread.join()
    assert times > 1
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("first", [0, 1])
def test_a_compiled_denoiser_and_what_it_was_made_of_share_adapters(
    first: int, style: Path
) -> None:
    module, here = small(), pipes()
    made = (torch.compile(module, backend="eager"), module)
    former, stages = Snapshot(None, small=module), using(("style", 0.5))
    switches = [
        DenoiserSwitch(pipe, one, stages, adapters={"style": style})
        for pipe, one in zip(here, made, strict=True)
    ]
    expected = run_wan(here[1 - first], STEPS)
    switches[first].detach()
    assert torch.equal(run_wan(here[1 - first], STEPS), expected)
    switches[1 - first].detach()
    check(former, Snapshot(None, small=module))
