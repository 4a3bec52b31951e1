"""Prompts are encoded once, and what can't be told apart by its text is encoded again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from flowblend_plugin.prompt_cache import remember_embeddings


def test_prompts_are_encoded_once_and_pictures_every_time() -> None:
    calls: list[Any] = []

    def encode_prompt(prompt: Any, image: Any = None) -> int:
        calls.append((prompt, image))
        return len(calls)

    pipe = SimpleNamespace(encode_prompt=encode_prompt)
    remember_embeddings(pipe)
    assert pipe.encode_prompt(["a", "b"]) == pipe.encode_prompt(["a", "b"]) == 1
    assert pipe.encode_prompt("a") == 2
    # Their texts are equal: numpy leaves out the middle of large arrays.
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1.0
    assert repr(one) == repr(other)
    assert pipe.encode_prompt("a", image=one) != pipe.encode_prompt("a", image=other)
    assert pipe.encode_prompt("a", image=[one]) != pipe.encode_prompt("a", image=[other])


def test_what_a_pipeline_looks_up_itself_tells_prompts_apart() -> None:
    pipe = SimpleNamespace(do_classifier_free_guidance=True)
    pipe.encode_prompt = lambda prompt: (prompt, pipe.do_classifier_free_guidance)
    remember_embeddings(pipe)
    assert pipe.encode_prompt("a") == ("a", True)
    pipe.do_classifier_free_guidance = False
    assert pipe.encode_prompt("a") == ("a", False)
