from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
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
    SwitchError,
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


def test_an_sde_without_a_seed_draws_one_for_each_call_and_tells_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = FlowBlendScheduler(shift=3.0, mode="sde")
    pipe = wan_pipe(scheduler)
    assert scheduler.seed_used is None
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with caplog.at_level("INFO", logger="flowblend_plugin"):
        first, seed = run_wan(pipe), scheduler.seed_used
    assert f"drawn with {seed}" in caplog.text
    torch.manual_seed(0)
    assert not torch.equal(run_wan(pipe), first)
    assert scheduler.seed_used != seed
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator isn't asked"
    again = wan_pipe(FlowBlendScheduler(shift=3.0, mode="sde", seed=seed))
    assert torch.equal(run_wan(again), first)
    assert again.scheduler.seed_used == seed


def test_a_seed_that_was_drawn_under_a_switch_can_be_read_from_its_scheduler() -> None:
    pipe = wan_pipe(FlowBlendScheduler(shift=3.0, mode="sde", stages="LLL", boundaries=(0.4, 0.8)))
    with DenoiserSwitch(pipe) as switch:
        batch = run_wan(pipe, batch=2)
        seed = switch.scheduler.seed_used
        assert not torch.equal(run_wan(pipe, batch=2), batch)
    given = wan_pipe(FlowBlendScheduler(shift=3.0, mode="sde", seed=seed))
    assert torch.equal(run_wan(given, batch=2), batch)


def test_without_noise_of_its_own_no_seed_is_told() -> None:
    ode, handed = FlowBlendScheduler(seed=3), FlowBlendScheduler(mode="sde")
    run_wan(wan_pipe(ode))
    handed.set_timesteps(2)
    zeros, generator = torch.zeros(1, 3), torch.Generator().manual_seed(5)
    handed.step(zeros, handed.timesteps[0], zeros, generator=generator)
    assert ode.seed_used is handed.seed_used is None


def values(scheduler: Any) -> dict[str, Any]:
    """Its config, without diffusers' notes about it."""
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"stages": "LSL", "boundaries": (0.4, 0.8)},
        {"stages": "LSL", "boundaries": [0.4, 0.8], "mode": "sde", "seed": [3, 4]},
        {"stages": "LS", "boundary_sigmas": (0.7,), "shift": 3.0},
        {"stages": StageSchedule.parse("LSL", (0.4, 0.8))},
        {"stages": StageSchedule.parse("LSL", boundary_sigmas=(0.9, 0.5))},
    ],
)
def test_what_is_saved_comes_back_equal(config: dict[str, Any], tmp_path: Path) -> None:
    scheduler = FlowBlendScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    again = FlowBlendScheduler.from_pretrained(tmp_path)
    assert values(again) == values(scheduler)
    assert values(FlowBlendScheduler.from_config(scheduler.config)) == values(scheduler)
    assert again.stages == scheduler.stages
    for name in ("boundaries", "boundary_sigmas"):
        assert isinstance(again.config[name], tuple | None)


@pytest.mark.parametrize("key", SCHEDULERS)
def test_a_wrapped_scheduler_saves_and_lists_compatible_ones_as_the_stock_one(
    key: str, tmp_path: Path
) -> None:
    stock = SCHEDULERS[key]()
    wrapped = wrap_scheduler(stock, "LSL", (0.4, 0.8))
    wrapped.save_pretrained(tmp_path)
    again = type(stock).from_pretrained(tmp_path)
    assert type(again) is type(stock)
    assert values(again) == values(stock)
    assert set(wrapped.compatibles) == set(stock.compatibles)
    for kind in wrapped.compatibles:
        if not hasattr(kind, "_backends"):  # what its package isn't here for
            assert isinstance(kind.from_config(wrapped.config), kind)


def test_compatible_schedulers_are_itself_and_what_it_is_made_of() -> None:
    scheduler = FlowBlendScheduler(shift=3.0, stages="LSL", boundaries=(0.4, 0.8))
    assert scheduler.compatibles == [FlowBlendScheduler, FlowMatchEulerDiscreteScheduler]
    for kind in scheduler.compatibles:
        made = kind.from_config(scheduler.config)
        assert type(made) is kind
        assert made.config.shift == 3.0


