"""A folder's clips, records and recipes as plain data, for reports and reviews.

``gather`` reads all that a report needs, ``find_clips`` the clips alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowblend_cli.analysis.clips import measure
from flowblend_cli.analysis.clips.clip import Clip, Folder, KeptRecipe, Section
from flowblend_cli.analysis.clips.variants import group
from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.artifacts.records import (
    JobRecord,
    looks_s,
    read_checked,
    read_record,
    recipe_path,
)
from flowblend_cli.artifacts.schema.base import Document
from flowblend_cli.artifacts.schema.description import Description, describe
from flowblend_cli.artifacts.schema.records import KeptRecipeDocument, StudyDocument
from flowblend_cli.errors import DocumentError, OutputError, UsageError
from flowblend_cli.jobs import Job, freeze
from flowblend_cli.study import AdaptSpec, MeasureSpec, ReviewSpec, Selection, StepChoice, Study
from flowblend_cli.text import count

_MEDIA = (".mp4", ".png")
_INSPECTED = {*_MEDIA, ".mov", ".mkv", ".webm", ".gif", ".jpg", ".jpeg", ".avi"}
_AGAIN = ".again"
_NAMED = 5


def gather(folder: Path) -> Folder:
    """Read everything that a report is made from.

    Args:
        folder: The output folder of one or more recipes.

    Returns:
        One section for each recipe; what can't be used is among the warnings.

    Raises:
        UsageError: It is no folder, or holds no finished file of ours.
    """
    found, warnings = find_clips(folder)
    sections = []
    for name, clips in sorted(group(found, lambda clip: clip.job.recipe).items()):
        section, further = _section(folder, name, clips)
        sections.append(section)
        warnings += further
    return Folder(folder.absolute().name, tuple(sections), tuple(warnings))


def find_clips(folder: Path) -> tuple[list[Clip], list[str]]:
    """Read the finished files of a folder, and their records.

    Returns:
        The clips, by name, and warnings of files that aren't ours, are damaged, or are there
        twice.

    Raises:
        UsageError: It is no folder, or holds no finished file of ours.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder: give the one that clips were rendered into")
    clips, warnings = _collect(folder)
    if not clips:
        why = f" ({'; '.join(warnings)})" if warnings else ""
        raise UsageError(
            f"{folder}: holds no finished file of flowblend{why}: give the folder that "
            "`flowblend render` wrote into"
        )
    return clips, warnings


def _collect(folder: Path) -> tuple[list[Clip], list[str]]:
    warnings: list[str] = []
    foreign: list[str] = []
    clips: list[Clip] = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.suffix.lower() in _INSPECTED:
            clip = _read_clip(path, warnings, foreign)
            clips += [] if clip is None else [clip]
    if foreign:
        warnings.append(f"not flowblend's, left out: {_some(foreign)}")
    kept: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        if clip.id.endswith(_AGAIN):
            continue
        first = kept.setdefault((clip.job.recipe, clip.id), clip)
        if first is not clip:
            warnings.append(f"{clip.name} holds the same job as {first.name}, and is left out")
    for again in clips:  # a file that was rendered again is no clip, but its job's next render
        original = kept.get((again.job.recipe, again.id.removesuffix(_AGAIN)))
        if original is not None and again.id.endswith(_AGAIN):
            pixels = (*original.record.pixels, again.record.pixels_sha256)
            record = replace(original.record, pixels=pixels)
            kept[original.job.recipe, original.id] = replace(original, record=record)
    return list(kept.values()), warnings


def _read_clip(path: Path, warnings: list[str], foreign: list[str]) -> Clip | None:
    """The clip that a file is; None for any other file, which is added to one of the lists."""
    try:
        finished = inspect_final(path)
        document = finished.document or {}
        if finished.state is FileState.DAMAGED:
            warnings.append(f"{path.name} is damaged, left out: render the recipe again")
        elif finished.state is FileState.EDITED:
            warnings.append(f"{path.name} {finished.change}, left out")
        elif finished.state is FileState.FOREIGN or path.suffix not in _MEDIA:
            foreign.append(path.name)
        else:
            return _clip(path, document, warnings)
    except DocumentError as error:
        warnings.append(f"{path.name} is left out: {error}")
    except OutputError as error:
        warnings.append(str(error))
    return None


def _clip(path: Path, document: Mapping[str, Any], warnings: list[str]) -> Clip | None:
    """The clip of a file of ours; None for one of the gallery, which is nobody's job."""
    found = describe(document)
    if found.job is None:
        return None
    return Clip(
        job=found.job,
        name=path.name,
        seed=found.seed,
        record=_record(path.parent, found.job, found, warnings),
        denoisers=found.denoisers,
        device=found.device,
        versions=found.versions,
        source=found.source,
    )


