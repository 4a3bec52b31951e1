"""Step presets by kind of scene: the shipped ones, and what a recipe adds or overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tomli

from flowblend_cli.models.bundled import PRESETS, bundled_dir
from flowblend_cli.recipe.schema.tables import PresetFields, PresetTable
from flowblend_cli.recipe.steps import StepRange


@dataclass(frozen=True)
class Preset:
    """Pipeline arguments for one kind of scene.

    Args:
        name: What scenes call it.
        settings: The arguments, step ranges as written.
        own: The keys among them that come from the recipe itself.
        keywords: Words of a prompt that hint at this kind of scene.
        medium: ``"clip"`` or ``"picture"`` where it is for one of them only.
    """

    name: str
    settings: Mapping[str, Any]
    own: frozenset[str] = field(default_factory=frozenset)
    keywords: tuple[str, ...] = ()
    medium: str | None = None

    @property
    def steps(self) -> StepRange | None:
        """How many steps suit it, where it says so."""
        value = self.settings.get("num_inference_steps")
        return value if isinstance(value, StepRange) else None

    def values(self) -> dict[str, Any]:
        """The arguments with every step range at its start."""
        return {
            key: value.start if isinstance(value, StepRange) else value
            for key, value in self.settings.items()
        }


@cache
def shipped_presets() -> dict[str, PresetFields]:
    """The presets that come with flowblend, by name."""
    text = (bundled_dir() / f"{PRESETS}.toml").read_text("utf-8")
    tables = tomli.loads(text)["presets"]
    return {name: PresetTable.model_validate(table) for name, table in tables.items()}


def merge_presets(own: Mapping[str, PresetFields | None]) -> dict[str, Preset]:
    """The shipped presets with a recipe's own on top, key by key.

    Args:
        own: The recipe's [presets.NAME] tables; None for one that is broken.
    """
    shipped = shipped_presets()
    merged = {}
    for name in dict.fromkeys((*shipped, *own)):
        tables = [table for table in (shipped.get(name), own.get(name)) if table is not None]
        settings: dict[str, Any] = {}
        keywords: list[str] = []
        medium = None
        for table in tables:
            settings |= _settings(table)
            medium = table.medium or medium
            keywords = table.keywords if table.keywords is not None else keywords
        written = own.get(name)
        own_keys = frozenset(_settings(written)) if written is not None else frozenset()
        merged[name] = Preset(name, settings, own_keys, tuple(keywords), medium)
    return merged


def _settings(table: PresetFields) -> dict[str, Any]:
    """The set arguments; a step range stays a StepRange, which a dump would turn into a dict."""
    return {key: getattr(table, key) for key in table.settings()}
