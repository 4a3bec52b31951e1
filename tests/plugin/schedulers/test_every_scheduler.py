"""Every scheduler class of diffusers has stages, a seed and a reset, or says by name why not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import diffusers.schedulers
import pytest
import torch
from tiny import wan_pipe

from flowblend_plugin import DenoiserSwitch, FlowBlendScheduler, SwitchError, wrap_scheduler
from flowblend_plugin.schedulers.flow_solvers import FlowDEISScheduler, FlowSASolverScheduler
from flowblend_plugin.schedulers.solver_state import reset_history, step_calls

STEPS = 10
# Those that can't have stages, with a word of the reason.
REFUSED = {
    "AmusedScheduler": "discrete tokens",
    "BlockRefinementScheduler": "discrete tokens",
    "ConsistencyDecoderScheduler": "decoder",
    "DDPMWuerstchenScheduler": "priors and decoders",
    "DiscreteDDIMScheduler": "discrete tokens",
    "EntropyBoundScheduler": "discrete tokens",
    "KarrasVeScheduler": "no step of a model output",
    "RFD4ProteinaScheduler": "proteins",
    "RePaintScheduler": "back and forth",
    "ScoreSdeVeScheduler": "no step of a model output",
    "ScoreSdeVpScheduler": "no step of a model output",
    "UnCLIPScheduler": "priors and decoders",
    "VQDiffusionScheduler": "discrete tokens",
}
# Configs, and what step is handed, that make a solver add noise.
SDE = {"algorithm_type": "sde-dpmsolver++"}
NOISY_CONFIGS: dict[str, dict[str, Any]] = {
    "DPMSolverMultistepScheduler": SDE,
    "DPMSolverSinglestepScheduler": SDE,
    "EDMDPMSolverMultistepScheduler": SDE,
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
    "FlowSASolverScheduler": {"stochastic": True},
    "FlowBlendScheduler": {"mode": "sde"},
}
NOISY_STEPS: dict[str, dict[str, Any]] = {
    "DDIMParallelScheduler": {"eta": 1.0},
    "DDIMScheduler": {"eta": 1.0},
    "EDMEulerScheduler": {"s_churn": 3.0},
    "EulerDiscreteScheduler": {"s_churn": 3.0},
    "FlowMatchHeunDiscreteScheduler": {"s_churn": 3.0},
}
NOISY = {
    *NOISY_CONFIGS,
    *NOISY_STEPS,
    "CMStochasticIterativeScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
}
WITH_HISTORY = {
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "FlowDEISScheduler",
    "FlowSASolverScheduler",
    "HeliosScheduler",
    "IPNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}
CANT_RESET = {"PNDMScheduler", "LMSDiscreteScheduler"}
OURS = {
    kind.__name__: kind for kind in (FlowBlendScheduler, FlowDEISScheduler, FlowSASolverScheduler)
}


def classes() -> Iterator[str]:
    """Names of all classes that this installation has."""
    for name in dir(diffusers.schedulers):
        kind = getattr(diffusers.schedulers, name)
        is_there = inspect.isclass(kind) and not hasattr(kind, "_backends")
        if name.endswith("Scheduler") and is_there:
            yield name
    yield from OURS


ALL = sorted(classes())
USABLE = [name for name in ALL if name not in REFUSED]


def kind_of(name: str) -> Any:
    return OURS.get(name) or getattr(diffusers.schedulers, name)


def make(name: str, **config: Any) -> Any:
    return kind_of(name)(**config)


def set_steps(scheduler: Any, name: str) -> None:
    more: dict[str, Any] = {}
    if name == "SCMScheduler":
        more = {"max_timesteps": 1.57, "intermediate_timesteps": None}
    if name.startswith("Helios"):
        more = {"stage_index": 0}
    scheduler.set_timesteps(STEPS, **more)


def numbers(seed: int, name: str) -> torch.Tensor:
    """Outputs and latents, (2, C, 6, 6), or a clip where the solver knows nothing else."""
    draw = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    return draw[:, :, None] if name.startswith("Helios") else draw


class Loop:
    """Calls a scheduler's step, with random outputs that follow from the number of the call."""

    def __init__(self, scheduler: Any, name: str) -> None:
        self.scheduler, self.name = scheduler, name
        self.old: Any = None  # what CogVideoX keeps for its DPM scheduler

    def run(self, latents: torch.Tensor, calls: range, **more: Any) -> torch.Tensor:
        timesteps, step = self.scheduler.timesteps, self.scheduler.step
        for index in calls:
            output, t = numbers(100 + index, self.name), timesteps[index]
            if self.name == "CogVideoXDPMScheduler":  # its arguments have other places
                back = timesteps[index - 1] if index else None
                latents, self.old = step(
                    output, self.old, t, back, latents, return_dict=False, **more
                )
                continue
            if self.name == "PiflowScheduler":
                output = output.repeat(1, 1, 1, 10)
            if self.name == "HeliosDMDScheduler":
                more = {
                    "dmd_sigmas": self.scheduler.sigmas,
                    "dmd_timesteps": timesteps,
                    "all_timesteps": timesteps,
                    "dmd_noisy_tensor": numbers(7, self.name),
                }
            latents = step(output, t, latents, **more).prev_sample
        return latents


