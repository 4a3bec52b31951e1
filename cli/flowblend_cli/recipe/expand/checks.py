"""Checks of a recipe's tables against each other, for the loader: presets, counts, arguments.

Each adds what it finds to a ``Problems``. What one table must be by itself is checked in
``recipe.schema.validation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelNameError, UsageError
from flowblend_cli.jobs import ModelSpec, SamplingSpec, schedule_of
from flowblend_cli.models.identity import model_problems
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.solvers import find_solver
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.expand.settings import scene_settings
from flowblend_cli.recipe.prompts.presets import AUTO, Preset
from flowblend_cli.recipe.prompts.prompt_files import FLOW_SHIFT, PromptLine
from flowblend_cli.recipe.prompts.scene_prompts import Prompts
from flowblend_cli.recipe.schema.names import FIXED_FIELDS, same_file_key, template_fields
from flowblend_cli.recipe.schema.overrides import Override
from flowblend_cli.recipe.schema.ranges import Exploration
from flowblend_cli.recipe.schema.sweep_tables import AxisFields
from flowblend_cli.recipe.schema.tables import ARGUMENTS, SETTINGS, UNKNOWN, SceneFields
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.source.limits import MAX_JOBS
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.combinations import (
    SEED,
    all_axes,
    common_axes,
    count_axes,
    count_matrix,
    sweep_axes,
    table_of,
)
from flowblend_cli.recipe.sweep.matrix import Binder
from flowblend_cli.recipe.sweep.variants import Variant, make_variant
from flowblend_cli.utils.suggestions import closest, did_you_mean
from flowblend_cli.utils.toml_positions import KeyPath
from flowblend_plugin.errors import StageError
from flowblend_plugin.schedulers.sigmas import join_segments, segments_of
from flowblend_plugin.stages import SOLVERS

DEFAULT_SEEDS = (42,)
_SHIFT_AXIS = f"sampling.{FLOW_SHIFT}"


def check_scenes(
    tables: Tables, presets: Mapping[str, Preset], source: RecipeSource, problems: Problems
) -> None:
    """Check that the names of scenes are unique, and that their presets exist."""
    first: dict[str, int] = {}
    if AUTO in presets:
        message = f"{AUTO!r} chooses among the presets: take another name"
        problems.add(("presets", AUTO), message, at="key")
    for index, scene in enumerate(tables.scenes):
        if scene is None:
            continue
        _check_preset(index, scene, presets, problems)
        key = same_file_key(scene.name)
        if "name" in scene.broken:
            continue
        if key in first:
            path: KeyPath = ("scene", index, "name")
            place = source.place(("scene", first[key], "name"), seen_from=path)
            problems.add(
                path,
                f"{scene.name!r} is the name of scene[{first[key]}] in {place} already, "
                "which its files would share: rename one",
            )
        first.setdefault(key, index)


def _check_preset(
    index: int, scene: SceneFields, presets: Mapping[str, Preset], problems: Problems
) -> None:
    if scene.preset not in (None, AUTO, *presets):
        name = str(scene.preset)
        hint = did_you_mean(name, [*presets, AUTO], f"presets are {', '.join(presets)}")
        problems.add(("scene", index, "preset"), f"there is no preset {name!r}{hint}")


def check_zip(tables: Tables, problems: Problems) -> None:
    """Check that the axes of a zip are equally long, also with the variables of prompts."""
    found: dict[str, AxisFields | None] = {"sweep": tables.sweep, "matrix": tables.matrix}
    for name, table in found.items():
        if table is None or table.mode != "zip" or table.broken:
            continue
        lists = {**sweep_axes(table), **getattr(table, "variables", {})}
        lengths = {axis: len(values) for axis, values in lists.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{axis} has {length}" for axis, length in lengths.items())
            message = f"'zip' needs lists of one length; {shown}"
            problems.add((name, "mode"), message, related=(name,))


def check_filename(tables: Tables, fields: Iterable[str], problems: Problems) -> None:
    """Check that the file name template uses known fields only."""
    template = tables.recipe.filename if tables.recipe else None
    if template is None:
        return
    variables = tables.matrix.variables if tables.matrix else ()
    known = list(dict.fromkeys((*FIXED_FIELDS, *fields, *variables)))
    for field in template_fields(template):
        if field not in known:
            meant = closest(field, known)
            hint = f"did you mean {{{meant}}}?" if meant else f"fields are {', '.join(known)}"
            problems.add(("recipe", "filename"), f"unknown field {{{field}}}; {hint}")


def repeats_of(tables: Tables, scene: SceneFields) -> int:
    """How often each seed of a scene is repeated; the sweep's value wins."""
    swept = tables.sweep.repeats if tables.sweep else None
    return swept or scene.repeats or 1


