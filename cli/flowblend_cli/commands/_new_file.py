"""Files that commands write for people, never over another file."""

from __future__ import annotations

from pathlib import Path

from flowblend_cli.errors import OutputError, UsageError


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
