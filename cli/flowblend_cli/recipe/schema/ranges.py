"""Ranges of numbers: ``"30-100 (+10)"`` in a sweep, ``"explore 8"`` as seeds, ``"50-60"`` steps."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

MAX_SEED = 2**63 - 1
MAX_VALUES = 100_000
SEEDS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
            "minItems": 1,
        },
        {"type": "string", "pattern": r"^\s*explore\s+\d+(\s*-\s*\d+)?\s*$"},
    ]
}

MAX_STEPS = 1000
DEFAULT_STEPS = 50
MANY_STEPS = 80

_NUMBER = r"\d{1,19}(?:\.\d{1,19})?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*\+\s*({_NUMBER})\s*\)\s*)?")
_RANGE_SCHEMA = {"type": "string", "pattern": r"^[\d.\s]+-[\d.\s]+(\([+\d.\s]+\)\s*)?$"}
_EXPLORE = re.compile(r"\s*explore\s+(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?")
_STEP_RANGE = re.compile(r"\s*(\d{1,4})\s*-\s*(\d{1,4})\s*")
_UP_TO = re.compile(r"\s*up to\s+(\d{1,4})\s*")


class Ranges:
    """Marks a list of numbers that may also be written as ranges; see ``parse_range``.

    The list itself is made before the table is checked, so that problems know their place.
    """

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Any]) -> Any:
        """Say that strings are legal too: in the place of the list, and inside of it."""
        schema = handler(core)
        items = {"anyOf": [schema.get("items", {}), _RANGE_SCHEMA]}
        return {"anyOf": [{**schema, "items": items}, _RANGE_SCHEMA]}


def refuse_text(value: Any) -> Any:
    """A value of a numeric axis, whose ranges are written out already.

    Raises:
        ValueError: It is a text, and so no range.
    """
    if isinstance(value, str):
        parse_range(value)
        raise ValueError(f"must be a number, got {value!r}")
    return value


def is_numeric(kind: Any) -> bool:
    """Whether an axis of this type holds numbers and no strings."""
    kinds = set(_plain(kind))
    return bool(kinds & {int, float}) and str not in kinds


def _plain(kind: Any) -> list[Any]:
    """The types that a union is made of, without what annotates them."""
    if hasattr(kind, "__metadata__"):
        return _plain(kind.__origin__)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (list, dict, typing.Literal) or not arguments:
        return [kind]
    return [plain for argument in arguments for plain in _plain(argument)]


def parse_range(text: str) -> list[int] | list[float]:
    """The numbers of ``"30-100 (+10)"``, both ends among them; without ``(+10)`` the step is 1.

    Returns:
        Whole numbers, or floats where one of the three has a point.

    Raises:
        ValueError: It is no range, it doesn't rise, its step doesn't meet the end, or it has too
            many numbers.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"must be a number, or a range such as '30-100 (+10)', got {text!r}")
    low, high, step = (Decimal(part or "1") for part in match.groups())
    if step == 0:
        raise ValueError(f"must have a step above 0, got {text!r}")
    if low > high:
        raise ValueError(f"must rise from low to high, got {text!r}")
    number = int((high - low) / step) + 1
    if number > MAX_VALUES:
        raise ValueError(f"makes {number:,} values, more than the limit of {MAX_VALUES:,}")
    last = low + step * (number - 1)
    if last != high:
        raise ValueError(
            f"must end where a step of {step} leads, got {text!r}: write '{low}-{last} (+{step})' "
            f"or '{low}-{last + step} (+{step})'"
        )
    values = [low + step * index for index in range(number)]
    if any("." in part for part in match.groups() if part):
        return [float(value) for value in values]
    return [int(value) for value in values]


@dataclass(frozen=True)
class Exploration:
    """Seeds of which drafts are rendered first, and only the best are finished.

    Args:
        seeds: The seeds, ascending from 1 at least.
    """

    seeds: tuple[int, ...]

    @classmethod
    def parse_or_keep(cls, value: Any) -> Any:
        """Read ``"explore 8"``, the seeds 1 to 8, or ``"explore 42-49"``; keep a list.

        Raises:
            ValueError: Something else, or seeds out of range or order.
        """
        if isinstance(value, (list, cls)):
            return value
        if not isinstance(value, str):
            raise ValueError(f"must be a list, or 'explore 8', got {value!r}")
        match = _EXPLORE.fullmatch(value)
        if match is None:
            raise ValueError(
                f"must be a list of seeds, or 'explore 8', or 'explore 42-49', got {value!r}"
            )
        first, last = (1, int(match[1])) if match[2] is None else (int(match[1]), int(match[2]))
        if first < 1:
            raise ValueError(f"explores known seeds, and 0 draws one: begin at 1, got {value!r}")
        if last < first:
            raise ValueError(f"must rise from low to high, got {value!r}")
        if last > MAX_SEED:
            raise ValueError(f"must be at most seed {MAX_SEED}, got {value!r}")
        if last - first >= MAX_VALUES:
            limit = f"more than the limit of {MAX_VALUES:,}"
            raise ValueError(f"explores {last - first + 1:,} seeds, {limit}")
        return cls(tuple(range(first, last + 1)))


@dataclass(frozen=True)
class StepRange:
    """How many steps suit a kind of scene.

    Args:
        low: Fewest steps that are enough; None where only a ceiling is known.
        high: Most steps that are worth it.
    """

    low: int | None
    high: int

    @property
    def start(self) -> int:
        """What a render takes: the low end, or the ceiling where there is no low end."""
        return self.high if self.low is None else self.low

    def __str__(self) -> str:
        """As a recipe writes it, such as ``"50-60"``."""
        if self.low is None:
            return f"up to {self.high}"
        return str(self.high) if self.low == self.high else f"{self.low}-{self.high}"

    @classmethod
    def parse(cls, value: Any) -> StepRange:
        """Read ``50``, ``"50-60"`` or ``"up to 50"``.

        Raises:
            ValueError: None of these, or steps out of range or order.
        """
        found = cls._read(value)
        low = found.start
        if low < 1:
            raise ValueError(f"must be at least 1, got {low}")
        if found.high > MAX_STEPS:
            raise ValueError(f"must be at most {MAX_STEPS}, got {found.high}")
        if low > found.high:
            raise ValueError(
                f"must rise from low to high, got {value!r}; did you mean '{found.high}-{low}'?"
            )
        return found

    @classmethod
    def _read(cls, value: Any) -> StepRange:
        if isinstance(value, cls):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value, value)
        text = value if isinstance(value, str) else ""
        if match := _STEP_RANGE.fullmatch(text):
            return cls(int(match[1]), int(match[2]))
        if match := _UP_TO.fullmatch(text):
            return cls(None, int(match[1]))
        raise ValueError(f"must be a whole number, '50-60' or 'up to 50', got {value!r}")
