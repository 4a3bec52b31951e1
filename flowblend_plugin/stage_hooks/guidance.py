"""StageGuidance: gives stages their own guidance scale, for ``DenoiserSwitch``.

Pipelines were made for one scale a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

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
        for stage in stages:
            if stage.guidance_scale is not None:
                problem = guidance_problem(type(pipe).__name__, stage.guidance_scale)
                if problem is not None:
                    raise SwitchError(problem)
        self._pipe = pipe
        self._recombines = type(pipe).__name__ in RECOMBINED
        self._own: float | None = None
        self._left: float | None = None
        self._wanted: float | None = None
        self._checked = False
        self._handles: list[Any] = []
        self._passes: list[tuple[nn.Module, torch.Tensor]] = []

    def start(self, scheduler: Any) -> None:
        """Note the call's own scale."""
        present = getattr(self._pipe, "_guidance_scale", None)
        # What a stage has left there belongs to this same call; anything else is a new call's own.
        if self._own is None or present != self._left:
            self._own = present

    def enter(self, step: StageStep) -> None:
        """Set the scale of a stage from its first step on.

        Raises:
            SwitchError: The call runs without guidance and has no unconditional pass to add.
        """
        wanted, own = step.stage.guidance_scale, self._own
        if own is None:
            return
        if wanted is not None and wanted > 1 >= own:
            raise SwitchError(
                f"a stage wants guidance_scale {wanted}, but the call runs with {own} and so has "
                "no unconditional pass: call the pipe with a guidance_scale above 1.0"
            )
        self._wanted, self._checked = wanted, False
        drops_pass = wanted == 1.0
        if self._recombines and not drops_pass:
            self._pipe._guidance_scale = own
            if wanted is not None:
                self._handles = [m.register_forward_hook(self._record) for m in step.modules]
        else:
            self._pipe._guidance_scale = own if wanted is None else wanted
        self._left = self._pipe._guidance_scale

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Give the model output with the stage's scale; ``output`` where that is the call's own.

        Raises:
            SwitchError: The recorded passes don't give what the pipeline made of them.
        """
        passes, self._passes = self._passes, []
        if not self._handles or len(passes) != 2 or self._wanted is None:
            return output
        (module, conditional), (_, unconditional) = passes
        own = self._own_scale(module)
        if own == self._wanted:
            return output
        if not self._checked:
            again = unconditional + own * (conditional - unconditional)
            if not torch.equal(output, again):
                raise SwitchError(
                    f"this {type(self._pipe).__name__} combines its passes in a way that stages "
                    "can't repeat: leave guidance_scale out of the stages"
                )
            self._checked = True
        return unconditional + self._wanted * (conditional - unconditional)

    def _own_scale(self, module: nn.Module) -> float:
        # Wan's second expert may have a scale of its own.
        pipe = self._pipe
        second = getattr(pipe, "_guidance_scale_2", None)
        is_second = getattr(pipe, "transformer_2", None) is module
        is_first = pipe.transformer is module
        scale = second if is_second and not is_first and second is not None else self._own
        assert scale is not None
        return scale

    def _record(self, module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else output.sample
        self._passes.append((module, first))

    def leave(self) -> None:
        """Record no passes any more; the scale stays until the next stage or ``finish``."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._passes = [], []

    def finish(self) -> None:
        """Give the pipe the call's own scale back."""
        self.leave()
        if self._own is not None:
            self._pipe._guidance_scale = self._own
        self._own = None
