"""Templates: what a prompt as it is written stands for; ``syntax`` reads them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from flowblend_cli.recipe.source.limits import MAX_JOBS, MAX_PROMPT

# Counting stops at so many prompts.
MANY = 10**18


@dataclass(frozen=True)
class Variable:
    """A place that takes a value of [matrix]."""

    name: str


@dataclass(frozen=True, eq=False)
class Alternatives:
    """A place that takes one of several texts.

    Args:
        options: The texts, each a template of its own.
        names: The options as they are written, all different.
        weights: How often each is drawn, beside the others; empty where all are alike.
        is_cyclic: Whether it moves together with the other cyclic places of its template.
        is_open: Whether choices inside of an option are told apart from the choice of it.
    """

    options: tuple[Template, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...] = ()
    is_cyclic: bool = False
    is_open: bool = False

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """How many prompts the options up to each stand for; at most ``MANY``."""
        ends, total = [], 0
        for option in self.options:
            total = min(total + option.count, MANY)
            ends.append(total)
        return tuple(ends)

    def weight_of(self, number: int) -> float:
        """How often an option is drawn, beside the others."""
        return self.weights[number] if self.weights else 1.0


@dataclass(frozen=True, eq=False)
class Selection:
    """A place that takes several of so many texts that they can only be drawn.

    Args:
        pool: The texts.
        low: How many it takes at least.
        high: How many it takes at most, no more than there are.
        separator: What stands between them.
    """

    pool: Alternatives
    low: int
    high: int
    separator: str

    @cached_property
    def sizes(self) -> Alternatives:
        """The choice of how many it takes."""
        names = tuple(str(size) for size in range(self.low, self.high + 1))
        return Alternatives(tuple(Template((name,)) for name in names), names)


def select(pool: Alternatives, low: int, high: int, separator: str) -> Alternatives | Selection:
    """A place that takes several different texts, in any order.

    Args:
        pool: The texts.
        low: How many it takes at least.
        high: How many it takes at most; more than there are is as many as there are.
        separator: What stands between them.

    Returns:
        Every way to take them, as alternatives; if there are more than a recipe may have jobs, a
        place from which they can only be drawn.
    """
    number = len(pool.options)
    low, high = min(low, number), min(high, number)
    each = max(option.count for option in pool.options)
    ways = 0
    for size in range(low, high + 1):
        ways += min(math.perm(number, size), MANY) * each ** min(size, 60)
        if ways > MAX_JOBS:
            return Selection(pool, low, high, separator)
    found: dict[str, Expanded] = {}
    texts = [
        [replace_weight(one, pool.weight_of(place)) for one in option.prompts()]
        for place, option in enumerate(pool.options)
    ]
    for size in range(low, high + 1):
        for picked in itertools.permutations(texts, size):
            for taken in itertools.product(*picked):
                if len({one.text for one in taken}) == size:
                    made = _join(taken, separator)
                    found.setdefault(made.text, made)
    weights = tuple(made.weight for made in found.values())
    return Alternatives(
        tuple(Template(made.parts) for made in found.values()),
        tuple(found),
        weights if len(set(weights)) > 1 else (),
    )


def _join(taken: Sequence[Expanded], separator: str) -> Expanded:
    """Texts with a separator between them, but none at either end."""
    parts: list[str | Variable] = []
    for number, one in enumerate(taken):
        for part in (separator, *one.parts) if number else one.parts:
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
    if len(taken) > 1 and isinstance(parts[0], str):
        parts[0] = parts[0].removeprefix(separator)
    if len(taken) > 1 and isinstance(parts[-1], str):
        parts[-1] = parts[-1].removesuffix(separator)
    return Expanded(_tidy(parts), weight=math.prod(one.weight for one in taken))


def _tidy(parts: Sequence[str | Variable]) -> tuple[str | Variable, ...]:
    """Parts, as one text where there is no variable among them."""
    if len(parts) != 1 and not any(isinstance(part, Variable) for part in parts):
        return ("".join(str(part) for part in parts),)
    return tuple(parts)


@dataclass(frozen=True)
class Expanded:
    """A prompt with every choice made.

    Args:
        parts: Texts and variables.
        choices: What was chosen, from left to right; inner choices are part of the outer one.
        weight: How often it is drawn, beside others of its template.
    """

    parts: tuple[str | Variable, ...]
    choices: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The prompt with its variables as they are written."""
        return "".join(p if isinstance(p, str) else f"{{{p.name}}}" for p in self.parts)

    @property
    def variables(self) -> frozenset[str]:
        """Names of its variables."""
        return frozenset(part.name for part in self.parts if isinstance(part, Variable))

    def fill(self, values: Mapping[str, str]) -> str:
        """The prompt with the values of its variables; one without a value stays as written."""
        return "".join(
            p if isinstance(p, str) else values.get(p.name, f"{{{p.name}}}") for p in self.parts
        )


def replace_weight(prompt: Expanded, factor: float) -> Expanded:
    """A prompt that is drawn so much more often."""
    return Expanded(prompt.parts, prompt.choices, prompt.weight * factor)


Pick = Callable[[Alternatives], int]


@dataclass(frozen=True)
class Note:
    """Something in a prompt that was probably meant for another program.

    Args:
        offset: Where it stands in the prompt; what stands in a wildcard's file, where the wildcard.
        message: What it is, and what to do.
        is_certain: Whether nothing else can be meant.
        place: File, line and column of what stands in a wildcard's file, as messages begin.
    """

    offset: int
    message: str
    is_certain: bool
    place: str = ""


