"""What pipelines do with a wrapped scheduler: copy it, hand it generators, or never step it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, WanPipeline
from families.unets import BETAS, run_sdxl, sdxl_denoiser, sdxl_pipe
from tiny import SCHEDULERS, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import (
    DenoiserSwitch,
    StageError,
    StageSchedule,
    SwitchError,
    wrap_scheduler,
)

LSL = ("LSL", (0.4, 0.8))


def small() -> Any:
    return wan_denoiser(layers=1, seed=3)


def test_a_pipeline_may_keep_copies_of_a_schedulers_attributes() -> None:
    pipe = wan_pipe()

    def copies(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        kept = copy.deepcopy(vars(pipe.scheduler))  # as panoramas do, for each of their views
        assert kept.keys() == vars(pipe.scheduler).keys()
        return given

    with DenoiserSwitch(pipe, small(), *LSL) as switch:
        assert torch.equal(run_wan(pipe, callback_on_step_end=copies), run_wan(pipe))
        assert switch.denoisers_run == list(switch.denoisers)


@pytest.mark.parametrize("has_run", [False, True])
def test_another_pipe_may_take_a_deep_copy_of_the_scheduler(has_run: bool) -> None:
    pipe = wan_pipe()
    plain = run_wan(pipe)
    with DenoiserSwitch(pipe, small(), *LSL) as switch:
        if has_run:
            run_wan(pipe)
        other = copy.copy(pipe)
        other.scheduler = copy.deepcopy(pipe.scheduler)
        other.transformer = wan_denoiser()
        assert torch.equal(run_wan(other), plain)
        run_wan(pipe)
        assert switch.denoisers_run == list(switch.denoisers)
        with DenoiserSwitch(other, small(), *LSL):
            assert torch.equal(run_wan(other), run_wan(pipe))


def test_a_seed_that_was_given_counts_where_the_pipeline_hands_a_generator() -> None:
    def run(seed: int | None) -> tuple[torch.Tensor, Any]:
        pipe = sdxl_pipe()
        pipe.scheduler = EulerAncestralDiscreteScheduler(**BETAS)
        with DenoiserSwitch(pipe, sdxl_denoiser(seed=4), *LSL, seed=seed) as switch:
            return run_sdxl(pipe), switch.scheduler.seed_used

    (first, used), (again, _), (other, _) = run(1), run(1), run(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert used == 1
    handed, unused = run(None)
    assert unused is None
    assert not torch.equal(handed, first)


def test_whole_numbers_of_other_kinds_are_seeds_too() -> None:
    def run(seed: Any) -> torch.Tensor:
        pipe = wan_pipe()
        pipe.scheduler = wrap_scheduler(
            type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True),
            seed=seed,
        )
        return run_wan(pipe)

    assert torch.equal(run(3), run(np.int64(3)))
    assert not torch.equal(run(3), run(np.int64(4)))


class OwnSolver(WanPipeline):
    """Steps by itself, and never asks its scheduler to."""

    def __call__(self, steps: int = 5) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        latents, sigmas = torch.ones(1, 4, 2, 4, 4), self.scheduler.sigmas
        with torch.no_grad():
            for i, timestep in enumerate(self.scheduler.timesteps):
                velocity = self.transformer(
                    hidden_states=latents,
                    timestep=timestep[None],
                    encoder_hidden_states=torch.zeros(1, 4, 8),
                )[0]
                latents = latents + (sigmas[i + 1] - sigmas[i]) * velocity
        self.maybe_free_model_hooks()
        return latents


def test_a_pipeline_that_never_steps_its_scheduler_is_an_error_and_no_all_large_result() -> None:
    own = wan_denoiser()
    pipe = OwnSolver(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=SCHEDULERS["euler"](),
        transformer=own,
    )
    plain = pipe()
    with DenoiserSwitch(pipe, small(), *LSL):
        with pytest.raises(SwitchError, match="OwnSolver called its denoiser, and never"):
            pipe()
        assert pipe.transformer is own
    assert torch.equal(pipe(), plain)


def test_a_rule_of_another_kind_is_refused() -> None:
    with pytest.raises(StageError, match="adaptive must be a SelfDifference"):
        DenoiserSwitch(wan_pipe(), small(), *LSL, adaptive=3)  # type: ignore[arg-type]


class Hears:
    """Hears what a scheduler announces, and hands outputs on as they are."""

    def __init__(self) -> None:
        self.denoisers_run: list[str] = []
        self.outputs: list[torch.Tensor] = []
        self.told: list[Any] = []
        self.pipe, self.is_at_rest = None, True

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        self.told.append((stage_indices, first_step))

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        self.outputs.append(output)
        return output

    def step_finished(self, step_index: int) -> None:
        self.told.append(step_index)

    def trajectory_finished(self) -> None:
        self.told.append("end")

    def is_called_by_own_pipe(self) -> bool:
        return True

    def copy_stepped(self, copied: Any, calls: int) -> None:
        self.told.append(("copy", calls))


def announcing(steps: int = 4) -> tuple[Any, Hears]:
    scheduler, listener = wrap_scheduler(SCHEDULERS["euler"](), LS), Hears()
    scheduler.attach_listener(listener)
    scheduler.set_timesteps(steps)
    return scheduler, listener


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LS = StageSchedule.parse("LS", (0.5,))


def test_steps_are_announced_one_after_another_and_the_end_once() -> None:
    scheduler, listener = announcing()
    for timestep in scheduler.timesteps:
        scheduler.step(drawn(0, 1, 2), timestep, drawn(1, 1, 2))
    assert listener.told == [((0, 0, 1, 1), 0), 0, 1, 2, 3, "end"]
    assert scheduler.calls == 4
    scheduler.set_timesteps(2)
    assert (listener.told[-1], scheduler.calls) == (((0, 1), 0), 0)


def test_a_late_start_is_announced_with_its_step_once() -> None:
    scheduler, listener = announcing()
    for begin in (3, 2):  # the last word before the first step counts
        scheduler.set_begin_index(begin)
        assert listener.told[-1] == ((0, 0, 1, 1), begin)
    scheduler.step(drawn(0, 1, 2), scheduler.timesteps[2], drawn(1, 1, 2))
    told = list(listener.told)
    scheduler.set_begin_index(1)
    assert listener.told == told


def test_an_output_of_tokens_is_told_as_noise_minus_clean_and_stepped_as_diffusers_does() -> None:
    scheduler, listener = announcing()
    stock = SCHEDULERS["euler"]()
    stock.set_timesteps(4)
    output, sample = drawn(0, 1, 3, 2), drawn(1, 1, 3, 2)
    tokens = torch.tensor([[1000.0, 500.0, 250.0]])
    for timestep in stock.timesteps:
        given = (output, timestep, sample)
        found = scheduler.step(*given, per_token_timesteps=tokens).prev_sample
        assert torch.equal(found, stock.step(*given, per_token_timesteps=tokens).prev_sample)
        assert torch.equal(listener.outputs[-1], -output)
        assert scheduler.step_arguments["per_token_timesteps"] is tokens
        sample = found
    plain, listener = announcing()
    plain.step(output, plain.timesteps[0], sample)
    assert torch.equal(listener.outputs[-1], output)
    assert plain.step_arguments.get("per_token_timesteps") is None


def test_a_copy_of_a_scheduler_at_work_has_nobody_to_tell_but_whom_it_was_copied_from() -> None:
    scheduler, listener = announcing()
    watched: list[Any] = []
    scheduler.watch(lambda *what: watched.append(what))
    scheduler.step(drawn(0, 1, 2), scheduler.timesteps[0], drawn(1, 1, 2))
    copied = copy.deepcopy(scheduler)
    assert copied.stages is None
    assert scheduler.was_copied
    own = {"_listener", "_generators", "_watcher", "_wrapper", "step_arguments"}
    assert own.isdisjoint(vars(copied))
    for calls in (1, 2):
        copied.step(drawn(0, 1, 2), copied.timesteps[calls], drawn(1, 1, 2))
        assert listener.told[-1] == ("copy", copied.calls)
    assert len(watched) == 1

    scheduler.detach_listener()
    idle = copy.deepcopy(scheduler)
    assert idle.stages == LS
    assert type(idle) is type(scheduler)


def test_one_scheduler_has_one_listener_at_a_time() -> None:
    scheduler, listener = announcing()
    scheduler.attach_listener(listener)
    other = Hears()
    with pytest.raises(SwitchError) as caught:
        scheduler.attach_listener(other)
    assert str(caught.value) == (
        "this scheduler drives another pipe's DenoiserSwitch: give each pipe its own scheduler"
    )
    scheduler.detach_listener()
    scheduler.attach_listener(other)
    with pytest.raises(SwitchError, match=r"drives another pipe's"):
        scheduler.attach_listener(listener)


@pytest.mark.parametrize("is_own", [False, True])
def test_a_copy_of_a_whole_pipe_has_the_scheduler_of_before_and_runs_as_if_there_were_no_switch(
    is_own: bool,
) -> None:
    pipe = wan_pipe(wrap_scheduler(SCHEDULERS["unipc"](), LS) if is_own else None)
    own = pipe.scheduler
    plain = run_wan(wan_pipe(SCHEDULERS["unipc"]() if is_own else None))
    with DenoiserSwitch(pipe, small(), None if is_own else LS):
        copied = copy.deepcopy(pipe)
        blended = run_wan(pipe)
        assert copied.scheduler is not pipe.scheduler
        assert type(copied.scheduler) is type(own)
        assert getattr(copied.scheduler, "stages", None) == (LS if is_own else None)
        if is_own:
            with DenoiserSwitch(copied, small()):
                assert torch.equal(run_wan(copied), blended)
        else:
            assert torch.equal(run_wan(copied), plain)

        def within(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            copy.deepcopy(pipe)
            return given

        with pytest.raises(SwitchError) as caught:
            run_wan(pipe, callback_on_step_end=within)
    assert str(caught.value) == (
        "this pipe can't be copied within a call: its DenoiserSwitch has put a stage's settings "
        "into it; copy it before the call, or after it"
    )
