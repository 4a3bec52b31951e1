"""What is known of a scheduler by its class and config: its levels, its noise, what it predicts."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeliosScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LTXEulerAncestralRFScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)

from flowblend_plugin import FlowBlendScheduler, SwitchError, wrap_scheduler
from flowblend_plugin.schedulers.noise import noise_generators
from flowblend_plugin.schedulers.predictions import adds_noise, clean_weights, token_levels
from flowblend_plugin.schedulers.solver_state import (
    check_resettable,
    predicts_flow,
    reset_history,
    step_calls,
    step_sigmas,
)
from flowblend_plugin.schedulers.stage_solvers import is_stochastic

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def with_steps(scheduler: Any, steps: int = 5) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler


# Levels, each by the formula of its kind.


def test_levels_of_flows_and_of_betas_are_their_timesteps_shares() -> None:
    for scheduler in (FlowMatchEulerDiscreteScheduler(shift=3.0), DDIMScheduler()):
        levels = step_sigmas(with_steps(scheduler))
        assert levels == [t / 1000 for t in scheduler.timesteps.tolist()]
        assert len(levels) == 5


@pytest.mark.parametrize("kind", [FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler])
def test_a_solver_that_asks_twice_a_step_has_a_level_a_step(kind: Any) -> None:
    scheduler = with_steps(kind())
    assert step_calls(scheduler) == 9
    assert step_sigmas(scheduler) == [t / 1000 for t in scheduler.timesteps[::2].tolist()]


def test_levels_that_count_signal_are_turned() -> None:
    scheduler = with_steps(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    levels = step_sigmas(scheduler)
    assert levels == [1 - t / 1000 for t in scheduler.timesteps.tolist()]
    assert levels == sorted(levels, reverse=True)


def test_levels_above_one_become_the_share_of_the_noise() -> None:
    scheduler = with_steps(FlowMatchEulerDiscreteScheduler())
    scheduler.timesteps = torch.tensor([80_000.0, 3000.0, 1000.0, 500.0])
    assert step_sigmas(scheduler) == [80 / 81, 3 / 4, 1 / 2, 0.5 / 1.5]
    scheduler.timesteps = torch.tensor([1000.09, 500.0])  # a shift rounds so
    assert step_sigmas(scheduler) == [1.0, 0.5]


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_levels_of_ratios_are_the_share_of_the_noise(kind: Any) -> None:
    scheduler = with_steps(kind())
    ratios = scheduler.sigmas[:5].tolist()
    assert step_sigmas(scheduler) == [s / (1 + s) for s in ratios]


def test_levels_of_angles_are_the_share_of_the_noise() -> None:
    scheduler = SCMScheduler()
    scheduler.set_timesteps(4, max_timesteps=1.5, intermediate_timesteps=None)
    assert step_calls(scheduler) == 4
    angles = scheduler.timesteps[:4].tolist()
    shares = [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]
    assert step_sigmas(scheduler) == shares
    scheduler = with_steps(IPNDMScheduler())
    angles = [math.pi / 2 * t for t in scheduler.timesteps.tolist()]
    assert step_sigmas(scheduler) == [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]


# What outputs are.


@pytest.mark.parametrize(
    ("scheduler", "is_flow"),
    [
        (FlowMatchEulerDiscreteScheduler(), True),
        (FlowBlendScheduler(), True),
        (wrap_scheduler(FlowMatchHeunDiscreteScheduler()), True),
        (LTXEulerAncestralRFScheduler(), True),
        (UniPCMultistepScheduler(**FLOW), True),
        (UniPCMultistepScheduler(), False),
        (DDPMScheduler(), False),
        (HeliosScheduler(), False),
        (HeliosScheduler(stages=1, stage_range=[0, 1], gamma=1 / 3), True),
    ],
)
def test_a_flow_is_known_by_its_class_or_by_what_it_predicts(scheduler: Any, is_flow: bool) -> None:
    assert predicts_flow(scheduler) is is_flow


def noisy(scheduler: Any, **handed: Any) -> bool:
    with_steps(scheduler)
    scheduler.step_arguments = handed
    return adds_noise(scheduler)


@pytest.mark.parametrize(
    ("scheduler", "is_noisy"),
    [
        (FlowMatchLCMScheduler(), True),
        (EulerAncestralDiscreteScheduler(), True),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), True),
        (FlowMatchEulerDiscreteScheduler(), False),
        (DPMSolverMultistepScheduler(**SDE), True),
        (DPMSolverMultistepScheduler(), False),
        (LTXEulerAncestralRFScheduler(), True),
        (LTXEulerAncestralRFScheduler(eta=0.5, s_noise=0.5), True),
        (LTXEulerAncestralRFScheduler(eta=0.0), False),
        (LTXEulerAncestralRFScheduler(s_noise=0.0), False),
    ],
)
def test_new_noise_is_known_by_class_and_config(scheduler: Any, is_noisy: bool) -> None:
    assert noisy(scheduler) is is_noisy


@pytest.mark.parametrize("name", ["eta", "s_churn"])
def test_new_noise_is_known_by_what_a_step_is_handed(name: str) -> None:
    scheduler = DDIMScheduler() if name == "eta" else EulerDiscreteScheduler()
    for value, is_noisy in ((None, False), (0.0, False), (0.5, True), (1.0, True)):
        assert noisy(scheduler, **{name: value}) is is_noisy
    assert not noisy(scheduler)
    assert not noisy(scheduler, other=1.0)


def test_a_stage_s_solver_counts_too() -> None:
    scheduler = with_steps(FlowMatchEulerDiscreteScheduler())
    scheduler.stage_solvers = (with_steps(FlowMatchEulerDiscreteScheduler()),)
    assert not adds_noise(scheduler)
    scheduler.stage_solvers = (*scheduler.stage_solvers, with_steps(FlowMatchLCMScheduler()))
    assert adds_noise(scheduler)


@pytest.mark.parametrize(
    ("scheduler", "is_sde"),
    [
        (FlowMatchEulerDiscreteScheduler(), False),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), True),
        (FlowBlendScheduler(), False),
        (FlowBlendScheduler(mode="sde"), True),
        (DPMSolverMultistepScheduler(**FLOW), False),
        (DPMSolverMultistepScheduler(**FLOW, **SDE), True),
        (UniPCMultistepScheduler(**FLOW), False),
    ],
)
def test_a_stochastic_form_is_known_however_it_was_asked_for(scheduler: Any, is_sde: bool) -> None:
    assert is_stochastic(scheduler) is is_sde


def test_levels_of_tokens_are_their_timesteps_shares() -> None:
    scheduler = with_steps(FlowMatchEulerDiscreteScheduler())
    assert token_levels(scheduler) is None
    scheduler.step_arguments = {"per_token_timesteps": torch.tensor([[1000.0, 250.0]])}
    levels = token_levels(scheduler)
    assert levels is not None
    assert torch.equal(levels, torch.tensor([[[1.0], [0.25]]]))
    weights = clean_weights(scheduler, 0)
    assert weights is not None
    assert weights[0] == 1.0
    assert torch.equal(torch.as_tensor(weights[1]), -levels)


def test_clean_latents_of_an_angle_turn_with_it() -> None:
    scheduler = SCMScheduler()
    scheduler.set_timesteps(4, max_timesteps=1.5, intermediate_timesteps=None)
    angle = float(scheduler.timesteps[1])
    assert clean_weights(scheduler, 1) == (math.cos(angle), -math.sin(angle))


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_clean_latents_of_a_preconditioned_output_are_what_it_makes_of_it(kind: Any) -> None:
    scheduler = with_steps(kind())
    weights = clean_weights(scheduler, 2)
    assert weights is not None
    x, output = torch.tensor(0.7), torch.tensor(-1.3)
    wanted = scheduler.precondition_outputs(x, output, scheduler.sigmas[2])
    assert float(weights[0] * x + weights[1] * output) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_clean_latents_of_added_noise_scale_with_its_level(prediction: str) -> None:
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.register_to_config(prediction_type=prediction)
    with_steps(scheduler)
    sigma = float(scheduler.sigmas[2])
    alpha = 1 / math.hypot(1, sigma)
    wanted = {
        "epsilon": (1.0, -sigma), "v_prediction": (alpha**2, -sigma * alpha), "sample": (0.0, 1.0),
    }[prediction]  # fmt: skip
    assert clean_weights(scheduler, 2) == pytest.approx(wanted)


def test_clean_latents_where_no_signal_is_left_are_unknown() -> None:
    scheduler = with_steps(DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    assert float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])]) == pytest.approx(
        0, abs=1e-6
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
    scheduler.alphas_cumprod[int(scheduler.timesteps[0])] = 0.0
    assert clean_weights(scheduler, 0) is None
    assert clean_weights(scheduler, 1) is not None
    noise_alone = with_steps(EulerDiscreteScheduler())
    noise_alone.sigmas[0] = math.inf
    assert clean_weights(noise_alone, 0) is None


# Memory and seeds.


def test_a_reset_leaves_nothing_that_a_solver_remembers_and_its_stages_solvers_neither() -> None:
    class Remembers:
        def __init__(self) -> None:
            self.lower_order_nums, self.begins_anew = 2, False
            self.model_outputs, self.timestep_list = [1, 2, 3], [4, 5]
            self.ets, self.last_sample, self.sample = [6], 7, 8

    inner, outer = Remembers(), Remembers()
    outer.stage_solvers = (inner,)  # type: ignore[attr-defined]
    reset_history(outer)
    for one in (inner, outer):
        assert (one.lower_order_nums, one.begins_anew) == (0, True)
        assert (one.model_outputs, one.timestep_list) == ([None] * 3, [None] * 2)
        assert (one.ets, one.last_sample, one.sample) == ([], None, None)


def test_a_solver_without_a_memory_gets_none() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    before = set(vars(scheduler))
    reset_history(scheduler)
    assert set(vars(scheduler)) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("PNDMScheduler", "runs its first step twice"),
        ("LMSDiscreteScheduler", "follows from the number of the step"),
    ],
)
def test_solvers_that_count_from_their_first_step_cant_be_reset(name: str, why: str) -> None:
    scheduler = wrap_scheduler(getattr(diffusers, name)())
    with pytest.raises(SwitchError, match=f"isn't possible with {name}, .*{why}.*leave"):
        check_resettable(scheduler)


def drawn(seed: Any, batch: int, copy_number: int = 0) -> list[float]:
    made = noise_generators(seed, batch, copy_number)
    return [float(torch.randn(1, generator=one)) for one in made]


def test_each_sample_and_each_copy_has_noise_of_its_own_that_its_seed_decides() -> None:
    assert drawn(7, 3) == drawn([7, 8, 9], 3)
    assert drawn(7, 1) == drawn((7,), 1) == drawn(7, 1, 0)
    assert len({*drawn(7, 3), *drawn(7, 3, 1), *drawn(7, 3, 2)}) == 9
    plain = float(torch.randn(1, generator=torch.Generator().manual_seed(7)))
    assert plain not in drawn(7, 1)
    with pytest.raises(SwitchError, match="has 2 seeds for a batch of 3 samples"):
        noise_generators([1, 2], 3)


def test_the_noise_of_a_seed_stays_what_it_is_from_version_to_version() -> None:
    assert [one.initial_seed() for one in noise_generators(7, 2)] == [
        stream("flowblend sde 7"), stream("flowblend sde 8")
    ]  # fmt: skip
    (copied,) = noise_generators(7, 1, copy_number=2)
    assert copied.initial_seed() == stream("flowblend sde 7 copy 2")


def stream(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