@dataclass(frozen=True, eq=False)
class Template:
    """A prompt as it is written, its wildcards looked up.

    Args:
        parts: Texts, variables and choices, from left to right.
        depth: How many wildcard files stand inside one another in it.
        notes: What in it was probably meant for another program.
    """

    parts: tuple[str | Variable | Alternatives | Selection, ...]
    depth: int = 0
    notes: tuple[Note, ...] = ()

    @cached_property
    def turns(self) -> int:
        """In how many steps its cyclic places come round together; 1 where it has none."""
        return math.lcm(*(part.ends[-1] for part in self._cyclic))

    @property
    def _cyclic(self) -> list[Alternatives]:
        return [part for part in self.parts if isinstance(part, Alternatives) and part.is_cyclic]

    @cached_property
    def count(self) -> int:
        """How many prompts it stands for, ``MANY`` where there are as many or more."""
        count = min(self.turns, MANY)
        for part in self.parts:
            if isinstance(part, Selection):
                return MANY
            if isinstance(part, Alternatives) and not part.is_cyclic:
                count = min(count * part.ends[-1], MANY)
        return count

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that its prompts may have."""
        found: set[str] = set()
        for part in self.parts:
            if isinstance(part, Variable):
                found.add(part.name)
            elif not isinstance(part, str):
                pool = part.pool if isinstance(part, Selection) else part
                found.update(*(option.variables for option in pool.options))
        return frozenset(found)

    def prompts(self) -> Iterator[Expanded]:
        """Every prompt, the leftmost choice changing slowest.

        Raises:
            ValueError: One is longer than ``MAX_PROMPT``.
        """
        return (self.at(index) for index in range(self.count))

    def at(self, index: int) -> Expanded:
        """One prompt by its number from 0, below ``count``; ``count`` is less than ``MANY``.

        Raises:
            ValueError: It is longer than ``MAX_PROMPT``.
        """
        maker = _Maker()
        maker.walk(self, index)
        return maker.made()

    def draw(self, pick: Pick) -> Expanded:
        """The prompt with what ``pick`` takes of each choice.

        Raises:
            ValueError: It is longer than ``MAX_PROMPT``.
        """
        maker = _Maker()
        maker.draw(self, pick)
        return maker.made()


class _Maker:
    """Makes one prompt; gives up on one that is too long, even if little of it is text."""

    def __init__(self) -> None:
        self._parts: list[str | Variable] = []
        self._choices: list[str] = []
        self._weight = 1.0
        self._left = MAX_PROMPT

    def made(self) -> Expanded:
        return Expanded(_tidy(self._parts), tuple(self._choices), self._weight)

    def walk(self, template: Template, index: int) -> None:
        index, turn = divmod(index, template.turns)
        places = []
        for part in reversed(template.parts):
            places.append(0)
            if isinstance(part, Alternatives):
                if part.is_cyclic:
                    places[-1] = turn % part.ends[-1]
                else:
                    index, places[-1] = divmod(index, part.ends[-1])
        for part, place in zip(template.parts, reversed(places), strict=True):
            if isinstance(part, Alternatives):
                number = bisect.bisect_right(part.ends, place)
                first = part.ends[number - 1] if number else 0
                with self._choosing(part, number):
                    self.walk(part.options[number], place - first)
            else:
                assert not isinstance(part, Selection), "it counts as MANY"
                self._add(part)

    def draw(self, template: Template, pick: Pick) -> None:
        cyclic = template._cyclic
        turn = pick(max(cyclic, key=lambda part: len(part.options))) if cyclic else 0
        for part in template.parts:
            if isinstance(part, Alternatives):
                number = turn % len(part.options) if part.is_cyclic else pick(part)
                with self._choosing(part, number):
                    self.draw(part.options[number], pick)
            elif isinstance(part, Selection):
                self._spend(1)
                made = _join(_take(part, part.low + pick(part.sizes), pick), part.separator)
                self._weight *= made.weight
                self._choices.append(made.text)
                for one in made.parts:
                    self._add(one)
            else:
                self._add(part)

    @contextmanager
    def _choosing(self, choice: Alternatives, number: int) -> Iterator[None]:
        """Keep what is chosen inside; a choice inside of a choice is a part of it."""
        self._spend(1)
        self._weight *= choice.weight_of(number)
        start, before = len(self._parts), len(self._choices)
        if choice.is_open:
            self._choices.append(choice.names[number])
            yield
            return
        yield
        self._choices[before:] = ["".join(p for p in self._parts[start:] if isinstance(p, str))]

    def _add(self, part: str | Variable) -> None:
        self._parts.append(part)
        self._spend(len(part) if isinstance(part, str) else 1)

    def _spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise ValueError(too_long())


def _take(selection: Selection, number: int, pick: Pick) -> list[Expanded]:
    """Draw so many different texts; after many that are there already, those that are left."""
    pool, taken = selection.pool, dict[int, Expanded]()
    for _ in range(20 * number + 100):
        if len(taken) == number:
            break
        place = pick(pool)
        made = pool.options[place].draw(pick)
        if place not in taken and all(made.text != one.text for one in taken.values()):
            taken[place] = replace_weight(made, pool.weight_of(place))
    left = (place for place in range(len(pool.options)) if place not in taken)
    for place in itertools.islice(left, number - len(taken)):
        taken[place] = pool.options[place].draw(pick)
    return list(taken.values())


def problem_of(text: str) -> str | None:
    """What is wrong with a prompt in which everything is filled in; None if nothing is."""
    if not text.strip():
        return "makes a blank prompt: write a word into or beside what may be empty"
    return too_long() if len(text) > MAX_PROMPT else None


def too_long() -> str:
    """What is wrong with a prompt that is too long."""
    return f"makes a prompt longer than the limit of {MAX_PROMPT:,} characters"
