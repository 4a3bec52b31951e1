"""Presets: settings by kind of scene; ``choose_preset`` decides ``preset = "auto"``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tomli

from flowblend_cli.models.bundled import PRESETS, bundled_dir
from flowblend_cli.recipe.prompts.keywords import KeywordMatch, find_words, word_lists
from flowblend_cli.recipe.schema.ranges import StepRange
from flowblend_cli.recipe.schema.tables import UNKNOWN, PresetFields, PresetTable

AUTO = "auto"


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
        """How many steps suit it; None where it sets none."""
        value = self.settings.get("num_inference_steps")
        return value if isinstance(value, StepRange) else None

    def values(self) -> dict[str, Any]:
        """The arguments with every step range at its start."""
        return {
            key: value.start if isinstance(value, StepRange) else value
            for key, value in self.settings.items()
        }


@dataclass(frozen=True)
class PresetChoice:
    """What was chosen for one prompt.

    Args:
        preset: The preset; None where no word hints at any.
        words: The words that decided, as the prompt has them.
        suits: How many steps suit the prompt; None where no preset sets any.
        steps: How many steps a render starts with.
        reason: Why, in words for people.
    """

    preset: Preset | None
    words: tuple[str, ...]
    suits: StepRange | None
    steps: int
    reason: str


@dataclass(frozen=True)
class _PresetMatch:
    """A preset of which words stand in a prompt."""

    preset: Preset
    found: tuple[KeywordMatch, ...]

    @property
    def is_cap(self) -> bool:
        """Whether the preset only sets how many steps are too many."""
        return self.preset.steps is not None and self.preset.steps.low is None

    @property
    def words(self) -> str:
        return _quoted(each.written for each in self.found)

    @property
    def rank(self) -> tuple[int, int]:
        """More words win; of equally many, those that stand first in the prompt."""
        return -len(self.found), self.found[0].place


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
            settings |= table.settings()
            medium = table.medium or medium
            keywords = table.keywords if table.keywords is not None else keywords
        written = own.get(name)
        own_keys = frozenset(written.settings()) if written is not None else frozenset()
        own_keys = frozenset(key for key in own_keys if settings[key] is not UNKNOWN)
        merged[name] = Preset(name, settings, own_keys, tuple(keywords), medium)
    return merged


def choose_preset(
    prompt: str, presets: Mapping[str, Preset], medium: str, steps: int, origin: str
) -> PresetChoice:
    """Choose a preset by the words of a prompt.

    The preset with the most words is taken. One that only has a ceiling, such as several subjects
    at 50 steps, lowers the steps of another one; words of slow motion add to them.

    Args:
        prompt: The prompt.
        presets: The presets by name.
        medium: ``"clip"`` or ``"picture"``: what is rendered.
        steps: How many steps the job has where no preset sets them.
        origin: Where these come from, in words for people.
    """
    matches = [
        _PresetMatch(preset, found)
        for preset in presets.values()
        if preset.medium in (None, medium) and (found := find_words(prompt, preset.keywords))
    ]
    kinds = sorted((m for m in matches if not m.is_cap), key=lambda m: m.rank)
    caps = sorted((m for m in matches if m.is_cap), key=lambda m: m.rank)
    winner = next(iter(kinds or caps), None)
    suits = winner.preset.steps if winner is not None else None
    start = suits.start if suits is not None else steps
    reasons = [_why(winner, kinds or caps, start, origin)]
    words = list(winner.found) if winner is not None else []

    slow = word_lists()["slow_motion"]
    found = find_words(prompt, slow["words"])[:1]
    if found:
        words += found
        start += slow["steps"]
        suits = _raised(suits, slow["steps"]) if suits is not None else None
        reasons.append(f"{_quoted(each.written for each in found)} adds {slow['steps']}")
    for cap in caps:
        ceiling = cap.preset.steps.high if cap.preset.steps is not None else start
        if start > ceiling or (suits is not None and suits.high > ceiling):
            suits = _lowered(suits, ceiling) if suits is not None else None
            start = min(start, ceiling)
            words += [each for each in cap.found if each not in words]
            reasons.append(f"{cap.words} ({cap.preset.name}) caps at {ceiling}")
    if winner is not None or found:
        reasons.append(f"starts at {start}")
    reason = "; ".join(reasons)
    chosen = winner.preset if winner is not None else None
    return PresetChoice(chosen, tuple(each.written for each in words), suits, start, reason)


def _why(winner: _PresetMatch | None, rivals: list[_PresetMatch], steps: int, origin: str) -> str:
    if winner is None:
        return f"no word of a preset in the prompt, so {steps} steps from {origin}"
    range_ = winner.preset.steps
    which = f" ({range_} steps)" if range_ is not None else f", which leaves {steps} from {origin}"
    why = f"preset {winner.preset.name}{which} by {winner.words}"
    tied = [m for m in rivals if m is not winner and len(m.found) == len(winner.found)]
    if tied:
        others = " and ".join(f"{m.preset.name} by {m.words}" for m in tied)
        why += f", which stands before {others}"
    return why


def _raised(suits: StepRange, steps: int) -> StepRange:
    return StepRange(None if suits.low is None else suits.low + steps, suits.high + steps)


def _lowered(suits: StepRange, ceiling: int) -> StepRange:
    low = None if suits.low is None else min(suits.low, ceiling)
    return StepRange(low, min(suits.high, ceiling))


def _quoted(words: Iterable[str]) -> str:
    return " and ".join(repr(word) for word in words)
