"""The combination of a prompt whose line in a file has a ``--fs`` of its own."""

from __future__ import annotations

from dataclasses import replace

from flowblend_cli.recipe.expand import checks
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.prompts.prompt_files import FLOW_SHIFT, PromptLine
from flowblend_cli.recipe.schema.validation import Fault
from flowblend_cli.recipe.sweep.variants import Variant, make_variant

_AXIS = f"sampling.{FLOW_SHIFT}"


def shifted(
    recipe: Recipe, variant: Variant, index: int, line: PromptLine | None, faults: list[Fault]
) -> Variant:
    """A combination with the shift of a line, checked as any other; a sweep's own shift wins.

    Args:
        recipe: The recipe.
        variant: The combination.
        index: Index of the line's scene.
        line: The line; None, and one without a shift, change nothing.
        faults: Where faults go.
    """
    if line is None or line.flow_shift is None or _AXIS in variant.row.values:
        return variant
    row = replace(
        variant.row,
        values={**variant.row.values, _AXIS: line.flow_shift},
        places={**variant.row.places, _AXIS: ("scene", index, "prompts_file")},
    )
    folder = recipe.path.absolute().parent
    made = make_variant(recipe.tables, row, folder, faults)
    if made is None:
        return variant
    faults += checks.check_noise_levels(recipe.tables, [made], folder)
    return made
