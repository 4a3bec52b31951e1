"""The frames of causal blocks of SkyReels V2 hold for all denoisers of a call, and go with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from families import skyreels
from snapshots import Snapshot, check

from flowblend_plugin import DenoiserSwitch


def forcing(seed: int = 0) -> Any:
    pipe = skyreels.make(SkyReelsV2DiffusionForcingPipeline)
    torch.manual_seed(seed)
    for parameter in pipe.transformer.parameters():
        parameter.data.add_(0.01 * torch.randn(parameter.shape))
    return pipe


def small() -> Any:
    return skyreels.denoiser(layers=1, num_attention_heads=1)


def frames(module: Any) -> int:
    return module.config.num_frame_per_block


def run(pipe: Any, switch: Any, **more: Any) -> torch.Tensor:
    return skyreels.run_forcing(pipe, callback_on_step_end=switch, num_frames=21, **more)


class Sizes:
    """Writes down the block size that every forward of a module had."""

    def __init__(self, module: Any) -> None:
        self.seen: list[int] = []
        self.handle = module.register_forward_pre_hook(lambda m, _: self.seen.append(frames(m)))


@pytest.mark.parametrize("stages", ["LSL", "SLS", "SSS"])
@pytest.mark.parametrize("told", [None, 3])
def test_every_denoiser_runs_with_the_block_size_of_the_call(stages: str, told: int | None) -> None:
    pipe, module = forcing(), small()
    pipe.transformer._set_ar_attention(2)
    with DenoiserSwitch(pipe, module, stages, boundaries=(0.3, 0.7)) as switch:
        large, little = Sizes(pipe.transformer), Sizes(module)
        run(pipe, switch, causal_block_size=told)
        assert {*large.seen, *little.seen} == {told or 2}
        assert little.seen
        assert frames(pipe.transformer) == (told or 2), "as a plain call leaves it"
    assert frames(module) == 1, "the small one's own"
    assert frames(pipe.transformer) == (told or 2)


def test_one_denoiser_in_all_stages_changes_no_bit() -> None:
    pipe = forcing()
    expected = skyreels.run_forcing(pipe, num_frames=21, causal_block_size=3)
    assert not torch.equal(expected, skyreels.run_forcing(pipe, num_frames=21, causal_block_size=1))
    same = copy.deepcopy(pipe.transformer)
    with DenoiserSwitch(pipe, same, "SLS", boundaries=(0.3, 0.7)) as switch:
        assert torch.equal(run(pipe, switch, causal_block_size=3), expected)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("stages", ["LSL", "SLS"])
def test_switches_that_share_a_denoiser_each_have_their_own_block_size(
    first: int, stages: str
) -> None:
    pipes, module = [forcing(1), forcing(2)], small()
    before = Snapshot(None, small=module)
    sizes, expected = (3, 2), []
    for pipe, size in zip(pipes, sizes, strict=True):
        with DenoiserSwitch(pipe, module, stages, boundaries=(0.3, 0.7)) as switch:
            expected.append(run(pipe, switch, causal_block_size=size))
    switches = [DenoiserSwitch(p, module, stages, boundaries=(0.3, 0.7)) for p in pipes]
    for i in (0, 1, 0):
        assert torch.equal(run(pipes[i], switches[i], causal_block_size=sizes[i]), expected[i])
    switches[first].detach()
    left = 1 - first
    for size in (sizes[left], None):
        assert torch.equal(run(pipes[left], switches[left], causal_block_size=size), expected[left])
    switches[left].detach()
    assert frames(module) == 1
    check(before, Snapshot(None, small=module))


@pytest.mark.parametrize("stages", ["LSL", "SLS"])
def test_another_pipe_called_between_two_steps_leaves_the_block_size(stages: str) -> None:
    one, two, module = forcing(1), forcing(2), small()
    with (
        DenoiserSwitch(one, module, stages, boundaries=(0.3, 0.7)) as first,
        DenoiserSwitch(two, module, stages, boundaries=(0.3, 0.7)) as second,
    ):
        expected = run(one, first, causal_block_size=3)

        def callback(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
            run(two, second, causal_block_size=2, num_inference_steps=3)
            return first(pipe, index, timestep, given)

        assert torch.equal(run(one, callback, causal_block_size=3), expected)
        assert (frames(one.transformer), frames(two.transformer)) == (3, 2)
    assert frames(module) == 1


def test_a_block_size_that_a_callback_sets_holds_from_then_on() -> None:
    pipe, module = forcing(), small()
    with DenoiserSwitch(pipe, module, "LSL", boundaries=(0.3, 0.7)) as switch:

        def callback(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
            if index == 1:
                pipe.transformer._set_ar_attention(2)
            return switch(pipe, index, timestep, given)

        large, little = Sizes(pipe.transformer), Sizes(module)
        run(pipe, callback, causal_block_size=3)
        assert (set(little.seen), large.seen[-1]) == ({3, 2}, 2)
        assert frames(pipe.transformer) == 2
    assert frames(module) == 1


@pytest.mark.parametrize("is_attached", [True, False])
def test_a_copied_pipe_has_a_block_size_of_its_own(is_attached: bool) -> None:
    pipe, module = forcing(), small()
    switch = DenoiserSwitch(pipe, module, "LSL", boundaries=(0.3, 0.7))
    run(pipe, switch, causal_block_size=3)
    if not is_attached:
        switch.detach()
    copied = copy.deepcopy(pipe)
    skyreels.run_forcing(copied, num_frames=21, causal_block_size=2)
    assert [frames(one) for one in (copied.transformer, pipe.transformer)] == [2, 3]
    switch.detach()
    assert "_set_ar_attention" not in vars(copied.transformer)


def test_a_call_that_fails_leaves_the_small_denoisers_own() -> None:
    pipe, module = forcing(), small()

    def fail(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
        given = switch(pipe, index, timestep, given)
        if index == 1:
            raise KeyboardInterrupt
        return given

    switch = DenoiserSwitch(pipe, module, "SLS", boundaries=(0.3, 0.7))
    with switch, pytest.raises(KeyboardInterrupt):
        run(pipe, fail, causal_block_size=3)
    assert (frames(pipe.transformer), frames(module)) == (3, 1)
