"""Syntax: reads prompts as they are written: the template language of Dynamic Prompts, and escapes.

``{{``, ``}}`` and ``____`` are literal. What only other programs read is noted, see ``foreign``.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from flowblend_cli.recipe.prompts.foreign import find_foreign
from flowblend_cli.recipe.prompts.foreign_settings import json_problem
from flowblend_cli.recipe.prompts.template import (
    Alternatives,
    Expanded,
    Note,
    Selection,
    Template,
    Variable,
    select,
)
from flowblend_cli.recipe.source.limits import MAX_BRACES, MAX_JOBS
from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import closest

_SPECIAL = re.compile(r"[{}]|__|/\*|\n[ \t]*\\*(?:#|//)|^[ \t]*\\*(?:#|//)[^\n]*\n")
_BRACES = re.compile(r"\{\{|\}\}|[{}]")
_COMMENT = re.compile(
    r"(?P<inline>(?<!\S)(?:(?P<escape>\\)\\*(?=/\*)|/\*(?s:.*?)\*/(?!\w)))"
    r"|^[ \t]*(?:(?P<line_escape>\\)\\*(?=#|//)|(?:#|//)[^\n]*(?:\n|\Z))",
    re.MULTILINE,
)
_TO_ESCAPE = re.compile(r"(?:(?<!\S)(?=\\*/\*)|^[ \t]*(?=\\*(?:#|//)))", re.MULTILINE)
_MARK = re.compile(r"\{|_(?=_)|[$%](?=\{)")
_HEAD = re.compile(
    r"\s*(?P<sampler>[~!@](?!\s*\|))?\s*"
    r"(?P<bound>(?P<low>\d{1,6})?\s*(?P<dash>-)?\s*(?P<high>\d{1,6})?\s*\$\$"
    r"(?:(?P<separator>[^${}\n]*)\$\$)?)?"
)
WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*::\s*")
_USE = re.compile(
    r"\s*(?P<name>[A-Za-z_-][\w-]*)\s*"
    r"(?:(?P<keep>\?)?(?P<set>=)(?P<now>!)?|(?P<else>:)|\Z)"
)
_PARAMETERS = re.compile(r"\s*\((?=[^()]*=)(?P<values>[^()]*)\)\s*\Z")
_PARAMETER = re.compile(r"\s*(?P<name>[A-Za-z_-][\w-]*)\s*=\s*")
_MOST_NAMES = 1000
_MOST_VALUES = 10_000
_MOST_REGIONS = 20_000
_NO_NUMBER = "has $$ without a number: write {2$$a|b|c} or {1-2$$ and $$a|b|c}"

Part = str | Variable | Alternatives | Selection
Parts = tuple[Part, ...]


class InvalidPrompt(ValueError):  # noqa: N818 - callers name the file
    """A prompt that can't be read.

    Args:
        message: What is wrong.
        offset: Where it is, in characters from the prompt's beginning.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Written:
    """The value of a variable as it is written, read anew wherever it is used."""

    parser: _Parser
    start: int
    end: int


Values = Mapping[str, Written | Parts]
NO_VALUES: Values = {}


class Wildcard(Protocol):
    """Finds what a wildcard stands for, where variables have values; raises a ``ValueError``."""

    def __call__(self, name: str, values: Values, /) -> Alternatives:
        """Find what a name stands for."""


def parse_template(
    text: str,
    variables: Collection[str] = (),
    wildcard: Wildcard | None = None,
    values: Values = NO_VALUES,
) -> Template:
    """Read a prompt.

    Args:
        text: The prompt as it is written.
        variables: Names of [matrix] that may stand in braces.
        wildcard: Finds what a wildcard stands for.
        values: Values of ``${name}``.

    Raises:
        InvalidPrompt: Unbalanced braces, braces with neither alternatives nor a variable, a
            variable without a value, a wildcard that isn't there.
    """
    if not _SPECIAL.search(text):
        return Template((text,), notes=tuple(find_foreign(text)))
    problem = json_problem(text)
    if problem is not None:
        raise InvalidPrompt(problem)
    return _Parser(text, variables, wildcard).read(values)


def escape(text: str) -> str:
    """Write a text so that a prompt shows it literally."""
    if "\n" in text or "/*" in text:
        text = _TO_ESCAPE.sub(lambda match: match.group() + "\\", text)
    return text.replace("{", "{{").replace("}", "}}").replace("__", "____")


