"""Drafts: cheap renders before the real ones, and the seeds of ``seeds = "explore 8"``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flowblend_cli.jobs import Job, Origin
from flowblend_cli.recipe.expand.file_names import Candidate
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.schema.ranges import Exploration
from flowblend_cli.recipe.schema.study_tables import DraftTable
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.blend import PAPER_BOUNDARIES
from flowblend_cli.study import Selection
from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import LETTERS, StageSchedule

_DRAFT, _FINAL = "draft", "final"


def add_drafts(
    recipe: Recipe, candidates: Iterable[Candidate], problems: Problems
) -> list[Candidate]:
    """Put drafts before the jobs, where [recipe] passes or explored seeds ask for them.

    Args:
        recipe: The recipe.
        candidates: Its jobs, in order.
        problems: Where problems of [draft] go.

    Returns:
        The drafts, then the jobs that stay: as they are, or as the final of a draft.
    """
    assert recipe.tables.recipe is not None
    assert recipe.tables.draft is not None
    passes = recipe.tables.recipe.passes
    drafts: dict[Job, Candidate] = {}
    jobs: list[Candidate] = []
    for candidate in candidates:
        scene = recipe.tables.scenes[candidate.scene_index]
        explores = scene is not None and isinstance(scene.seeds, Exploration)
        if not (explores if passes is None else _DRAFT in passes):
            jobs.append(candidate)
            continue
        if {"steps", "stages"} & recipe.tables.draft.broken:
            jobs.append(replace(candidate, is_reserve=explores))
            continue
        draft = _draft_of(candidate, recipe.tables.draft, problems)
        if draft is candidate:  # it can't be made, which is told
            jobs.append(replace(candidate, is_reserve=explores))
            continue
        most = recipe.tables.recipe.max_steps
        if most is not None and recipe.tables.draft.steps > most:
            steps = recipe.tables.draft.steps
            message = f"{steps} steps are more than max_steps = {most} in [recipe] allows"
            problems.add(("draft", "steps"), message, related=("draft", "recipe"))
        # Two templates that lead to one prompt are one draft.
        draft = drafts.setdefault(replace(draft.job, prompt_template=""), draft)
        if passes is None or _FINAL in passes:
            jobs.append(replace(candidate, draft=draft, is_reserve=explores))
    return [*drafts.values(), *jobs]


def _draft_of(candidate: Candidate, table: DraftTable, problems: Problems) -> Candidate:
    """The draft of a job: the same prompt and noise, in fewer steps of a cheaper denoiser."""
    job = candidate.job
    letters = table.stages or ("S" if job.model.small is not None else "L")
    further = {name: name for name, _ in job.model.denoisers}
    boundaries = PAPER_BOUNDARIES if len(letters) == 3 else None
    try:
        schedule = StageSchedule.parse(letters, boundaries, None, further)
        schedule.stage_indices(table.steps)
        if LETTERS["S"] in schedule.roles and job.model.small is None:
            raise StageError("the small denoiser is used, and [model] names none: name one there")
    except StageError as error:
        problems.add(("draft", "stages"), str(error), related=("draft", "model"))
        return candidate
    settings = {**dict(job.arguments), "num_inference_steps": table.steps}
    draft = replace(
        job,
        stages=schedule.stages,
        stage_string=letters,
        arguments=tuple(sorted(settings.items())),
        adapters=(),
        adaptive=None,
    )
    fields = {**candidate.fields, "num_inference_steps": table.steps, "stages": letters}
    return replace(candidate, job=draft, fields=fields, is_draft=True)


def with_origins(jobs: list[Job], candidates: list[Candidate]) -> list[Job]:
    """Note on drafts and finals why they are rendered.

    Args:
        jobs: The jobs with their names.
        candidates: What they were made from, in the same order.
    """
    ids = {id(c): job.id for c, job in zip(candidates, jobs, strict=True)}
    made = []
    for candidate, job in zip(candidates, jobs, strict=True):
        origin = None
        if candidate.is_draft:
            reason = f"a look at seed {job.seed} in {job.num_inference_steps} steps"
            origin = Origin("draft", reason=reason)
        elif candidate.draft is not None:
            draft = ids[id(candidate.draft)]
            reason = f"finishes {draft} in {job.num_inference_steps} steps"
            origin = Origin("final", of=draft, reason=reason)
        made.append(job if origin is None else replace(job, origin=origin))
    return made


def find_selections(
    recipe: Recipe, candidates: list[Candidate], jobs: list[Job], problems: Problems
) -> tuple[Selection, ...]:
    """Group the explored seeds by scene, prompt and combination; of each, the best are finished.

    Args:
        recipe: The recipe.
        candidates: The jobs before they had names.
        jobs: The same jobs with names and origins.
        problems: Where problems go.
    """
    table = recipe.tables.draft
    assert table is not None
    groups: dict[Job, list[Job]] = {}
    for candidate, job in zip(candidates, jobs, strict=True):
        if candidate.is_reserve:
            without_seed = replace(job, seed=0, id="", origin=None)
            groups.setdefault(without_seed, []).append(job)
    return tuple(_selection(group, table, problems) for group in groups.values())


def _selection(finals: list[Job], table: DraftTable, problems: Problems) -> Selection:
    number = len(finals)
    reject_keep = table.reject_keep
    if table.reject_after is not None and reject_keep is None:
        reject_keep = max(table.keep, (number + 1) // 2)
    wants = {"keep": table.keep, "reject_keep": reject_keep or 1}
    for key, wanted in wants.items():
        if wanted > number and key not in table.broken:
            message = f"{wanted} is more than the {number} seeds that scene {finals[0].scene!r} has"
            problems.add(("draft", key), message, related=("draft", "scene"))
    return Selection(
        finals[0].scene,
        tuple(job.origin.of for job in finals if job.origin is not None),
        tuple(job.id for job in finals),
        table.keep,
        table.reject_after,
        reject_keep,
    )
