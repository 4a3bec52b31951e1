"""Solvers by name, with their own answers as the oracle, and what a switch does to their memory."""

from __future__ import annotations

import functools
import pickle
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from tiny import FLOW, ForwardRecorder, run_wan, wan_denoiser, wan_pipe

from flowblend_cli.recipe.schema.tables import SamplingTable
from flowblend_cli.recipe.sweep.sampling import NOT_STOCHASTIC
from flowblend_plugin import DenoiserSwitch, SchedulerConfigError, StageSchedule, wrap_scheduler
from flowblend_plugin.schedulers.factory import FLOW_NAMES, NAMES, STOCHASTIC, make_scheduler
from flowblend_plugin.schedulers.flow_solvers import (
    FlowDEISScheduler,
    FlowSASolverScheduler,
    _sde,
)
from flowblend_plugin.schedulers.solver_state import reset_history

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
STEPS = 5
ALWAYS_STOCHASTIC = ("dpmpp_2m_sde", "lcm")
DETERMINISTIC = [name for name in FLOW_NAMES if name not in ALWAYS_STOCHASTIC]
NOISY = [(name, "sde") for name in STOCHASTIC if name in FLOW_NAMES]
ALL = [(name, "ode") for name in DETERMINISTIC] + NOISY
WITH_MEMORY = ("unipc", "dpmpp_2m", "dpmpp_2m_sde", "deis", "sa_solver")


def solver(name: str, mode: str = "ode", shift: float = 3.0) -> Any:
    own = FlowMatchEulerDiscreteScheduler(shift=shift)
    return make_scheduler(own, name, mode=mode)


@functools.cache
def blended(
    name: str, mode: str, small: int | None = 1, history: Any = "keep", noise: int = 7, **call: Any
) -> torch.Tensor:
    """Latents of an LSL run, done twice; the small denoiser by its seed, None is the large one."""
    pipe = wan_pipe(solver(name, mode))
    other = pipe.transformer if small is None else tiny_denoiser(small)
    with DenoiserSwitch(pipe, other, LSL, solver_history=history, seed=noise) as switch:
        first = run_wan(pipe, steps=STEPS, **call)
        assert tuple(switch.denoisers_run) == LSL.denoisers(STEPS)
        assert torch.equal(run_wan(pipe, steps=STEPS, **call), first), "run 2 differs"
    return first


@functools.cache
def plain(name: str, mode: str) -> torch.Tensor:
    return run_wan(wan_pipe(wrap_scheduler(solver(name, mode), seed=7)), steps=STEPS)


def tiny_denoiser(seed: int) -> Any:
    return wan_denoiser(layers=1, heads=1, seed=seed)


# Oracles: plain runs.


@pytest.mark.parametrize(("name", "mode"), ALL)
def test_equal_denoisers_change_no_bit_and_run_two_equals_run_one(name: str, mode: str) -> None:
    assert plain(name, mode).isfinite().all()
    assert torch.equal(blended(name, mode, None), plain(name, mode))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_solvers_take_no_seed_and_equal_diffusers_own(name: str) -> None:
    assert torch.equal(plain(name, "ode"), run_wan(wan_pipe(solver(name)), steps=STEPS))


@pytest.mark.parametrize(("name", "mode"), ALL)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_stages_begin_on_whole_steps(name: str, mode: str, steps: int) -> None:
    pipe, small = wan_pipe(solver(name, mode)), tiny_denoiser(1)
    record = ForwardRecorder(large=pipe.transformer, small=small)
    with DenoiserSwitch(pipe, small, LSL, seed=1):
        run_wan(pipe, steps=steps, guidance_scale=1.0)
    roles = LSL.denoisers(steps)
    if name == "heun":  # two forwards a step, but for the last
        roles = tuple(role for role in roles for _ in range(2))[:-1]
    assert tuple(record.roles) == roles


@pytest.mark.parametrize(("name", "mode"), ALL)
def test_resetting_differs_from_keeping_only_where_there_is_a_memory(name: str, mode: str) -> None:
    kept, reset = blended(name, mode), blended(name, mode, history="reset")
    assert torch.equal(reset, kept) == (name not in WITH_MEMORY)


@pytest.mark.parametrize(("name", "mode"), NOISY)
def test_noise_repeats_with_its_seed_and_differs_with_another(name: str, mode: str) -> None:
    first = blended(name, mode)
    assert torch.equal(blended.__wrapped__(name, mode), first)
    assert not torch.equal(blended(name, mode, noise=8), first)


