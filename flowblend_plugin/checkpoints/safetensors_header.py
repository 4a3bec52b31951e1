"""Header of a safetensors file: its length and metadata, read without torch. Pure Python."""

from __future__ import annotations

import json

from flowblend_plugin.errors import CheckpointError

LENGTH_BYTES = 8
LONGEST = 100_000_000  # as in the format's own reader


def header_length(start: bytes) -> int:
    """Read the length of the header, which a file's first 8 bytes hold.

    Raises:
        CheckpointError: The file isn't one of these.
    """
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or length > LONGEST:
        raise CheckpointError("the file isn't a safetensors file")
    return length


def metadata_of(data: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Args:
        data: The file, or its beginning with the whole header.

    Raises:
        CheckpointError: It has none.
    """
    header = data[LENGTH_BYTES : LENGTH_BYTES + header_length(data)]
    try:
        found = json.loads(header)["__metadata__"]
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("the file isn't one of flowblend's") from error
