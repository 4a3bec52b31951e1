"""Recipe: what the loader makes of a file that has passed every check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowblend_cli.jobs import ImageSpec
from flowblend_cli.recipe.prompts.presets import Preset
from flowblend_cli.recipe.prompts.prompt_files import PromptLine
from flowblend_cli.recipe.prompts.scene_prompts import Prompts
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.sweep.variants import Variant


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, ready for ``recipe.expand.expansion.expand``.

    Args:
        path: The file.
        name: Name of the recipe.
        output_dir: Absolute folder of the final files.
        source: Text and positions, for messages.
        tables: The recipe's tables; none of them is broken.
        presets: The shipped presets and the recipe's own, merged.
        variants: What each combination of the sweep means.
        fields: File name field of each axis of [sweep] and [matrix].
        pictures: The picture that each scene begins with, by the scene's index; those of single
            lines of a prompts file by their name.
        prompts: The prompts of the scenes.
    """

    path: Path
    name: str
    output_dir: Path
    source: RecipeSource
    tables: Tables
    presets: Mapping[str, Preset]
    variants: tuple[Variant, ...]
    fields: Mapping[str, str]
    pictures: Mapping[int | str, ImageSpec]
    prompts: Prompts

    @property
    def devices(self) -> str:
        """Where the recipe asks to be rendered; empty where it doesn't."""
        run = self.tables.run
        return (run.devices or "") if run is not None else ""

    def picture_of(self, index: int, line: PromptLine | None) -> ImageSpec | None:
        """The picture that a prompt begins with: its line's own, or that of its scene."""
        own = line.image if line is not None else None
        return self.pictures.get(own if own is not None else index)