@pytest.mark.parametrize(("name", "mode"), NOISY)
def test_a_batch_has_the_noise_of_single_runs(name: str, mode: str) -> None:
    batch = blended(name, mode, batch=2)
    for index in range(2):
        alone = blended(name, mode, noise=7 + index, seed=index)
        assert torch.allclose(batch[index], alone[0], atol=1e-4)


# Memory.


def velocity(sample: torch.Tensor, sigma: float) -> torch.Tensor:
    """Velocity of the flow from noise to a normal distribution of mean 0.7 and deviation 0.5."""
    mean, variance = (1 - sigma) * 0.7, ((1 - sigma) * 0.5) ** 2 + sigma**2
    noise = sigma / variance * (sample - mean)
    clean = 0.7 + (1 - sigma) * 0.25 / variance * (sample - mean)
    return noise - clean


def advance(scheduler: Any, sample: torch.Tensor, steps: range, seed: int = 0) -> torch.Tensor:
    generator = {"generator": torch.Generator().manual_seed(seed)}
    kwargs = generator if "generator" in signature(type(scheduler).step).parameters else {}
    for index in steps:
        output = velocity(sample, float(scheduler.sigmas[index]))
        timestep = scheduler.timesteps[index]
        sample = scheduler.step(output, timestep, sample, return_dict=False, **kwargs)[0]
    return sample


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, mode in ALL if name in WITH_MEMORY]
)
def test_after_a_reset_a_solver_goes_on_as_if_it_began_there(name: str, mode: str) -> None:
    noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    used, fresh = solver(name, mode), solver(name, mode)
    for scheduler in (used, fresh):
        scheduler.set_timesteps(12)
    half = advance(used, noise, range(6))
    reset_history(used)
    fresh.set_begin_index(6)
    assert torch.equal(
        advance(used, half, range(6, 12), seed=1), advance(fresh, half, range(6, 12), seed=1)
    )


# Accuracy.


def error(name: str, steps: int) -> float:
    """Relative error of a solver against the exact end of the flow from its first noise level."""
    noise = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    scheduler = solver(name)
    scheduler.set_timesteps(steps)
    found = noise
    for timestep in scheduler.timesteps:  # Heun's list holds its levels twice
        index = scheduler.step_index or 0
        output = velocity(found, float(scheduler.sigmas[index]))
        found = scheduler.step(output, timestep, found, return_dict=False)[0]
    sigma = float(scheduler.sigmas[0])
    deviation = (((1 - sigma) * 0.5) ** 2 + sigma**2) ** 0.5
    exact = 0.7 + (noise - (1 - sigma) * 0.7) / deviation * 0.5
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name != "flow_match_euler"])
def test_solvers_converge_to_the_flow_and_faster_than_euler(name: str) -> None:
    assert error(name, 80) < error(name, 10) / 8
    assert error(name, 80) < error("flow_match_euler", 80) / 3


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (FlowDEISScheduler(flow_shift=3.0), DEISMultistepScheduler(**FLOW)),
        (FlowSASolverScheduler(flow_shift=3.0, stochastic=True), SASolverScheduler(**FLOW)),
        (
            FlowSASolverScheduler(flow_shift=3.0),
            SASolverScheduler(**FLOW, tau_func=lambda timestep: 0),
        ),
    ],
    ids=["deis", "sa_solver sde", "sa_solver ode"],
)
def test_deis_and_sa_solver_differ_from_diffusers_in_the_last_step_only(
    ours: Any, stock: Any
) -> None:
    noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    for scheduler in (ours, stock):
        scheduler.set_timesteps(8)
    assert torch.equal(ours.timesteps, stock.timesteps)
    assert torch.equal(ours.sigmas[:-1], stock.sigmas[:-1])
    before = advance(ours, noise, range(7), seed=3)
    assert torch.equal(before, advance(stock, noise, range(7), seed=3))
    # Ours ends where the velocity points to, diffusers' keeps the noise of its last level.
    sigma = float(ours.sigmas[7])
    expected = before - sigma * velocity(before, sigma)
    assert torch.allclose(advance(ours, before, range(7, 8)), expected)
    assert ours.step_index == 8
    assert not torch.allclose(advance(stock, before, range(7, 8)), expected, atol=0.01)