def _record(folder: Path, job: Job, found: Description, warnings: list[str]) -> JobRecord:
    """The record of a file's very pixels; what it lacks is taken from the file's document."""
    digest, sampling_s = found.pixels_sha256, found.sampling_s
    record = read_record(folder, job.id, warnings.append)
    if record is None or record.pixels_sha256 != digest:
        record = JobRecord(job.id, job.recipe, digest)
    return replace(
        record,
        elapsed_s=record.elapsed_s or (() if sampling_s is None else (sampling_s,)),
        pixels=record.pixels or (digest,),
        measured_on=record.measured_on if record.metrics else "",
    )


def _section(folder: Path, name: str, clips: list[Clip]) -> tuple[Section, list[str]]:
    warnings: list[str] = []
    recipe = kept_recipe(folder, name, warnings.append)
    warnings += [f"{name}: {warning}" for warning in recipe.warnings] if recipe else []
    if recipe:
        finals = (job for one in recipe.study.selections for job in one.finals)
        order = {job: place for place, job in enumerate((*recipe.jobs, *finals))}
        last = len(order)
        clips.sort(key=lambda clip: order.get(clip.id, last))
        warnings += _differences(name, recipe, clips)
    if len({tuple(sorted(clip.versions.items())) for clip in clips}) > 1:
        warnings.append(
            f"{name}: its clips were rendered under different versions or threads, so that their "
            "seconds, and bits, needn't be comparable"
        )
    measured, lacking = measure.complete(folder, clips, recipe.study if recipe else Study())
    spreads = measure.spreads(folder, measured)
    section = Section(name, measured, recipe, spreads, *_looks_s(folder, recipe, clips))
    return section, [*warnings, *(f"{name}: {warning}" for warning in lacking)]


def _differences(name: str, recipe: KeptRecipe, clips: Iterable[Clip]) -> Iterator[str]:
    """Warnings of jobs that the recipe lists and the folder lacks, and the other way round."""
    listed = [clip for clip in clips if not clip.kind]
    present = {clip.id for clip in clips}
    chosen = {job for one in recipe.study.selections for job in (*one.finals, *one.drafts)}
    absent = [job for job in recipe.jobs if job not in present and job not in chosen]
    further = [clip.id for clip in listed if clip.id not in recipe.jobs]
    if absent:
        yield (
            f"{name}: {count(len(absent), 'job')} of {len(recipe.jobs)} not rendered yet: "
            f"{_some(absent)}"
        )
    if further and recipe.jobs:
        yield (
            f"{name}: {count(len(further), 'clip')} of an earlier form of the recipe, compared "
            f"with the rest: {_some(further)}"
        )


def _looks_s(
    folder: Path, recipe: KeptRecipe | None, clips: Iterable[Clip]
) -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    """Seconds of early looks, by scene: of each draft that left no file, and of the others."""
    abandoned: dict[str, tuple[float, ...]] = {}
    others: dict[str, float] = {}
    if recipe is None:
        return abandoned, others
    present = {clip.id for clip in clips}
    for selection in {one.drafts: one for one in recipe.study.selections}.values():
        scene, looks = selection.scene, looks_s(folder, selection)
        left = tuple(seconds for draft, seconds in looks.items() if draft not in present)
        abandoned[scene] = abandoned.get(scene, ()) + left
        others[scene] = others.get(scene, 0.0) + sum(looks.values()) - sum(left)
    return abandoned, others


def kept_recipe(
    folder: Path, name: str, warn: Callable[[str], None] | None = None
) -> KeptRecipe | None:
    """A recipe as it was last rendered into a folder; None where none can be read.

    Args:
        folder: The output folder.
        name: Name of the recipe.
        warn: Called with what is wrong with it.
    """
    document = read_checked(recipe_path(folder, name), KeptRecipeDocument, warn)
    if document is None:
        return None
    found = KeptRecipeDocument.read(document)
    return KeptRecipe(
        found.path,
        found.text,
        tuple(found.overrides),
        tuple(found.warnings),
        _study(found.study),
        tuple(found.jobs),
    )


def _study(found: StudyDocument) -> Study:
    """A study, of a document that was checked."""
    values = _plain(found)
    values["measure"] = MeasureSpec(**_plain(found.measure))
    values["review"] = ReviewSpec(**_plain(found.review))
    values["adapt"] = None if found.adapt is None else AdaptSpec(**_plain(found.adapt))
    values["selections"] = tuple(Selection(**_plain(one)) for one in found.selections)
    values["choices"] = tuple(StepChoice(**_plain(one)) for one in found.choices)
    return Study(**values)


def _plain(found: Document) -> dict[str, Any]:
    return {name: freeze(value) for name, value in found}


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
