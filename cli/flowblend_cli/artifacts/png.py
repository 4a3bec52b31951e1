"""PNG chunks: text read without decoding any pixel, and a check of the whole file by its CRCs."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 100_000
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """One chunk of a PNG file: its type, and where its data lies.

    Args:
        kind: Four letters, such as ``b"IDAT"``.
        offset: Position of the data's first byte in the file.
        length: Length of the data, in bytes.
    """

    kind: bytes
    offset: int
    length: int


def chunks(file: BinaryIO) -> Iterator[Chunk]:
    """List the chunks of an open PNG file, up to where it ends or stops making sense."""
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return
    offset = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8:
            return
        chunk = Chunk(head[4:], offset + 8, int.from_bytes(head[:4], "big"))
        yield chunk
        offset = chunk.offset + chunk.length + 4


def read_text(file: BinaryIO, keyword: str, limit: int) -> str | None:
    """Find a text chunk by its keyword, in any case of letters.

    Args:
        file: Open PNG file.
        keyword: Such as ``"comment"``.
        limit: Longest text to accept, in bytes, compressed or not.

    Returns:
        The text, or None where there is none, or it is damaged or too long.
    """
    for chunk in chunks(file):
        if chunk.kind not in (b"tEXt", b"zTXt", b"iTXt") or chunk.length > limit:
            continue
        file.seek(chunk.offset)
        data = file.read(chunk.length)
        name, separator, rest = data.partition(b"\0")
        if len(data) < chunk.length or not separator:
            return None
        if name.lower() == keyword.lower().encode("latin-1"):
            return _decode(chunk.kind, rest, limit)
    return None


def _decode(kind: bytes, rest: bytes, limit: int) -> str | None:
    """Undo the three ways in which PNG writes a text after its keyword."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    try:
        if kind == b"zTXt":
            return _inflate(rest[1:], limit).decode("latin-1")
        _language, _translation, text = rest[2:].split(b"\0", 2)
        compressed = rest[:1] == b"\1"
        return (_inflate(text, limit) if compressed else text).decode("utf-8")
    except (ValueError, zlib.error):
        return None


def end_of(file: BinaryIO) -> int | None:
    """Where the closing chunk of a PNG file ends; None where a CRC doesn't hold, or it has none.

    Args:
        file: Open PNG file; read in pieces, no pixel is decoded.
    """
    for chunk in chunks(file):
        file.seek(chunk.offset)
        crc = zlib.crc32(chunk.kind)
        left = chunk.length
        while left:
            piece = file.read(min(left, _PIECE_BYTES))
            if not piece:
                return None
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        if file.read(4) != crc.to_bytes(4, "big"):
            return None
        if chunk.kind == b"IEND":
            return file.tell()
    return None


def is_intact(file: BinaryIO) -> bool:
    """Whether every chunk's CRC holds and the file ends with the closing chunk, nothing after it.

    Args:
        file: Open PNG file; read in pieces, no pixel is decoded.
    """
    end = end_of(file)
    return end is not None and end == file.seek(0, io.SEEK_END)


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, limit)
    if inflater.unconsumed_tail:
        raise ValueError(f"text inflates to more than {limit} bytes")
    return text
