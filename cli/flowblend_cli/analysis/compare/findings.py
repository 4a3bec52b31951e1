"""Report: every recipe of a folder with all conclusions from its clips; ``conclude`` draws them."""

from __future__ import annotations

from dataclasses import dataclass

from flowblend_cli.analysis.clips.clip import Folder, Section
from flowblend_cli.analysis.compare import conclusions, determinism, drafts, sentences
from flowblend_cli.analysis.compare.conclusions import Comparison
from flowblend_cli.analysis.compare.determinism import Determinism
from flowblend_cli.analysis.compare.drafts import AdaptedRender, DraftCosts
from flowblend_cli.analysis.compare.sentences import Sentence


@dataclass(frozen=True)
class RecipeReport:
    """One recipe's clips and the conclusions from them.

    Args:
        section: The clips.
        comparison: Their variants side by side.
        determinism: Renders that must be equal, by mode.
        drafts: Savings by drafts, by scene.
        adapted: Jobs that were rendered once more.
        sentences: All of it in words, the most important first.
    """

    section: Section
    comparison: Comparison
    determinism: tuple[Determinism, ...]
    drafts: tuple[DraftCosts, ...]
    adapted: tuple[AdaptedRender, ...]
    sentences: tuple[Sentence, ...]

    @property
    def winners(self) -> frozenset[str]:
        """Ids of the clips to keep."""
        return frozenset(one.job for one in self.comparison.winners)


@dataclass(frozen=True)
class Report:
    """The conclusions from all clips of a folder.

    Args:
        folder: Its clips.
        parts: One for each recipe.
    """

    folder: Folder
    parts: tuple[RecipeReport, ...]


def conclude(folder: Folder) -> Report:
    """Draw every conclusion that a folder's numbers allow."""
    return Report(folder, tuple(_part(section) for section in folder.sections))


def _part(section: Section) -> RecipeReport:
    comparison = conclusions.compare(section)
    by_mode = determinism.determinism_by_mode(section.clips)
    costs, adapted = drafts.draft_costs(section), drafts.adapted(section)
    about_modes = [*sentences.same(by_mode), *sentences.spread(section.spreads)]
    compared = list(sentences.compared(comparison))
    modes_first = len(conclusions.modes(comparison)) > 1
    found = [
        *(about_modes if modes_first else ()),
        *sentences.drafted(costs),
        *compared,
        *(() if modes_first else about_modes),
        *sentences.adapted(adapted),
    ] or [sentences.nothing_compared(section)]
    found += sentences.slow_steps(section.clips)
    return RecipeReport(section, comparison, by_mode, costs, adapted, tuple(found))
