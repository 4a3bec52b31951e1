from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny import FLOW, SCHEDULERS, run_wan, wan_pipe

from flowblend_plugin import (
    DenoiserSwitch,
    FlowBlendScheduler,
    SchedulerConfigError,
    StageError,
    StageSchedule,
    wrap_scheduler,
)


def test_ode_mode_equals_flow_match_euler() -> None:
    plain = run_wan(wan_pipe(FlowMatchEulerDiscreteScheduler(shift=3.0)))
    assert torch.equal(run_wan(wan_pipe(FlowBlendScheduler(shift=3.0))), plain)


def test_sde_repeats_with_its_seed_and_differs_with_another() -> None:
    first = run_wan(wan_pipe(FlowBlendScheduler(mode="sde", seed=7)))
    pipe = wan_pipe(FlowBlendScheduler(mode="sde", seed=7))
    assert torch.equal(run_wan(pipe), first)
    assert torch.equal(run_wan(pipe), first), "set_timesteps begins the noise anew"
    assert not torch.equal(run_wan(wan_pipe(FlowBlendScheduler(mode="sde", seed=8))), first)
    assert not torch.equal(run_wan(wan_pipe(FlowBlendScheduler())), first)


def test_the_sdes_noise_is_not_the_noise_of_the_initial_latents() -> None:
    scheduler = FlowBlendScheduler(mode="sde", seed=7)
    scheduler.set_timesteps(2)
    zeros = torch.zeros(1, 4, 2, 4, 4)
    stepped = scheduler.step(zeros, scheduler.timesteps[0], zeros, return_dict=False)[0]
    noise = stepped / scheduler.sigmas[1]
    initial = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(7))
    assert not torch.allclose(noise, initial, atol=1e-3)
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), initial.flatten()]))[0, 1])) < 0.3


def test_a_batch_under_the_sde_equals_single_runs() -> None:
    batch = run_wan(wan_pipe(FlowBlendScheduler(mode="sde", seed=3)), batch=3)
    for index in range(3):
        alone = run_wan(wan_pipe(FlowBlendScheduler(mode="sde", seed=3 + index)), seed=index)
        assert torch.allclose(batch[index], alone[0], atol=1e-5)


def test_the_sde_follows_its_formula() -> None:
    scheduler = FlowBlendScheduler(mode="sde", seed=1)
    scheduler.set_timesteps(4)
    sample, velocity = torch.full((1, 4000), 2.0), torch.full((1, 4000), 0.5)
    out = scheduler.step(velocity, scheduler.timesteps[0], sample, return_dict=False)[0]
    sigma, following = float(scheduler.sigmas[0]), float(scheduler.sigmas[1])
    noise = (out - (1 - following) * (2.0 - sigma * 0.5)) / following
    assert abs(float(noise.mean())) < 0.06
    assert abs(float(noise.std()) - 1) < 0.06
    last = scheduler.timesteps[3]
    scheduler._step_index = 3
    out = scheduler.step(velocity, last, sample, return_dict=False)[0]
    assert torch.allclose(out, sample - float(scheduler.sigmas[3]) * velocity)


def test_a_wrapped_stochastic_solver_takes_the_seed() -> None:
    def sde(seed: int) -> Any:
        solver = DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++")
        return run_wan(wan_pipe(wrap_scheduler(solver, seed=seed)))

    assert torch.equal(sde(1), sde(1))
    assert not torch.equal(sde(1), sde(2))


def test_an_explicit_generator_wins_over_the_schedulers_own() -> None:
    def noise(seed: int) -> torch.Tensor:
        scheduler = FlowBlendScheduler(mode="sde", seed=seed)
        scheduler.set_timesteps(2)
        generator = torch.Generator().manual_seed(5)
        zeros = torch.zeros(1, 3)
        return scheduler.step(zeros, scheduler.timesteps[0], zeros, generator=generator)[0]

    assert torch.equal(noise(1), noise(2))


