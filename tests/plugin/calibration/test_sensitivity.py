"""What single small steps do to the result: replayed from a recording, as computed directly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import (
    SCHEDULERS,
    ForwardRecorder,
    ltx_denoiser,
    ltx_pipe,
    run_ltx,
    run_wan,
    snapshot,
    wan_denoiser,
    wan_pipe,
)
from torch import Tensor

from flowblend_plugin import DenoiserSwitch, StageError, StageSchedule
from flowblend_plugin.calibration.sensitivity import (
    Sensitivities,
    default_positions,
    measure_sensitivities,
)
from flowblend_plugin.schedulers.factory import make_scheduler

STEPS = 4


def small() -> Any:
    return wan_denoiser(layers=1, heads=1, seed=1)


def directly(pipe: Any, other: Any, position: int, seed: int | None = None) -> Tensor:
    """The result of one small step, every other step computed."""
    roles = ["small" if step == position else "large" for step in range(STEPS)]
    with DenoiserSwitch(pipe, small=other, stages=StageSchedule.from_denoisers(roles), seed=seed):
        return run_wan(pipe, steps=STEPS)


def gram_of(changes: list[Tensor], plain: Tensor) -> Tensor:
    rows = torch.stack([change.flatten() for change in changes]).double()
    return rows @ rows.T / plain.double().square().sum()


def test_replayed_runs_are_those_computed_directly(scheduler: Any) -> None:
    pipe, other = wan_pipe(scheduler), small()
    seen: list[Tensor] = []

    def sample() -> Tensor:
        seen.append(run_wan(pipe, steps=STEPS))
        return seen[-1]

    found = measure_sensitivities(pipe, other, sample, range(STEPS))
    plain = run_wan(wan_pipe(scheduler), steps=STEPS)
    direct = [directly(wan_pipe(scheduler), other, k) for k in range(STEPS)]

    assert torch.equal(seen[0], plain)
    assert all(torch.equal(a, b) for a, b in zip(seen[1:], direct, strict=True))
    assert torch.equal(
        torch.tensor(found.gram, dtype=torch.double), gram_of([d - plain for d in direct], plain)
    )
    assert found.final_rms == pytest.approx(plain.double().square().mean().sqrt().item())


def test_a_stochastic_solver_has_the_same_noise_in_every_run() -> None:
    def sde() -> Any:
        return wan_pipe(make_scheduler(SCHEDULERS["euler"](), None, None, "sde"))

    pipe, other = sde(), small()
    found = measure_sensitivities(pipe, other, lambda: run_wan(pipe, steps=STEPS), [2], seed=7)
    with DenoiserSwitch(again := sde(), small=other, stages="L", seed=7):
        plain = run_wan(again, steps=STEPS)
    change = directly(sde(), other, 2, seed=7) - plain

    assert found.gram[0][0] == pytest.approx(gram_of([change], plain).item(), rel=1e-12)


def test_steps_before_the_tried_one_cost_no_forward() -> None:
    pipe, other = wan_pipe(), small()
    record = ForwardRecorder(large=pipe.transformer, small=other)
    counts: list[int] = []
    inner = pipe.transformer.forward
    computed: list[int] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        computed.append(1)
        return inner(*args, **kwargs)

    pipe.transformer.forward = forward
    measure_sensitivities(
        pipe, other, lambda: run_wan(pipe, steps=STEPS), [0, 3],
        on_run=lambda: counts.append(len(computed)),
    )  # fmt: skip
    assert counts == [8, 8 + 6, 8 + 6]  # two passes a step: the whole, steps 1 to 3, none
    assert record.roles.count("small") == 2 * 2
    assert pipe.transformer.forward is forward


def test_passes_in_one_batch_are_replayed_too() -> None:
    pipe, other = ltx_pipe(), ltx_denoiser(layers=1, seed=1)
    found = measure_sensitivities(pipe, other, lambda: run_ltx(pipe, steps=STEPS), [1, 3])
    plain = run_ltx(ltx_pipe(), steps=STEPS)
    roles = ["large", "small", "large", "large"]
    with DenoiserSwitch(
        again := ltx_pipe(), small=other, stages=StageSchedule.from_denoisers(roles)
    ):
        change = run_ltx(again, steps=STEPS) - plain

    assert found.gram[0][0] == gram_of([change], plain).item()


def test_equal_denoisers_change_nothing() -> None:
    pipe = wan_pipe()
    found = measure_sensitivities(
        pipe, wan_denoiser(), lambda: run_wan(pipe, steps=STEPS), range(STEPS)
    )

    assert found == Sensitivities(tuple(range(STEPS)), ((0.0,) * STEPS,) * STEPS, found.final_rms)


@pytest.mark.parametrize("fails_in_run", [0, 1])
def test_nothing_is_left_patched_after_an_exception(fails_in_run: int) -> None:
    pipe, other, runs = wan_pipe(), small(), []
    before = snapshot(pipe)

    def fail(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(runs) > fails_in_run:
            raise KeyboardInterrupt
        return kwargs

    def sample() -> Tensor:
        runs.append(1)
        return run_wan(pipe, steps=STEPS, callback_on_step_end=fail)

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivities(pipe, other, sample, [3])
    after = snapshot(pipe)
    assert after["hooks"] == before["hooks"]
    assert after["transformer"] is before["transformer"]
    assert after["scheduler"] is before["scheduler"]
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(run_wan(pipe, steps=STEPS), run_wan(wan_pipe(), steps=STEPS))


@pytest.mark.parametrize("positions", [[], [4], [-1, 0]])
def test_positions_that_are_no_steps_are_refused(positions: list[int]) -> None:
    pipe = wan_pipe()

    with pytest.raises(StageError, match="steps 0 to 3"):
        measure_sensitivities(pipe, small(), lambda: run_wan(pipe, steps=STEPS), positions)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 50])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_default_positions_are_distinct_steps_with_both_ends(steps: int, count: int) -> None:
    found = default_positions(steps, count)

    assert len(found) == len(set(found)) == min(steps, count)
    assert list(found) == sorted(found)
    assert found[0] == 0
    assert count == 1 or found[-1] == steps - 1


def test_no_position_is_refused() -> None:
    with pytest.raises(StageError, match="at least one"):
        default_positions(10, 0)