def own_seeds(scene: SceneFields) -> Sequence[int]:
    """The seeds of a scene without repeats and sweeps."""
    if isinstance(scene.seeds, Exploration):
        return scene.seeds.seeds
    return scene.seeds or DEFAULT_SEEDS


def check_count(tables: Tables, prompts: Prompts, problems: Problems) -> None:
    """Check that the recipe makes at most ``MAX_JOBS`` jobs, which are counted and never built.

    Args:
        tables: The recipe's tables.
        prompts: Its prompts.
        problems: Where problems go.
    """
    binder = Binder(tables.matrix)
    total, largest = 0, 0
    blamed: KeyPath = ("scene",)
    for index, found in prompts.scenes.items():
        scene = tables.scenes[index]
        assert scene is not None
        of_matrix = count_matrix(tables.matrix, binder.count(found.variables), found.variables)
        axes = all_axes(tables) if found.variables else common_axes(tables)
        seeds = 1 if SEED in axes else len(own_seeds(scene))
        count = count_axes(tables.sweep) * of_matrix * found.count * seeds
        count *= repeats_of(tables, scene)
        total += count
        if count > largest:
            largest, blamed = count, ("scene", index)
    total = max(total, count_axes(tables.matrix) * count_axes(tables.sweep))
    if total > MAX_JOBS:
        if tables.matrix is not None and tables.matrix.model_fields_set:
            blamed = ("matrix",)
        if count_axes(tables.sweep) > 1:
            blamed = ("sweep",)
        problems.add(
            blamed,
            f"the recipe makes {total:,} jobs, more than the limit of {MAX_JOBS:,}: shorten its "
            "sweep, matrix, seeds, repeats or alternatives, or draw some prompts with sample",
            related=("scene", "sweep", "matrix"),
        )


def check_arguments(
    tables: Tables,
    presets: Mapping[str, Preset],
    pipeline_classes: Iterable[str | None],
    problems: Problems,
) -> None:
    """Check that the pipeline, where its class is known, takes every argument that is set."""
    table = argument_table()
    paths = _setting_paths(tables, presets)
    for pipeline_class in dict.fromkeys(pipeline_classes):
        known = table.pipelines.get(pipeline_class or "")
        if known is None:
            continue
        for path in paths:
            name = str(path[-1])
            if name in ARGUMENTS and name not in known:
                hint = did_you_mean(name, known)
                if name == "fps":
                    hint = "; the file's frame rate is fps in [output]"
                message = f"{pipeline_class} takes no {name}{hint}"
                problems.add(path, message, at="key", related=("model",))


def check_noise_levels(
    tables: Tables, variants: Iterable[Variant], recipe_dir: Path, problems: Problems
) -> None:
    """Check that the noise levels at which stages end can be found without the pipeline."""
    variants = [each for each in variants if each.knows("pipeline", "blend", "sampling")]
    _check_grids(variants, recipe_dir, problems)
    known: dict[tuple[str, SamplingSpec], str | None] = {}
    for variant in variants:
        if not schedule_of(variant.blend.stages).needs_noise_levels:
            continue
        pipeline, sampling = variant.model.pipeline, variant.sampling
        if (pipeline, sampling) not in known:
            try:
                find_solver(pipeline, sampling, recipe_dir)
                known[pipeline, sampling] = None
            except UsageError as error:
                known[pipeline, sampling] = str(error)
        problem = known[pipeline, sampling]
        if problem is not None:
            path = _sigma_path(tables, variant)
            problems.add(path, problem, at="key", related=("model", "sampling", "blend"))


