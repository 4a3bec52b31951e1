"""Jobs that are done already, told to people: the first by name, the others as a number."""

from __future__ import annotations

from flowblend_cli.events import Event, JobSkipped
from flowblend_cli.text import count

NAMED = 10


class Skips:
    """Counts skipped jobs that come one after the other.

    Args:
        all_named: Whether every one of them has a line of its own.
    """

    def __init__(self, *, all_named: bool = False) -> None:
        self._all_named = all_named
        self._in_a_row = 0

    def withholds(self, event: Event) -> bool:
        """Whether an event gets no line, because ``NAMED`` skipped jobs stand before it."""
        if not isinstance(event, JobSkipped) or self._all_named:
            return False
        self._in_a_row += 1
        return self._in_a_row > NAMED

    def ended(self) -> str:
        """What is to be said before the next line of another kind; empty if nothing."""
        withheld, self._in_a_row = self._in_a_row - NAMED, 0
        return f"{count(withheld, 'further job')} already there" if withheld > 0 else ""
