"""Study of a recipe: what it wants measured and compared, made for the batch and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowblend_cli.jobs import OF_STAGES, freeze
from flowblend_cli.recipe.expand.file_names import Candidate
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.schema.ranges import Exploration
from flowblend_cli.recipe.schema.study_tables import OF_REFERENCE, OF_RUNS, DraftTable
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.combinations import SEED, all_axes, common_axes, table_of
from flowblend_cli.study import (
    AdaptSpec,
    MeasureSpec,
    ReviewSpec,
    Selection,
    StepChoice,
    Study,
)
from flowblend_cli.utils.suggestions import did_you_mean

HIGHEST = "highest"
NO_REFERENCE = "reference = {} compares with none"


def make_study(
    recipe: Recipe,
    candidates: Sequence[Candidate],
    selections: tuple[Selection, ...],
) -> Study:
    """Make the study of a recipe: everything of it that decides no pixel.

    Args:
        recipe: The recipe.
        candidates: Its jobs.
        selections: Drafts of which only some become finals.
    """
    tables = recipe.tables
    assert tables.sweep is not None
    assert tables.review is not None
    assert tables.recipe is not None
    assert tables.metrics is not None
    assert tables.score is not None
    names, adapt = tables.metrics.names, None
    if tables.adapt is not None and tables.adapt.rounds > 0:
        adapt = AdaptSpec(**dict(tables.adapt))
    return Study(
        axes=tuple(all_axes(tables)),
        time_repeats=tables.sweep.time_repeats,
        measure=MeasureSpec(
            tuple(names) if names is not None else None,
            tuple((key, freeze(value)) for key, value in references(tables).items()),
            tuple(tables.score.weights().items()),
        ),
        adapt=adapt,
        review=ReviewSpec(tuple(tables.review.criteria)),
        selections=selections,
        step_ranges=_step_ranges(candidates),
        max_steps=tables.recipe.max_steps,
        choices=_choices(candidates),
        report=tables.recipe.report,
    )


def _choices(candidates: Iterable[Candidate]) -> tuple[StepChoice, ...]:
    """One a prompt of a scene, in the order of the recipe."""
    found: dict[tuple[int, str], StepChoice] = {}
    for candidate in sorted(candidates, key=lambda each: each.scene_index):
        if candidate.steps is not None:
            found.setdefault((candidate.scene_index, candidate.job.prompt), candidate.steps)
    return tuple(found.values())


def _step_ranges(candidates: Iterable[Candidate]) -> tuple[tuple[str, int, int], ...]:
    """What suits each scene; where its prompts chose several presets, what suits any of them."""
    found: dict[str, tuple[int, int]] = {}
    for candidate in candidates:
        if candidate.suits is not None:
            low, high = candidate.suits.low or 1, candidate.suits.high
            lowest, highest = found.get(candidate.job.scene, (low, high))
            found[candidate.job.scene] = (min(low, lowest), max(high, highest))
    return tuple((scene, low, high) for scene, (low, high) in found.items())


def references(tables: Tables) -> dict[str, Any]:
    """The axes of a reference, dotted, with the value of each; ``"highest"`` is resolved."""
    assert tables.metrics is not None
    axes = all_axes(tables)
    found: dict[str, Any] = {}
    for key, value in tables.metrics.reference.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": entry for inner, entry in value.items()}
        else:
            found[key.removeprefix("defaults.")] = value
    return {axis: _highest(value, axes.get(axis, ())) for axis, value in found.items()}


def _highest(value: Any, values: Sequence[Any]) -> Any:
    """The highest of an axis's numbers where a reference asks for it, else the value as it is."""
    is_numeric = bool(values) and all(type(each) in (int, float) for each in values)
    return max(values) if value == HIGHEST and is_numeric else value


