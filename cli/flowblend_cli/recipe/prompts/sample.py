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
from collections.abc import Callable, Iterator, Mapping, Sequence

from flowblend_cli.recipe.prompts.template import MANY, Alternatives, Expanded, Pick, Template
from flowblend_cli.recipe.source.limits import MAX_SAMPLE

# Up to so many prompts, all are made and ranked; of more, single ones are drawn.
MOST_RANKED = 2 * MAX_SAMPLE
_POINTS = 16
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
    """The prompts whose hashes are the lowest, so that others come and go beside them."""
    found: dict[str, tuple[int, Expanded]] = {}
    for index, template in enumerate(templates):
        for prompt in template.prompts():
            found.setdefault(prompt.text, (index, prompt))
    if number > len(found):
        raise ValueError(
            f"sample = {number} is more than the {len(found)} different prompts there are: lower "
            "it, or leave it out"
        )
    kept = set(heapq.nsmallest(number, found, key=lambda text: _digest(seed, text)))
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
    """Points of every option on a circle: a draw takes the next one, so a new option takes few."""

    def __init__(self, seed: int, choice: Alternatives) -> None:
        points = []
        for index, name in enumerate(choice.names):
            digest = _digest(seed, name)
            points += [(digest[at : at + 4], name, index) for at in range(0, 4 * _POINTS, 4)]
        points.sort()
        self._points = [point for point, _, _ in points]
        self._options = [index for _, _, index in points]

    def at(self, point: bytes) -> int:
        return self._options[bisect.bisect_left(self._points, point) % len(self._options)]


def _digest(seed: int, text: str) -> bytes:
    """64 bytes of a seed and a text; the same in every version of Python."""
    return hashlib.sha512(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
