"""The pipeline arguments that a recipe may set, from a table made of diffusers' signatures.

The table is written by ``scripts/generate_pipeline_arguments.py``; reading it imports nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class ArgumentTable:
    """What diffusers' pipelines take.

    Args:
        diffusers: Version of diffusers that the table was made from.
        arguments: TOML-expressible types of each argument, such as ``("float", "list[float]")``.
        pipelines: Names of the arguments of each pipeline class.
    """

    diffusers: str
    arguments: dict[str, tuple[str, ...]]
    pipelines: dict[str, frozenset[str]]

    def takes(self, pipeline_class: str | None, argument: str) -> bool:
        """Whether a pipeline takes an argument; True for a class that the table doesn't hold."""
        known = self.pipelines.get(pipeline_class or "")
        return known is None or argument in known


@cache
def argument_table() -> ArgumentTable:
    """The shipped table."""
    text = (files("flowblend_cli") / "data" / "pipeline_arguments.json").read_text("utf-8")
    table = json.loads(text)
    return ArgumentTable(
        diffusers=table["diffusers"],
        arguments={name: tuple(kinds) for name, kinds in table["arguments"].items()},
        pipelines={name: frozenset(taken) for name, taken in table["pipelines"].items()},
    )
