"""EmbeddingFiles: encoded prompts on the disk, read and written without a model library.

``DIR/.flowblend/embeddings/KEY.safetensors``. Everything there can be deleted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from flowblend_cli.artifacts.records import make_folders
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import publish, read_regular
from flowblend_cli.utils.folders import FOLDER

MOST_BYTES = 2 * 2**30
# Others may store prompts here at the same time: what there is is counted anew whenever so much of
# the room that was left is used up.
_SHARE_OF_ROOM = 1 / 64


class EmbeddingHome(Protocol):
    """Where encoded prompts are kept: a folder, or whoever has one."""

    def read(self, key: str) -> bytes | None:
        """Give what is kept of a prompt, sealed, or damaged; None where that is nothing.

        Args:
            key: Hash of the prompt and of all that decides what is made of it, in hexadecimal.
        """
        ...

    def write(self, key: str, data: bytes) -> None:
        """Keep what was made of a prompt.

        Args:
            key: See ``read``.
            data: What was made of it, sealed.

        Raises:
            OutputError: It can't be kept, nor can anything from now on; raised once.
        """
        ...


class EmbeddingFiles:
    """The ``EmbeddingHome`` of an output folder.

    Args:
        output_dir: The folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir / FOLDER / "embeddings"
        self._is_full = False
        self._bytes = self._allowed = 0
        self._count()

    def read(self, key: str) -> bytes | None:
        """See ``EmbeddingHome``."""
        try:
            return read_regular(self._path(key), MOST_BYTES)
        except OSError:
            return None

    def write(self, key: str, data: bytes) -> None:
        """See ``EmbeddingHome``; what all runs keep there has a bound."""
        if self._is_full:
            return
        try:
            if self._bytes + len(data) > self._allowed:
                self._count()
            if self._bytes + len(data) > MOST_BYTES:
                raise OutputError(f"{self._folder} holds {MOST_BYTES / 2**30:g} GiB by now")
            path = self._path(key)
            make_folders(path)
            publish(path, data)
            self._bytes += len(data)
        except OutputError as error:
            self._is_full = True
            raise OutputError(f"encoded prompts aren't stored any more: {error}") from error

    def _count(self) -> None:
        """See how much is stored, and up to where that needs no second look."""
        total = 0
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):  # another run has just renamed it
                    total += path.stat().st_size
        self._bytes = total
        self._allowed = total + int((MOST_BYTES - total) * _SHARE_OF_ROOM)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"
