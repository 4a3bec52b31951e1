"""Prompts are encoded once, and what can't be told apart by its text is encoded again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

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


def test_a_store_is_asked_for_a_kind_of_device_and_memory_for_the_device() -> None:
    class Store(dict[str, Any]):
        find = dict.get

        def keep(self, encoding: str, value: Any) -> None:
            self[encoding] = (value,)

    def encode_prompt(prompt: Any, device: Any) -> int:
        calls.append(device)
        return len(calls)

    calls: list[Any] = []
    store = Store()
    pipe = SimpleNamespace(encode_prompt=encode_prompt)
    remember_embeddings(pipe, store)
    for device in ("cuda", "cuda:0", "cuda:1"):
        assert pipe.encode_prompt(["a"], device=torch.device(device)) == 1
    assert pipe.encode_prompt(["a"], device=torch.device("cpu")) == 2
    assert pipe.encode_prompt(("a",), device=torch.device("cpu")) == 3
    assert len(store) == 3

    remember_embeddings(alone := SimpleNamespace(encode_prompt=encode_prompt))
    places = {alone.encode_prompt("a", device=torch.device(f"cuda:{n % 2}")) for n in range(4)}
    assert places == {4, 5}
