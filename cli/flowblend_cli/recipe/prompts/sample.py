"""Samples: ``sample = n`` draws some of many prompts, the same ones on every machine.

Each draw follows from the seed and the texts themselves, so that files may be reordered freely,
and a new entry takes the place of few.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from flowblend_cli.recipe.prompts.template import MANY, Alternatives, Expanded, Pick, Template
from flowblend_cli.recipe.source.limits import MAX_SAMPLE

# Up to so many prompts, all are made and ranked; of more, single ones are drawn.
MOST_RANKED = 2 * MAX_SAMPLE
_POINTS = 16
_MOST_POINTS = 100 * _POINTS
_TRIES = 4


def draw_sample(
    templates: Mapping[str, Template], number: int, seed: int
) -> list[tuple[int, Expanded]]:
    """Draw different prompts of some templates.

    Args:
        templates: The templates by their texts as they are written.
        number: How many prompts.
        seed: Another one draws others.

    Returns:
        Index of the template and the prompt, in the order of the templates where all of theirs are
        known, else as they were drawn.

    Raises:
        ValueError: There are fewer different prompts, or so few that the search gave up.
    """
    whole = Alternatives(tuple(templates.values()), tuple(templates))
    if whole.ends[-1] <= MOST_RANKED:
        return _ranked(whole.options, number, seed)
    found: dict[str, tuple[int, Expanded]] = {}
    for index, prompt in _draws(whole, number, seed):
        found.setdefault(prompt.text, (index, prompt))
        if len(found) == number:
            return list(found.values())
    raise ValueError(
        f"sample = {number} is more than the {len(found)} different prompts that were found: "
        "lower it"
    )


def _ranked(templates: Sequence[Template], number: int, seed: int) -> list[tuple[int, Expanded]]:
    """The prompts whose hashes are the lowest, so that others come and go beside them.

    A larger weight lowers a hash, as it shortens the time until something happens by chance.
    """
    found: dict[str, tuple[int, Expanded]] = {}
    for index, template in enumerate(templates):
        for prompt in template.prompts():
            found.setdefault(prompt.text, (index, prompt))
    if number > len(found):
        raise ValueError(
            f"sample = {number} is more than the {len(found)} different prompts there are: lower "
            "it, or leave it out"
        )
    is_even = all(prompt.weight == 1 for _, prompt in found.values())

    def rank(text: str) -> tuple[float, bytes]:
        digest, weight = _digest(seed, text), found[text][1].weight
        chance = int.from_bytes(digest[:6]) / 2**48
        return 0.0 if is_even else -math.log1p(-chance) / weight, digest

    kept = set(heapq.nsmallest(number, found, key=rank))
    return [each for text, each in found.items() if text in kept]


def _draws(whole: Alternatives, number: int, seed: int) -> Iterator[tuple[int, Expanded]]:
    """Draw prompts: by entries first, and evenly where that finds too few different ones."""
    ring_of = functools.cache(functools.partial(_Ring, seed))
    for draw in range(_TRIES * number + 1000):
        pick = _picker(seed, draw, ring_of)
        index = pick(whole)
        yield index, whole.options[index].draw(pick)
    for draw in range(5 * _TRIES * number + 1000):
        place = int.from_bytes(_digest(seed, f"evenly {draw}")) % whole.ends[-1]
        index = bisect.bisect_right(whole.ends, place)
        if whole.options[index].count < MANY:
            first = whole.ends[index - 1] if index else 0
            yield index, whole.options[index].at(place - first)


def _picker(seed: int, draw: int, ring_of: Callable[[Alternatives], _Ring]) -> Pick:
    """A function that chooses one option of each place of alternatives, for one draw."""
    numbers = itertools.count(1)

    def pick(choice: Alternatives) -> int:
        return ring_of(choice).at(_digest(seed, f"draw {draw} choice {next(numbers)}")[:4])

    return pick


class _Ring:
    """Points of every option on a circle: a draw takes the next one, so a new option takes few.

    An option has points in proportion to its weight.
    """

    def __init__(self, seed: int, choice: Alternatives) -> None:
        points = []
        mean = sum(choice.weights) / len(choice.weights) if choice.weights else 1.0
        for index, name in enumerate(choice.names):
            share = min(max(round(_POINTS * choice.weight_of(index) / mean), 1), _MOST_POINTS)
            points += [(point, name, index) for point in _points(seed, name, share)]
        points.sort()
        self._points = [point for point, _, _ in points]
        self._options = [index for _, _, index in points]

    def at(self, point: bytes) -> int:
        return self._options[bisect.bisect_left(self._points, point) % len(self._options)]


def _points(seed: int, name: str, number: int) -> Iterator[bytes]:
    """So many points of an option; more of them begin with the same ones."""
    for block in range(-(-number // _POINTS)):
        digest = _digest(seed, f"{name}\n{block}" if block else name)
        for at in range(min(number - block * _POINTS, _POINTS)):
            yield digest[4 * at : 4 * at + 4]


def _digest(seed: int, text: str) -> bytes:
    """64 bytes of a seed and a text; the same in every version of Python."""
    return hashlib.sha512(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
