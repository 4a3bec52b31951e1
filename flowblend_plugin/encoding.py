"""How pipelines encode prompts: found under its former name, and done once for each prompt."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import transformers

_EMBEDDINGS_KEPT = 64
# Of these, what is written is the whole value; of a picture it is where it lies in memory.
_PLAIN = (str, bool, int, float, type(None), torch.device, torch.dtype)


def keep_text_model(pipe: Any) -> None:
    """Let a pipeline find its text encoder's layers where transformers 4 had them."""
    encoder = getattr(pipe, "text_encoder", None)
    if isinstance(encoder, transformers.CLIPTextModel) and not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)  # not as a part of itself


def remember_embeddings(pipe: Any) -> None:
    """Let a pipeline encode each distinct prompt once; the same tensors come back after that."""
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        return
    known: OrderedDict[str, Any] = OrderedDict()

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        if not all(_is_plain(value) for value in (*args, *kwargs.values())):
            return encode(*args, **kwargs)
        key = repr((args, sorted(kwargs.items())))
        if key not in known:
            known[key] = encode(*args, **kwargs)
            if len(known) > _EMBEDDINGS_KEPT:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    pipe.encode_prompt = encode_once


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
