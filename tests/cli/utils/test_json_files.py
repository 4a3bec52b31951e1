"""JSON that nobody vouches for: read within limits, or refused for a reason."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_cli.utils.json_files import NotJson, parse_json, read_config, read_json
from flowblend_cli.utils.limits import MAX_JSON_BYTES

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_what_python_writes_is_read_back_equal(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b'{"a": 1, "a": 2}', "has the key 'a' twice"),
        (b"[NaN]", "holds NaN"),
        (b"[-Infinity]", "holds -Infinity"),
        (b"[1e999]", "holds 1e999"),
        (b"1" * 5000, "holds a number of 5,000 digits"),
        (b"[" * 200_000, "nested more than 64 levels deep"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested more than 64 levels deep"),
        (b"[" * 66 + b"]" * 66, "nested more than 64 levels deep"),
        (b"\xef\xbb\xbf{}", "begins with the mark of UTF-8"),
        ("{}".encode("utf-16"), "begins with the mark of UTF-16"),
        (b'{"a": "\xff"}', "isn't UTF-8 text (byte 8)"),
        (b"\0" * 1000, "is no JSON"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_for_its_reason(data: bytes, told: str) -> None:
    with pytest.raises(NotJson) as caught:
        parse_json(data)

    assert told in str(caught.value)


def test_64_levels_are_read() -> None:
    assert parse_json(b"[" * 65 + b"]" * 65)


def test_configs_of_models_may_hold_what_pythons_own_writer_leaves(tmp_path: Path) -> None:
    path, link = tmp_path / "blob", tmp_path / "scheduler_config.json"
    path.write_text('{"lambda_min_clipped": -Infinity, "a": 1, "a": 2, "most": 1' + "0" * 30 + "}")
    link.symlink_to(path)

    assert read_config(link) == {"lambda_min_clipped": -math.inf, "a": 2, "most": 10**30}
    with pytest.raises(NotJson):
        read_json(path)
    with pytest.raises(OSError, match="symbolic link"):
        read_json(link)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_what_is_no_small_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 20 * 2**30)
    began = time.monotonic()

    with pytest.raises(OSError, match=r"is no plain file|is larger than"):
        read_json(path, follow=True)

    assert time.monotonic() - began < 1


@pytest.mark.night
def test_the_largest_file_is_read_within_seconds() -> None:
    numbers = b"[" + b"1.5," * (MAX_JSON_BYTES // 4 - 2) + b"1]"
    began = time.process_time()

    assert len(parse_json(numbers)) == MAX_JSON_BYTES // 4 - 1

    assert time.process_time() - began < 10
