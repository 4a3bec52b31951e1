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
from torch import Tensor, nn

from flowblend_plugin.denoisers.placement import Denoiser, DenoiserSlots, uncompiled
from flowblend_plugin.errors import StageError, SwitchError
from flowblend_plugin.schedulers.stage_mixin import Seed
from flowblend_plugin.stage_hooks.extrapolation import fixed_answer
from flowblend_plugin.stages import StageSchedule
from flowblend_plugin.switch import DenoiserSwitch


@dataclass(frozen=True)
class Sensitivities:
    """What single steps by the small denoiser did to one result.

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
    """Steps to try, evenly spread, with the first and the last; the first alone if one.

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
    """Measure what single steps by the small denoiser do to one result.

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
    recording = _RecordedRun(pipe, small, seed)
    with recording, torch.no_grad():
        final = sample().float().cpu()
    done()
    steps = len(recording.denoisers)
    if not positions or min(positions) < 0 or max(positions) >= steps:
        raise StageError(
            f"sensitivities of steps {list(positions)} were asked for, but the trajectory has "
            f"steps 0 to {steps - 1}"
        )
    changes = []
    for position in positions:
        with _ReplayedRun(pipe, small, seed, recording, position, steps), torch.no_grad():
            changes.append((sample().float().cpu() - final).flatten())
        done()
    stacked = torch.stack(changes).double()
    energy = final.double().square().sum()
    gram = stacked @ stacked.T / energy
    rows = tuple(tuple(row) for row in gram.tolist())
    return Sensitivities(tuple(positions), rows, float(energy.div(final.numel()).sqrt()))


class _RecordedRun(DenoiserSwitch):
    """Keeps what the solver was handed at each of its calls, in main memory."""

    def __init__(self, pipe: Any, small: Denoiser, seed: Seed | None) -> None:
        super().__init__(pipe, small=small, stages="L", seed=seed)
        self.outputs: list[Tensor] = []
        self.answer: Any = None
        self._handles = [
            module.register_forward_hook(self._keep) for module in self._slots["large"].values()
        ]

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.answer = output

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        self.outputs = []
        if first_step > 0:
            raise SwitchError(
                f"this call begins at step {first_step} of its trajectory: measure a whole one"
            )
        super().trajectory_started(stage_indices, first_step)

    def model_output(self, output: Tensor, sample: Tensor) -> Tensor:
        self.outputs.append(output.detach().cpu())
        return super().model_output(output, sample)

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        super().detach()


class _ReplayedRun(DenoiserSwitch):
    """Follows a recording up to one step, which the small denoiser runs, and goes on from there."""

    def __init__(
        self,
        pipe: Any,
        small: Denoiser,
        seed: Seed | None,
        recording: _RecordedRun,
        position: int,
        steps: int,
    ) -> None:
        roles = ["large"] * steps
        roles[position] = "small"
        super().__init__(pipe, small=small, stages=StageSchedule.from_denoisers(roles), seed=seed)
        self._recording, self._position, self._calls = recording, position, 0
        self._replaced: DenoiserSlots = {}

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        self._calls = 0
        self._ask()
        super().trajectory_started(stage_indices, first_step)
        if first_step < self._position:
            self._answer()

    def model_output(self, output: Tensor, sample: Tensor) -> Tensor:
        output = super().model_output(output, sample)
        if self._replaced:
            output = self._recording.outputs[self._calls].to(output)
        self._calls += 1
        return output

    def step_finished(self, step_index: int) -> None:
        if step_index + 1 >= self._position:
            self._ask()
        super().step_finished(step_index)

    def detach(self) -> None:
        self._ask()
        super().detach()

    def _answer(self) -> None:
        """Let the large denoiser answer at once: what it says isn't looked at."""
        self._replaced = dict(self._slots["large"])
        for name, module in self._replaced.items():
            setattr(self._pipe, name, fixed_answer(uncompiled(module), self._recording.answer))

    def _ask(self) -> None:
        for name, module in self._replaced.items():
            setattr(self._pipe, name, module)
        self._replaced = {}
