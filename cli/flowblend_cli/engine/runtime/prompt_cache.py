"""KeptEmbeddings: prompts that were encoded before, by an earlier run or by another worker.

The key covers the text encoder's and tokenizer's files, versions, device, number format, the prompt
and every argument that it is encoded with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from flowblend_cli.engine.runtime.embedding_files import EmbeddingHome
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import SEAL_KEY, UNSEALED, seal, seal_holds
from flowblend_plugin.checkpoints.serialization import pack, unpack
from flowblend_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from flowblend_cli.engine.runtime.pipeline import PipelineRuntime

# What prompts go through besides the libraries that every record names.
_TEXT_PACKAGES = ("tokenizers", "sentencepiece", "ftfy")


class KeptEmbeddings:
    """The embeddings that are kept somewhere, of one set of text models.

    Args:
        home: Where they are kept.
        identity: Hash of the text models, see ``identity.text_identity``.
        surroundings: What bits hang on besides.
        device: Where embeddings go that didn't live in main memory.
        tell: Told once if no more are stored.
    """

    def __init__(
        self,
        home: EmbeddingHome,
        identity: str,
        surroundings: Mapping[str, str],
        device: Any,
        tell: Callable[[str], None],
    ) -> None:
        self._home = home
        self._known = [identity, sorted(surroundings.items()), _text_versions()]
        self._device = device
        self._tell = tell

    def find(self, encoding: str) -> tuple[Any] | None:
        """What an encoding gave, in a tuple; None where that isn't known, or is damaged.

        Args:
            encoding: The prompt, and all arguments.
        """
        data = self._home.read(self._key(encoding))
        if data is None:
            return None
        try:
            if not seal_holds(data):
                return None
            return (unpack(data, self._device)["value"],)
        except (CheckpointError, KeyError):
            return None

    def keep(self, encoding: str, value: Any) -> None:
        """Store what an encoding gave, unless it is of no kind that can be, or there is no room.

        Args:
            encoding: The prompt, and all arguments.
            value: What they gave.
        """
        try:
            data = seal(pack({"value": value}, {SEAL_KEY: UNSEALED}))
        except CheckpointError:
            return
        try:
            self._home.write(self._key(encoding), data)
        except OutputError as error:
            self._tell(str(error))

    def _key(self, encoding: str) -> str:
        told = json.dumps([*self._known, encoding]).encode()
        return hashlib.sha256(told).hexdigest()


def keep_embeddings(
    runtime: PipelineRuntime, home: EmbeddingHome, tell: Callable[[str], None]
) -> None:
    """Let the models in memory find prompts that were encoded before.

    Args:
        runtime: The models.
        home: Where encoded prompts are kept.
        tell: Told once if no more are stored.
    """
    identity = runtime.models.text_sha256
    device, known = runtime.device, runtime.surroundings
    runtime.keep_embeddings(KeptEmbeddings(home, identity, known, device, tell))


def _text_versions() -> list[str]:
    found = []
    for name in _TEXT_PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(name)
    return found
