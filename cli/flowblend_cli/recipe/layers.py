"""Who decides each pipeline argument of a scene: pair, defaults, preset, scene, sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowblend_cli.recipe.positions import KeyPath
from flowblend_cli.recipe.presets import Preset
from flowblend_cli.recipe.schema import SceneFields
from flowblend_cli.recipe.validation import Tables


@dataclass(frozen=True)
class Setting:
    """One argument's value, and the path of the key that it was read from.

    Args:
        value: The value.
        path: The key in the recipe; None for a value that no recipe wrote.
        origin: Who decided, in words.
    """

    value: Any
    path: KeyPath | None
    origin: str


def scene_settings(
    tables: Tables, presets: Mapping[str, Preset], index: int, scene: SceneFields
) -> dict[str, Setting]:
    """The arguments of a scene before any sweep: defaults, preset, scene; later wins."""
    merged: dict[str, Setting] = {}
    if tables.defaults is not None:
        for key, value in tables.defaults.settings().items():
            merged[key] = Setting(value, ("defaults", key), "[defaults]")
    preset = presets.get(scene.preset or "")
    if preset is not None:
        for key, value in preset.values().items():
            path = ("presets", preset.name, key) if key in preset.own else None
            merged[key] = Setting(value, path, f"preset {preset.name!r}")
    for key, value in scene.settings().items():
        merged[key] = Setting(value, ("scene", index, key), f"scene {scene.name!r}")
    return merged
