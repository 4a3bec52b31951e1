"""Combinations of [sweep] and [matrix]: their axes, their number, and the values of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowblend_cli.recipe.schema.sweep_tables import AxisFields, MatrixFields
from flowblend_cli.recipe.schema.tables import UNKNOWN
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.utils.toml_positions import KeyPath

# An axis that is neither a pipeline argument nor a key of a table.
SEED = "seed"


@dataclass(frozen=True)
class Combination:
    """One combination of settings.

    Args:
        values: The value of each axis.
        indices: Its index in the axis.
        places: Where an axis has its value, other than in [sweep].
        zipped: The places of a zipped [matrix] that it stands for; None for all.
        has_variables: Whether it is for prompts with a variable of [matrix], or for those without;
            None for both.
    """

    values: dict[str, Any]
    indices: dict[str, int]
    places: Mapping[str, KeyPath] = field(default_factory=dict)
    zipped: tuple[int, ...] | None = None
    has_variables: bool | None = None

    def values_of(self, table: str) -> dict[str, Any]:
        """The swept values of one table, by key."""
        prefix = f"{table}."
        return {
            axis.removeprefix(prefix): value
            for axis, value in self.values.items()
            if axis.startswith(prefix)
        }

    def settings(self) -> dict[str, Any]:
        """The swept values of [defaults]."""
        return {a: value for a, value in self.values.items() if "." not in a and a != SEED}

    def axis_path(self, axis: str) -> KeyPath | None:
        """Where an axis has its value; None where it isn't swept."""
        if axis in self.places:
            return self.places[axis]
        return ("sweep", axis, self.indices[axis]) if axis in self.indices else None

    def path(self, table: str, key: str) -> KeyPath:
        """Where a table's key has its value: in the sweep, or in the table itself."""
        return self.axis_path(f"{table}.{key}") or (table, key)


def sweep_axes(table: AxisFields | None) -> dict[str, list[Any]]:
    """The axes of a table in the order of the recipe: dotted names, or keys of [defaults]."""
    return table.axes if table is not None else {}


def all_axes(tables: Tables) -> dict[str, list[Any]]:
    """The axes of [matrix], then those of [sweep]; variables are none."""
    return sweep_axes(tables.matrix) | sweep_axes(tables.sweep)


def common_axes(tables: Tables) -> dict[str, list[Any]]:
    """The axes that every job has: of a [matrix] with variables, only some jobs have them."""
    matrix = tables.matrix
    return all_axes(tables) if matrix is None or not matrix.variables else sweep_axes(tables.sweep)


def table_of(tables: Tables, axis: str) -> str:
    """The table that has an axis."""
    return "matrix" if axis in sweep_axes(tables.matrix) else "sweep"


def axis_fields(tables: Tables) -> dict[str, str]:
    """The file name field of each axis: the last part of its dotted name."""
    last = {axis: axis.rpartition(".")[2] for axis in all_axes(tables)}
    names = [*last.values(), *(tables.matrix.variables if tables.matrix else ())]
    return {
        axis: name if names.count(name) == 1 else axis.replace(".", "_")
        for axis, name in last.items()
    }


def count_axes(table: AxisFields | None) -> int:
    """How many combinations one table has, without making them."""
    lengths = [len(values) for values in sweep_axes(table).values()]
    is_zip = table is not None and table.mode == "zip"
    return max(lengths, default=1) if is_zip else math.prod(lengths)


def count_matrix(matrix: MatrixFields | None, bound: int, used: Collection[str]) -> int:
    """How often [matrix] multiplies a prompt at most.

    Args:
        matrix: The table.
        bound: How many values the prompt's variables take.
        used: The prompt's variables.
    """
    if matrix is None or (matrix.variables and not used):
        return 1
    return max(bound, count_axes(matrix)) if matrix.mode == "zip" else bound * count_axes(matrix)


def all_combinations(tables: Tables) -> Iterator[Combination]:
    """Every combination of settings: [matrix] changes slowest, and of a table the first axis.

    Prompts without a variable take no part in a [matrix] that has some: they have combinations of
    their own.
    """
    matrix = tables.matrix
    is_split = matrix is not None and bool(matrix.variables and matrix.axes)
    if is_split:
        for combination in _combinations_of(tables.sweep):
            yield replace(combination, has_variables=False)
    for outer in _matrix_combinations(tables):
        for combination in _combinations_of(tables.sweep):
            yield Combination(
                {**outer.values, **combination.values},
                {**outer.indices, **combination.indices},
                {axis: ("matrix", axis, index) for axis, index in outer.indices.items()},
                outer.zipped,
                True if is_split else None,
            )


def _matrix_combinations(tables: Tables) -> Iterator[Combination]:
    """The combinations of [matrix]; equal ones of a zip once, with all places that have them."""
    if tables.matrix is None or tables.matrix.mode == "product":
        yield from _combinations_of(tables.matrix)
        return
    found: dict[str, tuple[Combination, list[int]]] = {}
    variables = tables.matrix.variables.values()
    length = max((len(values) for values in variables), default=1)
    axes = sweep_axes(tables.matrix)
    combinations = list(_combinations_of(tables.matrix)) if axes else [Combination({}, {})] * length
    for number, combination in enumerate(combinations):
        found.setdefault(repr(combination.values), (combination, []))[1].append(number)
    for combination, numbers in found.values():
        yield Combination(combination.values, combination.indices, zipped=tuple(numbers))


def without_axes(tables: Tables) -> Tables:
    """Tables whose axes have one value each, which isn't known; variables have their first."""
    found: dict[str, Any] = {"sweep": tables.sweep, "matrix": tables.matrix}
    for name, table in found.items():
        if table is None:
            continue
        names = {info.alias or key: key for key, info in type(table).model_fields.items()}
        values: dict[str, Any] = {names[axis]: [UNKNOWN] for axis in sweep_axes(table)}
        values |= {key: one[:1] for key, one in getattr(table, "variables", {}).items()}
        found[name] = table.model_copy(update={"mode": "product", **values})
        for kept in ("axes", "variables"):
            found[name].__dict__.pop(kept, None)  # as they were before
    return replace(tables, **found)


def with_few_jobs(tables: Tables) -> Tables:
    """Tables with one job a prompt, which stands for too many."""
    tables = without_axes(tables)
    if tables.sweep is not None:
        tables.sweep = tables.sweep.model_copy(update={"repeats": None})
    scenes = [
        None if scene is None else scene.model_copy(update={"repeats": None, "seeds": None})
        for scene in tables.scenes
    ]
    return replace(tables, scenes=scenes)


def _combinations_of(table: AxisFields | None) -> Iterator[Combination]:
    axes = {axis: list(enumerate(values)) for axis, values in sweep_axes(table).items()}
    is_zip = table is not None and table.mode == "zip" and axes
    combine = zip if is_zip else itertools.product
    for choice in combine(*axes.values()):
        chosen = dict(zip(axes, choice, strict=True))
        yield Combination(
            {axis: value for axis, (_, value) in chosen.items()},
            {axis: index for axis, (index, _) in chosen.items()},
        )
