"""Pipeline arguments that a recipe may set, from a table made of diffusers' signatures.

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
        images: Whether the picture that a pipeline class takes is ``"required"`` or
            ``"optional"``.
    """

    diffusers: str
    arguments: dict[str, tuple[str, ...]]
    pipelines: dict[str, frozenset[str]]
    images: dict[str, str]

    def takes(self, pipeline_class: str | None, argument: str) -> bool:
        """Whether a pipeline takes an argument; True for a class that the table doesn't hold."""
        known = self.pipelines.get(pipeline_class or "")
        return known is None or argument in known

    def takes_image(self, pipeline_class: str | None) -> bool:
        """Whether a pipeline takes a picture; True for a class that the table doesn't hold."""
        return pipeline_class not in self.pipelines or pipeline_class in self.images

    def needs_image(self, pipeline_class: str | None) -> bool:
        """Whether a pipeline is known to do nothing without a picture."""
        return self.images.get(pipeline_class or "") == "required"


@cache
def argument_table() -> ArgumentTable:
    """The shipped table."""
    text = (files("flowblend_cli") / "data" / "pipeline_arguments.json").read_text("utf-8")
    table = json.loads(text)
    return ArgumentTable(
        diffusers=table["diffusers"],
        arguments={name: tuple(kinds) for name, kinds in table["arguments"].items()},
        pipelines={name: frozenset(taken) for name, taken in table["pipelines"].items()},
        images=table["images"],
    )
