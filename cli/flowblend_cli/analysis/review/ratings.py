"""Ratings that raters saved, and the keys of reviews: read from files and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.analysis.review.arrangement import KEY_VERSION
from flowblend_cli.artifacts.records import is_number, read_json, review_path
from flowblend_cli.errors import UsageError
from flowblend_cli.text import printable, shorten
from flowblend_cli.utils.files import read_regular
from flowblend_cli.utils.limits import MAX_JSON_BYTES

LEAST, MOST = 0, 10
RATINGS_VERSION = 1


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
    document = _load(path)
    if document.get("v") != RATINGS_VERSION:
        raise _wrong(path, f'"v" is {shorten(repr(document.get("v")))}, not {RATINGS_VERSION}')
    review, rater = document.get("review"), document.get("rater")
    if not isinstance(review, str) or not review.isalnum() or not review.isascii():
        raise _wrong(path, f'"review" is {shorten(repr(review))}, not the id of a review')
    if not isinstance(rater, str) or not rater.strip():
        raise _wrong(path, '"rater" is no name')
    scores: dict[tuple[str, str], float] = {}
    for entry in _entries(path, document, "scores"):
        place = (_text(path, entry, "item"), _text(path, entry, "criterion"))
        if place in scores:
            raise _wrong(path, f"{shorten(place[1])} of item {shorten(place[0])} is scored twice")
        scores[place] = _score(path, place, entry.get("score"))
    notes = {
        _text(path, entry, "item"): _text(path, entry, "note")
        for entry in _entries(path, document, "notes")
    }
    session, saved = document.get("session"), document.get("saved")
    return Rating(
        str(path),
        review,
        " ".join(rater.split()),
        session if isinstance(session, str) else "",
        saved if isinstance(saved, str) else "",
        scores,
        notes,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        data = read_regular(path, MAX_JSON_BYTES, follow=True)
    except OSError as error:
        raise RatingsError(
            f"{path}: can't be read ({error.strerror or error}): give the file that a review "
            "page saved"
        ) from error
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"it is no JSON ({shorten(error)})") from error
    if not isinstance(document, dict):
        raise _wrong(path, "it is no JSON object")
    return document


def _entries(path: Path, document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise _wrong(path, f'"{name}" is no list of objects')
    return found


def _text(path: Path, entry: Mapping[str, Any], name: str) -> str:
    found = entry.get(name)
    if not isinstance(found, str):
        raise _wrong(path, f'"{name}" of an entry is {shorten(repr(found))}, not text')
    return found


def _score(path: Path, place: tuple[str, str], score: object) -> float:
    if not is_number(score) or not LEAST <= score <= MOST:
        raise _wrong(
            path,
            f"{shorten(place[1])} of item {shorten(place[0])} is {shorten(repr(score))}, not a "
            f"number from {LEAST} to {MOST}",
        )
    return float(score)


def _wrong(path: Path, what: str) -> RatingsError:
    return RatingsError(f"{path}: {what}: give the file that a review page saved, as it was saved")


def _read_key(output_dir: Path, rating: Rating) -> ReviewKey:
    path = review_path(output_dir, rating.review)
    if not path.exists():
        raise RatingsError(
            f"{rating.path}: is of review {rating.review}, whose key isn't in {output_dir}: give "
            "the folder that `flowblend review` was run on"
        )
    document = read_json(path)
    try:
        if document is None or document["v"] != KEY_VERSION or document["review"] != rating.review:
            raise ValueError
        items = document["items"]
        return ReviewKey(
            rating.review,
            {item: tuple(told["criteria"]) for item, told in items.items()},
            {
                item: tuple(ReviewedClip(**clip) for clip in told["clips"])
                for item, told in items.items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RatingsError(
            f"{path}: is no key of a review: run `flowblend review` again, with the same options "
            "and clips; ids and letters come out the same"
        ) from error
