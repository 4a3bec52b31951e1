"""What a job's file may be called by: the fields of name templates, and the default template."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from flowblend_cli.jobs import Job
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.prompts.scene_prompts import WrittenPrompt
from flowblend_cli.recipe.schema.names import default_template, short_value, slug, text_id
from flowblend_cli.recipe.sweep.combinations import SEED, Row
from flowblend_cli.recipe.sweep.matrix import Binder, Binding
from flowblend_cli.recipe.sweep.variants import Variant

# These vary in a way that the default name shows by itself.
_IN_DEFAULT_NAME = ("num_inference_steps", SEED)
_NEGATIVE = "negative_prompt"
# Tables make no file name: they are named by their place in the list.
_NAMED_BY_INDEX = ("blend.stage",)


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

    def template(self, variant: Variant, used: Collection[str], *, has_several: bool) -> str:
        """The name template of a job: the recipe's own, or the default with what varies.

        Args:
            variant: Its combination of settings.
            used: The variables that it has.
            has_several: Whether its scene may have several prompts.
        """
        if self._written is not None:
            return self._written
        varying = [f for axis, f in self._varying.items() if axis in variant.row.values]
        template = default_template([*varying, *used])
        return template + ("-{prompt_words}-{prompt_id}" if has_several else "")

    def of(
        self,
        job: Job,
        written: WrittenPrompt,
        variant: Variant,
        choices: Iterable[str],
        values: Binding,
        *,
        has_several: bool,
    ) -> dict[str, Any]:
        """What the name template may use, but for the seed and the prompt's place in the scene.

        Args:
            job: The job.
            written: The prompt as it is written.
            variant: The combination of settings.
            choices: What was chosen in the prompt.
            values: The values of the variables that it has.
            has_several: Whether its scene may have several prompts.
        """
        fields = {
            **{field: _value(axis, variant.row) for axis, field in self._axes.items()},
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
        return fields


def _varies(axis: str, variants: Iterable[Variant]) -> bool:
    rows = [variant.row for variant in variants]
    return len({repr(row.values[axis]) for row in rows if axis in row.values}) > 1


def _value(axis: str, row: Row) -> Any:
    if axis in _NAMED_BY_INDEX:
        return row.indices.get(axis, "")
    value = row.values.get(axis, "")
    return text_id(value, 6) if axis == _NEGATIVE else value
