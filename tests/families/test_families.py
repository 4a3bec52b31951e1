"""Every family of pipelines against the same oracles, with tiny pairs of its real classes."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from families.base import Family
from families.registry import FAMILIES
from tiny import ForwardRecorder

from flowblend_plugin import DenoiserSwitch, PairMismatchError, StageSchedule
from flowblend_plugin.denoisers.loading import denoiser_name

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def pending(family: Family) -> Any:
    """A family whose small denoiser can't run yet; its tests say when it can."""
    marks = [pytest.mark.xfail(strict=True, reason=family.pending)] if family.pending else []
    return pytest.param(family, id=family.name, marks=marks)


every_family_that_blends = pytest.mark.parametrize("family", [pending(f) for f in FAMILIES])


def run(family: Family, pipe: Any, switch: DenoiserSwitch | None = None, **more: Any) -> Any:
    """One call; a family that needs the callback gets it."""
    if switch is not None and family.needs_callback:
        more["callback_on_step_end"] = switch
    return family.run(pipe, steps=family.steps, **more)


@functools.cache
def plain(family: Family) -> torch.Tensor:
    """What diffusers alone makes of the large denoiser."""
    return run(family, family.make_pipe())


def denoisers(family: Family, pipe: Any) -> tuple[Any, ...]:
    """The pipe's own denoiser, or its two experts."""
    return tuple(getattr(pipe, name) for name in family.attributes)


def modules(small: Any) -> tuple[Any, ...]:
    return small if isinstance(small, tuple) else (small,)


def recorder(large: tuple[Any, ...], small: Any) -> ForwardRecorder:
    """Write down which role ran, whichever of its experts it was."""
    record = ForwardRecorder()
    for role, parts in (("large", large), ("small", modules(small))):
        for module in parts:
            module.register_forward_pre_hook(lambda *_, role=role: record.roles.append(role))
    return record


class Blend(NamedTuple):
    """Two runs of one pipe, and who did the forwards of the first."""

    first: torch.Tensor
    second: torch.Tensor
    recorded: tuple[str, ...]
    announced: tuple[str, ...]


@functools.cache
def blend(family: Family) -> Blend:
    pipe, small = family.make_pipe(), family.make_small()
    record = recorder(denoisers(family, pipe), small)
    with DenoiserSwitch(pipe, small=small, stages=LSL) as switch:
        first = run(family, pipe, switch)
        recorded, announced = record.per_step(family.forwards), tuple(switch.denoisers_run)
        return Blend(first, run(family, pipe, switch), recorded, announced)


def planned(family: Family) -> tuple[str, ...]:
    """The role of every step that one call runs."""
    return LSL.denoisers(family.steps)[family.skipped :] * family.trajectories


def snapshot(family: Family, pipe: Any) -> dict[str, Any]:
    """What a switch touches on a pipe, and what is in it."""
    parts = denoisers(family, pipe)
    return {
        "denoisers": parts,
        "scheduler": pipe.scheduler,
        "scheduler class": type(pipe.scheduler),
        "config": dict(pipe.config),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in parts],
    }


@every_family
def test_the_pipeline_is_the_real_one(family: Family) -> None:
    pipe, small = family.make_pipe(), family.make_small()
    assert type(pipe) is getattr(diffusers, family.pipeline)
    assert denoiser_name(pipe) == family.attributes[0]
    for module in (*denoisers(family, pipe), *modules(small)):
        assert type(module) is getattr(diffusers, family.denoiser)
    parameters = inspect.signature(pipe.__call__).parameters
    assert ("callback_on_step_end" in parameters) == family.has_callback


@every_family
def test_all_large_through_the_switch_equals_the_plain_pipeline(family: Family) -> None:
    pipe = family.make_pipe()
    stages = StageSchedule.parse("LLL", boundaries=(0.4, 0.8))
    with DenoiserSwitch(pipe, small=family.make_small(), stages=stages) as switch:
        assert torch.equal(run(family, pipe, switch), plain(family))
    assert torch.isfinite(plain(family)).all()


@every_family
def test_equal_weights_in_another_module_change_no_bit(family: Family) -> None:
    pipe = family.make_pipe()
    twins = copy.deepcopy(denoisers(family, pipe))
    twin = twins if len(twins) > 1 else twins[0]
    with DenoiserSwitch(pipe, small=twin, stages=LSL) as switch:
        assert torch.equal(run(family, pipe, switch), plain(family))


@every_family_that_blends
def test_the_recorded_forwards_are_the_planned_ones(family: Family) -> None:
    assert blend(family).recorded == planned(family)
    assert blend(family).announced == LSL.denoisers(family.steps)[family.skipped :]
    assert not torch.equal(blend(family).first, plain(family))


@every_family_that_blends
def test_a_second_run_equals_the_first(family: Family) -> None:
    assert torch.equal(blend(family).second, blend(family).first)


@pytest.mark.parametrize(
    "family", [pending(f) for f in FAMILIES if f.has_callback and not f.needs_callback]
)
def test_the_callback_changes_nothing(family: Family) -> None:
    pipe = family.make_pipe()
    with DenoiserSwitch(pipe, small=family.make_small(), stages=LSL) as switch:
        again = family.run(pipe, steps=family.steps, callback_on_step_end=switch)
    assert torch.equal(again, blend(family).first)


@every_family
def test_an_exception_in_mid_trajectory_leaves_the_pipe_as_it_was(family: Family) -> None:
    pipe, small = family.make_pipe(), family.make_small()
    before = snapshot(family, pipe)

    def fail(*_: Any) -> None:
        assert denoisers(family, pipe) == modules(small)
        raise RuntimeError("in mid-trajectory")

    for module in modules(small):
        module.register_forward_pre_hook(fail)
    with (
        pytest.raises(RuntimeError, match="in mid-trajectory"),
        DenoiserSwitch(pipe, small=small, stages=LSL) as switch,
    ):
        run(family, pipe, switch)
    assert snapshot(family, pipe) == before
    assert torch.equal(run(family, pipe), plain(family))


@every_family
def test_a_pair_that_does_not_fit_is_refused_by_name(family: Family) -> None:
    pipe = family.make_pipe()
    before = snapshot(family, pipe)
    with pytest.raises(PairMismatchError, match=family.misfit):
        DenoiserSwitch(pipe, small=family.make_misfit(), stages=LSL)
    assert snapshot(family, pipe) == before


@every_family
def test_an_attached_scheduler_saves_and_copies_as_the_stock_one(family: Family) -> None:
    pipe = family.make_pipe()
    stock = pipe.scheduler
    with DenoiserSwitch(pipe, small=family.make_small(), stages=LSL):
        at_work = pipe.scheduler
        assert at_work.to_json_string() == stock.to_json_string()
        assert len(pickle.dumps(at_work)) < 100_000, "a copy reaches no denoiser"
        for copied in (pickle.loads(pickle.dumps(at_work)), copy.deepcopy(at_work)):
            assert type(copied) is type(at_work)
            assert copied.stages is None, "a copy of a scheduler at work announces nothing"
    assert pipe.scheduler is stock


@every_family_that_blends
def test_the_small_denoiser_loads_from_its_folder(family: Family, tmp_path: Path) -> None:
    folders = []
    for index, module in enumerate(modules(family.make_small())):
        folders.append(tmp_path / str(index))
        module.save_pretrained(folders[-1])
    pipe = family.make_pipe()
    small = tuple(folders) if len(folders) > 1 else folders[0]
    with DenoiserSwitch(pipe, small=small, stages=LSL) as switch:
        assert torch.equal(run(family, pipe, switch), blend(family).first)
