"""StageGuidance: gives stages their own guidance scale, for ``DenoiserSwitch``.

Pipelines were made for one scale a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.errors import SwitchError
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stages import Stage
from flowblend_plugin.stages.capabilities import RECOMBINED, guidance_problem


class StageGuidance(StageHook):
    """Gives each stage of a trajectory its own guidance scale.

    Args:
        pipe: The pipeline.
        stages: The stages.

    Raises:
        SwitchError: The pipeline can't take the guidance that a stage asks for; says why, and what
            to do.
    """

    def __init__(self, pipe: Any, stages: Iterable[Stage]) -> None:
        scales = [stage.guidance_scale for stage in stages if stage.guidance_scale is not None]
        for scale in scales:
            problem = guidance_problem(type(pipe).__name__, scale)
            if problem is not None:
                raise SwitchError(problem)
        self._pipe = pipe
        self._is_used = bool(scales)
        self._recombines = type(pipe).__name__ in RECOMBINED
        self._own: Any = None  # the call's own scale
        self._left: Any = None  # the very object that a stage has put in its place
        self._wanted: float | None = None
        self._checked = False
        self._passes: list[torch.Tensor] = []

    def start(self, scheduler: Any) -> None:
        """Note the call's own scale."""
        if not self._is_used:
            return
        present = getattr(self._pipe, "_guidance_scale", None)
        # What a stage has left there belongs to this same call; anything else is a new call's own.
        if self._own is None or present is not self._left:
            self._own, self._left = present, None

    def enter(self, step: StageStep) -> None:
        """Set the scale of a stage from its first step on.

        Raises:
            SwitchError: The call runs without guidance and has no unconditional pass to add; or a
                callback has changed the scale.
        """
        if self._own is None:
            return
        self._check_untouched()
        wanted = None if step.stage.is_extrapolated else step.stage.guidance_scale
        if wanted is not None and wanted > 1 >= self._own:
            raise SwitchError(
                f"a stage wants guidance_scale {wanted}, but the call runs with {self._own} and so "
                "has no unconditional pass: call the pipe with a guidance_scale above 1.0"
            )
        self._wanted, self._checked = wanted, False
        scale = self._own
        if wanted is not None and (wanted == 1.0 or not self._recombines):
            scale = wanted
        # A new object, which is told from whatever a caller or a callback puts there.
        self._left = float(scale) + 0.0
        self._pipe._guidance_scale = self._left

    def _check_untouched(self) -> None:
        present = getattr(self._pipe, "_guidance_scale", None)
        if self._left is not None and present is not self._left:
            raise SwitchError(
                f"the pipe's guidance scale became {present} during the call, as a callback such "
                "as a CFG cutoff sets it, and the stages set it too: leave guidance_scale out of "
                "the stages, or leave that callback out"
            )

    def denoiser_ran(self, call: Call, output: Any) -> None:
        """Keep a pass of a stage whose scale is put in afterwards."""
        if self._recombines and self._wanted is not None:
            self._passes.append(output[0] if isinstance(output, (tuple, list)) else output.sample)

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Give the model output with the stage's scale; ``output`` where that is the call's own.

        Raises:
            SwitchError: A callback has changed the scale; or the recorded passes aren't as many as
                there should be, or don't give what the pipeline made of them.
        """
        passes, self._passes = self._passes, []
        if self._own is not None:
            self._check_untouched()
        if not self._recombines or self._wanted is None or self._own is None:
            return output
        own, wanted = self._own_scale(), self._wanted
        count = 1 if wanted == 1.0 else 2
        if len(passes) != count:
            raise SwitchError(
                f"a stage sets guidance_scale {wanted}, for which this {type(self._pipe).__name__} "
                f"has to run {count} of its passes a step, but it ran {len(passes)}: leave "
                "guidance_scale out of the stages, or leave out what adds or skips passes"
            )
        if count == 1 or own == wanted:
            return output
        conditional, unconditional = passes
        if not self._checked:
            again = unconditional + own * (conditional - unconditional)
            if not _is_same(output, again):
                raise SwitchError(
                    f"this {type(self._pipe).__name__} combines its passes in a way that stages "
                    "can't repeat: leave guidance_scale out of the stages"
                )
            self._checked = True
        return unconditional + wanted * (conditional - unconditional)

    def _own_scale(self) -> Any:
        """The call's scale at this step; where Wan has two experts, each has one."""
        pipe = self._pipe
        second = getattr(pipe, "_guidance_scale_2", None)
        ratio = pipe.config.get("boundary_ratio")
        if second is None or ratio is None:
            return self._own
        is_first = pipe.current_timestep >= ratio * pipe.scheduler.config.num_train_timesteps
        return self._own if is_first else second

    def leave(self) -> None:
        """Record no passes any more; the scale stays until the next stage or ``finish``."""
        self._wanted, self._passes = None, []

    def finish(self) -> None:
        """Give the pipe the call's own scale back, unless a callback has set another."""
        self.leave()
        if self._left is not None and self._pipe._guidance_scale is self._left:
            self._pipe._guidance_scale = self._own
        self._own = self._left = None


def _is_same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors are equal, and NaN, as float16 overflows to, where the other is."""
    return one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())
