"""From a recipe's file to a checked ``Recipe``; every problem is reported at once."""

from __future__ import annotations

import difflib
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.jobs import Batch
from flowblend_cli.models.bundled import bundled_recipes, is_bundled
from flowblend_cli.recipe.expand import checks
from flowblend_cli.recipe.expand.expansion import expand
from flowblend_cli.recipe.expand.images import scene_pictures
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.expand.study import check_study
from flowblend_cli.recipe.prompts.presets import merge_presets
from flowblend_cli.recipe.prompts.scene_prompts import check_lines, find_prompts
from flowblend_cli.recipe.schema.names import check_name
from flowblend_cli.recipe.schema.overrides import apply_overrides
from flowblend_cli.recipe.schema.sweep_tables import write_out_ranges
from flowblend_cli.recipe.schema.validation import Tables, validate
from flowblend_cli.recipe.source.document import read_source
from flowblend_cli.recipe.source.faults import Fault
from flowblend_cli.recipe.source.file import SWEEPS
from flowblend_cli.recipe.sweep.combinations import Row, all_rows, axis_fields
from flowblend_cli.recipe.sweep.matrix import check_matrix, check_used
from flowblend_cli.recipe.sweep.variants import Variant, make_variant
from flowblend_cli.text import is_unsafe


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
    close = difflib.get_close_matches(path.stem, bundled, n=1)
    hint = f"did you mean the bundled {close[0]!r}?" if close else f"bundled: {', '.join(bundled)}"
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
    path = find_recipe(path)
    source = read_source(path)
    options = apply_overrides(source, overrides)
    write_out_ranges(source)
    tables, faults = validate(source.document)
    presets = merge_presets(tables.presets)
    # A preset that is broken is known all the same: its scenes shouldn't be blamed as well.
    faults += checks.check_scenes(tables, presets, source)
    recipe_dir = path.absolute().parent
    prompts = find_prompts(tables, presets, source, recipe_dir, faults)
    faults += checks.check_sweep(tables)
    faults += check_matrix(tables)
    faults += check_study(tables)
    fields = axis_fields(tables)
    faults += checks.check_filename(tables, fields.values())
    too_many = list(checks.check_count(tables, prompts))
    faults += too_many
    rows = [] if too_many else _rows(tables, source.document)
    variants = _variants(tables, rows, recipe_dir, faults)
    faults += dict.fromkeys(checks.check_noise_levels(tables, variants, recipe_dir))
    classes = [variant.pipeline_class for variant in variants]
    faults += checks.check_arguments(tables, presets, classes)
    faults += check_lines(prompts, classes)
    pictures = scene_pictures(tables, prompts, classes, recipe_dir, faults)
    if not faults:
        faults += check_used(tables, prompts.variables)
        faults += checks.check_adapters_used(tables, variants)
        faults += checks.check_overrides(tables, presets, options)
    name = _name(tables, path, faults)
    output_dir = _output_dir(tables, path, faults)
    source.fail(faults)
    found = tuple(variants)
    return Recipe(path, name, output_dir, source, tables, presets, found, fields, pictures, prompts)


def load_batch(
    path: str | Path,
    overrides: Iterable[str] = (),
    output_dir: Path | None = None,
    *,
    settle: bool = True,
) -> Batch:
    """Read a recipe and make its jobs, in one step.

    Args:
        path: The file, or the bare name of a bundled recipe.
        overrides: ``--set`` options.
        output_dir: Folder of the final files instead of the recipe's own.
        settle: See ``expand``.

    Raises:
        RecipeError: See ``load_recipe`` and ``expand``.
    """
    with _without_collecting():
        batch = expand(load_recipe(path, overrides), settle=settle)
    return replace(batch, output_dir=output_dir.absolute()) if output_dir else batch


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Don't look for garbage meanwhile.

    What a large recipe becomes is none, and looking through it again and again takes a fifth of the
    time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _rows(tables: Tables, document: dict[str, Any]) -> Iterable[Row]:
    """The combinations to check: none where a table is broken and would be blamed again."""
    if tables.sweep is None or tables.matrix is None:
        written = [document[name] for name in SWEEPS if name in document]
        plain = (isinstance(table, dict) and not any("." in a for a in table) for table in written)
        return [Row({}, {})] if all(plain) else []
    if next(checks.check_sweep(tables), None) is not None:
        return []
    return all_rows(tables)


def _variants(
    tables: Tables, rows: Iterable[Row], recipe_dir: Path, faults: list[Fault]
) -> list[Variant]:
    found: list[Fault] = []
    variants = []
    known: dict[tuple[tuple[str, int], ...], Variant | None] = {}
    for row in rows:
        # A key of [defaults] changes nothing that a variant says.
        place = tuple((axis, index) for axis, index in row.indices.items() if "." in axis)
        if place not in known:
            known[place] = make_variant(tables, row, recipe_dir, found)
        variant = known[place]
        if variant is not None:
            variants.append(replace(variant, row=row))
    faults.extend(dict.fromkeys(found))
    return variants


def _name(tables: Tables, path: Path, faults: list[Fault]) -> str:
    if tables.recipe is None:
        return ""
    if tables.recipe.name is not None:
        return tables.recipe.name
    try:
        return check_name(path.stem)
    except ValueError as error:
        faults.append(Fault(("recipe", "name"), f"is missing, and the file's name {error}"))
        return ""


def _output_dir(tables: Tables, path: Path, faults: list[Fault]) -> Path:
    if tables.recipe is None:
        return Path()
    folder = tables.recipe.output_dir
    where = ("recipe", "output_dir")
    if any(is_unsafe(character) for character in folder):
        faults.append(Fault(where, f"must not hold control characters, got {folder!r}"))
    elif folder.startswith("~"):
        faults.append(Fault(where, f"~ isn't expanded: write the whole path, got {folder!r}"))
    base = Path.cwd() if is_bundled(path) else path.absolute().parent
    return Path(base, folder)