@pytest.mark.parametrize("scheduler", [FlowDEISScheduler(), FlowSASolverScheduler(stochastic=True)])
def test_our_flow_solvers_save_pickle_and_answer_as_diffusers_do(
    scheduler: Any, tmp_path: Path
) -> None:
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    assert {**again.config} == {**scheduler.config}
    wrapped = pickle.loads(pickle.dumps(wrap_scheduler(scheduler)))
    assert {**wrapped.config} == {**scheduler.config}
    for each in (again, wrapped):
        each.set_timesteps(1)
        sample = torch.ones(1, 3)
        out = each.step(torch.ones(1, 3), each.timesteps[0], sample)
        assert torch.allclose(out.prev_sample, 1 - each.sigmas[0])
    if isinstance(scheduler, FlowSASolverScheduler):
        assert [again.tau_func(t) for t in (100, 500, 900)] == [0, 1, 0]


def test_sa_solver_noises_a_clean_sample_as_a_flow_does() -> None:
    scheduler = FlowSASolverScheduler(flow_shift=3.0)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    noisy = scheduler.add_noise(torch.zeros(1, 2), torch.ones(1, 2), scheduler.timesteps[3:4])
    assert torch.allclose(noisy, scheduler.sigmas[3].expand(1, 2))


# Names and configs.


@pytest.mark.parametrize(
    "own",
    [
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        UniPCMultistepScheduler(**{**FLOW, "flow_shift": 5.0}),
    ],
)
@pytest.mark.parametrize("name", FLOW_NAMES)
@pytest.mark.parametrize("flow_shift", [None, 2.0])
def test_a_named_solver_takes_over_the_shift(own: Any, name: str, flow_shift: Any) -> None:
    made = make_scheduler(own, name, flow_shift)
    shift = flow_shift or 5.0
    config = made.config
    assert config.get("flow_shift", config.get("shift")) == shift
    if "use_flow_sigmas" in config:
        assert config.use_flow_sigmas
        assert config.prediction_type == "flow_prediction"


@pytest.mark.parametrize(
    "own",
    [
        FlowMatchHeunDiscreteScheduler(shift=5.0),
        FlowMatchLCMScheduler(shift=5.0),
        FlowDEISScheduler(flow_shift=5.0),
        FlowSASolverScheduler(flow_shift=5.0, stochastic=True),
        DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"),
    ],
    ids=lambda own: type(own).__name__,
)
def test_without_a_name_the_pipelines_solver_stays(own: Any) -> None:
    assert make_scheduler(own) is own
    made = make_scheduler(own, flow_shift=2.0)
    assert type(made) is type(own)
    word = "flow_shift" if "flow_shift" in own.config else "shift"
    assert {**made.config, word: 0} == {**own.config, word: 0}
    assert made.config[word] == 2.0


@pytest.mark.parametrize("name", sorted(set(FLOW_NAMES) - set(STOCHASTIC)))
def test_solvers_without_noise_refuse_sde(name: str) -> None:
    with pytest.raises(SchedulerConfigError, match=f"{name}.*no stochastic form"):
        solver(name, "sde")


def test_names_for_the_stochastic_form_mean_the_same_as_the_mode() -> None:
    assert {**solver("dpmpp_2m_sde").config} == {**solver("dpmpp_2m", "sde").config}
    assert solver("dpmpp_2m").config.algorithm_type == "dpmsolver++"


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "size of the picture"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas = True"),
        (UniPCMultistepScheduler(**FLOW, use_karras_sigmas=True), "use_karras_sigmas = True"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "num_train_timesteps = 500"),
        (DDIMScheduler(), "isn't a flow-matching scheduler"),
    ],
)
def test_what_another_solver_would_lose_is_refused(own: Any, says: str) -> None:
    with pytest.raises(SchedulerConfigError, match=says):
        make_scheduler(own, "deis")
    with pytest.raises(SchedulerConfigError, match="choose one of flow_match_euler"):
        make_scheduler(own, "euler_b")


def test_recipes_know_every_name_and_which_have_no_stochastic_form() -> None:
    annotation = SamplingTable.model_fields["scheduler"].annotation
    known = {name for part in get_args(annotation) for name in get_args(part)}
    assert known == set(NAMES)
    assert set(NOT_STOCHASTIC) == set(NAMES) - set(STOCHASTIC)


def test_lcm_is_eulers_stochastic_form() -> None:
    assert torch.equal(blended("lcm", "sde"), blended("flow_match_euler", "sde"))


def test_sa_solvers_noise_has_the_place_that_diffusers_gives_it() -> None:
    own = SASolverScheduler().tau_func
    for timestep in (0, 199, 199.5, 200, 500, 800, 800.5, 801, 999):
        assert _sde(timestep) == own(timestep)
