"""Suggestions: what a mistyped name was probably meant to be, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that a mistyped one is nearest to.

    Args:
        name: What was typed.
        known: The names that there are.
        cutoff: How alike they must be, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name, such as ``"; did you mean 'scene'?"``.

    Args:
        name: What was typed.
        known: The names that there are.
        otherwise: What to say where no known name is near; empty ends the message there.
    """
    meant = closest(name, known)
    if meant is not None:
        return f"; did you mean {meant!r}?"
    return f"; {otherwise}" if otherwise else ""
