"""FlowBlendBlock in a modular pipeline's loop: the small denoiser is a true component."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import modular_wan
from families.modular_wan import denoiser, make, run
from tiny import ForwardRecorder

from flowblend_plugin import (
    DenoiserSwitch,
    PairMismatchError,
    Stage,
    StageError,
    StageSchedule,
    SwitchError,
)
from flowblend_plugin.modular import FlowBlendBlock

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


def small() -> Any:
    return denoiser(layers=1, num_attention_heads=1)


def blended(stages: Any = LSL, **options: Any) -> Any:
    return make(FlowBlendBlock(stages, **options), small())


def test_all_large_through_the_block_equals_the_plain_pipeline() -> None:
    assert torch.equal(run(make(FlowBlendBlock("LLL"))), run(make()))


@pytest.mark.parametrize("letters", ["LSL", "SSL", "LSS"])
def test_the_block_equals_the_switch_on_the_same_pipeline(letters: str) -> None:
    stages = StageSchedule.parse(letters, boundaries=(0.4, 0.8))
    pipe = make()
    with DenoiserSwitch(pipe, small=small(), stages=stages):
        expected = run(pipe)
    assert torch.equal(run(blended(stages)), expected)


def test_the_blocks_forwards_are_the_planned_ones() -> None:
    pipe = blended()
    record = ForwardRecorder(large=pipe.transformer, small=pipe.transformer_small)
    ran = run(pipe, output="denoisers_run")
    assert record.per_step() == LSL.denoisers(4)
    assert ran == LSL.denoisers(4)


def test_sigma_boundaries_follow_the_pipelines_own_timesteps() -> None:
    pipe = make()
    with DenoiserSwitch(pipe, small=small(), stages="LS", boundary_sigmas=(0.9,)) as switch:
        run(pipe, steps=6)
    ran = run(blended("LS", boundary_sigmas=(0.9,)), steps=6, output="denoisers_run")
    assert ran == switch.denoisers == ("large",) * 2 + ("small",) * 4


def test_the_small_denoiser_is_a_component_and_the_large_one_stays_in_its_place() -> None:
    pipe = blended("LS", boundaries=(0.5,))
    assert set(pipe.components) == {"transformer", "transformer_small", "scheduler", "guider"}
    large = pipe.transformer
    first = run(pipe)
    assert pipe.transformer is large
    assert torch.equal(run(pipe), first)
    assert pipe.to(torch.float64).transformer_small.dtype == torch.float64


def test_an_exception_in_the_loop_leaves_the_pipeline_as_it_was() -> None:
    pipe = blended("LS", boundaries=(0.5,))
    expected, large = run(pipe), pipe.transformer

    def fail(*_: Any) -> None:
        raise RuntimeError("in mid-trajectory")

    hook = pipe.transformer_small.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in mid-trajectory"):
        run(pipe)
    hook.remove()
    assert pipe.transformer is large
    assert torch.equal(run(pipe), expected)


def test_in_wan_22s_blocks_the_small_denoiser_takes_either_experts_place() -> None:
    plain = make(experts=True)
    assert torch.equal(run(make(FlowBlendBlock("LLL"), experts=True)), run(plain))
    with DenoiserSwitch(plain, small=small(), stages=LSL):
        expected = run(plain)
    assert torch.equal(run(make(FlowBlendBlock(LSL), small(), experts=True)), expected)


def test_reset_makes_the_solver_forget_at_a_switch() -> None:
    results = [run(blended(LSL, solver_history=history), steps=6) for history in ("keep", "reset")]
    assert not torch.equal(*results)


def test_a_missing_component_is_named() -> None:
    with pytest.raises(SwitchError, match=r"no transformer_small.*update_components"):
        run(make(FlowBlendBlock(LSL)))


def test_a_component_that_cant_fit_is_refused() -> None:
    with pytest.raises(PairMismatchError, match="text_dim"):
        run(make(FlowBlendBlock(LSL), denoiser(text_dim=12)))


def test_stages_that_set_more_than_the_denoiser_are_refused() -> None:
    stages = StageSchedule((Stage("large", guidance_scale=2.0),))
    with pytest.raises(StageError, match="guidance_scale"):
        FlowBlendBlock(stages)


def test_the_family_of_the_table_is_the_one_tested_here() -> None:
    (family,) = modular_wan.FAMILIES
    assert family.pipeline == type(make()).__name__
