"""Prompt cache: lets a pipeline encode each distinct prompt once, for batches that repeat some."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import torch
import transformers

_EMBEDDINGS_KEPT = 64
# Of these, what is written is the whole value; of a picture it is where it lies in memory.
_PLAIN = (str, bool, int, float, type(None), torch.device, torch.dtype)


class EmbeddingStore(Protocol):
    """A store that keeps encoded prompts longer than a process lives."""

    def find(self, encoding: str) -> tuple[Any] | None:
        """Give the result of an encoding, in a tuple; None where it isn't known."""

    def keep(self, encoding: str, value: Any) -> None:
        """Store the result of an encoding, where that can be done."""


def keep_text_model(pipe: Any) -> None:
    """Let a pipeline find its text encoder's layers where transformers 4 had them."""
    encoder = getattr(pipe, "text_encoder", None)
    if isinstance(encoder, transformers.CLIPTextModel) and not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)  # not as a part of itself


def remember_embeddings(pipe: Any, store: EmbeddingStore | None = None) -> None:
    """Let a pipeline encode each distinct prompt once; the same tensors come back after that.

    Args:
        pipe: The pipeline.
        store: Where prompts are looked for that this process hasn't encoded, and kept.
    """
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        return
    known: OrderedDict[str, Any] = OrderedDict()

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        if not all(_is_plain(value) for value in (*args, *kwargs.values())):
            return encode(*args, **kwargs)
        # I2VGen-XL isn't handed whether an unconditional embedding is wanted: it looks.
        guided = getattr(pipe, "do_classifier_free_guidance", None)
        key = repr((type(pipe).__name__, guided, args, sorted(kwargs.items())))
        if key not in known:
            found = store.find(key) if store is not None else None
            if found is None:
                found = (encode(*args, **kwargs),)
                if store is not None:
                    store.keep(key, found[0])
            known[key] = found[0]
            if len(known) > _EMBEDDINGS_KEPT:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    pipe.encode_prompt = encode_once


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
