"""Loader: reads and checks recipes for the commands, and reports every problem at once.

Start with ``load_batch``, which goes from a file to its jobs.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.jobs import Batch, ImageSpec
from flowblend_cli.models.bundled import bundled_recipes, is_bundled
from flowblend_cli.recipe.expand import checks
from flowblend_cli.recipe.expand.expansion import expand
from flowblend_cli.recipe.expand.images import scene_pictures
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.expand.study import check_study
from flowblend_cli.recipe.prompts.presets import merge_presets
from flowblend_cli.recipe.prompts.scene_prompts import Prompts, check_lines, find_prompts
from flowblend_cli.recipe.schema.foreign_names import path_problem
from flowblend_cli.recipe.schema.names import check_name
from flowblend_cli.recipe.schema.overrides import Override, apply_overrides
from flowblend_cli.recipe.schema.sweep_tables import write_out_ranges
from flowblend_cli.recipe.schema.tables import UNKNOWN
from flowblend_cli.recipe.schema.validation import validate
from flowblend_cli.recipe.source.document import RecipeSource, read_source
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.combinations import (
    all_combinations,
    axis_fields,
    with_few_jobs,
    without_axes,
)
from flowblend_cli.recipe.sweep.matrix import check_matrix, check_used
from flowblend_cli.recipe.sweep.variants import Variant, make_variant
from flowblend_cli.text import is_unsafe
from flowblend_cli.utils.suggestions import closest


def find_recipe(name_or_path: str | Path) -> Path:
    """Find a recipe by the bare name of a bundled one, or by its path.

    Raises:
        RecipeError: There is no such bundled recipe, and no such file.
    """
    name = str(name_or_path)
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    path = Path(name_or_path)
    if "\0" not in name and path.exists():
        return path
    meant = closest(path.stem, bundled)
    hint = f"did you mean the bundled {meant!r}?" if meant else f"bundled: {', '.join(bundled)}"
    message = f"no such recipe: expected a .toml file or the name of a bundled recipe; {hint}"
    raise RecipeError([Problem(name, None, None, "", message)])


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The file, or the bare name of a bundled recipe.
        overrides: ``--set`` options, such as ``"blend.boundaries=[0.3, 0.9]"``, applied first.

    Returns:
        The checked recipe. The output folder is relative to the recipe's folder; for a bundled
        recipe, whose folder may be read-only, to the current one.

    Raises:
        RecipeError: Anything is wrong with the recipe; holds every problem.
    """
    checker = _read(path, overrides)
    recipe = checker.check()
    checker.fail()
    return recipe


def _read(path: str | Path, overrides: Iterable[str]) -> _Checker:
    source = read_source(find_recipe(path))
    refused: list[Problem] = []
    options = apply_overrides(source, overrides, refused)
    write_out_ranges(source)
    return _Checker(source, options, refused)


