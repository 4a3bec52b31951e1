"""Pictures that scenes begin with: found, checked and measured, for loader and expansion."""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from flowblend_cli.errors import ImageError
from flowblend_cli.jobs import ImageSpec
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.recipe.prompts.scene_prompts import Prompts
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.utils.images import examine_image, load_image
from flowblend_cli.utils.toml_positions import KeyPath

MULTIPLE = 16
MAX_SIDE = 16_384
_SIDES = ("height", "width")


def scene_pictures(
    tables: Tables,
    prompts: Prompts,
    pipeline_classes: Iterable[str | None],
    recipe_dir: Path,
    problems: Problems,
) -> dict[int | str, ImageSpec]:
    """Check and hash every picture that a scene, or a line of its prompts file, names.

    Args:
        tables: The checked tables.
        prompts: The prompts of the scenes.
        pipeline_classes: Classes of the pipelines that the recipe names.
        recipe_dir: Folder that pictures lie in, or below.
        problems: Where problems go: pictures that can't be used, that a pipeline needs, or doesn't
            take.

    Returns:
        The picture of each scene, by the scene's index; those of single lines by their name.
    """
    classes = list(dict.fromkeys(pipeline_classes))
    pictures = _Pictures(recipe_dir, classes, problems)
    without = set(range(len(tables.scenes))) - {index for index, *_ in prompts.lines}
    for index, written, line in prompts.lines:
        if line.image is None:
            without.add(index)
        else:
            pictures.add(line.image, line.image, written.path, line.where, "--i")
    for index, scene in enumerate(tables.scenes):
        path: KeyPath = ("scene", index, "image")
        if scene is not None and scene.image is not None:
            pictures.add(index, scene.image, path, "", "it")
        elif scene is not None and index in without and "image" not in scene.broken:
            for name in classes:
                if argument_table().needs_image(name):
                    message = (
                        f'is missing, and {name} begins with a picture: add image = "first.png"'
                    )
                    problems.add(path, message, at="key", related=("model",))
    return pictures.found


class _Pictures:
    """The pictures of a recipe, each read once."""

    def __init__(self, recipe_dir: Path, classes: Iterable[str | None], problems: Problems) -> None:
        self.found: dict[int | str, ImageSpec] = {}
        self._recipe_dir = recipe_dir
        self._takes_none = [name for name in classes if not argument_table().takes_image(name)]
        self._known: dict[str, ImageSpec | str] = {}
        self._problems = problems

    def add(self, key: int | str, name: str, path: KeyPath, where: str, remedy: str) -> None:
        """Keep a picture under its key, or add what is wrong with it to the problems."""
        for pipeline_class in self._takes_none:
            message = (
                f"{where}{pipeline_class} takes no image: remove {remedy}, or name an "
                "image-to-video pipeline"
            )
            at: Literal["key", "value"] = "value" if where else "key"
            self._problems.add(path, message, at=at, related=("model",))
        if name not in self._known:
            self._known[name] = self._read(name)
        picture = self._known[name]
        if isinstance(picture, str):
            self._problems.add(path, f"{where}{picture}")
        else:
            self.found[key] = picture

    def _read(self, name: str) -> ImageSpec | str:
        """A picture, or what is wrong with it."""
        try:
            return ImageSpec(name, *examine_image(name, self._recipe_dir))
        except ImageError as error:
            return str(error)


def fit_to_picture(
    values: Mapping[str, Any],
    image: ImageSpec,
    recipe_dir: Path,
    multiples: tuple[int, int] = (MULTIPLE, MULTIPLE),
) -> dict[str, Any]:
    """Turn ``pixel_area`` into height and width in the picture's shape.

    Args:
        values: The arguments, ``pixel_area`` among them.
        image: The picture.
        recipe_dir: Folder that it is relative to.
        multiples: What height and width are to be multiples of.

    Returns:
        The arguments with both sides, in these multiples and in all no more than the area.

    Raises:
        ImageError: The picture can't be read any more.
        NoSuchArea: No such sides have the picture's shape.
    """
    left = {key: value for key, value in values.items() if key != "pixel_area"}
    width, height = _size(image, recipe_dir)
    scale = math.sqrt(values["pixel_area"] / (width * height))
    down, across = multiples
    high, wide = _rounded(height * scale, down), _rounded(width * scale, across)
    is_large_enough = high >= down and wide >= across
    if is_large_enough and max(high, wide) <= MAX_SIDE:
        return left | {"height": high, "width": wide}
    # The least area is that in which each side has its multiple.
    least = math.ceil(max(down**2 * width / height, across**2 * height / width))
    most = math.floor(MAX_SIDE**2 * min(width, height) / max(width, height))
    found = f"can't be {values['pixel_area']:,} in the shape of {image.path}, {width}x{height}"
    if least > most:
        raise NoSuchArea(f"{found}, whose sides differ too much: set height and width")
    step = str(down) if down == across else f"{down} and {across}"
    raise NoSuchArea(
        f"{found}, with sides from {step} to {MAX_SIDE:,} in multiples of {step}: the "
        f"nearest is {most if is_large_enough else least}, or set height and width"
    )


class NoSuchArea(ValueError):  # noqa: N818 - the loader says it as a problem
    """A ``pixel_area`` in which a picture's shape has no size."""


def _rounded(side: float, multiple: int) -> int:
    # A side that only rounding makes smaller keeps its multiple.
    return math.floor(side / multiple + 1e-9) * multiple


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
        pipeline_class: Class of the pipeline, where it is known offline.
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
