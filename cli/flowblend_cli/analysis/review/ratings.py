"""Ratings that raters saved, and the keys of reviews: read from files and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblend_cli.artifacts.records import read_checked, review_path
from flowblend_cli.artifacts.schema.reviews import RatingsDocument, ReviewKeyDocument
from flowblend_cli.errors import DocumentError, UsageError
from flowblend_cli.text import printable, shorten
from flowblend_cli.utils.json_files import NotJson, read_json


class RatingsError(UsageError):
    """A file of ratings that can't be used: not one of ours, damaged, or of an unknown review."""


@dataclass(frozen=True)
class Rating:
    """One rater's file.

    Args:
        path: The file.
        review: Id of the review.
        rater: The rater's name.
        session: A text that tells two raters of one name apart; empty where the file has none.
        saved: Time when it was saved, as ISO text; empty likewise.
        scores: Score of each item and criterion, 0 to 10.
        notes: The rater's note about each item, where there is one.
    """

    path: str
    review: str
    rater: str
    session: str
    saved: str
    scores: Mapping[tuple[str, str], float]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class ReviewedClip:
    """A clip that an item stood for.

    Args:
        recipe: Name of its recipe.
        job: Id of its job.
        scene: Name of its scene.
        seed: Its seed.
        variant: Its variant in words.
    """

    recipe: str
    job: str
    scene: str
    seed: int
    variant: str


@dataclass(frozen=True)
class ReviewKey:
    """The key that un-blinds a review.

    Args:
        review: The review's id.
        criteria: The criteria of each item, by the item's id.
        clips: The clips of each item: several where these agree in every pixel.
    """

    review: str
    criteria: Mapping[str, tuple[str, ...]]
    clips: Mapping[str, tuple[ReviewedClip, ...]]


def read(paths: Sequence[Path]) -> tuple[Rating, ...]:
    """Read raters' files, which anybody may have edited.

    Of several files of one rater and review, the one that was saved last counts.

    Args:
        paths: The files.

    Raises:
        RatingsError: A file can't be read or isn't what a review page saves, or two raters of one
            review have the same name.
    """
    kept: dict[tuple[str, str], Rating] = {}
    for rating in map(_read_one, paths):
        place = (rating.review, rating.rater.casefold())
        former = kept.get(place)
        if former is not None and former.session != rating.session:
            raise RatingsError(
                f"{rating.path}: comes from another browser than {former.path}, and both raters "
                f"are called {printable(rating.rater)}: two people need two names (edit "
                '"rater" in one file); of one person, give one file'
            )
        if former is None or rating.saved >= former.saved:
            kept[place] = rating
    return tuple(kept.values())


def read_keys(output_dir: Path, ratings: Iterable[Rating]) -> dict[str, ReviewKey]:
    """Read the keys of the reviews that ratings are of, and check one against the other.

    Args:
        output_dir: The folder that was reviewed.
        ratings: The ratings.

    Raises:
        RatingsError: There is no such review in this folder, its key is damaged, or a rating
            scores what the review doesn't ask.
    """
    keys: dict[str, ReviewKey] = {}
    for rating in ratings:
        key = keys.get(rating.review) or _read_key(output_dir, rating)
        keys[rating.review] = key
        for item, criterion in rating.scores:
            if criterion not in key.criteria.get(item, ()):
                raise RatingsError(
                    f"{rating.path}: scores {printable(criterion)!r} of item {printable(item)!r}, "
                    f"which review {rating.review} doesn't ask: the file was edited, or is of "
                    "another folder"
                )
    return keys


def _read_one(path: Path) -> Rating:
    try:
        document = RatingsDocument.read(read_json(path, follow=True))
    except OSError as error:
        raise RatingsError(
            f"{path}: can't be read ({error.strerror or error}): give the file that a review "
            "page saved"
        ) from error
    except (NotJson, DocumentError) as error:
        raise _wrong(path, str(error)) from error
    scores: dict[tuple[str, str], float] = {}
    for entry in document.scores:
        place = (entry.item, entry.criterion)
        if place in scores:
            raise _wrong(path, f"{shorten(place[1])} of item {shorten(place[0])} is scored twice")
        scores[place] = entry.score
    notes = {entry.item: entry.note for entry in document.notes}
    return Rating(
        str(path),
        document.review,
        document.rater,
        document.session,
        document.saved,
        scores,
        notes,
    )


def _wrong(path: Path, what: str) -> RatingsError:
    return RatingsError(f"{path}: {what}: give the file that a review page saved, as it was saved")


def _read_key(output_dir: Path, rating: Rating) -> ReviewKey:
    path = review_path(output_dir, rating.review)
    if not path.exists():
        raise RatingsError(
            f"{rating.path}: is of review {rating.review}, whose key isn't in {output_dir}: give "
            "the folder that `flowblend review` was run on"
        )
    wrong: list[str] = []
    document = read_checked(path, ReviewKeyDocument, wrong.append)
    if document is None or document["review"] != rating.review:
        why = f" ({wrong[0]})" if wrong else ""
        raise RatingsError(
            f"{path}: is no key of this review{why}: run `flowblend review` again, with the same "
            "options and clips; ids and letters come out the same"
        )
    items = ReviewKeyDocument.read(document).items
    return ReviewKey(
        rating.review,
        {item: tuple(told.criteria) for item, told in items.items()},
        {
            item: tuple(ReviewedClip(**dict(clip)) for clip in told.clips)
            for item, told in items.items()
        },
    )
