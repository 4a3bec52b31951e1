"""Ranges of [sweep] and [matrix], written out in a recipe's document before it is checked."""

from __future__ import annotations

import typing
from typing import Any

from flowblend_cli.recipe.schema.ranges import Ranges, parse_range
from flowblend_cli.recipe.schema.sweep_tables import SweepTable
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.source.file import SWEEPS

NUMERIC_AXES = frozenset(
    info.alias or name
    for name, info in SweepTable.model_fields.items()
    for part in typing.get_args(info.annotation)
    if any(isinstance(mark, Ranges) for mark in getattr(part, "__metadata__", ()))
)


def write_out_ranges(source: RecipeSource) -> None:
    """Turn ``"30-100 (+10)"`` of numeric axes into numbers; what is no range stays, and is refused.

    Args:
        source: The recipe; its document changes, and its record of where things stand.
    """
    for table in SWEEPS:
        sweep = source.document.get(table)
        if isinstance(sweep, dict):
            _write_out(source, table, sweep)


def _write_out(source: RecipeSource, table: str, sweep: dict[str, Any]) -> None:
    for axis in NUMERIC_AXES & set(sweep):
        file, path = source.origin((table, axis))
        written = sweep[axis]
        entries = written if isinstance(written, list) else [written]
        if not any(isinstance(entry, str) for entry in entries):
            continue
        values: list[Any] = []
        for index, entry in enumerate(entries):
            place = (*path, index) if isinstance(written, list) else path
            for value in _values(entry):
                source.origins[table, axis, len(values)] = (file, place)
                values.append(value)
        is_sound = isinstance(written, list) or values != [written]
        sweep[axis] = values if is_sound else written


def _values(entry: Any) -> list[Any]:
    """The numbers that an entry stands for; itself where it is none of a range."""
    if not isinstance(entry, str):
        return [entry]
    try:
        return list(parse_range(entry))
    except ValueError:
        return [entry]
