"""File names of jobs, for the expansion: fields of name templates, and jobs that would clash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from flowblend_cli.jobs import Job
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.prompts.scene_prompts import WrittenPrompt
from flowblend_cli.recipe.schema.names import (
    default_template,
    fill,
    same_file_key,
    short_value,
    slug,
    text_id,
)
from flowblend_cli.recipe.schema.ranges import StepRange
from flowblend_cli.recipe.schema.tables import UNKNOWN
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.combinations import SEED, Combination
from flowblend_cli.recipe.sweep.matrix import Binder, Binding
from flowblend_cli.recipe.sweep.variants import Variant
from flowblend_cli.study import StepChoice
from flowblend_cli.utils.toml_positions import KeyPath

# These vary in a way that the default name shows by itself.
_IN_DEFAULT_NAME = ("num_inference_steps", SEED)
_NEGATIVE = "negative_prompt"
# Tables make no file name: they are named by their place in the list.
_NAMED_BY_INDEX = ("blend.stage",)
DRAFT_SUFFIX = "-draft"


class Fields:
    """The fields of a recipe's jobs.

    A default name follows from what its own job is, never from its place among others: where
    prompts are reordered, or others are added, every file keeps its name.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.binder = Binder(recipe.tables.matrix)
        self._axes = recipe.fields
        assert recipe.tables.recipe is not None
        self._written = recipe.tables.recipe.filename
        self._names_prompts = "{prompt_" in (self._written or "")
        self._varying = {
            axis: field
            for axis, field in recipe.fields.items()
            if axis not in _IN_DEFAULT_NAME and _varies(axis, recipe.variants)
        }

    def of(
        self,
        job: Job,
        written: WrittenPrompt,
        variant: Variant,
        choices: Iterable[str],
        values: Binding,
        *,
        has_several: bool,
    ) -> tuple[str, dict[str, Any]]:
        """The name template of a job, and the fields that it may use.

        The template is the recipe's own, or the default with what varies. The caller adds seed and
        prompt_index to the fields.

        Args:
            job: The job.
            written: The prompt as it is written.
            variant: The combination of settings.
            choices: What was chosen in the prompt.
            values: The values of the variables that it has.
            has_several: Whether its scene may have several prompts.
        """
        fields = {
            **{field: _value(axis, variant.combination) for axis, field in self._axes.items()},
            **dict.fromkeys(self.binder.names, ""),
            **{name: short_value(value) for name, value in values.items()},
            "scene": job.scene,
            "num_inference_steps": job.num_inference_steps,
            "stages": job.stage_string,
        }
        if self._names_prompts or has_several:
            line = written.line.identity if written.line is not None else ""
            fields["prompt_words"] = slug(" ".join(choices) or job.prompt)
            fields["prompt_id"] = text_id(f"{job.prompt}\n{line}" if line else job.prompt)
        if self._written is not None:
            return self._written, fields
        varying = [f for axis, f in self._varying.items() if axis in variant.combination.values]
        template = default_template([*varying, *values])
        return template + ("-{prompt_words}-{prompt_id}" if has_several else ""), fields


def _varies(axis: str, variants: Iterable[Variant]) -> bool:
    values = [variant.combination.values for variant in variants]
    return len({repr(each[axis]) for each in values if axis in each}) > 1


def _value(axis: str, combination: Combination) -> Any:
    if axis in _NAMED_BY_INDEX:
        return combination.indices.get(axis, "")
    value = combination.values.get(axis, "")
    if axis != _NEGATIVE or value is UNKNOWN:
        return value
    return text_id(value, 6)


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
        pipeline_class: Class of its pipeline, where it is known offline.
        suits: How many steps suit its scene, where a preset says so.
        steps: How many steps its prompt has, and why.
        has_name: Whether all that its name is made of is known.
        written: Its prompt as it is written.
        negative: The key that its negative prompt was read from, where the recipe has it.
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
    has_name: bool = True
    written: WrittenPrompt | None = None
    negative: KeyPath | None = None


def name_jobs(recipe: Recipe, candidates: Iterable[Candidate], problems: Problems) -> list[Job]:
    """Give every job its name.

    Args:
        recipe: The recipe.
        candidates: The jobs without names.
        problems: Where problems go: names that aren't safe, jobs that would share a file.

    Returns:
        The jobs in the same order; fewer where there are problems.
    """
    jobs: list[Job] = []
    found = Problems()
    taken: dict[str, Candidate] = {}
    for candidate in candidates:
        if not candidate.has_name:
            continue
        where: KeyPath = ("scene", candidate.scene_index)
        try:
            name = fill(candidate.template, candidate.fields)
            suffix = DRAFT_SUFFIX if candidate.is_draft else ""
            job = replace(candidate.job, id=name + suffix)
        except KeyError:
            continue  # a field that there isn't is told already
        except ValueError as error:
            message = f"the file name of a job {error}"
            found.add(where, message, related=("recipe", "scene", "sweep"))
            continue
        other = taken.setdefault(same_file_key(job.id), candidate)
        if other is not candidate:
            message = _clash(recipe, job, candidate, other)
            found.add(where, message, related=("recipe", "scene", "sweep"))
        jobs.append(job)
        if len(found) >= 20:
            break
    problems.extend(found)
    return jobs


def _clash(recipe: Recipe, job: Job, one: Candidate, other: Candidate) -> str:
    """Say which two jobs would share a file, and where each comes from."""
    seen_from: KeyPath = ("scene", one.scene_index)
    shown = []
    for candidate in (other, one):
        details = ", ".join(f"{k} {v!r}" for k, v in candidate.fields.items() if k != "scene")
        place = recipe.source.place(("scene", candidate.scene_index), seen_from)
        shown.append(f"scene {candidate.job.scene!r} with {details} ({place})")
    return (
        f"two jobs would share the file {job.filename!r}: {shown[0]} and {shown[1]}; add what "
        "differs to filename in [recipe], or rename a scene"
    )
