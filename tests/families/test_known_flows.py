"""Early looks and extrapolated steps of every family, against flows whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from families import ltx, unets
from families.base import Family, euler, numbers
from families.flows import (
    MEAN,
    Guess,
    Known,
    clean_on_a_line,
    constant,
    gaussian,
    noise_on_a_line,
)
from families.registry import FAMILIES
from families.test_extrapolation import COPIES, LEL, STEPS
from tiny import FLOW

from flowblend_plugin import DenoiserSwitch, FlowBlendError, StageHook, SwitchError
from flowblend_plugin.calibration.divergence import StepDivergence, VelocityLog
from flowblend_plugin.calibration.sensitivity import measure_sensitivities
from flowblend_plugin.preview import EarlyLook
from flowblend_plugin.schedulers.flow_solvers import FlowDEISScheduler, FlowSASolverScheduler
from flowblend_plugin.schedulers.solver_state import step_sigmas

# Why no early look is possible.
UNSEEN = {
    "HunyuanVideo 1.5": "takes no callback_on_step_end",
    "I2VGen-XL": "takes no callback_on_step_end",
    "LTX-Video image to video": "steps a part of its latents",
    "Modular Wan": "takes no callback_on_step_end",
    "SkyReels V2 diffusion forcing": "private copies of its scheduler",
}


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def with_scheduler(family: Family, scheduler: Any, name: str = "") -> Family:
    def pipe() -> Any:
        made = family.make_pipe()
        made.scheduler = type(scheduler).from_config(scheduler.config)
        return made

    return replace(
        family, make_pipe=pipe, name=f"{family.name}, {name or type(scheduler).__name__}"
    )


def run_half_conditioned(pipe: Any, **more: Any) -> torch.Tensor:
    """A picture that is half noise: its tokens stay as they are down to noise level 0.5."""
    return ltx.run(pipe, image=numbers(1, 3, 64, 64).sigmoid(), strength=0.5, **more)


def run_with_eta(pipe: Any, **more: Any) -> torch.Tensor:
    """What makes DDIM and TCD add noise comes with the call."""
    return unets.run_motion(pipe, eta=0.5, **more)


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
CONDITIONED, WAN = named("LTX-Video with conditions"), named("Wan 2.1 text to video")
SDXL, MOTION = named("Stable Diffusion XL"), named("AnimateDiff")
COG = named("CogVideoX, DPM")
BETAS = unets.BETAS
# Further conventions of those families' schedulers.
OTHERS = (
    replace(CONDITIONED, name="LTX-Video, half conditioned", run=run_half_conditioned),
    with_scheduler(named("Mochi"), euler(invert_sigmas=True), "inverted sigmas"),
    with_scheduler(WAN, UniPCMultistepScheduler(**FLOW)),
    with_scheduler(WAN, DPMSolverMultistepScheduler(**FLOW)),
    with_scheduler(WAN, FlowDEISScheduler(flow_shift=3.0)),
    with_scheduler(WAN, FlowSASolverScheduler(flow_shift=3.0)),
    with_scheduler(SDXL, EulerDiscreteScheduler(**BETAS, **V), "velocity"),
    with_scheduler(SDXL, EulerDiscreteScheduler(**BETAS, prediction_type="sample"), "clean"),
    with_scheduler(SDXL, LMSDiscreteScheduler(**BETAS)),
    with_scheduler(SDXL, DPMSolverMultistepScheduler(**BETAS)),
    with_scheduler(SDXL, DPMSolverSinglestepScheduler(**BETAS, **V)),
    with_scheduler(SDXL, DEISMultistepScheduler(**BETAS)),
    with_scheduler(MOTION, PNDMScheduler(**BETAS, skip_prk_steps=True)),
    with_scheduler(MOTION, DDIMScheduler(**BETAS, **V, **ZERO_SNR, clip_sample=False), "velocity"),
)
TWICE = (
    with_scheduler(WAN, FlowMatchHeunDiscreteScheduler(shift=3.0)),
    with_scheduler(SDXL, HeunDiscreteScheduler(**BETAS)),
)
NOISY = (
    COG,
    with_scheduler(COG, CogVideoXDPMScheduler(**V, **ZERO_SNR), "velocity"),
    with_scheduler(WAN, FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)),
    with_scheduler(WAN, FlowMatchLCMScheduler(shift=3.0)),
    with_scheduler(WAN, FlowSASolverScheduler(flow_shift=3.0, stochastic=True), "SA-Solver, SDE"),
    with_scheduler(WAN, SASolverScheduler(**FLOW)),
    with_scheduler(
        WAN, DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "SDE"
    ),
    with_scheduler(SDXL, EulerAncestralDiscreteScheduler(**BETAS)),
    with_scheduler(MOTION, LCMScheduler(**BETAS)),
    with_scheduler(replace(MOTION, run=run_with_eta), TCDScheduler(**BETAS)),
    with_scheduler(
        replace(MOTION, run=run_with_eta), DDIMScheduler(**BETAS, clip_sample=False), "eta"
    ),
    with_scheduler(MOTION, DDPMScheduler(**BETAS, clip_sample=False)),
)


def ids(family: Family) -> str:
    return family.name


def look_at(family: Family, guess: Guess, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is seen after some steps, and what the denoiser's last answer pointed to."""
    pipe = family.make_pipe()
    known = Known(family, pipe, guess)
    look = EarlyLook(pipe, after)
    with DenoiserSwitch(pipe, stages="L", on_step=look.on_step), look.watching():
        family.run(pipe, steps=4, callback_on_step_end=look.after_step)
    return look.latents.flatten(), known.clean[-1][:1].flatten()


