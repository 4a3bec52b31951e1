r"""A checksum of a whole file, kept inside that file, so that one flipped byte is noticed.

The document ends with ``"file_sha256":"<64 digits>"``: the sha256 of the file with those digits as
zeros. A prompt can't imitate the mark, since JSON writes a quote inside a string as ``\"``.
"""

from __future__ import annotations

import hashlib
import re

SEAL_KEY = "file_sha256"
UNSEALED = "0" * 64
_MARK = re.compile(rb'"file_sha256":"([0-9a-f]{64})"')


def seal(data: bytes) -> bytes:
    """Put a file's checksum into its document, which must hold the unsealed mark exactly once.

    Raises:
        ValueError: The mark isn't there, or is there more than once.
    """
    marks = [mark for mark in _MARK.finditer(data) if mark[1] == UNSEALED.encode()]
    if len(marks) != 1:
        raise ValueError(f"expected one unsealed mark in the file, found {len(marks)}")
    start, end = marks[0].span(1)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[end:]


def seal_holds(data: bytes) -> bool:
    """Whether the file's checksum is there and right."""
    mark = _MARK.search(data)
    if mark is None:
        return False
    start, end = mark.span(1)
    digest = hashlib.sha256(data[:start])
    digest.update(UNSEALED.encode())
    digest.update(data[end:])
    return digest.hexdigest().encode() == mark[1]
