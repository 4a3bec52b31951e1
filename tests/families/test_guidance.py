"""A stage's guidance scale on every family that takes one: docs/stages.md says which, and how."""

from __future__ import annotations

import pytest
import torch
from families.base import Family
from families.registry import FAMILIES

from flowblend_plugin import DenoiserSwitch, Stage, StageSchedule, SwitchError
from flowblend_plugin.stages.capabilities import BATCHED, RECOMBINED, TWO_PASSES

TAKEN = RECOMBINED | TWO_PASSES | BATCHED
GUIDED = [f for f in FAMILIES if f.pipeline in TAKEN]
OTHERS = [f for f in FAMILIES if f.pipeline not in TAKEN and "Modular" not in f.pipeline]


def scaled(scale: float) -> StageSchedule:
    return StageSchedule((Stage("large", guidance_scale=scale),))


@pytest.mark.parametrize("family", GUIDED, ids=lambda family: family.name)
def test_a_stage_of_another_scale_equals_a_call_with_that_scale(family: Family) -> None:
    plain = family.run(family.make_pipe(), steps=family.steps, guidance_scale=5.0)
    pipe = family.make_pipe()
    with DenoiserSwitch(pipe, stages=scaled(5.0)):
        got = family.run(pipe, steps=family.steps, guidance_scale=2.0)
    assert torch.equal(got, plain)
    own = family.run(family.make_pipe(), steps=family.steps, guidance_scale=2.0)
    assert not torch.equal(got, own)


@pytest.mark.parametrize("family", GUIDED, ids=lambda family: family.name)
def test_a_scale_of_one_drops_the_second_pass_or_is_refused(family: Family) -> None:
    pipe = family.make_pipe()
    if family.pipeline in BATCHED:
        with pytest.raises(SwitchError, match="one batch"):
            DenoiserSwitch(pipe, stages=scaled(1.0))
        return
    plain = family.run(family.make_pipe(), steps=family.steps, guidance_scale=1.0)
    with DenoiserSwitch(pipe, stages=scaled(1.0)):
        assert torch.equal(family.run(pipe, steps=family.steps, guidance_scale=2.0), plain)


@pytest.mark.parametrize("family", OTHERS, ids=lambda family: family.name)
def test_other_pipelines_refuse_a_scale_with_the_reason(family: Family) -> None:
    with pytest.raises(SwitchError, match="doesn't let guidance change"):
        DenoiserSwitch(family.make_pipe(), stages=scaled(3.0))


@pytest.mark.parametrize("family", GUIDED, ids=lambda family: family.name)
def test_a_call_that_failed_leaves_its_scale_to_no_other(family: Family) -> None:
    stages = StageSchedule((Stage("large", until=0.5, guidance_scale=7.0), Stage("large")))
    fresh = family.make_pipe()
    with DenoiserSwitch(fresh, stages=stages):
        wanted = family.run(fresh, steps=family.steps, guidance_scale=3.0)
    fails = [True]

    def on_step(index: int, role: str) -> None:
        if fails:
            raise RuntimeError("stopped by the test")

    pipe = family.make_pipe()
    switch = DenoiserSwitch(pipe, stages=stages, on_step=on_step)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        family.run(pipe, steps=family.steps, guidance_scale=5.0)
    fails.clear()

    assert torch.equal(family.run(pipe, steps=family.steps, guidance_scale=3.0), wanted)
    switch.detach()
