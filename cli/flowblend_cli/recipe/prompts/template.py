"""Templates: the syntax of prompts, ``{a|b}``, ``{variable}``, ``__wildcard__``, and escapes."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from flowblend_cli.recipe.source.limits import MAX_PROMPT
from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import closest

# Counting stops at so many prompts.
MANY = 10**18

_PIECE = re.compile(
    r"\{\{|\}\}|____|__(?P<wildcard>[^\s{}|_](?:(?!__)[^\s{}|])*)__|[{}|]|[^{}|_]+|_"
)
_LITERAL = {"{{": "{", "}}": "}", "____": "__"}
_SPECIAL = re.compile(r"[{}]|__")


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
    """

    options: tuple[Template, ...]
    names: tuple[str, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """How many prompts the options up to each stand for; at most ``MANY``."""
        ends, total = [], 0
        for option in self.options:
            total = min(total + option.count, MANY)
            ends.append(total)
        return tuple(ends)


@dataclass(frozen=True)
class Expanded:
    """A prompt with every choice made.

    Args:
        parts: Texts and variables.
        choices: What was chosen, from left to right; inner choices are part of the outer one.
    """

    parts: tuple[str | Variable, ...]
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt with its variables as they are written."""
        return "".join(p if isinstance(p, str) else f"{{{p.name}}}" for p in self.parts)

    @property
    def variables(self) -> frozenset[str]:
        """Names of its variables."""
        return frozenset(part.name for part in self.parts if isinstance(part, Variable))

    def fill(self, values: Mapping[str, str]) -> str:
        """The prompt with the values of its variables."""
        return "".join(p if isinstance(p, str) else values[p.name] for p in self.parts)


Pick = Callable[[Alternatives], int]


@dataclass(frozen=True, eq=False)
class Template:
    """A prompt as it is written, its wildcards looked up.

    Args:
        parts: Texts, variables and choices, from left to right.
        depth: How many wildcard files stand inside one another in it.
    """

    parts: tuple[str | Variable | Alternatives, ...]
    depth: int = 0

    @cached_property
    def count(self) -> int:
        """How many prompts it stands for, ``MANY`` where there are as many or more."""
        count = 1
        for part in self.parts:
            if isinstance(part, Alternatives):
                count = min(count * part.ends[-1], MANY)
        return count

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that its prompts may have."""
        found: set[str] = set()
        for part in self.parts:
            if isinstance(part, Variable):
                found.add(part.name)
            elif isinstance(part, Alternatives):
                found.update(*(option.variables for option in part.options))
        return frozenset(found)

    def prompts(self) -> Iterator[Expanded]:
        """Every prompt, the leftmost choice changing slowest.

        Raises:
            ValueError: One is longer than ``MAX_PROMPT``.
        """
        return (self.at(index) for index in range(self.count))

    def at(self, index: int) -> Expanded:
        """One prompt by its number from 0, below ``count``.

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
        self._left = MAX_PROMPT

    def made(self) -> Expanded:
        parts = tuple(self._parts)
        if len(parts) > 1 and not any(isinstance(part, Variable) for part in parts):
            parts = ("".join(str(part) for part in parts),)
        return Expanded(parts, tuple(self._choices))

    def walk(self, template: Template, index: int) -> None:
        places = []
        for part in reversed(template.parts):
            places.append(0)
            if isinstance(part, Alternatives):
                index, places[-1] = divmod(index, part.ends[-1])
        for part, place in zip(template.parts, reversed(places), strict=True):
            if isinstance(part, Alternatives):
                number = bisect.bisect_right(part.ends, place)
                first = part.ends[number - 1] if number else 0
                with self._choosing():
                    self.walk(part.options[number], place - first)
            else:
                self._add(part)

    def draw(self, template: Template, pick: Pick) -> None:
        for part in template.parts:
            if isinstance(part, Alternatives):
                with self._choosing():
                    self.draw(part.options[pick(part)], pick)
            else:
                self._add(part)

    @contextmanager
    def _choosing(self) -> Iterator[None]:
        """Keep what is chosen inside; a choice inside of a choice is a part of it."""
        self._spend(1)
        start, before = len(self._parts), len(self._choices)
        yield
        self._choices[before:] = ["".join(p for p in self._parts[start:] if isinstance(p, str))]

    def _add(self, part: str | Variable) -> None:
        self._parts.append(part)
        self._spend(len(part) if isinstance(part, str) else 1)

    def _spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise ValueError(too_long())


def problem_of(text: str) -> str | None:
    """What is wrong with a prompt in which everything is filled in; None if nothing is."""
    if not text.strip():
        return "makes a blank prompt: write a word into or beside what may be empty"
    return too_long() if len(text) > MAX_PROMPT else None


def too_long() -> str:
    """What is wrong with a prompt that is too long."""
    return f"makes a prompt longer than the limit of {MAX_PROMPT:,} characters"


def parse_template(
    text: str,
    variables: Collection[str] = (),
    wildcard: Callable[[str], Alternatives] | None = None,
) -> Template:
    """Read a prompt.

    ``{{`` and ``}}`` are literal braces, ``____`` is a literal ``__``; a ``|`` outside of braces
    is itself, and so is a ``__`` that doesn't begin ``__name__``.

    Args:
        text: The prompt as it is written.
        variables: Names that may stand in braces.
        wildcard: Finds what a wildcard stands for.

    Raises:
        ValueError: Unbalanced or nested braces, braces with neither alternatives nor a variable,
            a wildcard that isn't there.
    """
    if not _SPECIAL.search(text):
        return Template((text,))
    return _Parser(variables, wildcard).parse(text)


def escape(text: str) -> str:
    """Write a text so that a prompt shows it literally."""
    return text.replace("{", "{{").replace("}", "}}").replace("__", "____")


@dataclass(frozen=True)
class _Wildcard:
    """A wildcard that isn't looked up yet, because the text around it may be wrong."""

    name: str


_Part = str | Variable | Alternatives | _Wildcard


class _Parser:
    def __init__(
        self, variables: Collection[str], wildcard: Callable[[str], Alternatives] | None
    ) -> None:
        self._variables = variables
        self._wildcard = wildcard
        self._parts: list[_Part] = []
        self._options: list[list[_Part]] | None = None
        self._texts: list[str] = []
        self._depth = 0

    def parse(self, text: str) -> Template:
        for match in _PIECE.finditer(text):
            self._take(match.group(), match["wildcard"])
        if self._options is not None:
            raise ValueError("has a { that is never closed: write {{ for a literal brace")
        return Template(self._joined(self._parts), self._depth)

    def _take(self, piece: str, wildcard: str | None) -> None:
        if piece == "{":
            if self._options is not None:
                raise ValueError("has alternatives inside alternatives: write them out in a list")
            self._options, self._texts = [[]], [""]
        elif piece == "}":
            self._parts.append(self._closed())
            self._options = None
        elif piece == "|" and self._options is not None:
            self._options.append([])
            self._texts.append("")
        else:
            part = _Wildcard(wildcard) if wildcard is not None else _LITERAL.get(piece, piece)
            if self._options is None:
                self._parts.append(part)
            else:
                self._options[-1].append(part)
                self._texts[-1] += piece

    def _closed(self) -> Variable | Alternatives:
        if self._options is None:
            raise ValueError("has a } that nothing opened: write }} for a literal brace")
        if len(self._options) > 1:
            # What is offered twice is one alternative.
            offered = dict(zip(self._texts, self._options, strict=True))
            options = tuple(Template(self._joined(option)) for option in offered.values())
            return Alternatives(options, tuple(offered))
        name = self._texts[0]
        if name in self._variables:
            return Variable(name)
        meant = closest(name, self._variables)
        known = " and is no variable of [matrix]" if self._variables else ""
        hint = f"; did you mean {{{meant}}}?" if meant else ""
        raise ValueError(
            f"has {shorten(f'{{{name}}}')}, which offers no alternatives{known}{hint}: write "
            "{a|b}, or {{ and }} for literal braces"
        )

    def _look_up(self, name: str) -> Alternatives:
        if self._wildcard is None:
            raise ValueError(f"has the wildcard __{name}__, which nothing here stands for")
        choice = self._wildcard(name)
        depth = 1 + max(option.depth for option in choice.options)
        self._depth = max(self._depth, depth)
        return choice

    def _joined(self, parts: list[_Part]) -> tuple[str | Variable | Alternatives, ...]:
        """The parts with wildcards looked up, and neighbouring texts joined."""
        joined: list[str | Variable | Alternatives] = []
        for part in parts:
            if isinstance(part, _Wildcard):
                joined.append(self._look_up(part.name))
            elif isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        return tuple(joined)
