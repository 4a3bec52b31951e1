"""Damaged and hostile JSON: what somebody may have made of a document that a run wrote."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 0.5, -0.5, 1e300, 10**12, 10**30, 10**39,
    float("nan"), float("inf"), float("-inf"),
    "", " ", ".", "..", "../../victim/clip", "/etc/passwd", "~", "a/b", "a\\b", "C:x", "con",
    "a\0b", "\x1b[31m", "\u202eabc", "\ud800", "x" * 300, "x" * 5000, "mp4", "/../x.mp4",
    [], {}, [1], [[]], [None], {"a": 1}, {"": 1}, {"../x": {}}, {"\x1b": "\u202e"}, [["a", 1]],
    json.loads("[" * 40 + "]" * 40),
]  # fmt: skip
KEYS = ["", "a", "../x", "\x1b[2J", "\u202e", "x" * 300, "v", "job", "id", "__proto__", "\ud800"]

_FEW = st.integers(1, 3)
_VALUE = st.sampled_from(VALUES)
_KEY = st.sampled_from(KEYS)
_CHANGE = st.sampled_from(["replace", "replace", "leave out", "add"])
_FORM = st.sampled_from(["whole"] * 6 + ["cut", "flip", "mark", "utf-16", "deep", "twice"])


def places(value: Any, here: Path = ()) -> Iterator[Path]:
    """Every place in a document, the document itself among them."""
    yield here
    if isinstance(value, (dict, list)):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(held, (*here, key))


@st.composite
def documents(draw: st.DrawFn, sound: Any) -> Any:
    """A document with one to three values replaced, left out or added."""
    found = json.loads(json.dumps(sound))
    for _ in range(draw(_FEW)):
        known = list(places(found))
        place = known[draw(st.integers(0, len(known) - 1))]
        value = copy.deepcopy(draw(_VALUE))
        if not place:
            found = value if draw(st.booleans()) else found
            continue
        holder = found
        for key in place[:-1]:
            holder = holder[key]
        change = draw(_CHANGE)
        if change == "leave out":
            del holder[place[-1]]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(_KEY)] = value
        else:
            holder[place[-1]] = value
    return found


@st.composite
def texts(draw: st.DrawFn, sound: Any) -> bytes:
    """The bytes of such a document, which may be damaged themselves."""
    data = json.dumps(draw(documents(sound))).encode("utf-8", "surrogatepass")
    match draw(_FORM):
        case "cut":
            return data[: draw(st.integers(0, len(data)))]
        case "flip" if data:
            place = draw(st.integers(0, len(data) - 1))
            return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
        case "mark":
            return b"\xef\xbb\xbf" + data
        case "utf-16":
            return data.decode("ascii", "replace").encode("utf-16")
        case "deep":
            return b'{"v":' * 100_000 + b"1" + b"}" * 100_000
        case "twice" if data.startswith(b"{") and len(data) > 2:
            return b'{"v": 1, ' + data[1:]
        case _:
            return data
