"""Prompt alternatives: ``"a {red|blue} ball"`` stands for two prompts, in that order."""

from __future__ import annotations

import itertools
import math
import re

_PIECE = re.compile(r"\{\{|\}\}|[{}|]|[^{}|]+")


def count_prompts(template: str) -> int:
    """How many prompts a template stands for, without making them.

    Raises:
        ValueError: See ``expand_prompt``.
    """
    return math.prod(len(options) for options in _parse(template))


def expand_prompt(template: str) -> list[str]:
    """Every prompt that a template stands for, the leftmost alternatives changing slowest.

    ``{{`` and ``}}`` are literal braces; a ``|`` outside of braces is itself.

    Raises:
        ValueError: Unbalanced or nested braces, or braces without alternatives.
    """
    return ["".join(choice) for choice in itertools.product(*_parse(template))]


def _parse(template: str) -> list[list[str]]:
    """Split a template into its parts; each is the list of its alternatives."""
    parts: list[list[str]] = []
    options: list[str] | None = None
    for match in _PIECE.finditer(template):
        piece = match.group()
        if piece == "{":
            if options is not None:
                raise ValueError("has alternatives inside alternatives: write them out in a list")
            options = [""]
        elif piece == "}":
            parts.append(_closed(options))
            options = None
        elif piece == "|" and options is not None:
            options.append("")
        else:
            text = piece[0] if piece in ("{{", "}}") else piece
            if options is None:
                parts.append([text])
            else:
                options[-1] += text
    if options is not None:
        raise ValueError("has a { that is never closed: write {{ for a literal brace")
    return parts


def _closed(options: list[str] | None) -> list[str]:
    if options is None:
        raise ValueError("has a } that nothing opened: write }} for a literal brace")
    if len(options) < 2:
        raise ValueError(
            f"has {{{options[0]}}}, which offers no alternatives: write {{a|b}}, or "
            "{{ and }} for literal braces"
        )
    return options
