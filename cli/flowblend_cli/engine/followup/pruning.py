"""DraftPruner: decides which drafts are rendered to their end, and which are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowblend_cli.jobs import Batch, Job
from flowblend_cli.study import Selection, go_on


class DraftPruner:
    """The drafts of a batch, and what is known of them so far.

    Args:
        batch: The batch.
        selections: Which drafts compete; none where nothing is chosen.
    """

    def __init__(self, batch: Batch, selections: Sequence[Selection]) -> None:
        self._jobs = {job.id: job for job in (*batch.jobs, *batch.reserve)}
        self._open = list(selections)
        self._unseen = {one.drafts: one for one in selections if one.reject_after is not None}
        self._scores: dict[str, float | None] = {}

    def selection_of(self, job: Job) -> Selection | None:
        """The selection whose drafts are to be previewed before this one of them is rendered.

        It is handed out once; several that have the same drafts are one here.
        """
        for drafts, selection in self._unseen.items():
            if job.id in drafts:
                del self._unseen[drafts]
                return selection
        return None

    def jobs_of(self, selection: Selection) -> list[Job]:
        """The drafts of a selection as jobs."""
        return [self._jobs[draft] for draft in selection.drafts]

    def on_scored(self, draft: str, score: float | None) -> list[tuple[list[Job], str]]:
        """Note a draft's score, which may decide what is finished.

        Args:
            draft: Id of the job; one that no selection names is no matter.
            score: Its score; None where it has none, and can't be chosen.

        Returns:
            For each selection of which now every draft is known, the finals to render, and a
            sentence about the choice.
        """
        self._scores[draft] = score
        ready = [one for one in self._open if all(id_ in self._scores for id_ in one.drafts)]
        self._open = [one for one in self._open if one not in ready]
        return [self._choose(selection) for selection in ready]

    def _choose(self, selection: Selection) -> tuple[list[Job], str]:
        drafts = self.jobs_of(selection)
        chosen = best([self._scores[draft.id] for draft in drafts], selection.keep)
        finals = [self._jobs[selection.finals[index]] for index in chosen]
        told = verdict(drafts, chosen, "score")
        return finals, f"scene {selection.scene}: finishing {told}"


def dropped(
    selection: Selection, drafts: Sequence[Job], scores: Mapping[str, float | None]
) -> dict[str, str]:
    """Which drafts aren't rendered to their end, by id, and why.

    A draft that no look could be taken at goes on.

    Args:
        selection: What they compete for.
        drafts: Its drafts.
        scores: What each one's first steps lead to; None where nothing could be told.
    """
    keep = go_on(selection)
    going = best([scores.get(draft.id) for draft in drafts], keep)
    ranked = sorted((-(scores.get(draft.id) or 0.0), i) for i, draft in enumerate(drafts))
    places = {index: place + 1 for place, (_, index) in enumerate(ranked)}
    return {
        draft.id: (
            f"after {selection.reject_after} steps it is number {places[index]} of {len(drafts)} "
            f"by score, and {keep} go on"
        )
        for index, draft in enumerate(drafts)
        if scores.get(draft.id) is not None and index not in going
    }


def best(scores: Sequence[float | None], keep: int) -> tuple[int, ...]:
    """The places of the highest scores, in the order they stand; ties go to the first.

    Args:
        scores: Of each candidate; None for those that can't be chosen.
        keep: How many to choose at most.
    """
    ranked = sorted((-score, index) for index, score in enumerate(scores) if score is not None)
    return tuple(sorted(index for _, index in ranked[:keep]))


def verdict(jobs: Sequence[Job], chosen: Sequence[int], by: str) -> str:
    """Say which drafts were chosen: ``"seeds 3 and 7 of 8 by score"``."""
    seeds = [str(jobs[index].seed) for index in chosen]
    named = " and ".join([", ".join(seeds[:-1]), seeds[-1]] if len(seeds) > 1 else seeds)
    what = "seed" if len(seeds) == 1 else "seeds"
    return f"{what} {named or 'none'} of {len(jobs)} by {by}"