class _Assignment(NamedTuple):
    """``${name=value}``, from its ``$`` to what follows it."""

    name: str
    keeps: bool
    is_immediate: bool
    start: int
    value: int
    close: int
    end: int


class _Parser:
    """Reads one text; regions of it, such as options and values, by their offsets."""

    def __init__(self, text: str, variables: Collection[str], wildcard: Wildcard | None) -> None:
        self._text = text
        self._variables = variables
        self._wildcard = wildcard
        self._depth = 0
        self._notes: dict[Note, None] = {}
        self._regions = 0
        # What stands for itself or for nothing: its end, and the text that it is.
        self._fixed: dict[int, tuple[int, str]] = {}
        for match in _COMMENT.finditer(text):
            escape = "escape" if match["escape"] else "line_escape" if match["line_escape"] else 0
            if "\n" in text or match["inline"]:
                start, end = match.span(escape)
                self._fixed[start] = (end, "")
                if not escape and not match["inline"]:
                    line = text[start:end].strip()
                    message = (
                        f"{shorten(line, 40)!r} is a comment, and is left out: write \\{line[:1]} "
                        "to keep the line"
                    )
                    self._notes[Note(start, message, False)] = None
        self._pairs: dict[int, int] = {}
        self._match_braces()
        self._stops = sorted({*(m.start() for m in _MARK.finditer(text)), *self._fixed})
        self._mask = list(text)
        self._hide()

    def read(self, values: Values) -> Template:
        """The whole text."""
        parts = self.region(0, len(self._text), values)
        notes = [*find_foreign("".join(self._mask)), *self._notes]
        return Template(parts, self._depth, tuple(sorted(notes, key=lambda note: note.offset)))

    def region(self, start: int, end: int, values: Values) -> Parts:
        """A stretch of the text that has every brace's partner in it."""
        self._regions += 1
        if self._regions > _MOST_REGIONS:
            raise InvalidPrompt("uses its variables too often, inside one another", start)
        return self._assigned([*self._assignments(start, end)], start, end, values)

    # Braces

    def _match_braces(self) -> None:
        """Pair the braces. Doubled ones are literal, unless only nested alternatives make sense."""
        tokens = [
            match for match in _BRACES.finditer(self._text) if not self._is_comment(match.start())
        ]
        problem = self._match_flat(tokens)
        if problem is not None and not self._match_nested():
            raise _extra_brace(tokens) or problem

    def _match_flat(self, tokens: list[re.Match[str]]) -> InvalidPrompt | None:
        fixed: dict[int, tuple[int, str]] = {}
        pairs: dict[int, int] = {}
        opened: int | None = None
        for token in tokens:
            at = token.start()
            if len(token.group()) == 2:
                fixed[at] = (token.end(), token.group()[0])
            elif token.group() == "{":
                if opened is not None:
                    return _never_closed(opened)
                opened = at
            elif opened is None:
                message = "has a } that nothing opened: write }} for a literal brace"
                return InvalidPrompt(message, at)
            else:
                pairs[opened] = at
                opened = None
        if opened is not None:
            return _never_closed(opened)
        self._fixed |= fixed
        self._pairs = pairs
        return None

    def _match_nested(self) -> bool:
        pairs: dict[int, int] = {}
        opened: list[int] = []
        for match in re.finditer(r"[{}]", self._text):
            at = match.start()
            if self._is_comment(at):
                continue
            if match.group() == "{":
                opened.append(at)
                if len(opened) > MAX_BRACES:
                    message = f"nests braces deeper than the limit of {MAX_BRACES}"
                    raise InvalidPrompt(message, opened[0])
            elif not opened:
                return False
            else:
                pairs[opened.pop()] = at
        if opened:
            return False
        for start, end in sorted(pairs.items()):
            if pairs.get(start + 1) == end - 1 and start - 1 not in self._fixed:
                self._fixed |= {start: (start + 2, "{"), end - 1: (end + 1, "}")}
        literal = {at + side for at, (_, text) in self._fixed.items() if text for side in (0, 1)}
        self._pairs = {start: end for start, end in pairs.items() if start not in literal}
        return True

    def _is_comment(self, at: int) -> bool:
        return any(start <= at < end for start, (end, text) in self._fixed.items() if not text)

    def _split(self, start: int, end: int, mark: str) -> list[tuple[int, int]]:
        """The stretches between the marks that stand in no braces of their own."""
        found, at = [], start
        while at < end:
            if at in self._fixed:
                at = self._fixed[at][0]
            elif at in self._pairs:
                at = self._pairs[at] + 1
            elif self._text.startswith(mark, at):
                found.append((start, at))
                at += len(mark)
                start = at
            else:
                at += 1
        return [*found, (start, end)]

    def _hide(self) -> None:
        """Blank the syntax itself, so that nobody takes it for another program's."""
        for start, (end, literal) in self._fixed.items():
            if not literal:
                self._blank(start, end)
        for start, end in self._pairs.items():
            head = _HEAD.match(self._text, start + 1, end)
            self._blank(start, head.end() if head else start + 1)
            self._blank(end, end + 1)
            for first, last in self._split(start + 1, end, "|"):
                self._blank(last, last + 1)
                begin = head.end() if head and first == start + 1 else first
                weight = WEIGHT.match(self._text, begin, last)
                if weight:
                    self._blank(*weight.span())

    def _blank(self, start: int, end: int) -> None:
        self._mask[start:end] = "\0" * (end - start)

    # Variables

    def _assignments(self, start: int, end: int) -> Iterator[_Assignment]:
        """The assignments of a stretch itself, in order."""
        after = start
        for at, close in sorted(self._pairs.items()):
            if not after <= at < end:
                continue
            after = close + 1
            use = _USE.match(self._text, at + 1, close)
            if use is not None and use["set"] and at > start and self._text[at - 1] == "$":
                while after < end and self._text[after].isspace():
                    after += 1
                yield _Assignment(
                    use["name"],
                    bool(use["keep"]),
                    bool(use["now"]),
                    at - 1,
                    use.end(),
                    close,
                    after,
                )

    def _assigned(
        self, assignments: list[_Assignment], start: int, end: int, values: Values
    ) -> Parts:
        """A stretch, with the values that its assignments give."""
        for number, one in enumerate(assignments):
            self._blank(one.start, one.value)
            if one.keeps and one.name in values:
                continue
            if not one.is_immediate:
                values = {**values, one.name: Written(self, one.value, one.close)}
                continue
            made = Template(self.region(one.value, one.close, values))
            if made.count > _MOST_VALUES:
                message = (
                    f"gives ${{{one.name}}} more than {_MOST_VALUES:,} values: leave its ! out"
                )
                raise InvalidPrompt(message, one.start)
            options = {
                prompt.text: Template(
                    self._assigned(
                        assignments[number + 1 :],
                        start,
                        end,
                        {**values, one.name: prompt.parts},
                    )
                )
                for prompt in self._made(made, one.start)
            }
            return (Alternatives(tuple(options.values()), tuple(options), is_open=True),)
        return self._parts(start, end, values)

    def _use(self, at: int, values: Values) -> tuple[int, Parts] | None:
        """What ``${name}`` stands for, and where it ends; None for a dollar before other braces."""
        close = self._pairs.get(at + 1)
        use = _USE.match(self._text, at + 2, close) if close is not None else None
        if close is None or use is None:
            return None
        name = use["name"]
        if use["set"]:
            after = next(a.end for a in self._assignments(at, len(self._text)) if a.start == at)
            return after, ()
        self._blank(at, use.end())
        if name in values:
            value = values[name]
            if not isinstance(value, Written):
                return close + 1, value
            others = {key: each for key, each in values.items() if key != name}
            with self._blaming(at):
                return close + 1, value.parser.region(value.start, value.end, others)
        if use["else"]:
            return close + 1, self.region(*self._trim(use.end(), close), values)
        if name in self._variables:
            return None
        raise InvalidPrompt(
            f"has ${{{shorten(name)}}}, which has no value: write ${{{shorten(name)}=...}} before "
            "it, or {{ and }} for literal braces",
            at,
        )

    # Parts

    def _parts(self, start: int, end: int, values: Values) -> Parts:
        """The parts of a stretch, neighbouring texts joined."""
        parts: list[Part] = []
        at = start
        while at < end:
            stop, found = self._part(at, end, values)
            for part in found:
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part or not isinstance(part, str):
                    parts.append(part)
            at = stop
        return tuple(parts) or ("",)

    def _part(self, at: int, end: int, values: Values) -> tuple[int, Parts]:
        """What begins at an offset, and where that ends."""
        text = self._text
        if at in self._fixed:
            stop, literal = self._fixed[at]
            return stop, (literal,)
        if at in self._pairs:
            return self._pairs[at] + 1, (self._group(at, values),)
        if text.startswith("____", at):
            return at + 4, ("__",)
        close = self._wildcard_end(at, end) if text.startswith("__", at) else None
        if close is not None:
            return close, (self._look_up(at, close, values),)
        is_dollar = text.startswith("${", at) and at + 1 not in self._fixed
        found = self._use(at, values) if is_dollar else None
        if text.startswith("%{", at) and at + 1 not in self._fixed:
            found = self._wrap(at, values)
        if found is not None:
            return found
        stop = bisect.bisect_right(self._stops, at)
        until = self._stops[stop] if stop < len(self._stops) else end
        return min(until, end), (text[at : min(until, end)],)

    def _group(self, start: int, values: Values) -> Variable | Alternatives | Selection:
        """What ``{...}`` stands for."""
        text, close = self._text, self._pairs[start]
        head = _HEAD.match(text, start + 1, close)
        assert head is not None
        has_bound = head["bound"] is not None
        regions = self._split(head.end() if has_bound or head["sampler"] else start + 1, close, "|")
        if has_bound and not (head["low"] or head["high"]):
            raise InvalidPrompt(_NO_NUMBER, start)
        if len(regions) == 1 and not has_bound:
            return self._variable(text[start + 1 : close], start)
        found: dict[str, tuple[float, Template]] = {}
        for number, (first, last) in enumerate(regions):
            weight = WEIGHT.match(text, first, last)
            first = weight.end() if weight else first
            first, last = self._trim(first, last) if has_bound else (first, last)
            if len(self._split(first, last, "$$")) > 1:
                raise InvalidPrompt(_NO_NUMBER, start)
            # What is offered twice is one alternative; two draws of one file are two draws.
            name = text[first:last] + (" " * number if has_bound and "__" in text else "")
            often = float(weight[1]) if weight else 1.0
            if name in found:
                found[name] = (found[name][0] + often, found[name][1])
            elif often:
                found[name] = (often, Template(self.region(first, last, values)))
        if not found:
            raise InvalidPrompt("has alternatives that all have the weight 0", start)
        weights = tuple(often for often, _ in found.values())
        pool = Alternatives(
            tuple(template for _, template in found.values()),
            tuple(found),
            weights if len(set(weights)) > 1 else (),
        )
        if has_bound:
            with self._blaming(start):
                return self._selection(pool, head)
        return replace(pool, is_cyclic=True) if head["sampler"] == "@" else pool

    def _selection(self, pool: Alternatives, head: re.Match[str]) -> Alternatives | Selection:
        """What ``{2$$a|b|c}`` stands for."""
        inner = pool.options[0].parts
        if len(pool.options) == 1 and len(inner) == 1 and isinstance(inner[0], Alternatives):
            pool = inner[0]
        low = int(head["low"]) if head["low"] else 1
        high = int(head["high"]) if head["high"] else (len(pool.options) if head["dash"] else low)
        separator = head["separator"] if head["separator"] is not None else ","
        return select(pool, min(low, high), max(low, high), separator)

    def _variable(self, name: str, at: int) -> Variable:
        """What ``{name}`` stands for."""
        if name in self._variables:
            return Variable(name)
        meant = closest(name, self._variables)
        known = " and is no variable of [matrix]" if self._variables else ""
        hint = f"; did you mean {{{meant}}}?" if meant else ""
        raise InvalidPrompt(
            f"has {shorten(f'{{{name}}}')}, which offers no alternatives{known}{hint}: write "
            "{a|b}, or {{ and }} for literal braces",
            at,
        )

    def _wrap(self, at: int, values: Values) -> tuple[int, Parts] | None:
        """What ``%{before...after$$inner}`` stands for; None for a sign before other braces."""
        close = self._pairs[at + 1]
        regions = self._split(at + 2, close, "$$")
        if len(regions) != 2:
            return None
        self._blank(at, at + 2)
        self._blank(regions[0][1], regions[1][0])
        made = Template(self.region(*self._trim(*regions[0]), values))
        inner = self.region(*self._trim(*regions[1]), values)
        options = {}
        for prompt in self._made(made, at):
            before, _, after = re.sub(r"\.{3,}|\u2026+", "\0", prompt.text, count=1).partition("\0")
            if prompt.variables:
                raise InvalidPrompt("has a variable of [matrix] in a %{...} that wraps", at)
            options[prompt.text] = Template((before, *inner, after))
        return close + 1, (Alternatives(tuple(options.values()), tuple(options)),)

    def _made(self, template: Template, at: int) -> list[Expanded]:
        """Every prompt of a part, if it has few enough."""
        if template.count > MAX_JOBS:
            raise InvalidPrompt(f"stands for more than {MAX_JOBS:,} prompts by itself", at)
        with self._blaming(at):
            return list(template.prompts())

    def _trim(self, start: int, end: int) -> tuple[int, int]:
        """A stretch without the space around it."""
        text = self._text[start:end]
        stripped = text.strip()
        start += len(text) - len(text.lstrip())
        return start, start + len(stripped)

    # Wildcards

    def _wildcard_end(self, at: int, end: int) -> int | None:
        """Where ``__name__`` ends; None where its underscores are themselves."""
        text, start = self._text, at + 2
        if start >= end or text[start].isspace() or text[start] == "_":
            return None
        at = start
        while at < end:
            if text.startswith("__", at) and at > start:
                is_text = text[at - 1].isspace() or self._is_within_word(start - 2, at + 2)
                return None if is_text or at + 2 > end else at + 2
            if (
                at in self._fixed
                or text[at] in '|}\n"'
                or (text[at] == "{" and at not in self._pairs)
            ):
                return None
            at = self._pairs[at] + 1 if at in self._pairs else at + 1
        return None

    def _is_within_word(self, start: int, end: int) -> bool:
        """Whether letters touch a place on both sides, as in ``my__file__v2`` or an address."""
        return self._text[:start][-1:].isalnum() and self._text[end : end + 1].isalnum()

    def _look_up(self, start: int, end: int, values: Values) -> Alternatives:
        """What ``__name__`` stands for, or ``__~name(key=value)__``."""
        self._blank(start, end)
        first, last = start + 2, end - 2
        sampler = self._text[first]
        first += sampler in "~!@"
        given = _PARAMETERS.search(self._text, first, last)
        if given is not None:
            values = {**values, **self._parameters(given)}
            last = given.start()
        names = [self._text[first:last]]
        if "{" in names[0]:
            made = self._made(Template(self.region(first, last, values)), start)
            names = list(dict.fromkeys(prompt.text for prompt in made))
            if len(names) > _MOST_NAMES or any(prompt.variables for prompt in made):
                message = (
                    f"names a wildcard in more than {_MOST_NAMES:,} ways, or by a variable of "
                    "[matrix]"
                )
                raise InvalidPrompt(message, start)
        with self._blaming(start):
            found = [self._file(name, values, start) for name in names]
        choice = found[0]
        if len(found) > 1:
            choice = Alternatives(tuple(Template((each,)) for each in found), tuple(names))
        return replace(choice, is_cyclic=True) if sampler == "@" else choice

    def _file(self, name: str, values: Values, at: int) -> Alternatives:
        if self._wildcard is None:
            raise InvalidPrompt(f"has the wildcard __{name}__, which nothing here stands for", at)
        choice = self._wildcard(name, values)
        self._depth = max(self._depth, 1 + max(option.depth for option in choice.options))
        for option in choice.options:
            self._notes |= dict.fromkeys(replace(note, offset=at) for note in option.notes)
        return choice

    def _parameters(self, given: re.Match[str]) -> dict[str, Written]:
        values = {}
        for first, last in self._split(given.start("values"), given.end("values"), ","):
            key = _PARAMETER.match(self._text, first, last)
            if key is None:
                raise InvalidPrompt("has a wildcard's value without name=", first)
            values[key["name"]] = Written(self, *self._trim(key.end(), last))
        return values

    @contextmanager
    def _blaming(self, at: int) -> Iterator[None]:
        """Say of errors without a place in this text that they stand here."""
        try:
            yield
        except ValueError as error:
            raise InvalidPrompt(str(error), at) from error


def _extra_brace(tokens: list[re.Match[str]]) -> InvalidPrompt | None:
    """The brace too many where a doubled one stands for a single one; None without one."""
    texts = [token.group() for token in tokens]
    opened, closed = (sum(text.count(brace) for text in texts) for brace in "{}")
    first = next((token for token in tokens if len(token.group()) == 1), None)
    if first is None or opened == closed:
        return None
    after = [one for one in tokens if one.group() == "}}" and one.start() > first.start()]
    if closed > opened and first.group() == "{" and after:
        token = after[0]
        message = "has one } too many: take it out; }} is a literal brace, and ends nothing"
        return InvalidPrompt(message, token.end() - 1)
    if opened > closed and first.group() == "}" and texts[0] == "{{":
        message = "has one { too many: take it out; {{ is a literal brace, and begins nothing"
        return InvalidPrompt(message, tokens[0].start())
    return None


def _never_closed(at: int) -> InvalidPrompt:
    return InvalidPrompt("has a { that is never closed: write {{ for a literal brace", at)
