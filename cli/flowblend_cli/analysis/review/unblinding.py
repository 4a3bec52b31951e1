"""Reviews un-blinded: scores of each clip and variant, and the raters' agreement, for reports."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblend_cli.analysis.compare.statistics import summarise
from flowblend_cli.analysis.review.ratings import (
    Rating,
    ReviewedClip,
    ReviewKey,
    read,
    read_keys,
)
from flowblend_cli.artifacts.schema.reviews import LEAST, MOST
from flowblend_cli.errors import UsageError

# (rater, unit, score): a unit is what several raters scored, such as an item of a review.
Judgement = tuple[Hashable, Hashable, float]


@dataclass(frozen=True)
class RatingRow:
    """Scores of one clip, or of one variant, by one criterion.

    Args:
        recipe: Name of the recipe.
        name: Id of the job, or the variant in words.
        criterion: The criterion.
        n: Number of scores.
        raters: Number of raters who gave them.
        mean: Their mean, 0 to 10: each rater counts the same.
        low: Lower end of the mean's 95 % interval; None where one value says no spread.
        high: Upper end.
        jobs: Ids of the jobs behind it.
    """

    recipe: str
    name: str
    criterion: str
    n: int
    raters: int
    mean: float
    low: float | None
    high: float | None
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """Agreement of the raters on one criterion.

    Args:
        criterion: The criterion.
        alpha: Krippendorff's alpha for interval data: 1 they agree, 0 no better than chance; None
            where it can't be told.
        reason: Why it can't be told; empty otherwise.
        items: Number of clips that at least two raters scored.
        raters: Number of raters among these.
    """

    criterion: str
    alpha: float | None
    reason: str
    items: int
    raters: int


@dataclass(frozen=True)
class Remark:
    """A rater's note about a clip.

    Args:
        rater: The rater's name.
        recipe: Name of the recipe.
        job: Id of the job.
        text: The note.
    """

    rater: str
    recipe: str
    job: str
    text: str


@dataclass(frozen=True)
class Reviews:
    """All scores and notes of one folder.

    Args:
        raters: Their names.
        criteria: The criteria, in the order of the pages.
        by_variant: Scores of each variant, by criterion.
        by_job: Scores of each job, by criterion.
        agreement: The raters' agreement, by criterion.
        remarks: The raters' notes.
    """

    raters: tuple[str, ...]
    criteria: tuple[str, ...]
    by_variant: tuple[RatingRow, ...]
    by_job: tuple[RatingRow, ...]
    agreement: tuple[Agreement, ...]
    remarks: tuple[Remark, ...]


@dataclass(frozen=True)
class _Score:
    rater: str
    item: tuple[str, str]
    criterion: str
    value: float
    clips: tuple[ReviewedClip, ...]


def read_reviews(output_dir: Path, paths: Sequence[Path]) -> Reviews:
    """Read raters' files and un-blind them with the keys that the folder keeps.

    Args:
        output_dir: The folder that was reviewed.
        paths: The raters' files.

    Raises:
        RatingsError: A file is no rating, or of a review that this folder has no key of.
        UsageError: nltk isn't installed.
    """
    ratings = read(paths)
    return unblind(ratings, read_keys(output_dir, ratings))


def unblind(ratings: Sequence[Rating], keys: Mapping[str, ReviewKey]) -> Reviews:
    """Join ratings with the clips behind the letters.

    A job's interval is over its raters. A variant's is over raters too, each by the mean of what
    they gave it, since scores of one rater aren't independent; of a single rater, it is over clips.

    Args:
        ratings: What raters said.
        keys: The key of each review, by its id.
    """
    scores = []
    for rating in ratings:
        clips = keys[rating.review].clips
        for (item, criterion), value in rating.scores.items():
            unit = (rating.review, item)
            scores.append(_Score(rating.rater, unit, criterion, value, clips[item]))
    asked = [names for key in keys.values() for names in key.criteria.values()]
    criteria = tuple(dict.fromkeys(name for names in asked for name in names))
    remarks = [
        Remark(rating.rater, clip.recipe, clip.job, text)
        for rating in ratings
        for item, text in rating.notes.items()
        for clip in keys[rating.review].clips.get(item, ())[:1]
    ]
    return Reviews(
        tuple(dict.fromkeys(rating.rater for rating in ratings)),
        criteria,
        _rows(scores, criteria, lambda clip: clip.variant),
        _rows(scores, criteria, lambda clip: clip.job),
        tuple(_agree(name, [s for s in scores if s.criterion == name]) for name in criteria),
        tuple(remarks),
    )


def flagged(reviews: Reviews, below: float = 5.0) -> tuple[str, ...]:
    """Ids of the jobs of which any criterion's mean is below a limit, worst first.

    Args:
        reviews: Un-blinded reviews.
        below: The limit, 0 to 10.
    """
    worst: dict[str, float] = {}
    for row in reviews.by_job:
        worst[row.name] = min(row.mean, worst.get(row.name, row.mean))
    return tuple(sorted((j for j, mean in worst.items() if mean < below), key=worst.__getitem__))


def alpha(judgements: Sequence[Judgement]) -> tuple[float | None, str]:
    """Krippendorff's alpha for interval data, and why there is none where there is none.

    Args:
        judgements: Rater, unit and score of each; units that one rater alone scored don't count.

    Returns:
        Alpha, at most 1, and an empty reason; or None and the reason.

    Raises:
        UsageError: nltk isn't installed.

    Reference:
        K. Krippendorff, Content Analysis; computed by ``nltk.metrics.agreement``.
    """
    shared = _shared(judgements)
    if len({rater for rater, _, _ in judgements}) < 2:
        return None, "one rater alone: agreement needs two"
    if not shared:
        return None, "no clip was scored by two raters"
    if len({score for _, _, score in shared}) == 1:
        return None, "every score is the same, which chance could do too"
    try:
        from nltk.metrics import interval_distance  # type: ignore[import-untyped]
        from nltk.metrics.agreement import AnnotationTask  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError(
            "agreement needs nltk, which isn't installed: pip install 'flowblend[report]'"
        ) from error
    return float(AnnotationTask(shared, distance=interval_distance).alpha()), ""


def _shared(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Judgements of the units that several raters scored."""
    raters: dict[Hashable, set[Hashable]] = defaultdict(set)
    for rater, unit, _ in judgements:
        raters[unit].add(rater)
    return [judgement for judgement in judgements if len(raters[judgement[1]]) > 1]


