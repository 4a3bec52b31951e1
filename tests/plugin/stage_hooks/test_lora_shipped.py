"""The LoRA adapters that ship with sprites: each fits its own denoiser, and does its style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowblend_plugin import AdapterError, DenoiserSwitch
from flowblend_plugin.stages import Adapter, Stage, StageSchedule

ROOT = Path(__file__).resolve().parents[3]
SPRITES = ROOT / "recipes/models/sprites"
FILES = {role: SPRITES / f"adapters/monochrome_{role}.safetensors" for role in ("large", "small")}
PROMPT = "a red circle standing still on a navy background"


def render(pipe: Any, stages: StageSchedule) -> np.ndarray[Any, Any]:
    adapters = {"monochrome": FILES} if any(s.adapters for s in stages.stages) else None
    with torch.inference_mode(), DenoiserSwitch(pipe, SPRITES, stages, adapters=adapters):
        return np.asarray(
            pipe(
                PROMPT,
                height=64,
                width=64,
                num_frames=5,
                num_inference_steps=8,
                max_sequence_length=64,
                generator=torch.Generator().manual_seed(1),
                output_type="np",
            ).frames[0]
        )


def redness(frames: np.ndarray[Any, Any]) -> float:
    """How much redder than green and blue the brightest twentieth of the pixels is, 0 to 1."""
    pixels = frames.reshape(-1, 3)
    bright = pixels[np.argsort(pixels.max(1))[-len(pixels) // 20 :]]
    return float((bright[:, 0] - bright[:, 1:].mean(1)).mean())


@pytest.fixture(scope="module")
def pipe() -> Any:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(SPRITES, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("role", ["large", "small"])
def test_the_style_turns_a_red_circle_white(pipe: Any, role: str) -> None:
    plain = render(pipe, StageSchedule((Stage(role),)))
    styled = render(pipe, StageSchedule((Stage(role, adapters=(Adapter("monochrome"),)),)))

    assert redness(plain) > 0.4
    assert redness(styled) < 0.2


def test_an_adapter_fits_no_other_denoiser(pipe: Any) -> None:
    stages = StageSchedule((Stage("small", adapters=(Adapter("monochrome"),)),))

    with pytest.raises(AdapterError, match="doesn't fit the small denoiser"):
        DenoiserSwitch(pipe, SPRITES, stages, adapters={"monochrome": FILES["large"]})
