"""Keywords: finds words in a prompt, in English and Chinese; ``presets`` decides by them."""

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
class KeywordMatch:
    """A word of a list that stands in a prompt.

    Args:
        word: As the list has it.
        written: As the prompt has it.
        place: Index of its first character in the prompt.
    """

    word: str
    written: str
    place: int


# A word's place in its list, the word, and the forms of all its parts.
_LatinWord = tuple[int, str, tuple[frozenset[str], ...]]


@lru_cache(maxsize=4096)
def find_words(prompt: str, words: tuple[str, ...]) -> tuple[KeywordMatch, ...]:
    """Find the words of a list in a prompt.

    Args:
        prompt: The prompt.
        words: Words or phrases. Those in Latin letters are found as whole words, small or capital,
            also with the endings of ``forms``; Chinese ones wherever they stand.

    Returns:
        What was found, in the order of the prompt; each word of the list once.
    """
    (chinese, latin), tokens = _index(words), _tokens(prompt)
    found: dict[int, KeywordMatch] = {}
    for start, (token, first, _) in enumerate(tokens):
        for number, word, wanted in latin.get(token, ()):
            part = tokens[start : start + len(wanted)]
            pairs = zip(part, wanted, strict=False)
            fits = len(part) == len(wanted) and all(one[0] in accepted for one, accepted in pairs)
            if fits and number not in found:
                found[number] = KeywordMatch(word, prompt[first : part[-1][2]], first)
    for number, word in chinese:
        place = prompt.find(word)
        if place >= 0:
            found[number] = KeywordMatch(word, word, place)
    return tuple(found[number] for number in sorted(found, key=lambda n: (found[n].place, n)))


@lru_cache(maxsize=16)
def _tokens(prompt: str) -> list[tuple[str, int, int]]:
    """The words of a prompt as they are compared, each with its beginning and its end."""
    return [(_plain(found.group()), *found.span()) for found in _WORD.finditer(prompt)]


@cache
def _index(words: tuple[str, ...]) -> tuple[list[tuple[int, str]], dict[str, list[_LatinWord]]]:
    """The Chinese words, which are found wherever they stand; others by the forms they begin with.

    Each has its place in the list.
    """
    chinese: list[tuple[int, str]] = []
    latin: dict[str, list[_LatinWord]] = {}
    for number, word in enumerate(words):
        wanted = tuple(forms(part) for part in _WORD.findall(word))
        if re.search(f"[{_HAN}]", word):
            chinese.append((number, word))
        else:
            for form in wanted[0] if wanted else ():
                latin.setdefault(form, []).append((number, word, wanted))
    return chinese, latin


def forms(word: str) -> frozenset[str]:
    """A word, and the endings that English gives a noun in the plural or a verb with "it".

    Longer endings make other words: "waving" isn't found for "wave".
    """
    word = _plain(word)
    found = {word, word + "s"}
    if word.endswith(_WITH_ES):
        found.add(word + "es")
    if word.endswith("y"):
        found.add(word[:-1] + "ies")
    return frozenset(found)


def _plain(word: str) -> str:
    word = word.casefold()
    return _POSSESSIVE.sub("", word) if "'" in word or "\u2019" in word else word


@cache
def word_lists() -> dict[str, Any]:
    """The lists of words that come with flowblend."""
    text = (files("flowblend_cli") / "data" / "wording.toml").read_text("utf-8")
    return {
        name: {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        for name, table in tomli.loads(text).items()
    }
