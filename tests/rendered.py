"""Folders as a render leaves them, without one: drawn clips, their documents and records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.records import JobRecord, recipe_path, write_json, write_record
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.jobs import Job, ModelSpec, OutputSpec, SamplingSpec
from flowblend_cli.study import Study
from flowblend_cli.utils.frames import Frames, pixels_sha256
from flowblend_plugin.stages import StageSchedule

VERSIONS = {"flowblend": "0.1.0", "torch": "2.13.0", "threads": "1"}
KEY = "ab" * 32  # the job key that clips have
SIDE = 32
NUM_FRAMES = 5


def a_job(name: str = "", *, steps: int = 50, seed: int = 42, **changes: Any) -> Job:
    """A job of the bundled pair; ``arguments`` and ``sampling`` are merged into the usual ones."""
    arguments = {
        "num_inference_steps": steps, "guidance_scale": 5.0, "num_frames": NUM_FRAMES,
        "height": SIDE, "width": SIDE, "max_sequence_length": 64,
        **changes.pop("arguments", {}),
    }  # fmt: skip
    sampling = SamplingSpec(**changes.pop("sampling", {}))
    scene = changes.pop("scene", "square")
    noise = "" if sampling.noise_seed is None else f"-k{sampling.noise_seed}"
    job = Job(
        id=name or f"{scene}-s{seed}-n{steps}-{sampling.mode}{noise}",
        recipe="study",
        scene=scene,
        prompt="a red square moving right",
        prompt_template="a red square moving right",
        negative_prompt=None,
        seed=seed,
        stages=StageSchedule.parse("LSL", (0.4, 0.8)).stages,
        stage_string="LSL",
        arguments=tuple(sorted(arguments.items())),
        model=ModelSpec("sprites", "sprites"),
        sampling=sampling,
        output=OutputSpec(fps=8),
    )
    return replace(job, **changes)


def frames_of(shade: int = 0, num_frames: int = NUM_FRAMES) -> Frames:
    """A square that moves right, brighter or darker."""
    clip = np.full((num_frames, SIDE, SIDE, 3), 20 + shade % 90, np.uint8)
    for index in range(num_frames):
        clip[index, 10:20, 3 + 2 * index : 13 + 2 * index] = (200, 40 + shade % 100, 60)
    return clip


def write_clip(
    folder: Path,
    job: Job,
    *,
    frames: Frames | None = None,
    metrics: Mapping[str, float] | None = None,
    elapsed_s: tuple[float, ...] = (1.0,),
    pixels: tuple[str, ...] = (),
    name: str = "",
    versions: Mapping[str, str] = VERSIONS,
    **record: Any,
) -> str:
    """Publish a job's file, and its record unless ``metrics`` is None; returns its pixels' hash."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = frames_of(job.seed) if frames is None else frames
    if job.extension == ".png":
        clip = clip[:1]
    digest = pixels_sha256(clip)
    document = {
        "flowblend": "0.1.0", "v": 1, "job": job.to_document(), "job_key": KEY,
        "resolved": {"seed": job.seed or 7, "denoisers": "L" * job.num_inference_steps,
                     "device": "cpu", "sampling_s": elapsed_s[0], "source": str(folder)},
        "models": {}, "versions": dict(versions), "pixels_sha256": digest,
    }  # fmt: skip
    path = folder / (name or job.filename)
    if job.extension == ".png":
        publish_image(clip[0], path, document=document, scale=job.output.scale)
    else:
        publish_video(clip, path, fps=8, document=document, scale=job.output.scale)
    if metrics is not None:
        known = JobRecord(
            job.id, job.recipe, digest, elapsed_s=elapsed_s, pixels=pixels or (digest,),
            metrics=metrics, **record,
        )  # fmt: skip
        write_record(folder, known)
    return digest


def keep_recipe(
    folder: Path,
    jobs: list[Job],
    study: Study | None = None,
    text: str = "",
    warnings: Sequence[str] = (),
) -> None:
    """Keep a recipe beside its clips, as a render does."""
    document = {
        "v": 1, "recipe": "study", "path": "study.toml", "text": text or "[recipe]\n",
        "overrides": [], "warnings": list(warnings), "study": asdict(study or Study()),
        "jobs": [job.id for job in jobs],
    }  # fmt: skip
    write_json(recipe_path(folder, "study"), json.loads(json.dumps(document)))


def values_for(score: float) -> dict[str, float]:
    """Metrics of which the default score is some increasing function of one number, 0 to 1."""
    return {"inter_frame_ssim": score, "flow_mean": 10.0, "flicker": 0.5}
