"""``preset = "auto"``: which preset the words of a prompt choose, and how many steps that means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flowblend_cli.recipe.prompts.keywords import Found, find_words, word_lists
from flowblend_cli.recipe.prompts.presets import Preset
from flowblend_cli.recipe.steps import StepRange

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """What was chosen for one prompt.

    Args:
        preset: The preset; None where no word hints at any.
        words: The words that decided, as the prompt has them.
        suits: How many steps suit the prompt; None where nothing says so.
        steps: How many steps a render starts with.
        reason: All of it in words.
    """

    preset: Preset | None
    words: tuple[str, ...]
    suits: StepRange | None
    steps: int
    reason: str


@dataclass(frozen=True)
class _Match:
    preset: Preset
    found: tuple[Found, ...]

    @property
    def is_cap(self) -> bool:
        """Whether the preset only says how many steps are too many."""
        return self.preset.steps is not None and self.preset.steps.low is None

    @property
    def words(self) -> str:
        return _quoted(each.written for each in self.found)

    @property
    def rank(self) -> tuple[int, int]:
        """More words win; of equally many, those that stand first in the prompt."""
        return -len(self.found), self.found[0].place


def choose_preset(
    prompt: str, presets: Mapping[str, Preset], medium: str, steps: int, origin: str
) -> Choice:
    """Choose a preset by the words of a prompt.

    The preset with the most words is taken. One that only has a ceiling, such as several subjects
    at 50 steps, lowers the steps of another one; words of slow motion add to them.

    Args:
        prompt: The prompt.
        presets: The presets by name.
        medium: ``"clip"`` or ``"picture"``: what is rendered.
        steps: How many steps the job has where no preset says it.
        origin: Who says so, in words.
    """
    matches = [
        _Match(preset, found)
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
    return Choice(chosen, tuple(each.written for each in words), suits, start, reason)


def _why(winner: _Match | None, rivals: list[_Match], steps: int, origin: str) -> str:
    if winner is None:
        return f"no word of a preset in the prompt, so {steps} steps from {origin}"
    range_ = winner.preset.steps
    says = f" ({range_} steps)" if range_ is not None else f", which leaves {steps} from {origin}"
    why = f"preset {winner.preset.name}{says} by {winner.words}"
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
