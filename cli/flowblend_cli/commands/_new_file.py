"""New files that commands write for people; an existing file is never overwritten."""

from __future__ import annotations

import re
from pathlib import Path

from flowblend_cli.errors import OutputError, UsageError
from flowblend_cli.models.registry import ModelSource, find_pair


def write_new(path: Path, content: str | bytes) -> None:
    """Write a new file, text as UTF-8; follows no link, and never overwrites.

    Raises:
        UsageError: Something is there already, or the folder isn't there.
        OutputError: The disk refuses.
    """
    try:
        with path.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except FileExistsError as error:
        raise UsageError(f"{path} exists already and isn't overwritten: name another file") from (
            error
        )
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UsageError(f"{path} can't be written: its folder doesn't exist") from error
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}") from error


def name_of(pipeline: str) -> str:
    """Make a recipe's name of a model's or a file's: its last part, plain characters only."""
    last = pipeline.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", last).strip(".-") or "recipe"


def from_folder(source: ModelSource, folder: Path) -> str:
    """Say how a recipe in a folder names a model: its own folders relative, others absolute."""
    is_named = find_pair(source.name) is not None or source.pair is not None
    if source.path is None or is_named:
        return source.name
    if source.path.is_relative_to(folder.resolve()):
        return f"./{source.path.relative_to(folder.resolve()).as_posix()}"
    return str(source.path)