class Negated(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """A solver whose step names nothing."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


def test_what_a_pipeline_hands_is_told_by_name_wherever_it_stands() -> None:
    def noise(kind: Any, by_name: bool) -> torch.Tensor:
        scheduler = wrap_scheduler(kind(stochastic_sampling=True), seed=4)
        scheduler.set_timesteps(4)
        t, zeros, ones = scheduler.timesteps[0], torch.zeros(1, 3), torch.ones(1, 3)
        if by_name:
            given = {"return_dict": False, "sample": ones, "timestep": t, "model_output": zeros}
            return scheduler.step(**given)[0]
        # By place, up to the last one, which is return_dict.
        return scheduler.step(zeros, t, ones, 0.0, 0.0, 1.0, 1.0, None, None, False)[0]

    first = noise(FlowMatchEulerDiscreteScheduler, by_name=True)
    for kind in (FlowMatchEulerDiscreteScheduler, Negated):
        for by_name in (True, False):
            assert torch.equal(noise(kind, by_name), first)


def test_more_than_a_scheduler_takes_is_an_error_that_names_it() -> None:
    scheduler = wrap_scheduler(UniPCMultistepScheduler(**FLOW))
    scheduler.set_timesteps(4)
    zeros = torch.zeros(1, 3)
    with pytest.raises(SwitchError, match="hands its scheduler per_token_timesteps, which UniPC"):
        scheduler.step(zeros, scheduler.timesteps[0], zeros, per_token_timesteps=zeros)


def test_a_timestep_for_each_token_and_new_noise_are_refused_together() -> None:
    scheduler = wrap_scheduler(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    scheduler.set_timesteps(4)
    tokens, times = torch.zeros(1, 3, 2), torch.full((1, 3), 500.0)
    with pytest.raises(SwitchError, match=r"per_token_timesteps.*choose mode = 'ode'"):
        scheduler.step(tokens, scheduler.timesteps[0], tokens, per_token_timesteps=times)


def test_private_copies_of_a_scheduler_at_work_have_noise_of_their_own() -> None:
    """Some pipelines step one for each frame, or one for the sound."""

    def noise(scheduler: Any) -> torch.Tensor:
        zeros = torch.zeros(1, 50)
        scheduler.set_timesteps(2)
        return scheduler.step(zeros, scheduler.timesteps[0], zeros, return_dict=False)[0]

    pipe = wan_pipe(FlowBlendScheduler(mode="sde", seed=7))
    idle = copy.deepcopy(pipe.scheduler)
    assert torch.equal(noise(idle), noise(pipe.scheduler))
    with DenoiserSwitch(pipe, stages="L"):
        calls = []
        for _ in range(2):
            pipe.scheduler.set_timesteps(2)
            copies = [copy.deepcopy(pipe.scheduler) for _ in range(2)]
            calls.append([noise(one) for one in (pipe.scheduler, *copies)])
    for first, again in zip(*calls, strict=True):
        assert torch.equal(first, again)
    assert torch.equal(calls[0][0], noise(FlowBlendScheduler(mode="sde", seed=7)))
    assert abs(float(torch.corrcoef(torch.cat(calls[0]))[0, 1:].abs().max())) < 0.5


def test_a_pipe_that_was_saved_with_it_loads_where_its_class_was_imported(tmp_path: Path) -> None:
    wan_pipe(FlowBlendScheduler(stages="LSL", boundaries=(0.4, 0.8))).save_pretrained(tmp_path)
    script = f"""
from diffusers import WanPipeline

absent = dict.fromkeys(["vae", "text_encoder", "tokenizer", "transformer_2"])
try:
    WanPipeline.from_pretrained({str(tmp_path)!r}, **absent)
except ValueError as error:
    assert "has not been imported" in str(error), error
else:
    raise SystemExit("diffusers loads it by itself: say so in the docs")
from flowblend_plugin import FlowBlendScheduler
pipe = WanPipeline.from_pretrained({str(tmp_path)!r}, **absent)
print(type(pipe.scheduler) is FlowBlendScheduler, pipe.scheduler.stages)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.stdout == "True LSL (0.4, 0.8)\n", told.stderr