def _agree(criterion: str, scores: Sequence[_Score]) -> Agreement:
    # nltk sorts by unit: text, not tuples of anything.
    judgements = [(score.rater, "/".join(score.item), score.value) for score in scores]
    value, reason = alpha(judgements)
    shared = _shared(judgements)
    items, raters = {unit for _, unit, _ in shared}, {rater for rater, _, _ in shared}
    return Agreement(criterion, value, reason, len(items), len(raters))


def _rows(
    scores: Sequence[_Score], criteria: Sequence[str], name: Callable[[ReviewedClip], str]
) -> tuple[RatingRow, ...]:
    groups: dict[tuple[str, str], list[tuple[_Score, str]]] = defaultdict(list)
    for score in scores:
        for clip in score.clips:
            groups[clip.recipe, name(clip)].append((score, clip.job))
    rows = []
    for (recipe, called), members in sorted(groups.items(), key=_reading_order):
        for criterion in criteria:
            some = [(score, job) for score, job in members if score.criterion == criterion]
            if some:
                rows.append(_row(recipe, called, criterion, some))
    return tuple(rows)


def _row(
    recipe: str, name: str, criterion: str, scores: Sequence[tuple[_Score, str]]
) -> RatingRow:  # fmt: skip
    # Of clips that one item stood for, each variant has the item's score once.
    distinct = {(score.rater, score.item): score for score, _ in scores}.values()
    by_rater: dict[str, list[float]] = defaultdict(list)
    for score in distinct:
        by_rater[score.rater].append(score.value)
    means = [sum(values) / len(values) for values in by_rater.values()]
    summary = summarise(means if len(means) > 1 else [score.value for score in distinct])
    assert summary is not None
    low = None if summary.low is None else max(summary.low, LEAST)
    high = None if summary.high is None else min(summary.high, MOST)
    jobs = tuple(sorted({job for _, job in scores}))
    return RatingRow(
        recipe, name, criterion, len(distinct), len(by_rater), summary.mean, low, high, jobs
    )


def _reading_order(entry: tuple[tuple[str, str], object]) -> tuple[str, list[tuple[int, str]]]:
    """Names in the order in which people count: 30 steps before 100."""
    (recipe, name), _ = entry
    parts = re.split(r"(\d+)", name)
    return recipe, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
