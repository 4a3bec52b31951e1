"""Metrics of clips that no run measured, scores, and distances between renders, for reports."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowblend_cli.analysis.clips.clip import Clip, Spread
from flowblend_cli.analysis.clips.variants import MODE, find_axes, group, settings
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.errors import OutputError
from flowblend_cli.jobs import Batch, references
from flowblend_cli.planning.metrics import score_of
from flowblend_cli.study import Study
from flowblend_cli.text import count
from flowblend_plugin import metrics
from flowblend_plugin.errors import FlowBlendError
from flowblend_plugin.metrics.similarity import psnr

_MOST_RENDERS = 10  # of one variant that are compared with each other: 45 pairs


def complete(
    folder: Path, clips: Sequence[Clip], study: Study
) -> tuple[tuple[Clip, ...], list[str]]:
    """Measure the clips that have no record of it, and give each its score.

    Args:
        folder: Where the files are.
        clips: The clips.
        study: What the recipe asks to be measured, and how the score weighs it.

    Returns:
        The clips with their metrics and scores, and warnings of what can't be measured.
    """
    warnings: list[str] = []
    lacking = [clip for clip in clips if not clip.record.metrics]
    found = {clip.id: clip for clip in clips}
    if lacking and study.measure.names != ():
        if metrics.is_available():
            others = _references(folder, clips, study)
            for clip in lacking:
                try:
                    found[clip.id] = _measured(folder, clip, others.get(clip.id), study)
                except (FlowBlendError, OutputError) as error:
                    warnings.append(f"{clip.name} can't be measured: {error}")
        else:
            warnings.append(f"{count(len(lacking), 'file')} not measured: {metrics.missing()}")
    weights = dict(study.measure.weights)
    scored = []
    for clip in found.values():
        values = {**clip.record.metrics, **clip.costs}
        scored.append(replace(clip, score=score_of(clip.job.prompt, values, weights)))
    if any(clip.record.measured_on == "file" for clip in scored):
        warnings.append(
            "measured on the encoded files where no record of the rendered frames was left: "
            "compression adds a little to flicker and takes a little sharpness"
        )
    return tuple(scored), warnings


def _references(folder: Path, clips: Sequence[Clip], study: Study) -> dict[str, Clip]:
    """The clip that each one is compared with, by id, for those that have one."""
    table = {clip.id: clip for clip in clips}
    jobs = tuple(clip.job for clip in clips)
    found = references(Batch(clips[0].job.recipe, folder, jobs, (), folder, study))
    return {job: table[other.id] for job, other in found.items()}


def _measured(folder: Path, clip: Clip, other: Clip | None, study: Study) -> Clip:
    frames = _frames(folder, clip)
    reference = None if other is None else _frames(folder, other)
    if reference is not None and reference.shape != frames.shape:
        reference = None
    names = study.measure.names
    if names is not None:
        fitting = {"frames", "reference"} if reference is not None else {"frames"}
        known = {name for name, metric in metrics.METRICS.items() if metric.needs in fitting}
        names = tuple(name for name in names if name in known)
    values = metrics.measure(frames, names, reference=reference)
    return replace(clip, record=replace(clip.record, metrics=values, measured_on="file"))


def _frames(folder: Path, clip: Clip) -> Any:
    return read_native_frames(folder / clip.name, clip.job.output.scale)


def spreads(folder: Path, clips: Sequence[Clip]) -> tuple[Spread, ...]:
    """Compare the renders of each variant with each other, where modes or noises are compared.

    Args:
        folder: Where the files are.
        clips: The clips of one recipe.
    """
    axes = find_axes(clips)
    table = {clip.id: settings(clip.job) for clip in clips}
    plain = [clip for clip in clips if not clip.kind]

    def variant(clip: Clip) -> Any:
        return clip.subject, tuple(table[clip.id].get(axis) for axis in axes)

    groups = list(group(plain, lambda clip: (*variant(clip), clip.seed)).values())
    has_noise = any(len({clip.noise for clip in some}) > 1 for some in groups)
    if not has_noise and MODE not in axes:
        return ()
    across = "noise" if has_noise else "seeds"
    if not has_noise:
        groups = list(group(plain, variant).values())
    return tuple(_spread(folder, some, across) for some in groups if len(some) > 1)


def _spread(folder: Path, clips: Sequence[Clip], across: str) -> Spread:
    clips = clips[:_MOST_RENDERS]
    first = clips[0]
    told = Spread(
        first.job.scene, first.job.sampling.mode, across, tuple(clip.id for clip in clips)
    )
    try:
        frames = [_frames(folder, clip) for clip in clips]
    except OutputError:
        return told
    if len({one.shape for one in frames}) > 1:
        return told
    pairs = list(itertools.combinations(zip(clips, frames, strict=True), 2))
    apart = [
        psnr(x, y)
        for (a, x), (b, y) in pairs
        if a.record.pixels_sha256 != b.record.pixels_sha256 and not metrics.bit_equal([x, y])
    ]
    paths = _trajectory_spread(clips, frames)
    return replace(
        told,
        trajectory_spread=0.0 if paths is not None and not apart else paths,
        psnr_mean=statistics.fmean(apart) if apart else None,
        pairs=len(pairs),
        equal_pairs=len(pairs) - len(apart),
    )


def _trajectory_spread(clips: Sequence[Clip], frames: Sequence[Any]) -> float | None:
    """The spread of the recorded paths where every clip has them, else of the decoded ones."""
    import numpy as np

    if frames[0].shape[0] < 2:
        return None
    try:
        if all(clip.record.tracks for clip in clips):
            paths = [np.asarray(clip.record.tracks, dtype=float) for clip in clips]
        elif metrics.is_available():
            paths = [metrics.tracks(one) for one in frames]
        else:
            return None
        return float(metrics.trajectory_spread(paths))
    except (FlowBlendError, ValueError, TypeError):
        return None
