"""TOML positions: parses untrusted TOML with limits; gives line and column of keys and values.

``parse_toml`` reads what recipes and locks hold. ``scan`` finds positions, which the parser doesn't
keep, for messages: it runs on text that the parser has accepted.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, NamedTuple

import tomli

from flowblend_cli.text import shorten

KeyPath = tuple[str | int, ...]

# Characters of a key that a message shows.
MAX_SHOWN = 200
# Levels of brackets, tables and dotted keys inside of each other.
MAX_DEPTH = 32
TOO_DEEP = f"nested deeper than the limit of {MAX_DEPTH} levels"

# Possessive, so that an unclosed string fails in one pass.
_ML_BASIC = r'"""[^\\"]*+(?:(?:\\.|""?(?!"))[^\\"]*+)*+"{3,5}'
_ML_LITERAL = r"'''.*?'{3,5}"
_BASIC = r'"(?:\\.|[^"\\\n])*+"'
_LITERAL = r"'[^'\n]*'"
_STRING = re.compile(f"{_ML_BASIC}|{_ML_LITERAL}|{_BASIC}|{_LITERAL}", re.DOTALL)
_OPENING = re.compile(r"""(?P<quote>\"{3}\n?|'{3}\n?|["'])""")
# One character of a text, with what a backslash at a line's end swallows before it.
_CHARACTER = re.compile(r".|\Z", re.DOTALL)
_ESCAPE = re.compile(
    r"(?:\\[ \t]*\n\s*)*+(?:\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|\\.|.|\Z)", re.DOTALL
)
_QUOTED_KEY = re.compile(f"{_BASIC}|{_LITERAL}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n\r]|#[^\n]*)*")
# A date and a time may be one value with a space between them.
_SCALAR = re.compile(r"\d{4}-\d\d-\d\d \d\d:[^,\]}\s#]*|[^,\]}\s#]+")
_NESTING = re.compile(f"{_STRING.pattern}|#[^\n]*|[\\[\\]{{}}.=,\n]", re.DOTALL)


class Position(NamedTuple):
    """A place in a text: 1-based line, and 1-based column in characters."""

    line: int
    column: int


START = Position(1, 1)


class Positions:
    """Where the keys and values of one TOML text stand, by their path in the document."""

    def __init__(self, text: str) -> None:
        self.keys: dict[KeyPath, int] = {}
        self.values: dict[KeyPath, int] = {}
        self._text = text

    def key(self, path: KeyPath) -> Position:
        """Where a key stands; of the nearest table around it if it isn't in the text."""
        return _position(self._text, self.keys[path]) if path in self.keys else self.value(path)

    def value(self, path: KeyPath) -> Position:
        """Where a value stands; of the nearest table around it if it isn't in the text."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.values:
                return _position(self._text, self.values[path[:end]])
        return START

    def inside(self, path: KeyPath, offset: int) -> Position:
        """Where a character of a text stands, by its offset in the text that the value means."""
        if path not in self.values:
            return self.value(path)
        start = self.values[path]
        quotes = _OPENING.match(self._text, start)
        if quotes is None:
            return self.value(path)
        pattern = _ESCAPE if quotes["quote"].startswith('"') else _CHARACTER
        at = quotes.end()
        for _ in range(offset):
            at = pattern.match(self._text, at).end()  # type: ignore[union-attr]  # matches anything
        return _position(self._text, at)

    def note(self, path: KeyPath, key: int, value: int) -> None:
        """Keep the offsets of a key and its value; the first mention of a path counts."""
        self.keys.setdefault(path, key)
        self.values.setdefault(path, value)


class InvalidToml(ValueError):  # noqa: N818 - callers name the file
    """What keeps a text from being read as TOML, and where.

    Args:
        message: What is wrong.
        position: Where it is.
    """

    def __init__(self, message: str, position: Position) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


def parse_toml(data: bytes) -> tuple[str, dict[str, Any]]:
    """Parse a file's bytes.

    Args:
        data: The bytes, of which the caller has limited the number.

    Returns:
        The text with ``\\n`` line ends, and the document in it.

    Raises:
        InvalidToml: The bytes are no UTF-8, no TOML, or nested too deep.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        position = _position(before, len(before))
        raise InvalidToml("not UTF-8 text: save the file as UTF-8", position) from error
    deep = check_nesting(text)
    if deep is not None:
        raise InvalidToml(TOO_DEEP, deep)
    try:
        return text, tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        position = Position(error.lineno, error.colno)
        raise InvalidToml(f"not valid TOML: {error.msg}", position) from error
    except (RecursionError, ValueError) as error:
        raise InvalidToml(f"not valid TOML: {error}", START) from error


def check_nesting(text: str) -> Position | None:
    """Find where brackets or dotted keys nest deeper than ``MAX_DEPTH``; None if nowhere.

    Runs before the parser and never recurses, so that no text can exhaust the stack.
    """
    depth = dots = 0
    for match in _NESTING.finditer(text):
        mark = match.group()
        if mark in ("[", "{"):
            depth += 1
        elif mark in ("]", "}"):
            depth = max(0, depth - 1)
        dots = dots + 1 if mark == "." else dots if mark[0] in "\"'" else 0
        if depth > MAX_DEPTH or dots > MAX_DEPTH:
            return _position(text, match.start())
    return None


def measure(document: dict[str, Any]) -> tuple[int, KeyPath | None]:
    """Count the keys and entries of a document, and find what nests deeper than ``MAX_DEPTH``.

    Brackets and dotted keys count together here, which ``check_nesting`` looks at one by one.
    """
    values = 0
    level: list[tuple[KeyPath, Any]] = [((), document)]
    for _ in range(MAX_DEPTH + 1):
        values += sum(len(value) for _, value in level)
        level = [
            ((*path, key), item)
            for path, value in level
            for key, item in (value.items() if isinstance(value, dict) else enumerate(value))
            if isinstance(item, (dict, list))
        ]
    return values, level[0][0] if level else None


def scan(text: str) -> Positions:
    """Find the position of every key and value of a valid TOML text, its lines ended by LF."""
    return _Scanner(text).scan()


def _position(text: str, offset: int) -> Position:
    """Line and column of an offset."""
    return Position(text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


class _Scanner:
    """One pass over a text that the parser has accepted; recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = Positions(text)
        self.array_lengths: dict[KeyPath, int] = {}

    def scan(self) -> Positions:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self.found

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()

    def _header(self) -> KeyPath:
        start = self.at
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        parts = self._key()
        self.at += 2 if is_array else 1
        path: KeyPath = ()
        for name, _ in parts[:-1]:
            path = self._last_item((*path, name))
            self.found.note(path, start, start)
        path = (*path, parts[-1][0])
        if not is_array:
            path = self._last_item(path)
            self.found.keys[path] = self.found.values[path] = start
            return path
        index = self.array_lengths.get(path, 0)
        self.array_lengths[path] = index + 1
        self.found.note(path, start, start)
        path = (*path, index)
        self.found.note(path, start, start)
        return path

    def _last_item(self, path: KeyPath) -> KeyPath:
        """The table that a header's key stands for: of an array of tables, its last one."""
        length = self.array_lengths.get(path)
        return path if length is None else (*path, length - 1)

    def _pair(self, table: KeyPath) -> None:
        parts = self._key()
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        path = table
        for name, start in parts[:-1]:
            path = (*path, name)
            self.found.note(path, start, start)
        name, start = parts[-1]
        path = (*path, name)
        self.found.note(path, start, self.at)
        self._value(path)

    def _key(self) -> list[tuple[str, int]]:
        """Read a dotted key, up to and without what ends it."""
        parts = []
        while True:
            self._skip(_SPACE)
            start = self.at
            match = _BARE_KEY.match(self.text, self.at) or _QUOTED_KEY.match(self.text, self.at)
            if match is None:
                raise AssertionError(f"no key at offset {start}, though the parser accepted it")
            self.at = match.end()
            parts.append((unquote(match.group()), start))
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        opening = self.text[self.at]
        if opening in "[{":
            self._entries(path, is_array=opening == "[")
        elif opening in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_SCALAR)

    def _entries(self, path: KeyPath, *, is_array: bool) -> None:
        """Read the values of an array, or the pairs of an inline table."""
        self.at += 1
        for index in itertools.count():
            self._skip(_BLANK)
            if self.text[self.at] in "]}":
                self.at += 1
                return
            if is_array:
                item = (*path, index)
                self.found.note(item, key=self.at, value=self.at)
                self._value(item)
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1


def unquote(key: str) -> str:
    """The name that a bare or quoted TOML key stands for."""
    if key.startswith("'"):
        return key[1:-1]
    return str(tomli.loads(f"key = {key}")["key"]) if key.startswith('"') else key


def quote(text: str) -> str:
    """Write a text as a TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def format_path(path: KeyPath) -> str:
    """Write a path as a person would: ``scene[1].num_inference_steps``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            part = shorten(part, MAX_SHOWN)
            name = part if _BARE_KEY.fullmatch(part) else f'"{part}"'
            text += f".{name}" if text else name
    return text
