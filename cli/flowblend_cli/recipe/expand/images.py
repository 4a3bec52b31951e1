"""The pictures that scenes begin with: which scene needs one, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from flowblend_cli.errors import ImageError
from flowblend_cli.jobs import ImageSpec
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.recipe.prompts.scene_prompts import Prompts
from flowblend_cli.recipe.schema.validation import Fault, Tables
from flowblend_cli.utils.images import hash_image
from flowblend_cli.utils.toml_positions import KeyPath


def scene_pictures(
    tables: Tables,
    prompts: Prompts,
    pipeline_classes: Iterable[str | None],
    recipe_dir: Path,
    faults: list[Fault],
) -> dict[int | str, ImageSpec]:
    """Check and hash every picture that a scene, or a line of its prompts file, names.

    Args:
        tables: The checked tables.
        prompts: The prompts of the scenes.
        pipeline_classes: Classes of the pipelines that the recipe names.
        recipe_dir: Folder that pictures lie in, or below.
        faults: Where faults go: pictures that can't be used, that a pipeline needs, or doesn't
            take.

    Returns:
        The picture of each scene, by the scene's index; those of single lines by their name.
    """
    classes = list(dict.fromkeys(pipeline_classes))
    album = _Album(recipe_dir, classes, faults)
    without = set(range(len(tables.scenes))) - {index for index, *_ in prompts.lines}
    for index, written, line in prompts.lines:
        if line.image is None:
            without.add(index)
        else:
            album.add(line.image, line.image, written.path, written.fault("").message, "--i")
    for index, scene in enumerate(tables.scenes):
        path: KeyPath = ("scene", index, "image")
        if scene is not None and scene.image is not None:
            album.add(index, scene.image, path, "", "it")
        elif scene is not None and index in without:
            for name in classes:
                if argument_table().needs_image(name):
                    message = (
                        f'is missing, and {name} begins with a picture: add image = "first.png"'
                    )
                    faults.append(Fault(path, message, at="key", related=("model",)))
    return album.pictures


class _Album:
    """The pictures of a recipe, each looked at once."""

    def __init__(
        self, recipe_dir: Path, classes: Iterable[str | None], faults: list[Fault]
    ) -> None:
        self.pictures: dict[int | str, ImageSpec] = {}
        self._recipe_dir = recipe_dir
        self._takes_none = [name for name in classes if not argument_table().takes_image(name)]
        self._known: dict[str, ImageSpec | str] = {}
        self._faults = faults

    def add(self, key: int | str, name: str, path: KeyPath, where: str, remedy: str) -> None:
        for taker in self._takes_none:
            message = (
                f"{where}{taker} takes no image: remove {remedy}, or name an image-to-video "
                "pipeline"
            )
            at: Literal["key", "value"] = "value" if where else "key"
            self._faults.append(Fault(path, message, at=at, related=("model",)))
        if name not in self._known:
            self._known[name] = _look_at(name, self._recipe_dir)
        found = self._known[name]
        if isinstance(found, str):
            self._faults.append(Fault(path, f"{where}{found}"))
        else:
            self.pictures[key] = found


def _look_at(name: str, recipe_dir: Path) -> ImageSpec | str:
    """A picture, or what is wrong with it."""
    try:
        return ImageSpec(name, hash_image(name, recipe_dir))
    except ImageError as error:
        return str(error)