class Listener:
    """What a scheduler announces its stages to."""

    def __init__(self) -> None:
        self.denoisers_run: list[str] = []
        self.stages: tuple[int, ...] = ()
        self.ends = 0

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        self.stages, self.denoisers_run = stage_indices, []

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        return output

    def step_finished(self, step_index: int) -> None:
        assert step_index == len(self.denoisers_run)
        self.denoisers_run.append("large")

    def trajectory_finished(self) -> None:
        self.ends += 1

    def copy_stepped(self, copied: Any, calls: int) -> None:
        raise AssertionError("there is no copy")


def test_the_lists_here_name_nothing_that_is_gone() -> None:
    named = REFUSED.keys() | NOISY | WITH_HISTORY | CANT_RESET
    optional = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}  # torchsde
    assert named - optional <= set(ALL)


@pytest.mark.parametrize("name", REFUSED)
def test_what_isnt_a_scheduler_of_latents_is_refused_by_name(name: str) -> None:
    scheduler = object.__new__(kind_of(name))
    scheduler._internal_dict = {}
    with pytest.raises(SwitchError, match=f"{name} can't have stages: .*{REFUSED[name]}.*Give"):
        wrap_scheduler(scheduler, "LSL", (0.4, 0.8))
    pipe = wan_pipe()
    pipe.scheduler = scheduler
    with pytest.raises(SwitchError, match=f"{name} can't have stages"):
        DenoiserSwitch(pipe, stages="LLL", boundaries=(0.4, 0.8))
    assert pipe.scheduler is scheduler


@pytest.mark.parametrize("name", USABLE)
def test_every_other_one_announces_all_steps_and_changes_no_bit(name: str) -> None:
    plain, wrapped, listener = make(name), wrap_scheduler(make(name), "LSL", (0.4, 0.8)), Listener()
    wrapped.attach_listener(listener)
    found = []
    for scheduler in (plain, wrapped):
        torch.manual_seed(3)
        set_steps(scheduler, name)
        calls = range(step_calls(scheduler))
        found.append(Loop(scheduler, name).run(numbers(0, name), calls))
    assert torch.equal(*found)
    assert len(listener.denoisers_run) == len(listener.stages) >= STEPS - 1
    assert list(listener.stages) == sorted(listener.stages)
    assert set(listener.stages) == {0, 1, 2}
    assert listener.ends == 1


def noise(name: str, scheduler: Any, global_seed: int) -> torch.Tensor:
    """Latents after two calls in the middle of a trajectory."""
    torch.manual_seed(global_seed)
    set_steps(scheduler, name)
    first = 6 if hasattr(scheduler, "set_begin_index") else 0
    if first:
        scheduler.set_begin_index(first)
    handed = NOISY_STEPS.get(name, {})
    return Loop(scheduler, name).run(numbers(0, name), range(first, first + 2), **handed)


