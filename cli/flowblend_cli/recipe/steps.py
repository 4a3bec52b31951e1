"""Step counts of presets: one number, or a range of which a render takes the start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 1000
DEFAULT_STEPS = 50
MANY_STEPS = 80

_RANGE = re.compile(r"\s*(\d{1,4})\s*-\s*(\d{1,4})\s*")
_UP_TO = re.compile(r"\s*up to\s+(\d{1,4})\s*")


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
        low = found.start if found.low is None else found.low
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
        if match := _RANGE.fullmatch(text):
            return cls(int(match[1]), int(match[2]))
        if match := _UP_TO.fullmatch(text):
            return cls(None, int(match[1]))
        raise ValueError(f"must be a whole number, '50-60' or 'up to 50', got {value!r}")