def test_the_config_survives_a_round_trip() -> None:
    scheduler = FlowBlendScheduler(
        shift=3.0, stages="LSL", boundaries=(0.4, 0.8), mode="sde", seed=4
    )
    again = FlowBlendScheduler.from_config(scheduler.config)
    assert again.stages == scheduler.stages
    assert again.config.mode == "sde"
    assert again.config.seed == 4
    assert again.shift == 3.0


def test_from_config_maps_flow_shift_to_shift() -> None:
    scheduler = FlowBlendScheduler.from_config(UniPCMultistepScheduler(**FLOW).config)
    assert scheduler.shift == 3.0


def test_from_config_carries_stochastic_sampling_over_as_sde() -> None:
    config = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).config
    assert FlowBlendScheduler.from_config(config).config.mode == "sde"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (DDIMScheduler().config, "use_flow_sigmas"),
        (UniPCMultistepScheduler().config, "prediction_type"),
        (
            UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min").config,
            "final_sigmas_type",
        ),
        (UniPCMultistepScheduler(**FLOW, thresholding=True).config, "thresholding"),
    ],
)
def test_from_config_raises_on_what_it_cant_carry(config: Any, word: str) -> None:
    with pytest.raises(SchedulerConfigError, match=word):
        FlowBlendScheduler.from_config(config)


def test_a_switch_keeps_the_schedulers_own_seed_and_its_own_wins() -> None:
    def run(own: int, seed: int | None = None, **stages: Any) -> torch.Tensor:
        pipe = wan_pipe(FlowBlendScheduler(mode="sde", seed=own, **stages))
        given: dict[str, Any] = {} if stages else {"stages": "LLL"}
        with DenoiserSwitch(pipe, seed=seed, **given):
            return run_wan(pipe)

    plain = run_wan(wan_pipe(FlowBlendScheduler(mode="sde", seed=7)))
    assert torch.equal(run(7), plain)
    assert torch.equal(run(1, seed=7), plain)
    assert torch.equal(run(1, seed=7, stages="LLL"), plain)


def test_boundaries_without_a_stage_string_are_refused() -> None:
    lsl = StageSchedule.parse("LSL", (0.4, 0.8))
    for stages in (None, lsl):
        with pytest.raises(StageError, match="boundaries belong to a stage string"):
            wrap_scheduler(SCHEDULERS["euler"](), stages, boundaries=(0.4, 0.8))
    scheduler = FlowBlendScheduler(stages=lsl)
    assert scheduler.config.stages == "LSL"
    assert FlowBlendScheduler.from_config(scheduler.config).stages == lsl


def test_from_config_carries_a_stochastic_solver_over_as_sde() -> None:
    config = DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++").config
    assert FlowBlendScheduler.from_config(config).config.mode == "sde"


@pytest.mark.parametrize("key", SCHEDULERS)
def test_wrapped_schedulers_pickle(key: str) -> None:
    wrapped = wrap_scheduler(SCHEDULERS[key](), "LSL", (0.4, 0.8))
    again = pickle.loads(pickle.dumps(wrapped))
    assert type(again) is type(wrapped)
    assert again.stages == wrapped.stages
    assert dict(again.config) == dict(wrapped.config)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(SchedulerConfigError, match="'ode' or 'sde'"):
        FlowBlendScheduler(mode="euler")


@pytest.mark.parametrize("key", SCHEDULERS)
def test_wrapping_leaves_the_original_untouched(key: str) -> None:
    scheduler = SCHEDULERS[key]()
    before = dict(vars(scheduler))
    wrapped = wrap_scheduler(scheduler)
    wrapped.set_timesteps(5)
    assert vars(scheduler).keys() == before.keys()
    assert all(vars(scheduler)[k] is v for k, v in before.items())
    assert type(wrapped).__name__ == type(scheduler).__name__
    assert type(wrapped).__module__ == type(scheduler).__module__
