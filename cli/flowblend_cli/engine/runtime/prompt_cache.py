"""EmbeddingFiles: prompts that earlier runs encoded, kept in ``DIR/.flowblend/embeddings``.

The key covers the text encoder's and tokenizer's files, versions, device, number format, the prompt
and every argument that it is encoded with. Everything here can be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.artifacts.records import make_folders
from flowblend_cli.errors import OutputError
from flowblend_cli.models.identity import text_identity
from flowblend_cli.utils.files import SEAL_KEY, UNSEALED, publish, read_regular, seal, seal_holds
from flowblend_cli.utils.folders import FOLDER
from flowblend_plugin.checkpoints.serialization import pack, unpack
from flowblend_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from flowblend_cli.engine.runtime.pipeline import PipelineRuntime

MOST_BYTES = 2 * 2**30
# Others may store prompts here at the same time: what there is is counted anew whenever so much of
# the room that was left is used up.
_SHARE_OF_ROOM = 1 / 64
# What prompts go through besides the libraries that every record names.
_TEXT_PACKAGES = ("tokenizers", "sentencepiece", "ftfy")


class EmbeddingFiles:
    """The embeddings that are kept in an output folder, for one set of text models.

    Args:
        output_dir: The folder.
        identity: Hash of the text models, see ``identity.text_identity``.
        surroundings: What bits hang on besides.
        device: Where embeddings go that didn't live in main memory.
        tell: Told once if no more are stored.
    """

    def __init__(
        self,
        output_dir: Path,
        identity: str,
        surroundings: Mapping[str, str],
        device: Any,
        tell: Callable[[str], None],
    ) -> None:
        self._folder = output_dir / FOLDER / "embeddings"
        self._known = [identity, sorted(surroundings.items()), _text_versions()]
        self._device = device
        self._tell = tell
        self._is_full = False
        self._bytes = self._allowed = 0
        self._count()

    def find(self, encoding: str) -> tuple[Any] | None:
        """What an encoding gave, in a tuple; None where that isn't known, or its file is damaged.

        Args:
            encoding: The prompt, and all arguments.
        """
        try:
            data = read_regular(self._path(encoding), MOST_BYTES)
            if not seal_holds(data):
                return None
            return (unpack(data, self._device)["value"],)
        except (OSError, CheckpointError, KeyError):
            return None

    def keep(self, encoding: str, value: Any) -> None:
        """Store what an encoding gave, unless it is of no kind that can be, or the folder is full.

        Args:
            encoding: The prompt, and all arguments.
            value: What they gave.
        """
        if self._is_full:
            return
        try:
            data = seal(pack({"value": value}, {SEAL_KEY: UNSEALED}))
        except CheckpointError:
            return
        path = self._path(encoding)
        try:
            if self._bytes + len(data) > self._allowed:
                self._count()
            if self._bytes + len(data) > MOST_BYTES:
                raise OutputError(f"{self._folder} holds {MOST_BYTES / 2**30:g} GiB by now")
            make_folders(path)
            publish(path, data)
            self._bytes += len(data)
        except OutputError as error:
            self._is_full = True
            self._tell(f"encoded prompts aren't stored any more: {error}")

    def _count(self) -> None:
        """See how much is stored, and up to where that needs no second look."""
        total = 0
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):  # another run has just renamed it
                    total += path.stat().st_size
        self._bytes = total
        self._allowed = total + int((MOST_BYTES - total) * _SHARE_OF_ROOM)

    def _path(self, encoding: str) -> Path:
        told = json.dumps([*self._known, encoding]).encode()
        return self._folder / f"{hashlib.sha256(told).hexdigest()}.safetensors"


def keep_embeddings(
    runtime: PipelineRuntime, output_dir: Path, tell: Callable[[str], None]
) -> None:
    """Let the models in memory find prompts that an earlier run encoded.

    Args:
        runtime: The models.
        output_dir: Folder in which encoded prompts are kept.
        tell: Told once if no more are stored.
    """
    identity = text_identity(runtime.models.pipeline)
    device, known = runtime.device, runtime.surroundings
    runtime.keep_embeddings(EmbeddingFiles(output_dir, identity, known, device, tell))


def _text_versions() -> list[str]:
    found = []
    for name in _TEXT_PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(name)
    return found
