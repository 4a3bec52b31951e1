"""Jobs before they have their names, and the names that they get: two never share a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from flowblend_cli.jobs import Job
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.schema.names import fill, same_file_key
from flowblend_cli.recipe.schema.validation import Fault
from flowblend_cli.recipe.steps import StepRange
from flowblend_cli.study import StepChoice
from flowblend_cli.utils.toml_positions import KeyPath

DRAFT_SUFFIX = "-draft"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A job before it has its name, and where it comes from.

    Args:
        job: The job.
        scene_index: Index of its scene.
        fields: What the name template may use.
        template: The name template.
        draft: The draft that it finishes, if any.
        is_draft: Whether it is a draft itself.
        is_reserve: Whether it is rendered only if its draft is chosen.
        pipeline_class: Class of its pipeline, where it can be told offline.
        suits: How many steps suit its scene, where a preset says so.
        steps: How many steps its prompt has, and why.
    """

    job: Job
    scene_index: int
    fields: dict[str, Any]
    template: str
    draft: Candidate | None = None
    is_draft: bool = False
    is_reserve: bool = False
    pipeline_class: str | None = None
    suits: StepRange | None = None
    steps: StepChoice | None = None

    @property
    def content(self) -> Job:
        """What decides the pixels: two templates that lead to one prompt are one job."""
        return replace(self.job, prompt_template="")


def name_jobs(recipe: Recipe, candidates: Iterable[Candidate]) -> list[Job]:
    """Give every job its name.

    Args:
        recipe: The recipe.
        candidates: The jobs without names.

    Returns:
        The jobs in the same order.

    Raises:
        RecipeError: A name isn't safe, or two jobs would share a file.
    """
    jobs: list[Job] = []
    faults: list[Fault] = []
    taken: dict[str, Candidate] = {}
    for candidate in candidates:
        where: KeyPath = ("scene", candidate.scene_index)
        try:
            name = fill(candidate.template, candidate.fields)
            suffix = DRAFT_SUFFIX if candidate.is_draft else ""
            job = replace(candidate.job, id=name + suffix)
        except ValueError as error:
            message = f"the file name of a job {error}"
            faults.append(Fault(where, message, related=("recipe", "scene", "sweep")))
            continue
        other = taken.setdefault(same_file_key(job.id), candidate)
        if other is not candidate:
            message = _clash(recipe, job, candidate, other)
            faults.append(Fault(where, message, related=("recipe", "scene", "sweep")))
        jobs.append(job)
        if len(faults) >= 20:
            break
    recipe.source.fail(dict.fromkeys(faults))
    return jobs


def _clash(recipe: Recipe, job: Job, one: Candidate, other: Candidate) -> str:
    """Say which two jobs would share a file, and where each comes from."""
    seen_from: KeyPath = ("scene", one.scene_index)
    shown = [
        f"{_describe(candidate)} "
        f"({recipe.source.place(('scene', candidate.scene_index), seen_from)})"
        for candidate in (other, one)
    ]
    return (
        f"two jobs would share the file {job.filename!r}: {shown[0]} and {shown[1]}; add what "
        "differs to filename in [recipe], or rename a scene"
    )


def _describe(candidate: Candidate) -> str:
    details = [f"{k} {v!r}" for k, v in candidate.fields.items() if k != "scene"]
    return f"scene {candidate.job.scene!r} with {', '.join(details)}"
