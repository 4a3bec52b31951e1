"""Extrapolated steps in every family of pipelines, against plain diffusers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from families.base import Family
from families.registry import FAMILIES

from flowblend_plugin import DenoiserSwitch, StageSchedule, SwitchError
from flowblend_plugin.schedulers.solver_state import step_sigmas
from flowblend_plugin.stages import letters

LEL = StageSchedule.parse("LEL", boundaries=(0.5, 0.75))
STEPS = 8
COPIES = ("LTX-2", "SkyReels V2 diffusion forcing")


def run(family: Family, pipe: Any, **more: Any) -> torch.Tensor:
    return family.run(pipe, steps=STEPS, **more)


def sees_noise(scheduler: Any) -> bool:
    """Whether outputs are velocities between clean latents and noise, on sigmas up to 1."""
    flow = "prediction_type" not in scheduler.config or "flow" in scheduler.config.prediction_type
    inverted = scheduler.config.get("invert_sigmas")
    return flow and not inverted and bool(scheduler.sigmas.max() <= 1)


def by_hand(family: Family) -> torch.Tensor:
    """The plain pipeline, running its denoiser in every step, with outputs replaced by hand."""
    pipe = family.make_pipe()
    step, ran, count = pipe.scheduler.step, [], 0
    roles = letters(LEL.denoisers(STEPS))
    first = round(STEPS * family.skipped / family.steps)

    @functools.wraps(step)
    def stepped(output: Any, t: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        index = first + count % (STEPS - first)
        count += 1
        level = step_sigmas(pipe.scheduler)[index]
        if index == first:
            ran.clear()
        weight = 1 - float(pipe.scheduler.sigmas[index]) if sees_noise(pipe.scheduler) else 0
        if roles[index] == "L":
            seen = sample.float() + weight * output.float() if weight else output.float()
            ran.append((level, seen))
        else:
            told = ran[-1][1]
            if len(ran) > 1:
                (former, before), (latest, last) = ran[-2:]
                told = last + (last - before) / (latest - former) * (level - latest)
            output = ((told - sample) / weight if weight else told).to(output.dtype)
        return step(output, t, sample, *args, **kwargs)

    pipe.scheduler.step = stepped
    return run(family, pipe)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_extrapolated_step_runs_nothing_and_is_the_line_through_two_others(
    family: Family,
) -> None:
    pipe, forwards = family.make_pipe(), []
    large = [getattr(pipe, name) for name in family.attributes]
    for module in large:
        module.register_forward_pre_hook(lambda *_: forwards.append("large"))
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in large]
    with DenoiserSwitch(pipe, stages=LEL) as switch:
        if family.name in COPIES:
            callback = {"callback_on_step_end": switch} if family.needs_callback else {}
            with pytest.raises(SwitchError, match="private copies of its scheduler"):
                run(family, pipe, **callback)
            return
        blended = run(family, pipe)
    planned = letters(LEL.denoisers(STEPS))[round(STEPS * family.skipped / family.steps) :]
    assert letters(switch.denoisers_run) == planned
    assert len(forwards) == planned.count("L") * family.trajectories * family.forwards
    assert [getattr(pipe, name) for name in family.attributes] == large
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in large] == hooks
    assert torch.equal(blended, by_hand(family))
