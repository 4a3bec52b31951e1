"""LateEncoders: text encoders that are read once a prompt has to be encoded, and not before.

Where every prompt's embedding is known already, they are never read: they may be larger than the
denoisers. Until then ``AbsentEncoder`` stands in their place.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from flowblend_plugin.prompt_cache import keep_text_model

_PREFIX = "text_encoder"
# What diffusers looks for on all components of a pipeline, and no text encoder is used for.
_MARKS = ("_", "is_loaded_in_")


def late_parts(folder: Path) -> tuple[str, ...]:
    """Names of a pipeline's text encoders, if it is one that can begin without them.

    Args:
        folder: The pipeline's folder.
    """
    index = diffusers.DiffusionPipeline.load_config(str(folder), local_files_only=True)
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    if not hasattr(kind, "encode_prompt"):  # whose embeddings nobody keeps
        return ()
    return tuple(
        name
        for name, made_by in index.items()
        if name.startswith(_PREFIX) and isinstance(made_by, (list, tuple)) and made_by[0]
    )


class LateEncoders:
    """The text encoders that a pipeline was loaded without.

    Args:
        pipe: The pipeline, loaded and placed without them.
        names: Their names; none for a pipeline that has them.
        folder: Its folder.
        load: Given all other models of the pipeline by their names, gives a pipeline of the same
            class that holds these, and text encoders.
        place: Given a pipeline that holds the text encoders alone, places them as the others are;
            the pipeline itself has them by then.
    """

    def __init__(
        self,
        pipe: Any,
        names: tuple[str, ...],
        folder: Path,
        load: Callable[[dict[str, Any]], Any],
        place: Callable[[Any], None],
    ) -> None:
        self._pipe = pipe
        self._absent = names
        self._load, self._place = load, place
        # As they are now: during a job, others may stand in their places.
        parts = pipe.components.items() if names else ()
        self._others = {k: part for k, part in parts if isinstance(part, torch.nn.Module)}
        self.elapsed_s = 0.0
        for name in names:
            setattr(pipe, name, AbsentEncoder(partial(self._arrived, name), folder / name))

    def arrive(self) -> None:
        """Read them and put them into the pipeline, unless they are there."""
        if not self._absent:
            return
        began = time.monotonic()
        with torch.random.fork_rng(devices=()):  # the job's draws go on as if they had been there
            holder = self._load(self._others)
        holder.register_modules(**dict.fromkeys(self._others))
        self._pipe.register_modules(**{name: getattr(holder, name) for name in self._absent})
        keep_text_model(self._pipe)
        self._place(holder)
        self._absent, self._others = (), {}
        self.elapsed_s += time.monotonic() - began

    def _arrived(self, name: str) -> Any:
        self.arrive()
        return getattr(self._pipe, name)


class AbsentEncoder:
    """What stands for a text encoder that isn't read yet: any use of it reads it.

    Its config is known without. It is no module, so that diffusers neither moves nor offloads it.

    Args:
        arrived: Reads the text encoder, and gives it.
        folder: Its folder.
    """

    def __init__(self, arrived: Callable[[], Any], folder: Path) -> None:
        self._arrived = arrived
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        if name.startswith(_MARKS):
            raise AttributeError(name)
        if name == "config":
            try:
                return transformers.AutoConfig.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError):  # of a class that transformers doesn't know
                pass
        return getattr(self._arrived(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Be the text encoder."""
        return self._arrived()(*args, **kwargs)
