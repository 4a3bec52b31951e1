"""JSON that nobody vouches for: read with limits, and refused for one reason that can be said.

``parse_json`` is the one place where flowblend's command reads JSON that it didn't write just now.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from flowblend_cli.text import count, shorten
from flowblend_cli.utils.files import read_regular
from flowblend_cli.utils.limits import (
    MAX_DIGITS,
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
)

_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_PLACE = re.compile(r": line (\d+) column (\d+) \(char \d+\)$")


class NotJson(ValueError):  # noqa: N818 - callers say it in their own words
    """Text that isn't JSON as it is read here; says why, to follow the name of its file."""


def parse_json(data: bytes | str, *, lenient: bool = False) -> Any:
    """Read JSON: UTF-8, within the limits, finite numbers, no key twice in one object.

    Args:
        data: The whole text.
        lenient: Take what Python's own writer leaves in the configs of models: NaN, infinity, and
            the last one of two keys.

    Raises:
        NotJson: It is something else.
    """
    text = _decoded(data) if isinstance(data, bytes) else data
    try:
        if lenient:
            found = json.loads(text, parse_int=_integer)
        else:
            found = json.loads(
                text,
                parse_int=_integer,
                parse_float=_number,
                parse_constant=_constant,
                object_pairs_hook=_object,
            )
    except NotJson:
        raise
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        told = _PLACE.sub(r", at line \1, column \2", str(error))
        raise NotJson(f"is no JSON ({shorten(told, 100)})") from error
    _check_depth(found)
    return found


def read_json(path: Path, *, follow: bool = False, lenient: bool = False) -> Any:
    """Read a JSON file: a plain one, within the limit of sizes; see ``parse_json``.

    Args:
        path: The file.
        follow: Follow links: where somebody named this very file, or for the files of models.
        lenient: See ``parse_json``.

    Raises:
        OSError: It can't be read, is no plain file, or is too large.
        NotJson: It holds something else.
    """
    return parse_json(read_regular(path, MAX_JSON_BYTES, follow=follow), lenient=lenient)


def keep_json(path: Path, value: Any) -> None:
    """Keep a value in a cache, whole or not at all; one that can't be written only costs time.

    Others may do the same at once, on other machines too, whose processes have the same numbers.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value), "utf-8")
        temporary.replace(path)
    except OSError:
        return


def read_config(path: Path) -> Any:
    """Read a JSON file of a model's, which other programs wrote; see ``read_json``."""
    return read_json(path, follow=True, lenient=True)


def _decoded(data: bytes) -> str:
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise NotJson(f"begins with the mark of {name}: save it as UTF-8 without a mark")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"isn't UTF-8 text (byte {error.start + 1})") from error


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise NotJson(f"holds a number of {count(len(digits), 'digit')}")
    return int(digits)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson(f"holds {shorten(text)}, which is too large a number")
    return number


def _constant(name: str) -> float:
    raise NotJson(f"holds {name}, which is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJson(f"has the key {shorten(twice)!r} twice")
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            value
            for held in level
            if type(held) in (dict, list)
            for value in (held.values() if type(held) is dict else held)
            if type(value) in (dict, list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> NotJson:
    return NotJson(f"is nested more than {MAX_JSON_DEPTH} levels deep")