def _check_grids(variants: Iterable[Variant], recipe_dir: Path, problems: Problems) -> None:
    """Check that the noise levels of stages with steps of their own are known, and descend."""
    for variant in variants:
        has_steps = schedule_of(variant.blend.stages).num_inference_steps is not None
        if not has_steps and variant.sampling.sigma_max is None:
            continue
        path = (*variant.combination.path("blend", "stage"), 0, "steps")
        if not has_steps:
            path = variant.combination.path("sampling", "sigma_max")
        related = ("model", "sampling", "blend")
        try:
            solver = find_solver(variant.model.pipeline, variant.sampling, recipe_dir)
        except UsageError as error:
            if has_steps:
                reason = str(error).rpartition(": ")[0]
                message = f"{reason}: leave steps out, and give boundaries"
                problems.add(path, message, at="key", related=related)
            continue
        if solver.name not in SOLVERS:
            message = (
                f"isn't possible with scheduler {solver.name!r}: choose one of {', '.join(SOLVERS)}"
            )
            problems.add(path, message, at="key", related=related)
        elif has_steps:
            try:
                segments = segments_of(variant.blend.stages, solver.name)
                join_segments(segments, solver.flow_shift, solver.start)
            except StageError as error:
                problems.add(path, str(error), at="key", related=related)


def check_needs(variants: Iterable[Variant], problems: Problems) -> None:
    """Check that a recipe can give its pipelines everything that they need.

    Args:
        variants: The combinations.
        problems: Where problems go.
    """
    for variant in variants:
        rules = variant.rules
        if rules is not None and rules.needs:
            message = (
                f"{rules.pipeline_class} needs {' and '.join(rules.needs)}, which no recipe can "
                "give: name another pipeline"
            )
            path = variant.combination.path("model", "pipeline")
            problems.add(path, message, related=("model",))


def check_models(recipe: Recipe, problems: Problems) -> None:
    """Check the files of the models that are on this machine: whether they are whole, and fit.

    Args:
        recipe: The recipe.
        problems: Where problems go, each at the key that names the model.
    """
    folder = recipe.path.absolute().parent
    known: set[ModelSpec] = set()
    for variant in recipe.variants:
        # What a device does with them is of no matter here.
        model = replace(variant.model, dtype="auto", device="auto", offload="none")
        if not variant.knows("pipeline"):
            continue
        if not variant.knows("small", "denoisers"):
            model = replace(model, small=None, denoisers=())
        if model in known:
            continue
        known.add(model)
        try:
            found = list(model_problems(model, folder, only_here=True))
        except ModelNameError as error:
            found = [("pipeline", str(error))]
        for key, message in found:
            path: KeyPath = variant.combination.path("model", key)
            if key not in ("pipeline", "small"):
                path = ("model", "denoisers", key)
            problems.add(path, message, related=("model",))


def check_adapters_used(tables: Tables, variants: Sequence[Variant], problems: Problems) -> None:
    """Check that each LoRA of [model.adapters] is at work: a style silently left out is a trap."""
    used = {adapter.name for variant in variants for adapter in variant.blend.adapters}
    for name in tables.model.adapters if tables.model and variants else ():
        if name not in used:
            message = (
                "is at work in no stage: name it in adapters of a [[blend.stage]], or remove it"
            )
            problems.add(("model", "adapters", name), message, at="key", related=("blend",))


def _sigma_path(tables: Tables, variant: Variant) -> KeyPath:
    """The key by which the stages of a combination end at noise levels."""
    stages = (tables.blend.stage if tables.blend else None) or []
    for index, stage in enumerate(stages):
        if stage.until_sigma is not None:
            return ("blend", "stage", index, "until_sigma")
    return variant.combination.path("blend", "boundary_sigmas")


