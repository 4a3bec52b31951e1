"""The combinations of a sweep: its axes, how many there are, and the values of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowblend_cli.recipe.positions import KeyPath
from flowblend_cli.recipe.sweep_schema import SweepFields
from flowblend_cli.recipe.validation import Tables

# Keys of [sweep] that are no axes.
NO_AXES = ("mode", "repeats", "time_repeats")
# An axis that is neither a pipeline argument nor a key of a table.
SEED = "seed"


@dataclass(frozen=True)
class Row:
    """One combination of a sweep: the value of each axis, and its index in the axis."""

    values: dict[str, Any]
    indices: dict[str, int]

    def of(self, table: str) -> dict[str, Any]:
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
        return ("sweep", axis, self.indices[axis]) if axis in self.indices else None

    def path(self, table: str, key: str) -> KeyPath:
        """Where a table's key has its value: in the sweep, or in the table itself."""
        return self.axis_path(f"{table}.{key}") or (table, key)


def sweep_axes(sweep: SweepFields) -> dict[str, list[Any]]:
    """The axes of a sweep in the order of the recipe: dotted names, or keys of [defaults]."""
    axes = {
        info.alias or name: getattr(sweep, name)
        for name, info in type(sweep).model_fields.items()
        if name in sweep.model_fields_set and name not in NO_AXES
    }
    return dict(sorted(axes.items(), key=lambda axis: sweep.place(axis[0])))


def axis_fields(tables: Tables) -> dict[str, str]:
    """The file name field of each axis of the sweep: the last part of its dotted name."""
    axes = list(sweep_axes(tables.sweep)) if tables.sweep else []
    last = {axis: axis.rpartition(".")[2] for axis in axes}
    names = list(last.values())
    return {
        axis: name if names.count(name) == 1 else axis.replace(".", "_")
        for axis, name in last.items()
    }


def count_rows(sweep: SweepFields) -> int:
    """How many combinations a sweep has, without making them."""
    lengths = [len(values) for values in sweep_axes(sweep).values()]
    return max(lengths, default=1) if sweep.mode == "zip" else math.prod(lengths)


def sweep_rows(sweep: SweepFields) -> Iterator[Row]:
    """Every combination of a sweep, the first axis changing slowest."""
    axes = {axis: list(enumerate(values)) for axis, values in sweep_axes(sweep).items()}
    combine = zip if sweep.mode == "zip" and axes else itertools.product
    for choice in combine(*axes.values()):
        chosen = dict(zip(axes, choice, strict=True))
        yield Row(
            {axis: value for axis, (_, value) in chosen.items()},
            {axis: index for axis, (index, _) in chosen.items()},
        )
