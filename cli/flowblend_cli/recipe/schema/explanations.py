"""Explanations: what is wrong with a value of a table, as people read it."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import ErrorDetails

from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import did_you_mean

SEED_HINT = "0 draws one, and records it"
_ARTICLES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "string_unicode": "a string without halves of characters",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _ARTICLES:
        return _ARTICLES[kind]
    if kind == "greater_than_equal":
        return f"at least {_number(context['ge'])}"
    if kind == "less_than_equal":
        return f"at most {_number(context['le'])}"
    if kind == "greater_than":
        return f"above {_number(context['gt'])}"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    return str(error["msg"])


def explain(error: ErrorDetails, *others: ErrorDetails) -> str:
    """Say what is wrong with a value: what was found, and what was expected.

    Args:
        error: What pydantic found.
        others: What it found of the same value, where that may be of several types.
    """
    if others:
        wanted = " or ".join(dict.fromkeys(map(_wanted, (error, *others))))
        return f"must be {wanted}, got {show(error['input'])}"
    value = error["input"]
    is_seed = not {"seed", "seeds", "sample_seed", "noise_seed"}.isdisjoint(error["loc"])
    hint = f": {SEED_HINT}" if is_seed and isinstance(value, int) and value < 0 else ""
    return f"{_explained(error)}{hint}"


def _explained(error: ErrorDetails) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_too_long":
        return f"has {len(value):,} characters, more than the limit of {context['max_length']:,}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind == "string_pattern_mismatch" and error["loc"][-1] == "device":
        return f"must be auto, cpu, cuda, cuda:0, mps or xpu, got {show(value)}"
    message = f"must be {_wanted(error)}, got {show(value)}"
    if kind == "list_type" and error["loc"][-1] == "stage" and isinstance(value, str):
        return f"{message}; did you mean 'stages'?"
    if kind == "literal_error" and isinstance(value, str):
        message += did_you_mean(value, re.findall(r"'([^']*)'", context["expected"]))
    return message


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def show(value: Any) -> str:
    """A found value as TOML has it, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    is_plain = isinstance(value, (str, int, float, list))
    return shorten(repr(value) if is_plain else value)
