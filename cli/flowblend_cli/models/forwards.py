"""Forwards: how many forwards of each denoiser a job runs, by guidance, stages and solver.

A batch of two counts as two forwards. What a pipeline does by itself (its guidance, its defaults)
is in a table here; a test compares it with diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowblend_cli.jobs import Job
from flowblend_plugin.stages import Stage

_CLIP_TEXT_TOKENS = 77


@dataclass(frozen=True)
class PipelineFacts:
    """What decides the number and the shapes of a pipeline's forwards.

    Args:
        guidance_scale: The pipeline's default; above 1 a step runs a second forward.
        argument: The argument that holds the scale of that second forward. Where it is
            ``true_cfg_scale``, ``guidance_scale`` is fed to the denoiser and costs nothing, and
            the second forward needs a negative prompt.
        text_tokens: Default of ``max_sequence_length``; of pipelines without it, what they pad to.
        height: Default height in pixels; None where the denoiser's config names it.
        width: Default width; None for the same reason.
        num_frames: Default number of frames; 1 for pictures, None for the same reason.
        uncounted: Arguments that add or leave out forwards in a way that isn't counted here, each
            with the value at which it doesn't.
    """

    guidance_scale: float
    argument: str = "guidance_scale"
    text_tokens: int = 512
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    uncounted: Mapping[str, Any] = field(default_factory=dict)

    def is_guided(self, job: Job) -> bool:
        """Whether a step of a job runs a second forward, unless its stage says otherwise."""
        if self.argument == "true_cfg_scale" and job.negative_prompt is None:
            return False
        return bool(job.argument(self.argument, self.guidance_scale) > 1)


_TRUE_CFG = "true_cfg_scale"
_LTX_SIZE: dict[str, Any] = {"height": 512, "width": 704, "num_frames": 161}
_WAN = PipelineFacts(5.0, height=480, width=832, num_frames=81)
_SKY_REELS: dict[str, Any] = {"height": 544, "width": 960, "num_frames": 97}
PIPELINES: dict[str, PipelineFacts] = {
    "CogVideoXImageToVideoPipeline": PipelineFacts(6, text_tokens=226, num_frames=49),
    "CogVideoXPipeline": PipelineFacts(6, text_tokens=226),
    "FluxPipeline": PipelineFacts(1.0, _TRUE_CFG, num_frames=1),
    "HunyuanVideoPipeline": PipelineFacts(1.0, _TRUE_CFG, 256, 720, 1280, 129),
    "I2VGenXLPipeline": PipelineFacts(
        9.0, text_tokens=_CLIP_TEXT_TOKENS, height=704, width=1280, num_frames=16
    ),
    "LTXConditionPipeline": PipelineFacts(
        3, text_tokens=256, uncounted={"denoise_strength": 1.0, "frame_index": 0}, **_LTX_SIZE
    ),
    "LTXImageToVideoPipeline": PipelineFacts(3, text_tokens=128, **_LTX_SIZE),
    "LTXPipeline": PipelineFacts(3, text_tokens=128, **_LTX_SIZE),
    "MochiPipeline": PipelineFacts(4.5, text_tokens=256, height=480, width=848, num_frames=19),
    "QwenImagePipeline": PipelineFacts(4.0, _TRUE_CFG, num_frames=1),
    "SkyReelsV2ImageToVideoPipeline": PipelineFacts(5.0, **_SKY_REELS),
    "SkyReelsV2Pipeline": PipelineFacts(6.0, **_SKY_REELS),
    "StableDiffusion3Pipeline": PipelineFacts(
        7.0, text_tokens=256, num_frames=1, uncounted={"skip_guidance_layers": None}
    ),
    "StableDiffusionXLPipeline": PipelineFacts(
        5.0, text_tokens=_CLIP_TEXT_TOKENS, num_frames=1, uncounted={"denoising_end": None}
    ),
    "WanImageToVideoPipeline": _WAN,
    "WanPipeline": _WAN,
    "WanVACEPipeline": _WAN,
}


def forwards_by_role(
    stages: Sequence[Stage],
    stage_indices: Sequence[int],
    *,
    guided: bool,
    second_order: bool = False,
) -> dict[str, int]:
    """Count the forwards of each denoiser over a trajectory.

    Args:
        stages: The stages; the guidance scale of one, where it has its own, decides whether its
            steps run the second forward.
        stage_indices: Index of the stage of every step.
        guided: Whether the call runs a second forward a step, for classifier-free guidance.
        second_order: Whether the solver asks the denoiser twice a step, but once in the last, as
            Heun's method does.

    Returns:
        Forwards per role, in order of the roles' first steps; for ``"extrapolated"`` those that
        its steps save.
    """
    found: dict[str, int] = {}
    last = len(stage_indices) - 1
    for step, index in enumerate(stage_indices):
        stage = stages[index]
        is_guided = guided and (stage.guidance_scale is None or stage.guidance_scale > 1)
        asked = 2 if second_order and step < last else 1
        found[stage.denoiser] = found.get(stage.denoiser, 0) + asked * (2 if is_guided else 1)
    return found
