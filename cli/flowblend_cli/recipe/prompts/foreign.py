"""Foreign syntax: finds in a prompt what only other programs read, and is mere text here."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowblend_cli.recipe.prompts.foreign_settings import find_settings
from flowblend_cli.recipe.prompts.template import Note
from flowblend_cli.text import shorten

_NUMBER = r"[+-]?(?:\d+\.\d*|\.\d+|\d+)"
# What SwarmUI, A1111 and prompt-control put into angle brackets.
_TAGS = (
    "lora|lyco|lycoris|hypernet|embed|embedding|segment|object|region|random|wildcard|wc|alternate|alt"
    "|fromto|repeat|preset|p|comment|setvar|setmacro|var|macro|param|clear|edit|extend|ti|lbw|sampler"
)
_TAG = re.compile(
    rf"<(?P<tag>{_TAGS})(?:\[[^\]<>]*\])?\s*:(?P<value>[^<>]*)>|<(?:break|refiner|base|trigger)>",
    re.IGNORECASE,
)
_WEIGHTED = re.compile(rf":(?P<number>\s*{_NUMBER})\s*\)")
_COMPEL_NUMBER = re.compile(r"\([^()]+\)(?:\d+\.\d+|\.\d+)(?![\w%])")
_COMPEL = re.compile(
    r"\([^()]+\)(?:\++|-{1,3}(?=[\s,.]|\Z))|(?<![\w+])[^\W\d_]{2,}\+{1,4}(?=[\s,.]|\Z)"
)
# [from:to:when], [from::when], [:to:when]; a time of day or a ratio has a digit before the colon.
_EDITED = re.compile(rf"\[[^\[\]:]*:(?:[^\[\]:]*[^\W\d])?\s*:\s*{_NUMBER}\s*\]")
_EDITED_LATE = re.compile(rf"\[[^\[\]:]*[^\W\d]:{_NUMBER}\]")
_ALTERNATING = re.compile(r"\[[^\[\]|]*\w[^\[\]|]*\|[^\[\]]*\w[^\[\]]*\]")
_EMBEDDING = re.compile(r"(?<!\w)embedding:[\w./\\-]+", re.IGNORECASE)
_METHOD = re.compile(r"\([^()]*\)\.(?:swap|blend|and)\(|(?<=[\"'])\.swap\(")
_MACRO = re.compile(
    r"\b(?:AREA|MASK|IMASK|FEATHER|SHUFFLE|SHIFT|NOISE|COUPLE|STYLE|ATTN|CUT)\((?:[^()]*[\s,.])?"
    r"\d+(?:\.\d+)?\s*\)"
)
_REGIONAL = re.compile(r"\b(?:ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b")
_DOUBLE = re.compile(r"\(\(+[^()]+\)+\)|\[\[+[^\[\]]+\]+\]")
_LESS = re.compile(r"\[(?:[^\W\d_]|\0)[^\[\]]*\]")
_WORDS = re.compile(r"(?<![\w'\"-])(?:BREAK|AND)(?![\w'\"-])")
_PARTED = re.compile(r"(?<=[^\W\d_])::(?:-?\d+(?:\.\d+)?)?(?=[\s,]|\Z)")
_ESCAPED = re.compile(r"\\[()\[\]]")
_SQUARE = re.compile(r"\{\{[^{}]*\|[^{}]*\}\}")
_SYNTAX = re.compile(r"\{[^{}]*\|[^{}]*\}|(?<!_)__\w[^_|{}\n]*__(?!_)")
_QUICK = re.compile(
    r"[<(\[:+\\\u2013\u2014]|--|BREAK|AND|ADD|\{\{|\s-[A-Za-z]|#|//|^\s*/\w", re.MULTILINE
)

_WEIGHT = "would weight words, which no pipeline here does: say it in words"
_AS_TEXT = "; lint = false in the scene takes it as text"
_CHANGE = "would change the prompt between two steps, which isn't done here: write one of them"
_CERTAIN = (
    (_EDITED, _CHANGE),
    (_EMBEDDING, "would load a textual inversion, which isn't done here: take it out"),
    (_METHOD, "would mix prompts as InvokeAI does, which isn't done here: write one prompt"),
    (_REGIONAL, "would divide the picture into regions, which isn't done here: take it out"),
)
_LIKELY = (
    (_ALTERNATING, "would take turns from step to step in other programs, and is text here"),
    (_EDITED_LATE, _CHANGE),
    (_COMPEL_NUMBER, _WEIGHT),
    (_MACRO, "would be read by a node of ComfyUI, and is text here"),
    (_DOUBLE, _WEIGHT),
    (_LESS, "would weaken words in other programs, and is text here, brackets and all"),
    (_COMPEL, _WEIGHT),
    (_PARTED, "would part a prompt in other programs, and is text here"),
    (_ESCAPED, "is text here, backslash and all: brackets need none"),
    (_SQUARE, "is text in single braces: write {a|b} for alternatives"),
)
_OF_TAGS = {
    "lora": 'put NAME = "./FILE.safetensors" into [model.adapters], and adapters = [{ name = '
    '"NAME", weight = 0.8 }] into each [[blend.stage]] that it is for',
    "random": "write {a|b}",
    "wildcard": "write __name__",
    "embed": "textual inversions aren't loaded here: take it out",
    "hypernet": "hypernetworks aren't loaded here: take it out",
    "preset": 'presets are chosen by preset = "NAME" in the scene',
    "comment": "write comments in the recipe",
    "setvar": "write ${name=value}",
    "var": "write ${name}",
}
_SAME = {
    "lyco": "lora",
    "lycoris": "lora",
    "wc": "wildcard",
    "embedding": "embed",
    "ti": "embed",
    "p": "preset",
    "alternate": "random",
    "alt": "random",
    "setmacro": "setvar",
    "macro": "var",
}


def find_foreign(text: str) -> Iterator[Note]:
    """Find what is no text in other programs, and would be here.

    Args:
        text: A prompt, its own syntax blanked.

    Returns:
        What was found, each with its place; what may be text after all isn't certain.
    """
    if not _QUICK.search(text):
        return
    spans: list[tuple[int, int]] = []
    for start, end, message, is_certain in _found(text):
        if not any(first < end and start < last for first, last in spans):
            spans.append((start, end))
            shown = shorten(text[start:end].replace("\0", "..."), 40)
            yield Note(start, f"{shown!r} {message}{_AS_TEXT}", is_certain)


def find_syntax(text: str) -> Iterator[Note]:
    """Find what would be syntax in a prompt, and is text in a negative one."""
    for match in _SYNTAX.finditer(text):
        message = "is text in a negative prompt: sweep negative_prompt to try several"
        yield Note(match.start(), f"{match.group()!r} {message}", False)


def _found(text: str) -> Iterator[tuple[int, int, str, bool]]:
    for match in _TAG.finditer(text):
        tag = (match["tag"] or "").lower()
        what = _OF_TAGS.get(_SAME.get(tag, tag), "that isn't done here: take it out")
        yield *match.span(), f"is another program's: {what}", True
    for pattern, message in _CERTAIN:
        yield from ((*match.span(), message, True) for match in pattern.finditer(text))
    yield from find_settings(text)
    yield from _weighted(text)
    for pattern, message in _LIKELY:
        yield from ((*match.span(), message, False) for match in pattern.finditer(text))
    message = "would part a prompt in other programs, and is a word here"
    for match in _WORDS.finditer(text):
        around = [*text[: match.start()].split()[-1:], *text[match.end() :].split()[:1]]
        if not any(len(word) > 1 and word.isupper() for word in around):
            yield *match.span(), message, False


def _weighted(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """``(word:1.3)``, but no time of day, ratio or verse, which have a digit before the colon."""
    for match in _WEIGHTED.finditer(text):
        before = text[: match.start()].rstrip()
        start = _opening(text, match.start())
        if start is None or start == match.start() - 1 or before[-1:].isdigit():
            continue
        is_a_word = not any(letter.isdigit() for letter in before.split()[-1])
        is_certain = is_a_word and "." in match["number"] and not match["number"][0].isspace()
        yield start, match.end(), _WEIGHT, is_certain


def _opening(text: str, before: int) -> int | None:
    """The bracket around a place."""
    depth = 0
    for at in range(before - 1, -1, -1):
        if text[at] == ")":
            depth += 1
        elif text[at] == "(":
            if not depth:
                return at
            depth -= 1
    return None
