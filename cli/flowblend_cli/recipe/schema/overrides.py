"""Overrides: ``--set KEY=VALUE`` edits a recipe's document before it is checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tomli

from flowblend_cli.errors import Problem
from flowblend_cli.recipe.schema.json_schema import kinds_at
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.source.file import SWEEPS, sweep_name
from flowblend_cli.utils.suggestions import did_you_mean
from flowblend_cli.utils.toml_positions import MAX_DEPTH, KeyPath, check_nesting, unquote

_KEY_PART = re.compile(r"""\s*([A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*')((?:\[\d+\])*)\s*""")
# What starts like this was meant as TOML, unless it is a template such as {scene}-s{seed}.
_NO_BARE_WORD = re.compile(r"""[\["']|\{.*=""", re.DOTALL)


class Override(NamedTuple):
    """One key that ``--set`` wrote; a table that it wrote is one for each key in it.

    Args:
        path: The key.
        value: What it wrote.
        former: What stood there before; None for nothing, since TOML has no null.
    """

    path: KeyPath
    value: Any
    former: Any


def apply_overrides(
    source: RecipeSource, options: Iterable[str], problems: list[Problem]
) -> list[Override]:
    """Edit a source's document.

    Args:
        source: The recipe; its document and its record of options change.
        options: Texts such as ``"defaults.num_inference_steps=12"``. The value is TOML; what
            isn't TOML is taken as a string. ``scene.NAME.key`` and ``scene[0].key`` name a scene.
        problems: Where options go that can't be read, or that name no place in the document.

    Returns:
        What was written, in order.
    """
    applied: list[Override] = []
    for option in options:
        try:
            key, text = _split(option)
            path = _resolve(source.document, _parse_key(key))
            value = _typed(path, text)
            former = _write(source.document, path, value)
        except ValueError as error:
            problems.append(Problem(str(source.path), 1, 1, f"--set {option}", str(error)))
            continue
        source.options[path] = option
        applied += _leaves(path, value, former)
    return applied


def _split(option: str) -> tuple[str, str]:
    key, equals, text = option.partition("=")
    if not equals or not key.strip():
        raise ValueError("expected KEY=VALUE, such as defaults.num_inference_steps=12")
    text = text.strip()
    if not text:
        raise ValueError('expected a value after =; write "" for an empty string')
    return key, text


def _typed(path: KeyPath, text: str) -> Any:
    """The value that a text stands for: TOML, or the text itself where no TOML would fit."""
    if check_nesting(text) is not None:
        raise ValueError(f"the value is nested deeper than the limit of {MAX_DEPTH} levels")
    try:
        document = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, ValueError):
        document = {}
    if list(document) == ["value"]:
        value = document["value"]
        is_plain = not isinstance(value, (str, list, dict))
        kinds = kinds_at(path) if is_plain else frozenset()
        return text if "string" in kinds and not kinds & _kinds_of(value) else value
    if _NO_BARE_WORD.match(text):
        raise ValueError(f"the value isn't valid TOML: {text}")
    return text


def _kinds_of(value: Any) -> set[str]:
    """The JSON types that a number or a truth value is of; dates and times are of none."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    return {"number"} if isinstance(value, float) else set()


def _parse_key(key: str) -> KeyPath:
    """Read ``scene[0].name`` or ``sweep."blend.stages"`` as a path."""
    path: list[str | int] = []
    at = 0
    while True:
        match = _KEY_PART.match(key, at)
        if match is None:
            raise ValueError(f"{key!r} is no dotted key, such as defaults.guidance_scale")
        path.append(unquote(match[1]))
        path.extend(int(index) for index in re.findall(r"\d+", match[2]))
        at = match.end()
        if at == len(key):
            return tuple(path)
        if key[at] != "." or len(path) > MAX_DEPTH:
            raise ValueError(f"{key!r} is no dotted key, such as defaults.guidance_scale")
        at += 1


def _resolve(document: dict[str, Any], path: KeyPath) -> KeyPath:
    """Turn a scene's name into its index, and join what a sweep writes as one key."""
    if path[0] == "include":
        raise ValueError("files are included before --set changes anything: edit the recipe")
    if path[0] in SWEEPS and len(path) > 1:
        return (path[0], sweep_name(".".join(str(part) for part in path[1:])))
    if path[0] != "scene" or len(path) < 2 or isinstance(path[1], int):
        return path
    scenes = document.get("scene")
    entries = scenes if isinstance(scenes, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if path[1] not in names:
        texts = [name for name in names if isinstance(name, str)]
        known = f"the scenes are {', '.join(texts[:10])}"
        hint = did_you_mean(str(path[1]), texts[:1000], known)
        raise ValueError(f"no scene is named {path[1]!r}{hint}")
    return ("scene", names.index(path[1]), *path[2:])


def _write(document: dict[str, Any], path: KeyPath, value: Any) -> Any:
    """Write a value, making tables on the way; returns what stood there."""
    node: Any = document
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                length = len(node) if isinstance(node, list) else 0
                raise ValueError(f"there is no index {part}: the list has {length} entries")
        elif not isinstance(node, dict):
            raise ValueError(f"{part!r} can't be set inside of a value that is no table")
        elif not is_last:
            node.setdefault(part, {})
        if is_last:
            former = node[part] if isinstance(part, int) else node.get(part)
            node[part] = value
            return former
        node = node[part]
    raise AssertionError("a path has at least one part")


def _leaves(path: KeyPath, value: Any, former: Any) -> Iterator[Override]:
    if not isinstance(value, dict):
        yield Override(path, value, former)
        return
    for key, item in value.items():
        inner = former.get(key) if isinstance(former, dict) else None
        yield from _leaves((*path, key), item, inner)
