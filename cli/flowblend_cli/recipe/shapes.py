"""``pixel_area``: height and width that keep the shape of the picture a scene begins with."""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowblend_cli.jobs import ImageSpec
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.utils.images import load_image

MULTIPLE = 16
_SIDES = ("height", "width")


def fit_to_picture(values: Mapping[str, Any], image: ImageSpec, recipe_dir: Path) -> dict[str, Any]:
    """Arguments whose ``pixel_area`` is height and width in the picture's shape.

    Args:
        values: The arguments, ``pixel_area`` among them.
        image: The picture.
        recipe_dir: Folder that it is relative to.

    Returns:
        The arguments with both sides, in multiples of 16 and in all no more than the area, but 16
        at least.

    Raises:
        ImageError: The picture can't be read any more.
    """
    left = {key: value for key, value in values.items() if key != "pixel_area"}
    width, height = _size(image, recipe_dir)
    scale = math.sqrt(values["pixel_area"] / (width * height))
    return left | {"height": _rounded(height * scale), "width": _rounded(width * scale)}


def _rounded(side: float) -> int:
    # A side that is off by rounding alone isn't a whole multiple smaller.
    return max(MULTIPLE, math.floor(side / MULTIPLE + 1e-9) * MULTIPLE)


@functools.lru_cache(maxsize=256)
def _size(image: ImageSpec, recipe_dir: Path) -> tuple[int, int]:
    """Width and height of a picture, turned upright."""
    return load_image(image.path, recipe_dir, image.sha256).size


def shape_problems(
    written: Container[str], pipeline_class: str | None, *, has_image: bool
) -> Iterator[str]:
    """Why ``pixel_area`` can't be used.

    Args:
        written: Names of the arguments that the recipe sets, apart from its pair.
        pipeline_class: Class of the pipeline, where it can be told offline.
        has_image: Whether the scene begins with a picture.
    """
    if not has_image:
        yield "takes its shape from the scene's image, and there is none: set height and width"
    clash = [side for side in _SIDES if side in written]
    if clash:
        yield f"sets height and width, and so does {' and '.join(clash)}: keep one of them"
    table = argument_table()
    if not all(table.takes(pipeline_class, side) for side in _SIDES):
        yield f"sets height and width, and {pipeline_class} takes none: leave it out"
