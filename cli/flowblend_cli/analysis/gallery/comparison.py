"""The gallery of ``render --gallery``: a contact sheet, and one prompt under LLL, LSL and SSS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flowblend_cli.analysis.gallery.contact_sheet import (
    animated_webp,
    comparison_video,
    contact_sheet,
    side_by_side,
)
from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.artifacts.schema.description import Description, describe
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import OutputError
from flowblend_cli.events import Reporter
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.utils.files import set_aside
from flowblend_cli.utils.folders import holding
from flowblend_plugin.metrics.similarity import psnr
from flowblend_plugin.stages import Stage

WARM_UP_STEPS = 2
SHEET = "contact-sheet.png"
COMPARISON = "compare.mp4"


def gallery(
    batch: Batch, show: Callable[[RunProgress], Reporter], options: RunOptions | None = None
) -> tuple[int, list[str]]:
    """Add the contact sheet and the comparison to a finished batch.

    Args:
        batch: The batch; its clips are on disk.
        show: Makes the reporter that is told about the comparison's jobs.
        options: How they are rendered; only where that happens counts.

    Returns:
        The exit code, and the lines of a table for people.

    Raises:
        OutputError: A file of the gallery's name is somebody else's, or can't be written.
    """
    clips = [job for job in batch.jobs if job.extension == ".mp4"]
    if not clips:
        return 0, ["no clips: nothing to put on a contact sheet"]
    with holding(batch.output_dir):
        sheet = ours(batch.output_dir / SHEET)
        captioned = [(caption(job, clips), read_native_frames(batch.path_of(job))) for job in clips]
        contact_sheet(captioned, sheet)
        lines = [f"contact sheet: {sheet}"]
        blended = (job for job in clips if {"large", "small"} <= set(job.schedule.roles))
        if (job := next(blended, None)) is None:
            return 0, lines
        comparison = compared(batch, job)
        where = _where(options or RunOptions())
        first = warm_up(comparison.jobs[0])
        progress = RunProgress(comparison)
        shown = show(progress)
        run = BatchRun(comparison, shown, warm_up=first, options=where, progress=progress)
        code = run.run()
        return code, lines if code else [*lines, *_compare(batch, comparison)]


def _where(options: RunOptions) -> RunOptions:
    """Where jobs are rendered, by one worker, so that their times can be compared."""
    return RunOptions(
        executor=options.executor,
        address=options.address,
        workers=1,
        gpus_per_worker=options.gpus_per_worker,
        job_timeout_s=options.job_timeout_s,
    )


def caption(job: Job, clips: Sequence[Job]) -> str:
    """A clip's prompt; with its name, where another clip has the same one."""
    is_alone = sum(other.prompt == job.prompt for other in clips) == 1
    return job.prompt if is_alone else f"{job.id}: {job.prompt}"


def ours(path: Path) -> Path:
    """A path that is free, or holds an earlier gallery's file; one that was edited is kept beside.

    Raises:
        OutputError: It holds anything else.
    """
    found = inspect_final(path)
    if found.state is FileState.MISSING or (found.document or {}).get("gallery") is True:
        if found.state is FileState.EDITED:
            set_aside(path)
        return path
    raise OutputError(f"{path} isn't a file of the gallery and is left alone: move it away")


def compared(batch: Batch, job: Job) -> Batch:
    """The same job and seed all large, as it is, and all small, in a folder of its own."""
    job = replace(job, seed=_said(batch.path_of(job)).seed or job.seed)
    large = replace(job, stages=(Stage("large"),), stage_string="LLL", adapters=())
    small = replace(large, stages=(Stage("small"),), stage_string="SSS")
    jobs = tuple(replace(one, id=f"compare-{one.stage_string}") for one in (large, job, small))
    return replace(batch, output_dir=batch.output_dir / "compare", jobs=jobs)


def warm_up(job: Job) -> Job:
    """The same job in two steps, one of each denoiser: what runs before anything is timed."""
    stages = (Stage("large", until=0.5), Stage("small"))
    arguments = dict(job.arguments) | {"num_inference_steps": WARM_UP_STEPS}
    steps = tuple(sorted(arguments.items()))
    return replace(job, stages=stages, stage_string="LS", arguments=steps, adapters=())


def _compare(batch: Batch, comparison: Batch) -> list[str]:
    names = [job.stage_string for job in comparison.jobs]
    paths = [comparison.path_of(job) for job in comparison.jobs]
    clips = [read_native_frames(path) for path in paths]
    said = [_said(path) for path in paths]
    seconds = [one.sampling_s or 0.0 for one in said]
    captioned = [
        (f"{name}  {second:.2f} s", frames)
        for name, second, frames in zip(names, seconds, clips, strict=True)
    ]
    path = ours(batch.output_dir / COMPARISON)
    fps = comparison.jobs[0].output.fps
    comparison_video(captioned, path, fps=fps)
    moving = path.with_suffix(".webp")
    if moving.is_symlink():
        raise OutputError(f"{moving} is a symbolic link and is left alone: move it away")
    animated_webp(side_by_side(captioned), moving, fps=fps)
    lines = [f"comparison:    {path}", f"  prompt: {comparison.jobs[0].prompt}"]
    for name, second, frames, one in zip(names, seconds, clips, said, strict=True):
        close = "" if frames is clips[0] else f"  {psnr(frames, clips[0]):.1f} dB PSNR to LLL"
        lines.append(
            f"  {name}  {count_steps(one.denoisers)}"
            f"  {second:6.2f} s  {second / max(seconds[0], 1e-9):4.0%} of LLL's time{close}"
        )
    return lines


def _said(path: Path) -> Description:
    """What a file of this batch says about itself.

    Raises:
        DocumentError: It can't be used.
    """
    document = read_document(path)
    return Description(None) if document is None else describe(document)


def count_steps(ran: str) -> str:
    """Write how many steps ran on each denoiser: `` 20 large,  30 small steps``.

    Args:
        ran: One letter a step.
    """
    none = f", {ran.count('E'):3d} extrapolated" if "E" in ran else ""
    return f"{ran.count('L'):3d} large, {ran.count('S'):3d} small{none} steps"
