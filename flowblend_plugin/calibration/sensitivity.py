"""Sensitivities: how much single steps by the small denoiser change the final latents.

For some steps, a run goes along the large denoiser's recorded trajectory up to that step, lets the
small one run it, and goes on with the large one. The changes of the final latents are kept as
vectors: the inner products of two tell whether their errors add up or cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.denoisers.placement import Denoiser
from flowblend_plugin.errors import StageError, SwitchError
from flowblend_plugin.schedulers.noise import Seed
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stages import StageSchedule
from flowblend_plugin.switch import DenoiserSwitch


@dataclass(frozen=True)
class Sensitivities:
    """The effect of single steps by the small denoiser on one result.

    Args:
        positions: Indices of the steps, ascending.
        gram: Inner products of the changes of the final latents, relative to the squared norm of
            these latents: one row and one column for each position.
        final_rms: Root mean square of the final latents.
    """

    positions: tuple[int, ...]
    gram: tuple[tuple[float, ...], ...]
    final_rms: float


def default_positions(steps: int, count: int = 10) -> tuple[int, ...]:
    """Choose steps to try, evenly spread, with the first and the last; the first alone if one.

    Raises:
        StageError: ``count`` isn't at least 1.
    """
    if count < 1:
        raise StageError(f"at least one step has to be tried, got {count}")
    if steps <= count:
        return tuple(range(steps))
    if count == 1:
        return (0,)
    return tuple(round(k * (steps - 1) / (count - 1)) for k in range(count))


def measure_sensitivities(
    pipe: Any,
    small: Denoiser,
    sample: Callable[[], Tensor],
    positions: Sequence[int],
    seed: Seed | None = None,
    on_run: Callable[[], None] | None = None,
) -> Sensitivities:
    """Measure the effect of single steps by the small denoiser on one result.

    Args:
        pipe: A pipeline; see ``DenoiserSwitch``.
        small: The small denoiser.
        sample: Calls the pipe, with the same noise every time, and gives the final latents.
        positions: Indices of the steps to try, ascending. Each costs the large forwards of the
            steps after it.
        seed: Seed of a stochastic solver's noise.
        on_run: Called after each of the ``1 + len(positions)`` runs.

    Returns:
        The sensitivities.

    Raises:
        StageError: A position is no step of the trajectory.
        SwitchError: See ``DenoiserSwitch``.
    """
    done = on_run or (lambda: None)

    def run(hook: StageHook, stages: StageSchedule | str) -> Tensor:
        with DenoiserSwitch(pipe, small, stages, seed=seed, hooks=[hook]), torch.no_grad():
            final = sample().float().cpu()
        done()
        return final

    record = _Record()
    final = run(record, "L")
    steps = record.steps
    if not positions or min(positions) < 0 or max(positions) >= steps:
        raise StageError(
            f"sensitivities of steps {list(positions)} were asked for, but the trajectory has "
            f"steps 0 to {steps - 1}"
        )
    changes = []
    for position in positions:
        roles = ["small" if step == position else "large" for step in range(steps)]
        stages = StageSchedule.from_denoisers(roles)
        changes.append((run(_Replay(record, position), stages) - final).flatten())
    stacked = torch.stack(changes).double()
    energy = final.double().square().sum()
    gram = stacked @ stacked.T / energy
    rows = tuple(tuple(row) for row in gram.tolist())
    return Sensitivities(tuple(positions), rows, float(energy.div(final.numel()).sqrt()))


class _Record(StageHook):
    """Keeps what the solver was handed at each of its calls, in main memory."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.answer: Any = None
        self.steps = 0

    def start(self, scheduler: Any) -> None:
        self.outputs = []

    def begin_step(self, step: StageStep) -> None:
        self.steps = step.total
        if step.index > 0 and not self.outputs:
            raise SwitchError(
                f"this call begins at step {step.index} of its trajectory: measure a whole one"
            )

    def model_output(self, output: Tensor, sample: Tensor) -> Tensor:
        self.outputs.append(output.detach().to("cpu", copy=True))
        return output

    def denoiser_ran(self, call: Call, output: Any) -> None:
        self.answer = output


class _Replay(StageHook):
    """Gives the solver what a record holds, up to one step; nothing is computed before that."""

    def __init__(self, record: _Record, position: int) -> None:
        self._record, self._position, self._calls = record, position, 0
        self._is_replaying = False

    def start(self, scheduler: Any) -> None:
        self._calls = 0

    def begin_step(self, step: StageStep) -> None:
        self._is_replaying = step.index < self._position

    def denoiser_answer(self, call: Call) -> Any:
        return self._record.answer if self._is_replaying else None

    def model_output(self, output: Tensor, sample: Tensor) -> Tensor:
        if self._is_replaying:
            output = self._record.outputs[self._calls].to(output)
        self._calls += 1
        return output