class _Checker:
    """The checks of a recipe, pass by pass; each pass keeps what it found for those after it."""

    def __init__(
        self, source: RecipeSource, options: list[Override], refused: list[Problem]
    ) -> None:
        self.source = source
        self.options = options
        self.refused = refused
        self.folder = source.path.absolute().parent
        self.problems = Problems()
        self.tables = validate(source.document, self.problems)
        # A preset that is broken is known all the same: its scenes shouldn't be blamed as well.
        self.presets = merge_presets(self.tables.presets)
        self.prompts = Prompts()
        self.fields = axis_fields(self.tables)
        self.variants: list[Variant] = []
        self.pictures: dict[int | str, ImageSpec] = {}

    def check(self) -> Recipe:
        """Run every pass, in this order, on whatever is sound; the problems are kept."""
        passes = (
            self._read_prompts,  # first: the number of jobs and the pictures depend on them
            self._check_axes,  # before combinations are made, of which there may be millions
            self._make_variants,  # what every combination means
            self._check_pipelines,  # needs the variants: which pipelines run, and what they take
            self._check_unused,  # last, and of what is sound: what is broken looks unused
        )
        for run in passes:
            run()
        name, output_dir = self._name(), self._output_dir()
        return Recipe(
            self.source.path,
            name,
            output_dir,
            self.source,
            self.tables,
            self.presets,
            tuple(self.variants),
            self.fields,
            self.pictures,
            self.prompts,
        )

    def fail(self, warnings: Iterable[str] = ()) -> None:
        """Raise one error with everything that was found, if there is anything.

        Raises:
            RecipeError: Anything is wrong.
        """
        self.source.fail(self.problems, self.refused, warnings)

    def _read_prompts(self) -> None:
        checks.check_scenes(self.tables, self.presets, self.source, self.problems)
        self.prompts = find_prompts(
            self.tables, self.presets, self.source, self.folder, self.problems
        )

    def _check_axes(self) -> None:
        checks.check_zip(self.tables, self.problems)
        check_matrix(self.tables, self.problems)
        check_study(self.tables, self.problems)
        checks.check_filename(self.tables, self.fields.values(), self.problems)
        too_many = Problems()
        checks.check_count(self.tables, self.prompts, too_many)
        self.problems.extend(too_many)
        uneven = Problems()
        checks.check_zip(self.tables, uneven)
        if too_many:
            self.tables, self.prompts = with_few_jobs(self.tables), self.prompts.few()
        elif uneven or any(
            table is not None and table.mode == "zip" and table.broken
            for table in (self.tables.sweep, self.tables.matrix)
        ):
            self.tables = without_axes(self.tables)

    def _make_variants(self) -> None:
        known: dict[tuple[tuple[str, int], ...], Variant] = {}
        for combination in all_combinations(self.tables):
            # A key of [defaults] changes nothing that a variant says.
            place = tuple(
                (axis, index) for axis, index in combination.indices.items() if "." in axis
            )
            if place not in known:
                known[place] = make_variant(self.tables, combination, self.folder, self.problems)
            variant = known[place]
            unknown = {axis for axis, one in combination.values.items() if one is UNKNOWN}
            self.variants.append(
                replace(variant, combination=combination, unknown=variant.unknown | unknown)
            )

    def _check_pipelines(self) -> None:
        checks.check_noise_levels(self.tables, self.variants, self.folder, self.problems)
        classes = [variant.pipeline_class for variant in self.variants]
        checks.check_needs(self.variants, self.problems)
        checks.check_arguments(self.tables, self.presets, classes, self.problems)
        check_lines(self.prompts, classes, self.problems)
        self.pictures = scene_pictures(
            self.tables, self.prompts, classes, self.folder, self.problems
        )

    def _check_unused(self) -> None:
        is_whole = not self.problems and not self.refused
        if self.prompts.are_sound and not (self.tables.matrix and self.tables.matrix.broken):
            check_used(self.tables, self.prompts.variables, self.problems)
        blamed = {entry.path[0] for entry in self.problems}
        if blamed.isdisjoint(("model", "blend", "sweep", "matrix")):
            checks.check_adapters_used(self.tables, self.variants, self.problems)
        if is_whole:
            checks.check_overrides(self.tables, self.presets, self.options, self.problems)

    def _name(self) -> str:
        if self.tables.recipe is None or "name" in self.tables.recipe.broken:
            return ""
        if self.tables.recipe.name is not None:
            return self.tables.recipe.name
        try:
            return check_name(self.source.path.stem)
        except ValueError as error:
            self.problems.add(("recipe", "name"), f"is missing, and the file's name {error}")
            return ""

    def _output_dir(self) -> Path:
        if self.tables.recipe is None:
            return Path()
        folder = self.tables.recipe.output_dir
        where = ("recipe", "output_dir")
        if any(is_unsafe(character) for character in folder):
            self.problems.add(where, f"must not hold control characters, got {folder!r}")
        elif problem := path_problem(folder):
            self.problems.add(where, problem)
        return Path(Path.cwd() if is_bundled(self.source.path) else self.folder, folder)


def load_batch(
    path: str | Path,
    overrides: Iterable[str] = (),
    output_dir: Path | None = None,
    *,
    settle: bool = True,
    with_models: bool = False,
) -> Batch:
    """Read a recipe and make its jobs, in one step.

    Args:
        path: The file, or the bare name of a bundled recipe.
        overrides: ``--set`` options.
        output_dir: Folder of the final files instead of the recipe's own.
        settle: See ``expand``.
        with_models: Whether the files of its models, where they are on this machine, are checked
            too. A render checks them by itself.

    Raises:
        RecipeError: See ``load_recipe`` and ``expand``.
    """
    with _without_garbage_collection():
        checker = _read(path, overrides)
        recipe = checker.check()
        batch = expand(recipe, checker.problems, settle=settle)
        if with_models or checker.problems:
            checks.check_models(recipe, checker.problems)
        checker.fail(batch.warnings)
    return replace(batch, output_dir=output_dir.absolute()) if output_dir else batch


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch Python's garbage collector off for a while.

    The jobs of a large recipe aren't garbage, and looking through them again and again takes a
    fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
