"""A report before it is written: each recipe's clips with all that they say."""

from __future__ import annotations

from dataclasses import dataclass

from flowblend_cli.report import choices, conclusions, sameness, words
from flowblend_cli.report.choices import Adapted, Drafts
from flowblend_cli.report.clips import Folder, Section
from flowblend_cli.report.conclusions import Comparison
from flowblend_cli.report.sameness import Determinism
from flowblend_cli.report.words import Verdict


@dataclass(frozen=True)
class Part:
    """One recipe's clips, and what they say.

    Args:
        section: The clips.
        comparison: Their variants side by side.
        determinism: What must be equal, by mode.
        drafts: What drafts saved, by scene.
        adapted: Jobs that were rendered once more.
        verdicts: All of it in sentences, the most important first.
    """

    section: Section
    comparison: Comparison
    determinism: tuple[Determinism, ...]
    drafts: tuple[Drafts, ...]
    adapted: tuple[Adapted, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def winners(self) -> frozenset[str]:
        """Ids of the clips to keep."""
        return frozenset(one.job for one in self.comparison.winners)


@dataclass(frozen=True)
class Report:
    """What a folder says.

    Args:
        folder: What it holds.
        parts: One for each recipe.
    """

    folder: Folder
    parts: tuple[Part, ...]


def conclude(folder: Folder) -> Report:
    """Draw every conclusion that a folder's numbers allow."""
    return Report(folder, tuple(_part(section, folder) for section in folder.sections))


def _part(section: Section, folder: Folder) -> Part:
    comparison = conclusions.compare(section, folder.metrics)
    determinism = sameness.determinism(section.clips)
    drafts, adapted = choices.drafts(section), choices.adapted(section)
    about_modes = [
        *words.same(determinism),
        *words.spread(section.spreads, dict(folder.metrics)),
    ]
    compared = list(words.compared(comparison))
    modes_first = len(conclusions.modes(comparison)) > 1
    verdicts = [
        *(about_modes if modes_first else ()),
        *words.drafted(drafts),
        *compared,
        *(() if modes_first else about_modes),
        *words.adapted(adapted),
    ] or [words.nothing_compared(section)]
    verdicts += words.slow_steps(section.clips)
    return Part(section, comparison, determinism, drafts, adapted, tuple(verdicts))
