"""The document inside a finished file, with everything needed to check and repeat its job.

It is one JSON object, in ASCII so that any tool can print it, under the standard tag ``comment``:
in an mp4 (where it survives remuxing, trimming and encoding again), or in a PNG as a text chunk.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flowblend_cli.artifacts import png
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import open_regular
from flowblend_cli.utils.json_files import NotJson, parse_json
from flowblend_cli.utils.limits import MAX_DOCUMENT_BYTES

COMMENT = "comment"
PARAMETERS = "parameters"

Document = Mapping[str, Any]


def to_text(document: Document) -> str:
    """Write a document as one line of ASCII JSON, its keys in their own order.

    Args:
        document: JSON-able values, with the key ``flowblend`` that marks a file as ours.

    Raises:
        KeyError: The key ``flowblend`` is missing.
        ValueError: A number is NaN or infinite, which JSON can't say.
        TypeError: A value isn't JSON-able.
    """
    marked = {"flowblend": document["flowblend"], **document}  # first, so that the mark is findable
    return json.dumps(marked, separators=(",", ":"), allow_nan=False)


def from_text(text: str) -> dict[str, Any] | None:
    """Read a document back, or None where the text is none of ours."""
    if len(text) > MAX_DOCUMENT_BYTES:
        return None
    try:
        document = parse_json(text)
    except NotJson:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("flowblend"), str):
        return None
    return document


def read_document(path: Path) -> dict[str, Any] | None:
    """Read the document of a finished file that somebody named, whatever it turns out to be.

    Only containers known by their first bytes are opened (mp4 and mov, mkv and webm, PNG), never
    playlists or anything else that could lead to another file.

    Args:
        path: Any file.

    Returns:
        The document, or None for a file that isn't ours or can't be understood.

    Raises:
        OutputError: The file is missing or can't be read.
    """
    try:
        with open_regular(path, sys.maxsize, follow=True) as file:
            return document_of(file)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a folder, a pipe
            return None
        raise OutputError(
            f"{path}: can't be read ({error.strerror or error}): give the path of a finished file"
        ) from error


def document_of(file: BinaryIO) -> dict[str, Any] | None:
    """The document of an open file; None for a file that isn't ours or can't be understood."""
    text = read_comment(file)
    return None if text is None else without_seal(from_text(text))


def without_seal(document: dict[str, Any] | None) -> dict[str, Any] | None:
    """Leave out the file's own checksum, which is about the file and not about the job."""
    if document is not None:
        document.pop("file_sha256", None)
    return document


def read_comment(file: BinaryIO) -> str | None:
    """Read the ``comment`` tag of an open file from its start; None where there is none."""
    kind = format_of(file)
    if kind == "png":
        return png.read_text(file, COMMENT, MAX_DOCUMENT_BYTES)
    return None if kind is None else _container_comment(file, kind)


def format_of(file: BinaryIO) -> str | None:
    """What an open file is by its first bytes, ``"png"``, ``"mp4"``, ``"matroska"``, or None."""
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if head.startswith(png.SIGNATURE):
        return "png"
    if head[4:8] == b"ftyp":
        return "mp4"
    return "matroska" if head.startswith(b"\x1a\x45\xdf\xa3") else None


def _container_comment(file: BinaryIO, container_format: str) -> str | None:
    """Read the tag through FFmpeg's demuxer, told which format it is so that it never guesses."""
    import av  # a tenth of a second: only where a video is read

    try:
        with av.open(file, format=container_format, metadata_errors="replace") as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, ValueError):
        return None
    return tags.get(COMMENT)


def parameters_text(document: Document) -> str:
    """Write a document as the lines that image tools look for under ``parameters``.

    Args:
        document: A document; whatever it lacks is left out.

    Returns:
        The prompt, the negative prompt if any, and one line of settings.
    """
    job = document.get("job") or {}
    resolved = document.get("resolved") or {}
    arguments = dict(job.get("arguments") or ())
    model = job.get("model") or {}
    width, height = arguments.get("width"), arguments.get("height")
    settings = {
        "Steps": arguments.get("num_inference_steps"),
        "Sampler": (job.get("sampling") or {}).get("scheduler"),
        "CFG scale": arguments.get("guidance_scale"),
        "Seed": resolved.get("seed", job.get("seed")),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": model.get("pipeline"),
        "Stages": job.get("stage_string"),
        "Version": f"flowblend {document.get('flowblend', '')}".strip(),
    }
    lines = [str(job.get("prompt", ""))]
    if job.get("negative_prompt"):
        lines.append(f"Negative prompt: {job['negative_prompt']}")
    lines.append(
        ", ".join(f"{key}: {value}" for key, value in settings.items() if value is not None)
    )
    return "\n".join(lines)
