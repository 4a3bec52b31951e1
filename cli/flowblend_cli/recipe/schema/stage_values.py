"""Values that only a stage sets, checked for its table: denoiser, adapters, cache, attention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flowblend_cli.utils.suggestions import did_you_mean
from flowblend_plugin.stages import EXTRAPOLATED, LETTERS, Cache
from flowblend_plugin.stages.capabilities import ATTENTION_BACKENDS, CACHES, cache_problem

CACHE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": list(CACHES)},
        {
            "type": "object",
            "properties": {"kind": {"enum": list(CACHES)}},
            "required": ["kind"],
        },
    ]
}
PASSES = (("draft",), ("final",), ("draft", "final"))
_NUMBERS = (int, float)
_SCALARS = (bool, *_NUMBERS, str)
_DTYPES = ("float32", "float16", "bfloat16")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def is_letter(name: str) -> bool:
    """Whether a name is one capital letter, as stage strings have them."""
    return len(name) == 1 and "A" <= name <= "Z"


def check_letter(name: str) -> str:
    """A key of [model.denoisers]: a letter that isn't taken.

    Raises:
        ValueError: It is something else.
    """
    if LETTERS.get(name) == EXTRAPOLATED:
        raise ValueError(f"{name} means {EXTRAPOLATED} steps already: take another letter")
    if name in LETTERS:
        raise ValueError(f"{name} is the {LETTERS[name]} denoiser already: take another letter")
    if not is_letter(name):
        raise ValueError(f"a further denoiser is named by one letter, A to Z, got {name!r}")
    return name


def check_adapter_name(name: str) -> str:
    """A key of [model.adapters]: a plain word, which no path or file name is.

    Raises:
        ValueError: It has other characters.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"a LoRA is named by letters, digits, - and _, got {name!r}")
    return name


def check_denoiser(name: str) -> str:
    """The denoiser of a stage, its role spelt out.

    Raises:
        ValueError: It is neither a role nor a letter.
    """
    if name not in LETTERS.values() and not is_letter(name):
        hint = did_you_mean(name, LETTERS.values())
        raise ValueError(
            f"must be 'large', 'small', {EXTRAPOLATED!r} or a letter from [model.denoisers], got "
            f"{name!r}{hint}"
        )
    return LETTERS.get(name, name)


def check_own_denoiser(name: str) -> str:
    """A denoiser that has weights, its role spelt out.

    Raises:
        ValueError: It is none.
    """
    role = check_denoiser(name)
    if role == EXTRAPOLATED:
        raise ValueError(f"no denoiser runs {EXTRAPOLATED} steps: name one that has weights")
    return role


def check_backend(name: str) -> str:
    """An attention backend that diffusers has.

    Raises:
        ValueError: It has none of that name.
    """
    if name.endswith("_hub"):
        raise ValueError(
            f"{name!r} downloads code from the Hub, and render neither downloads nor runs what a "
            "recipe names: choose another backend"
        )
    if name not in ATTENTION_BACKENDS:
        hint = did_you_mean(name, ATTENTION_BACKENDS)
        raise ValueError(f"must be one of {', '.join(ATTENTION_BACKENDS)}, got {name!r}{hint}")
    return name


def parse_cache(value: Any) -> Cache:
    """A cache as a stage has it: a kind, or a table of kind and options.

    Raises:
        ValueError: It is neither, or its kind or an option of it is unknown.
    """
    options = {"kind": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping) or not isinstance(options.get("kind"), str):
        raise ValueError(
            f"must be a kind such as 'first_block', or a table with kind and options, got {value!r}"
        )
    options = dict(options)
    kind = options.pop("kind")
    problem = cache_problem(kind, options)
    if problem is not None:
        raise ValueError(problem)
    for name, option in options.items():
        if name.endswith("_dtype") and option not in _DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(_DTYPES)}, got {option!r}")
        if name == "threshold" and (isinstance(option, bool) or not isinstance(option, _NUMBERS)):
            raise ValueError(f"threshold must be a number, got {option!r}")
        entries = option if isinstance(option, list) else [option]
        if not all(isinstance(entry, _SCALARS) for entry in entries):
            raise ValueError(f"{name} must be a plain value or a list of them, got {option!r}")
    return Cache.of(kind, options)


def check_passes(passes: list[str]) -> list[str]:
    """The passes of a recipe in their order.

    Raises:
        ValueError: There is none, or they are out of order, or one stands twice.
    """
    if tuple(passes) not in PASSES:
        legal = ", ".join(str(list(each)) for each in PASSES)
        raise ValueError(f"must be one of {legal}, got {passes}")
    return passes
