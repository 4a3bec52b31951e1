"""One problem of a recipe, with the path of the value that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowblend_cli.utils.toml_positions import KeyPath


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong at one path of a document.

    Args:
        path: Keys and indices from the top.
        message: What was found, what was expected, what to do.
        at: Whether the key or its value is to blame.
        related: Tables whose values take part as well, so that ``--set`` there is named.
    """

    path: KeyPath
    message: str
    at: Literal["key", "value"] = "value"
    related: tuple[str, ...] = ()
