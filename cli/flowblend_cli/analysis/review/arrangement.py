"""Arrangement: the sets of clips of a review, their letters and ids, drawn by a seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.clips.variants import find_axes, find_variants, group

CLIP_CRITERIA = ("naturalness", "sharpness", "temporal consistency")
PICTURE_CRITERIA = ("structure", "texture", "colour", "adherence")
KEY_VERSION = 1
_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12


@dataclass(frozen=True)
class Item:
    """One anonymous clip or picture.

    Args:
        id: Its id in the page and in ratings.
        letter: Its name for the rater, by its place in its set.
        clips: The files that it stands for: one, or several that agree in every pixel.
    """

    id: str
    letter: str
    clips: tuple[Clip, ...]

    @property
    def filename(self) -> str:
        """Name of the anonymous copy."""
        return self.id + self.clips[0].job.extension


@dataclass(frozen=True)
class ReviewSet:
    """Clips that are judged side by side: the variants of one scene, prompt and seed.

    Args:
        prompt: The prompt.
        criteria: The criteria that each item is scored by.
        items: The items, in the order of their letters.
    """

    prompt: str
    criteria: tuple[str, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Arrangement:
    """A whole review.

    Args:
        id: The review's id: the same clips, criteria and seed give the same.
        seed: Seed of the shuffle.
        sets: What is judged side by side, in the order of the page.
        labels: Of each job of each recipe, its variant in words.
    """

    id: str
    seed: int
    sets: tuple[ReviewSet, ...]
    labels: Mapping[tuple[str, str], str]

    @property
    def items(self) -> tuple[Item, ...]:
        """Every item, in the order of the page."""
        return tuple(item for one in self.sets for item in one.items)

    def key(self) -> dict[str, Any]:
        """The document that un-blinds the ratings, as JSON values."""
        items = {
            item.id: {
                "criteria": list(one.criteria),
                "clips": [self._told(clip) for clip in item.clips],
            }
            for one in self.sets
            for item in one.items
        }
        return {"v": KEY_VERSION, "review": self.id, "seed": self.seed, "items": items}

    def _told(self, clip: Clip) -> dict[str, Any]:
        return {
            "recipe": clip.job.recipe,
            "job": clip.id,
            "scene": clip.job.scene,
            "seed": clip.seed,
            "variant": self.labels[clip.job.recipe, clip.id],
        }


def arrange(
    clips: Sequence[Clip],
    *,
    seed: int = 0,
    criteria: Mapping[str, tuple[str, ...]] | None = None,
    axes: Mapping[str, tuple[str, ...]] | None = None,
) -> Arrangement:
    """Sort clips into sets, and shuffle the sets and the items of each.

    Args:
        clips: The clips, in any order.
        seed: Seed of the shuffle; it moves nothing but order, letters and ids.
        criteria: The criteria of each recipe's clips, by its name; default ones without any.
        axes: The axes of each recipe's sweep, by its name, by which variants are named first.

    Returns:
        The review.
    """
    asked, preferred = criteria or {}, axes or {}
    ordered = sorted(clips, key=lambda clip: (clip.job.recipe, clip.id))
    review = _review_id(ordered, seed, asked)
    shuffler = random.Random(f"flowblend review {review}")  # noqa: S311  # order, not secrecy
    comparable = list(_comparable(ordered).values())
    shuffler.shuffle(comparable)
    ids: set[str] = set()
    sets = []
    for members in comparable:
        same = list(group(members, _looks).values())
        shuffler.shuffle(same)
        items = []
        for place, some in enumerate(same):
            items.append(Item(_draw_id(shuffler, ids), _letter(place), tuple(some)))
        first = members[0]
        usual = PICTURE_CRITERIA if first.is_picture else CLIP_CRITERIA
        chosen = asked.get(first.job.recipe) or usual
        sets.append(ReviewSet(first.job.prompt, chosen, tuple(items)))
    return Arrangement(review, seed, tuple(sets), _labels(ordered, preferred))


def _review_id(clips: Sequence[Clip], seed: int, criteria: Mapping[str, tuple[str, ...]]) -> str:
    parts = [
        seed,
        sorted((recipe, *names) for recipe, names in criteria.items()),
        [(clip.job.recipe, clip.id, clip.record.pixels_sha256, *_looks(clip)) for clip in clips],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_ID_LENGTH]


def _comparable(clips: Sequence[Clip]) -> dict[tuple[Any, ...], list[Clip]]:
    """Clips of one recipe, scene, prompt and seed; of several noises, first with first.

    A seed of 0 was drawn for each clip anew: these are compared all the same.
    """
    whole = group(
        clips,
        lambda c: (c.job.recipe, c.is_picture, c.subject, c.seed if c.job.seed else 0),
    )
    sets: dict[tuple[Any, ...], list[Clip]] = {}
    for key, members in whole.items():
        for variant in find_variants(members, find_axes(members)):
            for place, clip in enumerate(sorted(variant.clips, key=lambda c: c.noise)):
                sets.setdefault((*key, place), []).append(clip)
    return sets


def _looks(clip: Clip) -> tuple[Any, ...]:
    """The pixels of a clip and how they are shown: equal for two clips that look the same."""
    output = clip.job.output
    shown = (output.container, output.fps, output.scale, output.crf)
    return (clip.record.pixels_sha256 or clip.id, *shown)


def _labels(
    clips: Sequence[Clip], axes: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, str], str]:
    labels = {}
    for recipe, members in group(clips, lambda clip: clip.job.recipe).items():
        for variant in find_variants(members, find_axes(members, axes.get(recipe, ()))):
            labels.update({(recipe, clip.id): variant.label for clip in variant.clips})
    return labels


def _letter(place: int) -> str:
    """A, B ... Z, AA, AB ..."""
    further, last = divmod(place, 26)
    return (_letter(further - 1) if further else "") + chr(ord("A") + last)


def _draw_id(shuffler: random.Random, taken: set[str]) -> str:
    while True:
        drawn = "".join(shuffler.choices(_ID_LETTERS, k=_ID_LENGTH))
        if drawn not in taken:
            taken.add(drawn)
            return drawn
