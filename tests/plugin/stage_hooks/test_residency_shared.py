"""Switches that share denoisers, and offloading that is rebuilt in mid-call: all is put back."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from fake_device import ACCELERATOR, FakeDevice
from snapshots import Snapshot, check
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, StageHook, StageSchedule, SwitchError
from flowblend_plugin.denoisers.offloading import is_placed

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
CPU = torch.device("cpu")


def small() -> Any:
    return wan_denoiser(layers=1, heads=1, seed=1)


def cast(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def by_group(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(CPU, num_blocks_per_group=1)


def by_layer(pipe: Any) -> None:
    accelerate.cpu_offload(pipe.transformer, CPU, offload_buffers=True)


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device=ACCELERATOR)


def nothing(pipe: Any) -> None:
    pass


def cast_groups(pipe: Any) -> None:
    cast(pipe)
    by_group(pipe)


def placed(module: Any) -> Any:
    """What is on a module: hooks of both libraries, and dtypes."""
    return (
        is_placed(module),
        [sorted(part._diffusers_hook.hooks) for part in module.modules()
         if hasattr(part, "_diffusers_hook") and part._diffusers_hook.hooks],
        [value.dtype for value in module.parameters()],
    )  # fmt: skip


@pytest.mark.parametrize("way", [cast, by_group, by_layer, by_model, cast_groups])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_what_is_on_a_shared_denoiser_stays_until_the_last_switch_is_detached(
    way: Callable[[Any], None], order: tuple[int, ...]
) -> None:
    module = small()
    pipes = [wan_pipe(transformer=wan_denoiser(seed=seed)) for seed in range(3)]
    for pipe in pipes:
        way(pipe)
    before = Snapshot(None, small=module)
    expected = []
    for pipe in pipes:
        with DenoiserSwitch(pipe, module, LSL):
            expected.append(run_wan(pipe, steps=5))
    check(before, Snapshot(None, small=module))
    pipes_before = [Snapshot(pipe) for pipe in pipes]
    switches = [DenoiserSwitch(pipe, module, LSL) for pipe in pipes]
    now = placed(module)
    assert now[0] or now[2][0] is torch.float32
    left = set(order)
    for one in order:
        switches[one].detach()
        left.remove(one)
        check(pipes_before[one], Snapshot(pipes[one]))
        for other in left:
            assert placed(module) == now
            assert torch.equal(run_wan(pipes[other], steps=5), expected[other])
    check(before, Snapshot(None, small=module))


@pytest.mark.parametrize(
    ("one", "two"), itertools.permutations([cast, by_group, by_layer, by_model, nothing], 2)
)
@pytest.mark.parametrize("first", [0, 1])
def test_pipes_that_keep_a_shared_denoiser_otherwise_leave_nothing_on_it(
    one: Callable[[Any], None], two: Callable[[Any], None], first: int
) -> None:
    module = small()
    pipes = [wan_pipe(transformer=wan_denoiser(seed=seed)) for seed in range(2)]
    one(pipes[0])
    two(pipes[1])
    before = Snapshot(None, small=module)
    switches = [DenoiserSwitch(pipe, module, LSL) for pipe in pipes]
    switches[first].detach()
    assert run_wan(pipes[1 - first], steps=5).isfinite().all()
    switches[1 - first].detach()
    check(before, Snapshot(None, small=module))


def test_what_a_later_switch_lays_goes_with_it_where_an_earlier_one_had_no_need_of_it() -> None:
    plain, grouped, module = wan_pipe(), wan_pipe(transformer=wan_denoiser(seed=3)), small()
    by_group(grouped)
    with DenoiserSwitch(plain, module, LSL):
        before = Snapshot(None, small=module)
        with DenoiserSwitch(grouped, module, LSL):
            assert is_placed(module)
        check(before, Snapshot(None, small=module))
        assert not is_placed(module)


def test_a_choice_that_all_have_changed_is_followed() -> None:
    large, module = wan_denoiser(), small()
    pipes = [wan_pipe(transformer=large) for _ in range(2)]
    by_group(pipes[0])
    switches = [DenoiserSwitch(pipe, module, LSL) for pipe in pipes]
    run_wan(pipes[0])
    large._diffusers_hook.remove_hook("group_offloading", recurse=True)
    run_wan(pipes[1])
    assert not is_placed(module)
    by_layer(pipes[0])
    run_wan(pipes[0])
    assert all(p.is_meta for p in module.parameters())
    for switch in switches:
        switch.detach()
    assert not is_placed(module)


def test_an_attachment_that_fails_takes_nothing_from_another() -> None:
    module, pipe, other = small(), wan_pipe(), wan_pipe(transformer=wan_denoiser(seed=3))
    cast_groups(pipe)
    cast_groups(other)
    before = Snapshot(None, small=module)
    with DenoiserSwitch(pipe, module, LSL):
        now, expected = placed(module), run_wan(pipe)
        with pytest.raises(SwitchError, match="another name"):
            DenoiserSwitch(other, module, LSL, hooks=[Named(), Named()])
        assert placed(module) == now
        assert torch.equal(run_wan(pipe), expected)
    check(before, Snapshot(None, small=module))


class Named(StageHook):
    """A hook with a state, whose name two of them share."""

    def state_dict(self) -> Any:
        return {}


@pytest.mark.parametrize("first", [0, 1])
def test_copies_of_a_pipe_share_its_chain(first: int) -> None:
    module, pipe = small(), wan_pipe(transformer_2=wan_denoiser(seed=3), boundary_ratio=0.5)
    by_model(pipe)
    before = Snapshot(pipe, small=module)
    again = copy.copy(pipe)
    again.scheduler = copy.deepcopy(pipe.scheduler)
    switches = [DenoiserSwitch(one, module, LSL) for one in (pipe, again)]
    switches[first].detach()
    switches[1 - first].detach()
    check(before, Snapshot(pipe, small=module))


def test_a_shared_denoiser_sends_the_large_one_of_each_pipe_away() -> None:
    module, pipes = small(), [wan_pipe(transformer=wan_denoiser(seed=seed)) for seed in range(2)]
    device = FakeDevice(small=module, a=pipes[0].transformer, b=pipes[1].transformer)
    for pipe in pipes:
        by_model(pipe)
    switches = [DenoiserSwitch(pipe, module, "SL", (0.5,)) for pipe in pipes]
    for pipe in pipes:
        pipe.transformer.to(ACCELERATOR)
    run_wan(pipes[1], steps=4, guidance_scale=1.0)
    assert device.forwards[0] == ("small", frozenset({"small"}))
    switches[0].detach()
    device.forwards.clear()
    run_wan(pipes[1], steps=4, guidance_scale=1.0)
    ran = ["small", "small", "b", "b"]
    assert device.forwards == [(name, frozenset({name})) for name in ran]
    switches[1].detach()


# Offloading that is rebuilt in mid-call.


def free(pipe: Any) -> None:
    pipe.maybe_free_model_hooks()


def free_twice(pipe: Any) -> None:
    free(pipe)
    free(pipe)


def stop(pipe: Any) -> None:
    pipe.remove_all_hooks()


def stop_and_begin(pipe: Any) -> None:
    stop(pipe)
    by_model(pipe)


def free_and_give_up(pipe: Any) -> None:
    free(pipe)
    pipe._interrupt = True


def free_and_fail(pipe: Any) -> None:
    free(pipe)
    raise KeyboardInterrupt


ACTS = [free, free_twice, by_model, stop_and_begin, free_and_give_up, free_and_fail]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("at", range(5))
def test_hooks_that_are_rebuilt_in_mid_call_leave_one_denoiser_on_the_device(
    act: Callable[[Any], None], at: int
) -> None:
    module, pipe = small(), wan_pipe()
    device = FakeDevice(large=pipe.transformer, small=module)
    by_model(pipe)

    def callback(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
        if index == at:
            act(pipe)
        return given

    before = Snapshot(pipe, small=module)
    with DenoiserSwitch(pipe, module, LSL):
        expected = run_wan(pipe, steps=5)
        device.forwards.clear()
        if act is free_and_fail:
            with pytest.raises(KeyboardInterrupt):
                run_wan(pipe, steps=5, callback_on_step_end=callback)
        else:
            found = run_wan(pipe, steps=5, callback_on_step_end=callback)
            assert act is free_and_give_up or torch.equal(found, expected)
            assert not device.resident
        assert all(resident == {name} for name, resident in device.forwards)
    after = Snapshot(pipe, small=module)
    identities = [line for line in after.differences(before) if "chain" not in line]
    assert identities == []
    assert not hasattr(module, "_hf_hook")
    assert [link.model for link in pipe._all_hooks] == [pipe.transformer]


def test_offloading_that_begins_in_mid_call_is_followed() -> None:
    module, pipe = small(), wan_pipe()
    device = FakeDevice(large=pipe.transformer, small=module)

    def begin(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
        if index == 2:
            by_model(pipe)
            device.forwards.clear()
        return given

    with DenoiserSwitch(pipe, module, LSL):
        run_wan(pipe, steps=5, guidance_scale=1.0, callback_on_step_end=begin)
        assert device.forwards == [(n, frozenset({n})) for n in ("small", "large")]
    assert not hasattr(module, "_hf_hook")


@pytest.mark.parametrize("at", [0, 2])
def test_offloading_that_ends_in_mid_call_and_parts_the_denoisers_is_refused(at: int) -> None:
    module, pipe = small(), wan_pipe()
    FakeDevice(large=pipe.transformer, small=module)
    by_model(pipe)

    def end(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
        if index == at:
            stop(pipe)
        return given

    with DenoiserSwitch(pipe, module, LSL), pytest.raises(SwitchError, match="device: large"):
        run_wan(pipe, steps=5, callback_on_step_end=end)
    assert not hasattr(module, "_hf_hook")
    assert not hasattr(pipe.transformer, "_hf_hook")
