"""The tables of what stages may set say what the installed diffusers has."""

from __future__ import annotations

import inspect
from dataclasses import fields

import diffusers
import pytest
from diffusers.models.attention_dispatch import AttentionBackendName

from flowblend_plugin.stage_hooks.cache import _CONFIGS, KINDS
from flowblend_plugin.stages import capabilities

# What our own side fills in, and what no file can say.
_OURS = {"num_inference_steps", "current_timestep_callback"}


def test_every_kind_of_cache_is_known() -> None:
    assert tuple(capabilities.CACHES) == KINDS


@pytest.mark.parametrize("kind", _CONFIGS)
def test_the_options_of_a_cache_are_those_of_diffusers(kind: str) -> None:
    sayable = {
        field.name
        for field in fields(_CONFIGS[kind])
        if not field.name.endswith("_callback") and not field.name.startswith("_")
    }

    assert capabilities.CACHES[kind] == sayable - _OURS


def test_the_attention_backends_are_those_of_diffusers() -> None:
    assert set(capabilities.ATTENTION_BACKENDS) == {
        backend.value for backend in AttentionBackendName
    }


@pytest.mark.parametrize(
    "name", sorted(capabilities.RECOMBINED | capabilities.TWO_PASSES | capabilities.BATCHED)
)
def test_every_pipeline_of_the_guidance_tables_exists(name: str) -> None:
    assert inspect.isclass(getattr(diffusers, name))
