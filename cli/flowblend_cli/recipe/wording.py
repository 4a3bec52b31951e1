"""Which words stand in a prompt: whole words in English, with their endings, and Chinese."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import tomli

_HAN = "\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W\d_{_HAN}]+(?:['\u2019][^\W\d_{_HAN}]+)?")
_POSSESSIVE = re.compile(r"['\u2019]s?$")
_WITH_ES = ("s", "x", "z", "ch", "sh")


@dataclass(frozen=True)
class Found:
    """A word of a list that stands in a prompt.

    Args:
        word: As the list has it.
        written: As the prompt has it.
        place: Where it begins in the prompt.
    """

    word: str
    written: str
    place: int


@lru_cache(maxsize=4096)
def find_words(prompt: str, words: tuple[str, ...]) -> tuple[Found, ...]:
    """Find the words of a list in a prompt.

    Args:
        prompt: The prompt.
        words: Words or phrases. Those in Latin letters are found as whole words, small or capital,
            also with the endings of ``forms``; Chinese ones wherever they stand.

    Returns:
        What was found, in the order of the prompt; each word of the list once.
    """
    tokens = list(_WORD.finditer(prompt))
    found = [each for word in words if (each := _find(prompt, tokens, word)) is not None]
    return tuple(sorted(found, key=lambda each: each.place))


def _find(prompt: str, tokens: list[re.Match[str]], word: str) -> Found | None:
    if re.search(f"[{_HAN}]", word):
        place = prompt.find(word)
        return Found(word, word, place) if place >= 0 else None
    wanted = [forms(part) for part in _WORD.findall(word)]
    for start in range(len(tokens) - len(wanted) + 1) if wanted else ():
        part = tokens[start : start + len(wanted)]
        if all(_plain(t.group()) in each for t, each in zip(part, wanted, strict=True)):
            first, last = part[0].start(), part[-1].end()
            return Found(word, prompt[first:last], first)
    return None


def forms(word: str) -> frozenset[str]:
    """A word, and the endings that English gives a noun in the plural or a verb with "it".

    Longer endings make other words: a hand that is waving is no wave.
    """
    word = _plain(word)
    found = {word, word + "s"}
    if word.endswith(_WITH_ES):
        found.add(word + "es")
    if word.endswith("y"):
        found.add(word[:-1] + "ies")
    return frozenset(found)


def _plain(word: str) -> str:
    return _POSSESSIVE.sub("", word.casefold())


@cache
def word_lists() -> dict[str, Any]:
    """The lists of words that come with flowblend."""
    text = (files("flowblend_cli") / "data" / "wording.toml").read_text("utf-8")
    return {name: _frozen(table) for name, table in tomli.loads(text).items()}


def _frozen(table: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(value) if isinstance(value, list) else value for k, value in table.items()}
