"""What reviews leave: the ratings that a page saved, and the key that un-blinds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from flowblend_cli.artifacts.schema.base import (
    Closed,
    Document,
    JobId,
    Sentence,
    Time,
    Word,
    Writing,
)
from flowblend_cli.recipe.schema.fields import Name, Seed
from flowblend_cli.text import shorten

LEAST, MOST = 0, 10
_MAX_ID = 64


def _check_name(name: str) -> str:
    if not name.strip():
        raise ValueError("must not be empty")
    return " ".join(name.split())


def _check_id(name: str) -> str:
    if not name.isalnum() or not name.isascii() or len(name) > _MAX_ID:
        raise ValueError(f"must be the id of a review, got {shorten(repr(name))}")
    return name


ReviewId = Annotated[str, AfterValidator(_check_id)]


class ScoreDocument(Document):
    """A score of one item by one criterion."""

    item: Word
    criterion: Sentence
    score: Annotated[float, Field(ge=LEAST, le=MOST)]


class NoteDocument(Document):
    """What a rater says of one item."""

    item: Word
    note: Writing


class RatingsDocument(Document):
    """One rater's file."""

    v: Literal[1]
    review: ReviewId
    rater: Annotated[str, Field(max_length=200), AfterValidator(_check_name)]
    session: Word = ""
    saved: Time = ""
    scores: list[ScoreDocument] = Field(default_factory=list)
    notes: list[NoteDocument] = Field(default_factory=list)


class ReviewedClipDocument(Closed):
    """A clip that an item stood for."""

    recipe: Name
    job: JobId
    scene: Name
    seed: Seed
    variant: Writing


class ItemDocument(Document):
    """An item of a review."""

    criteria: list[Sentence]
    clips: Annotated[list[ReviewedClipDocument], Field(min_length=1)]


class ReviewKeyDocument(Document):
    """The key that un-blinds a review."""

    v: Literal[1]
    review: ReviewId
    items: dict[ReviewId, ItemDocument]
