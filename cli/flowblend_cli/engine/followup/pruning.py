"""Drafts that compete: which of them are rendered to their end, and which are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.artifacts.records import looks_path, read_json, write_json
from flowblend_cli.followups import best, go_on, verdict
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.study import Selection

_VERSION = 1


@dataclass(frozen=True)
class Look:
    """What a look at a draft's first steps told.

    Args:
        score: Score of what they lead to; None where nothing could be told.
        elapsed_s: Seconds that it took, without loading models and measuring.
    """

    score: float | None = None
    elapsed_s: float = 0.0


class Drafts:
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

    def to_look_at(self, job: Job) -> Selection | None:
        """The selection whose drafts are to be looked at before this one of them is rendered.

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

    def settle(self, draft: str, score: float | None) -> list[tuple[list[Job], str]]:
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


def read_looks(
    output_dir: Path, selection: Selection, asked: str, keys: Mapping[str, str]
) -> dict[str, Look]:
    """What earlier runs saw of a selection's drafts, so that the same ones are dropped again.

    Args:
        output_dir: The output folder.
        selection: The selection.
        asked: What was asked to be measured; what another question led to isn't told.
        keys: Job key of each draft; what another job of its name led to isn't told either.
    """
    document = _looks_of(output_dir, selection)
    if document.get("asked") != asked:
        return {}
    return {
        draft: Look(look["score"], look["elapsed_s"])
        for draft, look in document["looks"].items()
        if look.get("job_key") == keys.get(draft)
    }


def looks_s(output_dir: Path, selection: Selection) -> dict[str, float]:
    """Seconds of each look that was taken at a selection's drafts, by their ids."""
    looks = _looks_of(output_dir, selection).get("looks", {})
    return {draft: look["elapsed_s"] for draft, look in looks.items() if look["elapsed_s"]}


def _looks_of(output_dir: Path, selection: Selection) -> dict[str, Any]:
    """What is kept of a selection's looks; empty where there are none after as many steps."""
    document = read_json(looks_path(output_dir, selection.drafts[0])) or {}
    looks: Any = document.get("looks")
    same = (document.get("v"), document.get("after_steps")) == (_VERSION, selection.reject_after)
    if selection.reject_after is None or not same or not isinstance(looks, dict):
        return {}
    known = {
        draft: look
        for draft, look in looks.items()
        if isinstance(look, dict)
        and isinstance(look.get("score"), (float, type(None)))
        and isinstance(look.get("elapsed_s"), float)
    }
    return {**document, "looks": known}


def write_looks(
    output_dir: Path,
    selection: Selection,
    asked: str,
    keys: Mapping[str, str],
    looks: Mapping[str, Look],
) -> None:
    """Keep what was seen of a selection's drafts; those that no look was taken at aren't told.

    Raises:
        OutputError: It can't be written.
    """
    told = {draft: looks[draft] for draft in keys if draft in looks}
    write_json(
        looks_path(output_dir, selection.drafts[0]),
        {
            "v": _VERSION,
            "scene": selection.scene,
            "asked": asked,
            "after_steps": selection.reject_after,
            "looks": {d: {"job_key": keys[d], **asdict(look)} for d, look in told.items()},
        },
    )
