"""Tables [sweep] and [matrix]: an axis for every key that may vary, a list or a range."""

from __future__ import annotations

import typing
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from flowblend_cli.recipe.schema.fields import Seed
from flowblend_cli.recipe.schema.ranges import Ranges, is_numeric, parse_range, refuse_text
from flowblend_cli.recipe.schema.tables import (
    SETTINGS,
    BlendTable,
    ModelTable,
    OutputTable,
    Repeats,
    SamplingTable,
    Table,
    extended,
)
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.source.file import SWEEPS

# Keys of [sweep] and [matrix] that are no axes.
NO_AXES = ("mode", "repeats", "time_repeats")
RANGES = (BeforeValidator(refuse_text), Ranges())
Value = str | bool | int | float
_NOT_SWEPT = ("model.denoisers", "model.adapters")
SWEPT_TABLES: dict[str, type[Table]] = {
    "model": ModelTable,
    "blend": BlendTable,
    "sampling": SamplingTable,
    "output": OutputTable,
}


class AxisFields(Table):
    """Lists of values that vary together."""

    mode: Literal["product", "zip"] = "product"
    """Every combination of the lists, or their first values together, then their second..."""
    seed: (
        Annotated[list[Annotated[Seed, BeforeValidator(refuse_text)]], Field(min_length=1), *RANGES]
        | None
    ) = None
    """Seeds to render instead of the scenes' own."""

    _written: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _keep_order(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(value)
        made._written = tuple(value) if isinstance(value, dict) else ()
        return made

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """The settings that vary, in the order of the recipe: dotted names, or bare ones."""
        found = {
            info.alias or name: getattr(self, name)
            for name, info in type(self).model_fields.items()
            if name in self.model_fields_set and name not in NO_AXES
        }
        return dict(sorted(found.items(), key=lambda axis: self.place(axis[0])))

    def place(self, axis: str) -> int:
        """Which of the recipe's keys an axis is, counted from 0."""
        return self._written.index(axis) if axis in self._written else len(self._written)


class SweepFields(AxisFields):
    """Axes along which every scene is rendered: lists of values."""

    repeats: Repeats | None = None
    """As in a scene, and wins over it."""
    time_repeats: Annotated[int, Field(ge=1, le=100)] = 1
    """How often every job is rendered, for its median seconds."""


class MatrixFields(AxisFields):
    """Variables of prompts, and settings that vary together with them: lists of values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(init=False)

    @cached_property
    def variables(self) -> dict[str, list[Value]]:
        """The keys that are no settings, in the order of the recipe."""
        extra = self.__pydantic_extra__ or {}
        return dict(sorted(extra.items(), key=lambda entry: self.place(entry[0])))


def _axis(kind: Any) -> Any:
    if not is_numeric(kind):
        return Annotated[list[kind], Field(min_length=1)] | None
    item = Annotated[kind, BeforeValidator(refuse_text)]
    return Annotated[list[item], Field(min_length=1), *RANGES] | None


def _sweep_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: (_axis(kind), None)
        for name, kind in SETTINGS.items()
        if name not in SweepFields.model_fields
    }
    for table, model in SWEPT_TABLES.items():
        for key, info in model.model_fields.items():
            alias = f"{table}.{key}"
            if alias not in _NOT_SWEPT:
                kind: Any = info.annotation
                if info.metadata:
                    kind = Annotated[kind, *info.metadata]
                fields[f"{table}__{key}"] = (_axis(kind), Field(default=None, alias=alias))
    return fields


SweepTable = extended("SweepTable", SweepFields, _sweep_fields())
MatrixTable = extended("MatrixTable", MatrixFields, _sweep_fields())
NUMERIC_AXES = frozenset(
    info.alias or name
    for name, info in SweepTable.model_fields.items()
    for part in typing.get_args(info.annotation)
    if any(isinstance(mark, Ranges) for mark in getattr(part, "__metadata__", ()))
)


def write_out_ranges(source: RecipeSource) -> None:
    """Turn ranges such as ``"30-100 (+10)"`` of numeric axes into numbers; other text stays.

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
    """The numbers that an entry stands for; the entry itself where it is no range."""
    if not isinstance(entry, str):
        return [entry]
    try:
        return list(parse_range(entry))
    except ValueError:
        return [entry]
