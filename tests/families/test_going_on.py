"""A call that goes on from a stored state has the bits of a whole one, in every family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from families.base import Family
from families.registry import FAMILIES
from families.unets import BETAS, run_sdxl, sdxl_denoiser, sdxl_pipe

from flowblend_plugin import Checkpoint, Checkpoints, DenoiserSwitch, StageSchedule
from flowblend_plugin.schedulers.factory import make_scheduler

CPU = torch.device("cpu")
LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
# The state of these isn't all in the scheduler: it is copied in mid-call.
STORE_NOTHING = {"LTX-2", "SkyReels V2 diffusion forcing"}


def watched(
    pipe: Any, small: Any, run: Callable[..., Any], kept: Checkpoints | None, callback: bool = False
) -> Any:
    """One call of a pipe, with the generator that ``run`` hands it."""
    kind = type(pipe)
    stock = kind.__call__

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        noise = kwargs.get("generator")
        generators = noise if isinstance(noise, list) else [noise] if noise is not None else []
        with kept.keep(switch, generators) if kept is not None else nullcontext():
            return stock(self, *args, **kwargs)

    with DenoiserSwitch(pipe, small, LSL, seed=3) as switch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "__call__", call)
        return run(pipe, **({"callback_on_step_end": switch} if callback else {}))


def check(call: Callable[[Checkpoints | None], Any]) -> dict[int, bytes]:
    """Compare whole calls with one that goes on from the middle; gives what was stored."""
    stored: dict[int, bytes] = {}

    def store(checkpoint: Checkpoint) -> None:
        stored[checkpoint.step] = checkpoint.to_bytes()

    expected = call(None)
    assert torch.equal(call(Checkpoints(1, store)), expected)
    if stored:
        middle = sorted(stored)[len(stored) // 2 - 1]
        resumed = Checkpoint.from_bytes(stored[middle], CPU)
        assert torch.equal(call(Checkpoints(0, store, resumed)), expected)
    return stored


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.pending], ids=lambda f: f.name)
def test_every_family_goes_on_with_the_same_bits_or_stores_nothing(family: Family) -> None:
    run = functools.partial(family.run, steps=family.steps)

    def call(kept: Checkpoints | None) -> Any:
        return watched(family.make_pipe(), family.make_small(), run, kept, family.needs_callback)

    assert bool(check(call)) == (family.name not in STORE_NOTHING)


@pytest.mark.parametrize("name", ["dpmpp_2m_karras", "euler_a"])
def test_solvers_of_noise_prediction_go_on_too(name: str) -> None:
    own = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    small = sdxl_denoiser(seed=1)

    def call(kept: Checkpoints | None) -> Any:
        pipe = sdxl_pipe()
        pipe.scheduler = make_scheduler(own, name)
        return watched(pipe, small, run_sdxl, kept)

    assert check(call)
