"""Prompt cache: lets a pipeline encode each distinct prompt once, for batches that repeat some."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
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


def remember_embeddings(
    pipe: Any, store: EmbeddingStore | None = None, before: Callable[[], None] = lambda: None
) -> None:
    """Let a pipeline encode each distinct prompt once; the same tensors come back after that.

    Args:
        pipe: The pipeline.
        store: Where prompts are looked for that this process hasn't encoded, and kept.
        before: Called before a prompt is encoded: text encoders may be read as late as this.
    """
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        return
    known: OrderedDict[str, Any] = OrderedDict()

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        if not all(_is_plain(value) for value in (*args, *kwargs.values())):
            before()
            return encode(*args, **kwargs)
        # I2VGen-XL isn't handed whether an unconditional embedding is wanted: it looks.
        guided = getattr(pipe, "do_classifier_free_guidance", None)
        told = (type(pipe).__name__, guided, args, sorted(kwargs.items()))
        key = repr(told)
        if key not in known:
            encoding = repr(_anywhere(told))
            found = store.find(encoding) if store is not None else None
            if found is None:
                before()
                found = (encode(*args, **kwargs),)
                if store is not None:
                    store.keep(encoding, found[0])
            known[key] = found[0]
            if len(known) > _EMBEDDINGS_KEPT:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    pipe.encode_prompt = encode_once


def _anywhere(value: Any) -> Any:
    """Leave out which of several devices of a kind is meant: a store knows what kind it has."""
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_anywhere, value))
    return torch.device(value.type) if isinstance(value, torch.device) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
