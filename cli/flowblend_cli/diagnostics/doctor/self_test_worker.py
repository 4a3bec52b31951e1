"""The process of the doctor's self-test: tells torch's settings and renders the bundled pair.

``python -m flowblend_cli.diagnostics.doctor.self_test_worker`` reads
``{"renders": N, "other_threads": BOOL}`` on stdin, and writes one JSON object: ``settings``;
``device``, ``steps``, the hash of each render's pixels in
``renders`` and, in ``other``, that of one with another number of threads; ``error`` if it failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flowblend_cli.jobs import Job, ModelSpec, OutputSpec, SamplingSpec
from flowblend_plugin.errors import FlowBlendError
from flowblend_plugin.stages import StageSchedule

STEPS = 3
PROMPT = "a red circle moving right on a navy background"


def main() -> None:
    """Answer one request."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nobody but this writes among the answers
    asked = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    try:
        _answer(asked, answer)
    except (FlowBlendError, ImportError, OSError, RuntimeError, ValueError) as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), file=answers, flush=True)


def _answer(asked: dict[str, Any], answer: dict[str, Any]) -> None:
    from flowblend_plugin.numerics import numeric_settings, set_threads

    answer["settings"] = settings = numeric_settings()
    if not asked["renders"]:
        return
    from flowblend_cli.engine.runtime.pipeline import Runtime
    from flowblend_cli.utils.frames import pixels_sha256

    job = sprites_job()
    runtime = Runtime(job.model, Path.cwd())
    answer |= {"device": runtime.device.type, "steps": STEPS}

    def render() -> str:
        return pixels_sha256(runtime.sample(job, job.seed, lambda *_: None).frames)

    answer["renders"] = [render() for _ in range(asked["renders"])]
    if asked["other_threads"]:
        other = 1 if settings["threads"] > 1 else 2
        set_threads(other)
        answer["other"] = {"threads": other, "pixels": render()}


def sprites_job() -> Job:
    """A blended clip of the bundled pair in a few steps."""
    arguments = {
        "guidance_scale": 5.0,
        "height": 64,
        "max_sequence_length": 64,
        "num_frames": 17,
        "num_inference_steps": STEPS,
        "width": 64,
    }
    return Job(
        id="doctor",
        recipe="doctor",
        scene="doctor",
        prompt=PROMPT,
        prompt_template=PROMPT,
        negative_prompt=None,
        seed=1,
        stages=StageSchedule.parse("LSL", boundaries=(0.4, 0.8)).stages,
        stage_string="LSL",
        arguments=tuple(arguments.items()),
        model=ModelSpec("sprites", "sprites"),
        sampling=SamplingSpec(),
        output=OutputSpec(),
    )


if __name__ == "__main__":
    main()
