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

from flowblend_plugin import DenoiserSwitch, StageError, SwitchError, wrap_scheduler

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
