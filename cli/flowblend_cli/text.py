"""Text made safe to show in a terminal or a log; durations, counts and times in words."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

# Explicit marks and overrides of direction: they reorder what a reader sees.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def is_unsafe(character: str) -> bool:
    """Whether a character controls a terminal instead of showing: ESC, C1, bidi, line breaks."""
    return character in _BIDI or unicodedata.category(character) in _UNSAFE_CATEGORIES


def printable(text: object) -> str:
    """Escape every character that could control a terminal, as Python would write it.

    Args:
        text: Anything; ``str(text)`` is shown.

    Returns:
        One line, such as ``"a\\x1b[31mred"`` where the text held a raw ESC; other text unchanged.
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(
        character.encode("unicode_escape").decode("ascii") if is_unsafe(character) else character
        for character in shown
    )


def shorten(text: object, limit: int = 60) -> str:
    """Make text printable and cut it to at most ``limit`` characters, ending in ``...`` if cut."""
    shown = printable(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def count(number: int, noun: str) -> str:
    """Write a number with its noun: ``"1 job"``, ``"1,200 jobs"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def clock(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def utc_now() -> str:
    """The time of day for people, as ``2026-01-31T23:59:59Z``: nothing is decided by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
