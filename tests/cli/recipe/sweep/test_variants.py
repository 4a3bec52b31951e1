"""Jobs are rendered alone: what rendering them together does to pixels, and how it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel

from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import job_key, model_identity
from flowblend_plugin import DenoiserSwitch

SPRITES = bundled_dir() / "models" / "sprites"
PROMPTS = ["a red circle moving right on a navy background", "a blue star spinning"]
Problems = Callable[..., list[str]]


def with_batch_size(minimal: str, number: str) -> str:
    return minimal.replace('"sprites"', f'"sprites"\nbatch_size = {number}', 1)


@pytest.mark.parametrize("pipeline", ["sprites", "ltx-video", "a/b"])
def test_more_than_one_is_refused_for_every_pipeline(
    problems_of: Problems, minimal: str, pipeline: str
) -> None:
    text = with_batch_size(minimal, "4").replace('"sprites"', f'"{pipeline}"\nsmall = "c/d"', 1)

    (line,) = problems_of(text)

    assert line.startswith("recipe.toml:7:14: model.batch_size: 4 isn't possible: no pipeline is ")
    assert "docs/determinism.md" in line
    assert line.endswith("leave batch_size out, and each job is rendered alone")


def test_a_swept_or_set_batch_size_is_refused_too(problems_of: Problems, minimal: str) -> None:
    (swept,) = problems_of(minimal + '\n[sweep]\n"model.batch_size" = [1, 2]\n')
    (given,) = problems_of(minimal, "model.batch_size=3")

    assert "2 isn't possible" in swept
    assert "3 isn't possible" in given


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "true", '"2"'])
def test_what_is_no_whole_number_from_1_on_is_refused(
    problems_of: Problems, minimal: str, number: str
) -> None:
    (line,) = problems_of(with_batch_size(minimal, number))

    assert "model.batch_size: must be " in line


def test_other_problems_are_reported_beside_it(problems_of: Problems, minimal: str) -> None:
    text = with_batch_size(minimal, "2").replace("[0.4, 0.8]", "[0.8, 0.4]")

    assert len(problems_of(text)) == 2


def test_one_changes_no_job_and_no_key(batch_of: Any, minimal: str) -> None:
    plain, alone = batch_of(minimal), batch_of(with_batch_size(minimal, "1"))

    assert alone.jobs == plain.jobs
    identity = model_identity(plain.jobs[0].model, plain.source.parent)
    assert job_key(alone.jobs[0], identity) == job_key(plain.jobs[0], identity)
    assert "batch_size" not in alone.jobs[0].to_document()["model"]


def test_clips_rendered_together_are_close_to_those_alone() -> None:
    pipe = WanPipeline.from_pretrained(SPRITES, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small = WanTransformer3DModel.from_pretrained(
        SPRITES, subfolder="transformer_small", dtype=torch.float32
    )

    def clips(prompts: list[str]) -> Any:
        with DenoiserSwitch(pipe, small, "LSL", boundaries=(0.4, 0.8)):
            return pipe(
                prompts,
                height=64,
                width=64,
                num_frames=17,
                num_inference_steps=3,
                max_sequence_length=64,
                generator=[
                    torch.Generator().manual_seed(PROMPTS.index(prompt)) for prompt in prompts
                ],
                output_type="np",
            ).frames

    together = clips(PROMPTS)
    alone = np.concatenate([clips([prompt]) for prompt in PROMPTS])

    # Close, so the right seed and prompt made each clip; whether the bits differ is the CPU's
    # affair, and a render doesn't count on it.
    assert np.abs(together - alone).max() < 1e-3
    assert np.abs(together[0] - together[1]).max() > 0.1