def check_study(tables: Tables, problems: Problems) -> None:
    """Check that references are of the sweep, weighted metrics are measured, drafts are cheaper."""
    swept = (tables.sweep, tables.matrix)
    is_swept_soundly = not any(table is None or table.broken for table in swept)
    if is_swept_soundly and tables.metrics and "reference" not in tables.metrics.broken:
        _check_reference(tables, all_axes(tables), problems)
    _check_score(tables, problems)
    if tables.draft is not None:
        _check_draft(tables.draft, problems)
    if SEED in common_axes(tables):
        table = table_of(tables, SEED)
        for index, scene in enumerate(tables.scenes):
            if scene is not None and isinstance(scene.seeds, Exploration):
                message = f"explores seeds, and [{table}] sets seed for every job: keep one of them"
                problems.add(("scene", index, "seeds"), message, related=(table,))


def _check_score(tables: Tables, problems: Problems) -> None:
    weights = tables.score.weights() if tables.score is not None else {}
    broken = tables.metrics.broken if tables.metrics is not None else frozenset()
    names = tables.metrics.names if tables.metrics is not None else None
    for key in weights:
        if names is not None and key not in names and key not in OF_RUNS:
            message = "is weighted and not measured: add it to names in [metrics]"
            problems.add(("score", key), message, at="key", related=("metrics",))
    if tables.metrics is not None and not tables.metrics.reference and "reference" not in broken:
        for key in OF_REFERENCE:
            if key in weights:
                message = "compares with a reference, and [metrics] names none: set reference there"
                problems.add(("score", key), message, at="key", related=("metrics",))
    is_whole = tables.score is not None and not tables.score.broken
    if weights and is_whole and not any(weights.values()):
        problems.add(("score",), "gives no metric a weight above 0: leave the table out")


def _check_reference(tables: Tables, axes: Mapping[str, list[Any]], problems: Problems) -> None:
    where = ("metrics", "reference")
    found = references(tables)
    for axis, value in found.items():
        if axis == SEED:
            message = "can't be seed: a reference is of the same scene, prompt and seed"
            problems.add(where, message)
        elif axis in OF_STAGES:
            message = f"can't be {axis}: a job doesn't say it; {NO_REFERENCE}"
            problems.add(where, message, related=("sweep",))
        elif axis not in axes:
            known = f"axes are {', '.join(axes)}" if axes else "it has none"
            hint = did_you_mean(axis, axes, f"{known}; {NO_REFERENCE}")
            problems.add(where, f"{axis!r} is no axis of [sweep]{hint}", related=("sweep",))
        elif value not in axes[axis]:
            values = ", ".join(str(each) for each in axes[axis][:10])
            is_numeric = _highest(HIGHEST, axes[axis]) != HIGHEST
            or_highest = f", or {HIGHEST!r}" if is_numeric else ""
            message = (
                f"{axis} = {value!r} is none of the sweep's values: {values}; take one of them"
                f"{or_highest}, and {NO_REFERENCE}"
            )
            problems.add(where, message, related=("sweep",))
    assert tables.metrics is not None
    for index, name in enumerate(tables.metrics.names or ()):
        if name in OF_REFERENCE and not found:
            message = (
                f"{name!r} compares with a reference: say which jobs are it, such as "
                "reference = { num_inference_steps = 100 }"
            )
            problems.add(("metrics", "names", index), message, related=("metrics",))


def _check_draft(draft: DraftTable, problems: Problems) -> None:
    if draft.broken & {"reject_after", "steps"}:
        return
    if draft.reject_after is None:
        if draft.reject_keep is not None:
            message = "needs reject_after: the steps after which drafts are looked at"
            problems.add(("draft", "reject_keep"), message, at="key", related=("draft",))
        return
    if draft.reject_after >= draft.steps:
        message = f"must be below the {draft.steps} steps of a draft, got {draft.reject_after}"
        problems.add(("draft", "reject_after"), message, related=("draft",))
    least = draft.keep if "keep" not in draft.broken else 1
    if draft.reject_keep is not None and draft.reject_keep < least:
        message = f"must be at least keep ({draft.keep}), got {draft.reject_keep}"
        problems.add(("draft", "reject_keep"), message, related=("draft",))
