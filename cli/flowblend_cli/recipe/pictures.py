"""The pictures that scenes begin with: which scene needs one, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flowblend_cli.arguments import argument_table
from flowblend_cli.errors import ImageError
from flowblend_cli.images import hash_image
from flowblend_cli.jobs import ImageSpec
from flowblend_cli.recipe.validation import Fault, Tables


def scene_pictures(
    tables: Tables, pipeline_classes: Iterable[str | None], recipe_dir: Path, faults: list[Fault]
) -> dict[int, ImageSpec]:
    """Check and hash the picture of every scene that names one.

    Args:
        tables: The checked tables.
        pipeline_classes: Classes of the pipelines that the recipe names.
        recipe_dir: Folder that pictures lie in, or below.
        faults: Where faults go: pictures that can't be used, that a pipeline needs, or doesn't
            take.

    Returns:
        The picture of each scene, by the scene's index.
    """
    table, classes = argument_table(), list(dict.fromkeys(pipeline_classes))
    known: dict[str, ImageSpec | str] = {}
    pictures: dict[int, ImageSpec] = {}
    for index, scene in enumerate(tables.scenes):
        if scene is None:
            continue
        path = ("scene", index, "image")
        for name in classes:
            if scene.image is None and table.needs_image(name):
                message = f'is missing, and {name} begins with a picture: add image = "first.png"'
                faults.append(Fault(path, message, at="key", related=("model",)))
            elif scene.image is not None and not table.takes_image(name):
                message = f"{name} takes no image: remove it, or name an image-to-video pipeline"
                faults.append(Fault(path, message, at="key", related=("model",)))
        if scene.image is None:
            continue
        if scene.image not in known:
            known[scene.image] = _look_at(scene.image, recipe_dir)
        found = known[scene.image]
        if isinstance(found, str):
            faults.append(Fault(path, found))
        else:
            pictures[index] = found
    return pictures


def _look_at(name: str, recipe_dir: Path) -> ImageSpec | str:
    """A picture, or what is wrong with it."""
    try:
        return ImageSpec(name, hash_image(name, recipe_dir))
    except ImageError as error:
        return str(error)
