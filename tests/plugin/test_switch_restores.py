"""However a call ends, and however a pipe is offloaded, everything is put back exactly."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers import WanPipeline
from fake_device import ACCELERATOR, FakeDevice
from families import unets, wan
from families.base import wan_vae
from snapshots import Snapshot, check, every_switch_checked
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, FlowBlendScheduler, StageSchedule, SwitchError
from flowblend_plugin.preview import EarlyLook

STEPS = 5
LSL = StageSchedule.parse("LSL", (0.4, 0.8))


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    with every_switch_checked():
        yield


def small() -> Any:
    return wan_denoiser(layers=1, seed=1)


# The ways to end a call.


def at_a_step(act: Callable[[Any], None], index: int = 2) -> Callable[..., Any]:
    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == index:
            act(pipe)
        return kwargs

    return callback


def give_up(pipe: Any) -> None:
    pipe._interrupt = True


def fail(pipe: Any) -> None:
    raise ZeroDivisionError


def press_ctrl_c(pipe: Any) -> None:
    raise KeyboardInterrupt


ENDS: dict[str, tuple[Callable[[Any], None], type[BaseException] | None]] = {
    "whole": (lambda pipe: None, None),
    "given up": (give_up, None),
    "failed": (fail, ZeroDivisionError),
    "Ctrl-C": (press_ctrl_c, KeyboardInterrupt),
}


def end_early(pipe: Any, end: str, index: int = 2) -> None:
    act, error = ENDS[end]
    callback = at_a_step(act, index)
    if error is None:
        wan.call(pipe, steps=STEPS, callback_on_step_end=callback, output_type="np", num_frames=5)
    else:
        with pytest.raises(error):
            wan.call(pipe, steps=STEPS, callback_on_step_end=callback, num_frames=5)
    pipe._interrupt = False


# The ways to offload.


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device=ACCELERATOR)


def by_layer(pipe: Any) -> None:
    for module in (pipe.vae, pipe.transformer):  # as enable_sequential_cpu_offload, on a CPU
        accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=True)


def by_group(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)


OFFLOADS = {"none": lambda pipe: None, "model": by_model, "layers": by_layer, "groups": by_group}


def pair(offload: str) -> tuple[Any, Any, FakeDevice]:
    pipe = WanPipeline(**wan.parts(vae=wan_vae(), transformer=wan.denoiser()))
    pipe.set_progress_bar_config(disable=True)
    other = wan.denoiser(layers=1)
    device = FakeDevice(large=pipe.transformer, small=other)
    OFFLOADS[offload](pipe)
    return pipe, other, device


def run(pipe: Any, device: FakeDevice) -> tuple[Any, list[Any]]:
    """The clip of a plain call, and who was on the device at each forward and in the decoder."""
    device.forwards.clear()
    decoder = pipe.vae.decoder
    handle = decoder.register_forward_pre_hook(lambda *_: device.ran("vae"))
    try:
        clip = wan.call(pipe, steps=3, output_type="np", num_frames=5)
    finally:
        handle.remove()
    return clip, list(device.forwards)


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("end", ENDS)
def test_the_next_plain_call_is_as_if_there_had_been_no_switch(end: str, offload: str) -> None:
    pipe, other, device = pair(offload)
    expected = run(pipe, device)
    before = Snapshot(pipe, small=other)
    switch = DenoiserSwitch(pipe, other, LSL)
    end_early(pipe, end)
    if ENDS[end][1] is None:  # else nobody sees the end of the call
        assert switch.is_at_rest
        assert not hasattr(pipe, "_all_hooks") or device.resident <= {"vae"}
    switch.detach()
    check(before, Snapshot(pipe, small=other))
    clip, forwards = run(pipe, device)
    assert (clip == expected[0]).all()
    assert forwards == expected[1]


def test_a_call_given_up_leaves_no_small_denoiser_beside_the_vae() -> None:
    pipe, other, device = pair("model")
    look = EarlyLook(pipe, after_steps=3)
    seen: list[set[str]] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda *_: seen.append(set(device.resident)))
    with DenoiserSwitch(pipe, other, LSL, on_step=look.on_step), look.watching():
        wan.call(
            pipe, steps=STEPS, output_type="np", num_frames=5,
            callback_on_step_end=look.after_step,
        )  # fmt: skip
        assert device.forwards[-1][0] == "small"
    assert seen
    assert not any(seen)


def test_a_chain_that_was_built_around_the_small_denoiser_is_built_anew() -> None:
    pipe, other, device = pair("model")
    expected = run(pipe, device)
    before = Snapshot(pipe, small=other)
    switch = DenoiserSwitch(pipe, other, LSL)
    end_early(pipe, "failed")
    assert pipe.transformer is other
    by_model(pipe)
    switch.detach()
    check(before, Snapshot(pipe, small=other))
    assert run(pipe, device)[1] == expected[1]


def test_offloading_that_ends_while_the_small_one_is_in_the_pipe_ends_for_the_large_one() -> None:
    pipe, other, device = pair("model")
    pipe.remove_all_hooks()
    expected = run(pipe, device)
    with DenoiserSwitch(pipe, other, LSL):
        by_model(pipe)
        end_early(pipe, "failed")
        pipe.remove_all_hooks()
    assert not hasattr(pipe.transformer, "_hf_hook")
    assert (run(pipe, device)[0] == expected[0]).all()


@pytest.mark.parametrize("offload", ["none", "model"])
def test_sdxl_that_ends_before_its_last_step_gives_the_large_denoiser_back(offload: str) -> None:
    pipe, other = unets.sdxl_pipe(), unets.sdxl_denoiser(seed=1)
    device = FakeDevice(large=pipe.unet, small=other)
    OFFLOADS[offload](pipe)
    large, expected = pipe.unet, unets.run_sdxl(pipe)
    switch = DenoiserSwitch(pipe, other, "LS", (0.25,))
    unets.run_sdxl(pipe, denoising_end=0.5)
    assert pipe.unet is large
    assert not device.resident
    switch.detach()
    assert torch.equal(unets.run_sdxl(pipe), expected)


def test_the_call_after_one_that_was_given_up_has_the_bits_of_the_first() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small(), LSL):
        expected = run_wan(pipe)
        run_wan(pipe, callback_on_step_end=at_a_step(give_up))
        assert torch.equal(run_wan(pipe), expected)


# What is let go.


@pytest.mark.parametrize("offload", ["none", "model"])
def test_a_detached_switch_holds_no_model_and_still_tells_what_ran(offload: str) -> None:
    pipe, other, _ = pair(offload)
    alive = weakref.ref(other)
    with DenoiserSwitch(pipe, other, LSL) as switch:
        del other
        wan.call(pipe, steps=STEPS)
    pipe_alive = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert alive() is None
    assert pipe_alive() is None
    assert tuple(switch.denoisers_run) == LSL.denoisers(STEPS) == switch.denoisers
    assert switch.step_stages == (0, 0, 1, 1, 2)
    assert switch.cache_reports == ()
    assert not switch.attached
    switch.detach()


# Copies.


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_pipe_with_a_switch_is_a_pipe_without_one(copied: Any) -> None:
    pipe = wan_pipe()
    plain = run_wan(pipe)
    with DenoiserSwitch(pipe, small(), LSL):
        blended = run_wan(pipe)
        again = copied(pipe)
        assert torch.equal(run_wan(again), plain)
        assert torch.equal(run_wan(pipe), blended)
    if copied is copy.deepcopy:  # what is pickled is the scheduler that the switch wrapped
        with DenoiserSwitch(again, small(), LSL):
            assert torch.equal(run_wan(again), blended)


def test_a_copy_within_a_call_is_refused_by_name() -> None:
    pipe = wan_pipe()
    with (
        DenoiserSwitch(pipe, small(), LSL),
        pytest.raises(SwitchError, match="can't be copied within a call"),
    ):
        run_wan(pipe, callback_on_step_end=at_a_step(copy.deepcopy))


def test_a_copy_of_a_pipe_whose_own_scheduler_has_stages_keeps_them() -> None:
    pipe = wan_pipe(FlowBlendScheduler(shift=3.0, stages=LSL))
    with DenoiserSwitch(pipe, small()):
        again = copy.deepcopy(pipe)
    assert again.scheduler.stages == LSL


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_switch_cant_be_copied(copied: Any) -> None:
    with (
        DenoiserSwitch(wan_pipe(), small(), LSL) as switch,
        pytest.raises(SwitchError, match="attach another switch to the copy"),
    ):
        copied(switch)


def test_a_pipe_saved_with_our_scheduler_loads_once_the_plugin_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = FlowBlendScheduler.__module__
    wan_pipe(FlowBlendScheduler(shift=3.0, stages=LSL)).save_pretrained(tmp_path)
    left_out = {"vae": None, "text_encoder": None, "tokenizer": None}
    monkeypatch.setattr(diffusers.utils.logging.get_logger("diffusers"), "disabled", True)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, name)
        with pytest.raises(Exception, match=r"flow_blend|FlowBlendScheduler"):
            WanPipeline.from_pretrained(tmp_path, **left_out)
    assert WanPipeline.from_pretrained(tmp_path, **left_out).scheduler.stages == LSL


# A cache that the user enabled.


def user_caches(pipe: Any) -> dict[str, Any]:
    def now() -> Any:
        return pipe.current_timestep

    return {
        "first block": diffusers.FirstBlockCacheConfig(threshold=0.1),
        "mag": diffusers.MagCacheConfig(
            threshold=0.3, mag_ratios=torch.ones(12), num_inference_steps=6, retention_ratio=0.1
        ),
        "taylorseer": diffusers.TaylorSeerCacheConfig(
            cache_identifiers=[r"blocks\.\d+\.attn1"], cache_interval=3,
            disable_cache_before_step=1, taylor_factors_dtype=torch.float32,
        ),
        "pab": diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(0, 1001),
            current_timestep_callback=now,
        ),
        "faster": diffusers.FasterCacheConfig(
            spatial_attention_timestep_skip_range=(-1, 900), current_timestep_callback=now,
            is_guidance_distilled=True,
        ),
        "sea": diffusers.SeaCacheConfig(threshold=0.1),
        "text kv": diffusers.TextKVCacheConfig(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "whose"), [*((kind, "large") for kind in user_caches(None)), ("faster", "small")]
)
def test_a_cache_of_the_users_works_in_every_stage_and_stays(kind: str, whose: str) -> None:
    pipe, other = wan_pipe(), wan_denoiser(seed=1)
    cached = pipe.transformer if whose == "large" else other
    config = user_caches(pipe)[kind]
    cached.enable_cache(config)
    plain = run_wan(pipe)
    with DenoiserSwitch(pipe, other, "LLL"):
        assert torch.equal(run_wan(pipe), plain)
    for stages in (LSL, StageSchedule.parse("SL", (0.5,))):
        with DenoiserSwitch(pipe, other, stages):
            first = run_wan(pipe)
            assert torch.isfinite(first).all()
            assert torch.equal(run_wan(pipe), first)
    assert cached._cache_config is config
    assert torch.equal(run_wan(pipe), plain)


def test_solvers_with_a_memory_are_put_back_too(scheduler: Any) -> None:
    pipe = wan_pipe(scheduler)
    before = Snapshot(pipe)
    with DenoiserSwitch(pipe, small(), LSL):
        run_wan(pipe, callback_on_step_end=at_a_step(give_up))
    check(before, Snapshot(pipe))
    assert pipe.scheduler is scheduler