@pytest.mark.parametrize(("guess", "after"), [(constant, 1), (gaussian, 3)])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS, *TWICE, *NOISY[1:]], ids=ids)
def test_an_early_look_is_where_the_flow_points_to(
    family: Family, guess: Guess, after: int
) -> None:
    if family.name in UNSEEN:
        with pytest.raises(FlowBlendError, match=UNSEEN[family.name]):
            look_at(family, guess, after)
        return
    seen, expected = look_at(family, guess, after)
    # Some pipelines step their latents in another order of dimensions.
    assert torch.allclose(seen.sort()[0], expected.sort()[0], rtol=1e-4, atol=2e-4)


def deterministic(family: Family) -> tuple[Guess, bool]:
    """What has to be a line over the noise level, so that extrapolated steps are exact."""
    config = family.make_pipe().scheduler.config
    is_flow = "beta_start" not in config or config.get("prediction_type") == "flow_prediction"
    return noise_on_a_line, not is_flow or bool(config.get("invert_sigmas"))


class Taken(StageHook):
    """Keeps what the solver takes in every step, and the latents there."""

    def __init__(self) -> None:
        self.numbers: list[torch.Tensor] = []

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        self.numbers += [output.float().clone(), sample.float().clone()]
        return output


def compare(family: Family, guess: Guess, is_line: bool) -> None:
    found = []
    for stages in ("L", LEL):
        pipe, taken = family.make_pipe(), Taken()
        known = Known(family, pipe, guess, is_line)
        callback: dict[str, Any] = {}
        with DenoiserSwitch(pipe, stages=stages, seed=5, hooks=[taken]) as switch:
            if family.needs_callback:
                callback = {"callback_on_step_end": switch}
            end = family.run(pipe, steps=STEPS, **callback).float()
        assert known.answers > 0
        assert ("extrapolated" in switch.denoisers_run) == (stages is LEL)
        found.append([*taken.numbers, end])
    widest = max(float(plain.abs().max()) for plain in found[0])  # its last bits are in the rest
    for plain, extrapolated in zip(*found, strict=True):
        allowed = 1e-3 * float(plain.abs().max()) + 3e-5 * widest
        assert torch.allclose(plain, extrapolated, rtol=0, atol=allowed)


