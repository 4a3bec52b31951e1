"""EarlyExit: ends the first stage early, when the velocity changes little from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowblend_plugin.errors import StageError, SwitchError
from flowblend_plugin.stage_hooks.base import StageHook
from flowblend_plugin.stages import StageSchedule

SHAPE = ("large", "small", "large")


@dataclass(frozen=True)
class SelfDifference:
    """A rule that ends the first stage once the large denoiser's velocity hardly changes.

    The schedule that it goes with is the latest that may happen: the large denoiser first, the
    small one, the large one. Steps that the first stage is spared go to the last one, so that every
    trajectory costs the same. Equal inputs switch at equal steps.

    Args:
        threshold: Relative L2 change of the velocity after guidance, from one step to the next, at
            or below which the small denoiser takes over; 0 or more.

    Raises:
        StageError: The threshold is negative.

    Reference:
        SRDiffusion, arXiv:2505.19151, which switches where consecutive predictions differ by less
        than a threshold, and doesn't switch back.
    """

    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise StageError(f"threshold must be 0 or more, got {self.threshold!r}")


class EarlyExit(StageHook):
    """Watches one trajectory at a time, and revises where its stages end.

    Args:
        rule: When the first stage ends; None leaves all stages as they are.
        stages: The latest schedule.
        order: How often the solver asks the denoiser in a step.

    Raises:
        StageError: The schedule isn't large, small, large, or the solver asks twice a step.
    """

    name = "online"

    def __init__(self, rule: SelfDifference | None, stages: StageSchedule, order: int = 1) -> None:
        self._rule = rule
        self._before: Tensor | None = None
        self.differences: list[float] = []
        if rule is None:
            return
        if not isinstance(rule, SelfDifference):
            raise StageError(
                f"adaptive must be a SelfDifference, such as SelfDifference(0.1), got {rule!r}"
            )
        if order > 1:
            raise StageError(
                "adaptive stages compare one step with the next, and this solver asks the denoiser "
                "twice a step: choose another"
            )
        roles = tuple(stage.denoiser for stage in stages.stages)
        if stages.num_inference_steps is not None:
            raise StageError(
                "adaptive stages end where the trajectory says so, and these have steps of their "
                "own: leave steps out"
            )
        if roles != SHAPE:
            raise StageError(
                f"adaptive stages are large, small, large (LSL) at the latest, got {stages}"
            )

    def start(self, scheduler: Any) -> None:
        """Forget the former trajectory."""
        self._before, self.differences = None, []

    def model_output(self, output: Tensor, sample: Tensor) -> Tensor:
        """Measure how far the output is from that of the step before; it stays what it is."""
        if self._rule is None:
            return output
        if self._before is not None:
            change = (output.float() - self._before.float()).flatten(1).norm(dim=1)
            size = self._before.float().flatten(1).norm(dim=1)
            # The sample of the batch that changes most decides.
            self.differences.append(float(torch.where(change == 0, 0.0, change / size).max()))
        self._before = output.clone()  # compiled denoisers write into their outputs again
        return output

    def revise_stages(self, done: int, stage_indices: tuple[int, ...]) -> tuple[int, ...]:
        """End the first stage now, and the second as much earlier, where the rule says so."""
        total = len(stage_indices)
        if self._rule is None or done >= total or stage_indices[done] != 0:
            return stage_indices
        if not self.differences or not self.differences[-1] <= self._rule.threshold:
            return stage_indices
        last = total - (stage_indices.count(0) + stage_indices.count(2) - done)
        return tuple(0 if s < done else 1 if s < last else 2 for s in range(total))

    def state_dict(self) -> dict[str, Any]:
        """Give the last output and the changes so far, which further decisions depend on."""
        return {"before": self._before, "differences": self.differences}

    def load_state_dict(self, state: Any) -> None:
        """Go on from this output and these changes."""
        self._before, self.differences = state["before"], list(state["differences"])

    def refuse_copies(self) -> None:
        """Refuse a pipeline that steps private copies of its scheduler.

        Raises:
            SwitchError: There is a rule, and what it looks at passes by.
        """
        if self._rule is not None:
            raise SwitchError(
                "this pipeline steps private copies of its scheduler, which adaptive stages can't "
                "follow: give them fixed boundaries"
            )
