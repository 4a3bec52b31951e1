"""Chunks of PNG files, told from bytes that the tests put together by the specification."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import pytest
from PIL import Image

from flowblend_cli.artifacts import png
from flowblend_cli.artifacts.metadata import format_of, read_comment

HEAD = b"\0\0\0\1\0\0\0\1\x08\2\0\0\0"
PIXELS = zlib.compress(b"\0\1\2\3")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    crc = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")


def a_png(*texts: bytes, end: bytes = chunk(b"IEND")) -> io.BytesIO:
    body = b"".join((chunk(b"IHDR", HEAD), *texts, chunk(b"IDAT", PIXELS), end))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def international(text: bytes, compressed: bool, keyword: bytes = b"comment") -> bytes:
    """An iTXt chunk with a language and a translated keyword."""
    data = zlib.compress(text) if compressed else text
    flags = bytes([compressed, 0])
    return chunk(b"iTXt", keyword + b"\0" + flags + b"de\0Bemerkung\0" + data)


TEXTS = {
    "latin": (chunk(b"tEXt", b"comment\0caf\xe9"), "café"),
    "latin, compressed": (chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"caf\xe9")), "café"),
    "any": (international("café \N{SNOWMAN}".encode(), False), "café \N{SNOWMAN}"),
    "any, compressed": (international("café \N{SNOWMAN}".encode(), True), "café \N{SNOWMAN}"),
    "a keyword in capitals": (chunk(b"tEXt", b"COMMENT\0hi"), "hi"),
    "nothing": (chunk(b"tEXt", b"comment\0"), ""),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_read_in_each_way_that_png_has_and_as_pillow_reads_it(name: str) -> None:
    data, expected = TEXTS[name]
    file = a_png(chunk(b"tEXt", b"title\0other"), data, chunk(b"tEXt", b"comment\0later"))
    assert png.read_text(file, "Comment", 1000) == expected
    assert read_comment(file) == expected
    file.seek(0)
    found = Image.open(a_png(data)).text  # type: ignore[attr-defined]
    assert {key.lower(): text for key, text in found.items()} == {"comment": expected}


def test_pixels_are_no_text_and_another_keyword_is_another_text() -> None:
    assert png.read_text(a_png(chunk(b"teXt", b"comment\0no")), "comment", 1000) is None
    assert png.read_text(a_png(chunk(b"tEXt", b"title\0x")), "comment", 1000) is None
    assert png.read_text(io.BytesIO(b"GIF89a" + a_png().read()[6:]), "comment", 1000) is None
    assert png.read_text(io.BytesIO(), "comment", 1000) is None


@pytest.mark.parametrize("length", [99, 100, 101])
def test_a_text_may_be_as_long_as_the_limit_packed_or_not(length: int) -> None:
    for kind in ("tEXt", "iTXt"):
        file = a_png(
            chunk(b"tEXt", b"k\0" + b"x" * (length - 2))
            if kind == "tEXt"
            else international(b"x" * length, True, b"k")
        )
        assert (png.read_text(file, "k", 100) is not None) == (length <= 100)


def test_a_text_that_is_too_long_is_passed_over_and_one_that_is_damaged_is_none() -> None:
    long = chunk(b"tEXt", b"comment\0" + b"x" * 200)
    assert png.read_text(a_png(long, TEXTS["latin"][0]), "comment", 100) == "café"
    for damaged in (
        chunk(b"tEXt", b"comment"),  # no end of the keyword
        chunk(b"zTXt", b"comment\0\0no zlib"),
        chunk(b"iTXt", b"comment\0\0\0de"),
        chunk(b"iTXt", b"comment\0\0\0de\0\0\xff\xfe"),
    ):
        assert png.read_text(a_png(damaged, TEXTS["latin"][0]), "comment", 100) is None
    whole = a_png(TEXTS["latin"][0]).getvalue()
    cut = whole[: whole.index(b"caf") + 2]
    assert png.read_text(io.BytesIO(cut), "comment", 100) is None


def test_chunks_are_listed_with_their_places_until_they_make_no_sense() -> None:
    text = chunk(b"tEXt", b"k\0v")
    found = list(png.chunks(a_png(text)))
    assert found == [
        png.Chunk(b"IHDR", 16, 13),
        png.Chunk(b"tEXt", 41, 3),
        png.Chunk(b"IDAT", 56, len(PIXELS)),
        png.Chunk(b"IEND", 68 + len(PIXELS), 0),
    ]
    whole = a_png(text).getvalue()
    at_head = io.BytesIO(whole[: 8 + 25 + 7])  # seven bytes of the next head
    assert list(png.chunks(at_head)) == found[:1]


def test_a_file_is_whole_up_to_the_last_byte_of_its_closing_chunk() -> None:
    file = a_png(TEXTS["any"][0])
    size = len(file.getvalue())
    assert png.end_of(file) == size
    assert png.is_intact(file)
    longer = io.BytesIO(file.getvalue() + b"x")
    assert png.end_of(longer) == size
    assert not png.is_intact(longer)
    assert png.end_of(a_png(end=b"")) is None
    assert png.end_of(a_png(end=chunk(b"IENd"))) is None
    for cut in range(1, 13):
        assert png.end_of(io.BytesIO(file.getvalue()[:-cut])) is None
    for place in range(8, size):
        data = bytearray(file.getvalue())
        data[place] ^= 1
        assert png.end_of(io.BytesIO(data)) is None


def test_a_large_chunk_is_checked_in_all_its_pieces() -> None:
    data = bytes(range(256)) * 10_000  # more than two pieces
    file = a_png(chunk(b"tEXt", b"k\0" + data))
    assert png.is_intact(file)
    for place in (100, 1_500_000, 2_500_000):
        damaged = bytearray(file.getvalue())
        damaged[place] ^= 1
        assert png.end_of(io.BytesIO(damaged)) is None


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (png.SIGNATURE, "png"),
        (png.SIGNATURE[:7], None),
        (b"\0\0\0\x18ftypisom", "mp4"),
        (b"ftypisom", None),
        (b"\0\0\0\x18moov", None),
        (b"\x1a\x45\xdf\xa3abc", "matroska"),
        (b"\0\x1a\x45\xdf\xa3", None),
        (b"", None),
    ],
)
def test_a_format_is_known_by_its_first_bytes(tmp_path: Path, start: bytes, kind: str) -> None:
    file = io.BytesIO(start + b"\0" * 20 if start else b"")
    file.seek(3)
    assert format_of(file) == kind
    assert file.tell() == 0
