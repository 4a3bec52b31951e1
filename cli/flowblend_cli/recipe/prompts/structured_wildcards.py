"""Structured wildcards: the lists of texts in a YAML or JSON file, by the names of their keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from flowblend_cli.recipe.source.limits import MAX_TEXT_LINES
from flowblend_cli.utils.toml_positions import MAX_DEPTH

_TEXTS = ("text", "content")


class WildcardEntry(NamedTuple):
    """One text that a wildcard stands for.

    Args:
        file: Its file, as messages name it.
        text: The text, a prompt of its own.
        weight: How often it is drawn, beside the others.
        line: Its line, from 1, where it is known.
        column: Its column, from 1, where it is known.
    """

    file: str
    text: str
    weight: float = 1.0
    line: int | None = None
    column: int | None = None

    def place(self, offset: int) -> str:
        """File, line and column of a character of the text, as far as they are known."""
        column = self.column + offset if self.column is not None else None
        return ":".join(str(each) for each in (self.file, self.line, column) if each is not None)


def read_lists(text: str, file: str, *, is_json: bool, name: str) -> dict[str, list[WildcardEntry]]:
    """Read every list of texts.

    Args:
        text: The file's text.
        file: The file, as messages name it.
        is_json: Whether it is JSON.
        name: What a list is called that stands in the file by itself.

    Returns:
        The lists by their keys, joined by slashes; empty ones are left out.

    Raises:
        ValueError: The file is no YAML or JSON, is nested too deep, has too many entries, or has
            something else than texts in a list.
    """
    try:
        tree = json.loads(text) if is_json else _compose(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "YAML"
        raise ValueError(f"{file} is no {kind}: {' '.join(str(error).split())}") from error
    found: dict[str, list[WildcardEntry]] = {}
    for number, (key, entry) in enumerate(_entries(tree, file, ())):
        if number == MAX_TEXT_LINES:
            raise ValueError(f"{file} has more entries than the limit of {MAX_TEXT_LINES:,}")
        found.setdefault("/".join(key) or name, []).append(entry)
    return found


def _compose(text: str) -> Any:
    """The tree of a YAML text, of which no value is made."""
    import yaml  # type: ignore[import-untyped]  # ships no types; few recipes need it

    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _entries(
    node: Any, file: str, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], WildcardEntry]]:
    """The entries below a node of a tree, each with its keys."""
    if len(path) > MAX_DEPTH:
        raise ValueError(f"{file} is nested deeper than the limit of {MAX_DEPTH} levels")
    found = _open(node)
    if isinstance(found, dict):
        for key, inner in found.items():
            yield from _entries(inner, file, (*path, key))
        return
    for item in found if isinstance(found, list) else [node]:
        entry = _entry(item, file)
        if entry is not None:
            yield path, entry


def _open(node: Any) -> dict[str, Any] | list[Any] | str | None:
    """What a node holds; numbers and dates of YAML as they are written."""
    kind = getattr(node, "id", None)  # of a node of YAML
    if kind == "mapping":
        return {str(key.value): value for key, value in node.value}
    if kind == "scalar":
        return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)
    if kind == "sequence":
        return list(node.value)
    return node if node is None or isinstance(node, (dict, list)) else str(node)


def _entry(node: Any, file: str) -> WildcardEntry | None:
    """A list's item: a text, or a table of a text and its weight; None for an empty one."""
    found, weight = _open(node), 1.0
    if isinstance(found, dict):
        written = {key: _open(value) for key, value in found.items()}
        node = next((found[key] for key in _TEXTS if isinstance(written.get(key), str)), node)
        found = _open(node)
        try:
            weight = float(str(written.get("weight", 1)))
        except ValueError:
            found = []
    if isinstance(found, (dict, list)):
        message = "a list of texts, or of tables such as {text: red, weight: 2}"
        raise ValueError(
            f"{WildcardEntry(file, '', 1.0, *_mark(node)).place(0)}: expected {message}"
        )
    text = (found or "").strip()
    return WildcardEntry(file, text, weight, *_mark(node)) if text else None


def _mark(node: Any) -> tuple[int | None, int | None]:
    """Line and column of a node of YAML; no column where its text isn't written as it reads."""
    if not hasattr(node, "start_mark"):
        return None, None
    style = getattr(node, "style", None)
    column = node.start_mark.column + 1 + (style is not None)
    return node.start_mark.line + 1, None if style in ("|", ">") else column