def _setting_paths(tables: Tables, presets: Mapping[str, Preset]) -> list[KeyPath]:
    """The paths of all arguments that the recipe itself sets."""
    paths: list[KeyPath] = []
    if tables.defaults is not None:
        paths += [("defaults", key) for key in _known(tables.defaults)]
    paths += [("presets", name, key) for name, preset in presets.items() for key in preset.own]
    for index, scene in enumerate(tables.scenes):
        if scene is not None:
            paths += [("scene", index, key) for key in _known(scene)]
    for axis in all_axes(tables):
        if "." not in axis and axis != SEED:
            paths.append((table_of(tables, axis), axis))
    return paths


def _known(table: Any) -> list[str]:
    return [key for key, value in table.settings().items() if value is not UNKNOWN]


def check_overrides(
    tables: Tables,
    presets: Mapping[str, Preset],
    overrides: Iterable[Override],
    problems: Problems,
) -> None:
    """Check that every ``--set`` reaches a job, unless it sets what is there already."""
    axes = common_axes(tables)
    for path, value, former in overrides:
        if value == former and type(value) is type(former):
            continue
        reason = _why_unread(path, value, tables, presets, axes)
        if reason:
            problems.add(path, f"no job reads it: {reason}")


def _why_unread(
    path: KeyPath,
    value: object,
    tables: Tables,
    presets: Mapping[str, Preset],
    axes: Mapping[str, list[object]],
) -> str | None:
    """Why no job reads what ``--set`` wrote; None if one does."""
    table, key = path[0], str(path[-1])
    dotted = f"{table}.{key}"
    if dotted in axes and len(path) == 2:
        return f"[{table_of(tables, dotted)}] sets {dotted} for every job"
    if table == "scene" and key == "repeats" and tables.sweep and tables.sweep.repeats:
        return "[sweep] sets repeats for every job"
    if table == "scene" and key == "seeds" and SEED in axes:
        return f"[{table_of(tables, SEED)}] sets seed for every job"
    if table not in ("defaults", "presets", "scene") or key not in SETTINGS:
        return None
    if key in axes:
        same = all(swept == value for swept in axes[key])
        return None if same else f"[{table_of(tables, key)}] sets {key} for every job"
    winners = [
        scene_settings(tables, presets, index, scene).get(key)
        for index, scene in enumerate(tables.scenes)
        if scene is not None and _may_read(path, index, scene)
    ]
    if not winners:
        return f"no scene uses preset {path[1]!r}" if table == "presets" else None
    if any(scene is not None and scene.preset == AUTO for scene in tables.scenes):
        return None  # what its words choose, and for which prompts, isn't known yet
    if any(w is None or w.path == path or w.value == value for w in winners):
        return None
    origins = " and ".join(dict.fromkeys(w.origin for w in winners if w))
    return f"{origins} overrides it everywhere; set {key} there"


def _may_read(path: KeyPath, index: int, scene: SceneFields) -> bool:
    """Whether a scene could read a key at all."""
    if path[0] == "presets":
        return scene.preset in (AUTO, path[1])
    return path[0] != "scene" or path[1] == index


def with_shift(
    recipe: Recipe, variant: Variant, index: int, line: PromptLine | None, problems: Problems
) -> Variant:
    """Give a combination the shift of a prompt's line; a sweep's own shift wins.

    Args:
        recipe: The recipe.
        variant: The combination.
        index: Index of the line's scene.
        line: The line; None, and one without a shift, change nothing.
        problems: Where problems go.
    """
    if line is None or line.flow_shift is None or _SHIFT_AXIS in variant.combination.values:
        return variant
    combination = replace(
        variant.combination,
        values={**variant.combination.values, _SHIFT_AXIS: line.flow_shift},
        places={**variant.combination.places, _SHIFT_AXIS: ("scene", index, "prompts_file")},
    )
    folder = recipe.path.absolute().parent
    made = make_variant(recipe.tables, combination, folder, problems)
    check_noise_levels(recipe.tables, [made], folder, problems)
    return made