@pytest.mark.parametrize("name", USABLE)
def test_the_seed_decides_on_the_noise_of_every_stochastic_solver(name: str) -> None:
    config = NOISY_CONFIGS.get(name, {})
    base = "FlowMatchEulerDiscreteScheduler" if name == "FlowBlendScheduler" else name
    plain = [noise(base, make(base, **NOISY_CONFIGS.get(base, {})), seed) for seed in (1, 2)]
    assert (name in NOISY) == (not torch.equal(*plain))

    def seeded(seed: Any, global_seed: int) -> torch.Tensor:
        return noise(name, wrap_scheduler(make(name, **config), seed=seed), global_seed)

    first = seeded(11, 1)
    state = torch.get_rng_state()
    again = wrap_scheduler(make(name, **config), seed=11)
    assert torch.equal(noise(name, again, 2), first)
    assert torch.equal(noise(name, again, 3), first), "a trajectory begins its noise anew"
    torch.manual_seed(1)
    if name not in NOISY:
        assert torch.equal(plain[0], first)
        return
    assert torch.equal(state, torch.get_rng_state()), "torch's own generator stays where it was"
    assert not torch.equal(seeded(12, 1), first)
    assert again.seed_used == 11
    assert torch.equal(seeded([11, 40], 5)[0], first[0])
    assert not torch.equal(seeded([11, 40], 5)[1], first[1])


def handed_generator(name: str) -> dict[str, Any]:
    takes = inspect.signature(kind_of(name).step).parameters
    return {"generator": torch.Generator().manual_seed(5)} if "generator" in takes else {}


@pytest.mark.parametrize("name", [name for name in USABLE if name not in CANT_RESET])
def test_a_reset_solver_is_one_that_begins_at_that_step(name: str) -> None:
    order = kind_of(name).order
    middle, ends = 5 * order, {}
    config = {"noise_sampler_seed": 5} if name == "DPMSolverSDEScheduler" else {}
    for how in ("reset", "keep"):
        used = wrap_scheduler(make(name, **config))
        set_steps(used, name)
        loop, last = Loop(used, name), step_calls(used)
        latents = loop.run(numbers(0, name), range(middle), **handed_generator(name))
        if how == "reset":
            reset_history(used)
        ends[how] = loop.run(latents, range(middle, last), **handed_generator(name))
    fresh = make(name, **config)
    set_steps(fresh, name)
    if hasattr(fresh, "set_begin_index"):
        fresh.set_begin_index(middle)
    fresh._step_index = middle  # not all of them look at where they begin
    expected = Loop(fresh, name).run(latents, range(middle, last), **handed_generator(name))
    assert torch.equal(ends["reset"], expected)
    assert (name in WITH_HISTORY) == (not torch.equal(ends["keep"], expected))


@pytest.mark.parametrize("name", sorted(CANT_RESET))
def test_a_solver_that_counts_from_its_first_step_is_refused_where_it_is_to_be_reset(
    name: str,
) -> None:
    pipe = wan_pipe(make(name))
    with pytest.raises(SwitchError, match=f"isn't possible with {name}, .*: leave solver_history"):
        DenoiserSwitch(pipe, stages="LLL", boundaries=(0.4, 0.8), solver_history="reset")
    assert type(pipe.scheduler) is kind_of(name)
    with pytest.raises(SwitchError, match=name):
        reset_history(wrap_scheduler(make(name)))
    with DenoiserSwitch(pipe, stages="LLL", boundaries=(0.4, 0.8)) as switch:
        assert switch.attached


def test_a_scheduler_that_scales_nothing_leaves_the_denoisers_input_as_it_is() -> None:
    # Pipelines that ask which class a scheduler is have it scale, unless it is diffusers' own.
    sample = torch.randn(2, 3)
    for kind in (diffusers.schedulers.FlowMatchEulerDiscreteScheduler, FlowBlendScheduler):
        scheduler = wrap_scheduler(kind())
        scheduler.set_timesteps(4)
        assert scheduler.scale_model_input(sample, scheduler.timesteps[0]) is sample
