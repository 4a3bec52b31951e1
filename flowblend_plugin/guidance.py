"""Classifier-free guidance per stage, on pipelines that were made for one scale a call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flowblend_plugin.errors import SwitchError
from flowblend_plugin.stages import Stage

# Two passes a step, combined with a scale that the pipeline keeps in a local variable: the outputs
# are recorded and combined anew. The pipeline looks at its attribute before the second pass.
_RECOMBINED = {
    "WanPipeline",
    "WanImageToVideoPipeline",
    "WanVideoToVideoPipeline",
    "WanVACEPipeline",
    "SkyReelsV2Pipeline",
    "SkyReelsV2ImageToVideoPipeline",
}
# Two passes a step; the scale is read from the attribute at every step.
_TWO_PASSES = {"Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"}
# One pass over a batch of two; the scale is read from the attribute at every step.
_BATCHED = {
    "LTXPipeline",
    "LTXImageToVideoPipeline",
    "LTXConditionPipeline",
    "MochiPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
}


def check_guidance(pipe: Any, stages: Iterable[Stage]) -> None:
    """Check that a pipeline can take the guidance that its stages ask for.

    Raises:
        SwitchError: It can't; says why, and what to do.
    """
    name = type(pipe).__name__
    for stage in stages:
        scale = stage.guidance_scale
        if scale is None:
            continue
        if scale < 1:
            raise SwitchError(
                f"guidance_scale of a stage must be at least 1.0 (no guidance), got {scale}"
            )
        if name not in _RECOMBINED | _TWO_PASSES | _BATCHED:
            raise SwitchError(
                f"{name} doesn't let guidance change in mid-trajectory (it feeds the scale to the "
                "denoiser, or fixes it before the first step): leave guidance_scale out of the "
                "stages and give it to the call"
            )
        if scale == 1.0 and name in _BATCHED:
            raise SwitchError(
                f"{name} runs the conditional and unconditional pass as one batch, whose size "
                "can't change in mid-trajectory: guidance_scale = 1.0 in one stage would save "
                "nothing; use a low scale above 1.0"
            )


class StageGuidance:
    """Gives each stage of a trajectory its own guidance scale.

    Args:
        pipe: The pipeline; checked with ``check_guidance`` before.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._recombines = type(pipe).__name__ in _RECOMBINED
        self._own: float | None = None
        self._wanted: float | None = None
        self._checked = False
        self._handles: list[Any] = []
        self._passes: list[tuple[nn.Module, torch.Tensor]] = []

    def start(self) -> None:
        """Note the call's own scale: a trajectory begins."""
        self.finish()
        self._own = getattr(self._pipe, "_guidance_scale", None)

    def enter(self, stage: Stage, modules: Iterable[nn.Module]) -> None:
        """Set the scale of a stage, which runs on ``modules``, from its first step on.

        Raises:
            SwitchError: The call runs without guidance and has no unconditional pass to add.
        """
        self._unhook()
        wanted, own = stage.guidance_scale, self._own
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
                self._handles = [m.register_forward_hook(self._record) for m in set(modules)]
        else:
            self._pipe._guidance_scale = own if wanted is None else wanted

    def combine(self, output: torch.Tensor) -> torch.Tensor:
        """The model output of one solver call with the stage's scale; ``output`` if nothing is new.

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
            self._check(output, unconditional + own * (conditional - unconditional))
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

    def _check(self, output: torch.Tensor, again: torch.Tensor) -> None:
        if output.shape != again.shape or not torch.equal(output, again):
            raise SwitchError(
                f"this {type(self._pipe).__name__} combines its passes in a way that stages can't "
                "repeat: leave guidance_scale out of the stages"
            )
        self._checked = True

    def _record(self, module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else output.sample
        self._passes.append((module, first))

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._passes = [], []

    def finish(self) -> None:
        """Give the pipe the call's own scale back: the trajectory is over, or was given up."""
        self._unhook()
        if self._own is not None:
            self._pipe._guidance_scale = self._own
        self._own = None
