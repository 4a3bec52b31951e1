"""What ``render --gallery`` adds: a contact sheet, and one prompt under LLL, LSL and SSS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowblend_cli import engine
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.artifacts.pixels import Frames
from flowblend_cli.gallery import animated_webp, comparison_video, contact_sheet, side_by_side
from flowblend_cli.jobs import Batch, Job, StageSpec
from flowblend_cli.progress import Reporter

COMPARED = ("LLL", "LSL", "SSS")


def gallery(batch: Batch, reporter: Reporter) -> tuple[int, list[str]]:
    """Add the contact sheet and the comparison to a finished batch.

    Args:
        batch: The batch; its clips are on disk.
        reporter: Who is told about the comparison's jobs.

    Returns:
        The exit code, and the lines of a table for people.
    """
    clips = [batch.path_of(job) for job in batch.jobs if job.extension == ".mp4"]
    blended = [job for job in batch.jobs if job.extension == ".mp4" and len(job.stages) > 1]
    if not clips:
        return 0, ["no clips: nothing to put on a contact sheet"]
    rows = [(job.prompt, read_frames(batch.path_of(job))) for job in batch.jobs
            if job.extension == ".mp4"]  # fmt: skip
    sheet = batch.output_dir / "contact-sheet.png"
    contact_sheet(rows, sheet)
    lines = [f"contact sheet: {sheet}"]
    if not blended:
        return 0, lines
    comparison = compared(batch, blended[0])
    code = engine.run(comparison, reporter)
    if code:
        return code, lines
    return 0, [*lines, *_compare(batch, comparison)]


def compared(batch: Batch, job: Job) -> Batch:
    """The same job all large, as it is, and all small, in a folder of its own."""
    variants = {
        "LLL": (StageSpec("large"),),
        "LSL": job.stages,
        "SSS": (StageSpec("small"),),
    }
    jobs = tuple(
        replace(job, id=f"compare-{name}", stages=stages, stage_string=name)
        for name, stages in variants.items()
    )
    return replace(batch, output_dir=batch.output_dir / "compare", jobs=jobs)


def _compare(batch: Batch, comparison: Batch) -> list[str]:
    names, clips, documents = [], [], []
    for job in comparison.jobs:
        path = comparison.path_of(job)
        names.append(job.stage_string)
        clips.append(read_frames(path))
        documents.append(read_document(path) or {})
    seconds = [_seconds(document) for document in documents]
    captioned = [
        (f"{name}  {second:.2f} s", frames)
        for name, second, frames in zip(names, seconds, clips, strict=True)
    ]
    path = batch.output_dir / "compare.mp4"
    fps = comparison.jobs[0].output.fps
    comparison_video(captioned, path, fps=fps)
    animated_webp(side_by_side(captioned), batch.output_dir / "compare.webp", fps=fps)
    lines = [f"comparison:    {path}", f"  prompt: {comparison.jobs[0].prompt}"]
    for name, second, frames, document in zip(names, seconds, clips, documents, strict=True):
        ran = (document.get("resolved") or {}).get("denoisers", "")
        close = "" if name == "LLL" else f"  {_psnr(frames, clips[0]):.1f} dB PSNR to LLL"
        lines.append(
            f"  {name}  {ran.count('L'):3d} large, {ran.count('S'):3d} small steps"
            f"  {second:6.2f} s  {second / seconds[0]:4.0%} of LLL's time{close}"
        )
    return lines


def read_frames(path: Path) -> Frames:
    """Decode a finished clip: (T, H, W, 3), uint8, at the size it was written in."""
    import av

    with av.open(str(path), format="mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def _seconds(document: dict[str, Any]) -> float:
    return float((document.get("resolved") or {}).get("sampling_s", 0.0))


def _psnr(frames: Frames, reference: Frames) -> float:
    error = np.mean((frames.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