@pytest.mark.parametrize(
    "family", [family for family in (*FAMILIES, *OTHERS) if family not in NOISY], ids=ids
)
def test_an_extrapolated_step_loses_nothing_where_the_flow_is_a_line(family: Family) -> None:
    if family.name in COPIES:
        with pytest.raises(SwitchError, match="private copies of its scheduler"):
            compare(family, *deterministic(family))
        return
    compare(family, *deterministic(family))


@pytest.mark.parametrize("family", NOISY, ids=ids)
def test_with_new_noise_it_loses_nothing_where_clean_latents_are_a_line(family: Family) -> None:
    compare(family, clean_on_a_line, is_line=False)


# What a calibration measures, of two flows to one picture each.

OTHER = 0.4


def other(
    x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, level: torch.Tensor
) -> torch.Tensor:
    """As ``constant``, to another picture."""
    return torch.where(sigma > 1e-3, OTHER, x)


MEASURED = (
    WAN,
    CONDITIONED,
    SDXL,
    MOTION,
    named("CogVideoX, DDIM"),
    with_scheduler(named("Mochi"), euler(invert_sigmas=True), "inverted sigmas"),
    named("LTX-Video image to video"),  # hands its solver a part of its velocities
)


def pair(family: Family) -> tuple[Any, Any, Known]:
    """A pipe and a small denoiser of two flows, and what the large one saw."""
    pipe, second = family.make_pipe(), family.make_pipe()
    known, unseen = Known(family, pipe, constant), Known(family, second, other)
    unseen.pipe = pipe  # it goes by the noise levels of the pipe that it runs in
    return pipe, getattr(second, family.attributes[0]), known


@pytest.mark.parametrize("family", MEASURED[:-1], ids=ids)
def test_two_flows_are_as_far_apart_as_their_pictures(family: Family) -> None:
    pipe, small, known = pair(family)
    seen: list[StepDivergence] = []
    with VelocityLog(pipe, small, seen.append), torch.no_grad():
        family.run(pipe, steps=4)
        levels = step_sigmas(pipe.scheduler)
    assert len(seen) == 4
    is_flow = "beta_start" not in pipe.scheduler.config
    for step, clean in zip(seen, known.clean[:: family.forwards], strict=True):
        sigma = levels[step.step]
        if is_flow:  # v = (x - clean) / sigma
            apart = abs(MEAN - OTHER) / sigma
        else:  # noise = (x - alpha clean) / sigma
            signal = float(pipe.scheduler.alphas_cumprod[int(sigma * 1000 + 0.5)])
            apart = abs(MEAN - OTHER) * (signal / (1 - signal)) ** 0.5
        (relative,), (norm,) = (
            step.values[name] for name in ("guided_relative_l2", "velocity_norm")
        )
        # Tokens of the condition have no noise, and both flows leave them alone.
        moved = float((clean[:1] == MEAN).float().mean())
        assert relative * norm == pytest.approx(apart * moved**0.5, rel=2e-3)


@pytest.mark.parametrize("family", MEASURED, ids=ids)
def test_only_the_last_step_of_another_flow_changes_where_a_flow_to_a_picture_ends(
    family: Family,
) -> None:
    pipe, small, _ = pair(family)
    with torch.no_grad():
        ends = family.run(pipe, steps=4).float()
    found = measure_sensitivities(pipe, small, lambda: family.run(pipe, steps=4), range(4))
    gram = torch.tensor(found.gram)
    changed = (ends - MEAN).abs() < 1e-3
    expected = float(changed.sum()) * (MEAN - OTHER) ** 2 / float(ends.square().sum())
    assert float(gram[3, 3]) == pytest.approx(expected, rel=1e-3)
    gram[3, 3] = 0
    assert float(gram.abs().max()) < 1e-3 * expected
