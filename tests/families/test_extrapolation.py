"""Extrapolated steps in every family of pipelines, against plain diffusers."""

from __future__ import annotations

import functools
import inspect
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

    def parts(index: int, given: Any) -> tuple[Any, Any, Any, int]:
        """Weights of latents and output in what is continued, the level, and the output's sign."""
        scheduler, level = pipe.scheduler, step_sigmas(pipe.scheduler)[index]
        if given.get("per_token_timesteps") is not None:
            # The scheduler takes clean minus noise, and every token has a level of its own.
            levels = given["per_token_timesteps"][..., None] / 1000
            return 1.0, 1 - levels, levels, -1
        if "CogVideoXDPM" in type(scheduler).__name__:  # it adds noise: clean latents
            signal = float(scheduler.alphas_cumprod[int(given["timestep"])])
            return 1 / signal**0.5, -((1 - signal) ** 0.5) / signal**0.5, level, 1
        if sees_noise(scheduler):
            return 1.0, 1 - float(scheduler.sigmas[index]), level, 1
        return 0.0, 1.0, level, 1

    @functools.wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        bound = inspect.signature(step).bind(*args, **kwargs)
        given = bound.arguments
        index = first + count % (STEPS - first)
        count += 1
        if index == first:
            ran.clear()
        a, b, level, sign = parts(index, given)
        sample, output = given["sample"].float(), given["model_output"]
        if roles[index] == "L":
            ran.append((level, a * sample + b * (sign * output.float())))
        else:
            told = ran[-1][1]
            if len(ran) > 1:
                (former, before), (latest, last) = ran[-2:]
                width = latest - former
                if isinstance(width, torch.Tensor):  # what has one level twice is held
                    width = torch.where(width == 0, torch.inf, width)
                told = last + (last - before) / width * (level - latest)
            given["model_output"] = sign * ((told - a * sample) / b).to(output.dtype)
        return step(*bound.args, **bound.kwargs)

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
