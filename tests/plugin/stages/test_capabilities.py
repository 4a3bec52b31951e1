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


# One of each table, and one that is in none.
PIPELINES = ["WanPipeline", "Cosmos2TextToImagePipeline", "LTXPipeline", "FluxPipeline"]


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("scale", [0.0, 0.99, 1.0, 1.01, 7.5])
def test_guidance_changes_where_two_passes_can_be_told_apart(name: str, scale: float) -> None:
    may = scale >= 1 and name != "FluxPipeline" and not (name == "LTXPipeline" and scale == 1.0)
    assert (capabilities.guidance_problem(name, scale) is None) is may


def test_why_guidance_cant_change_is_said() -> None:
    assert "at least 1.0" in (capabilities.guidance_problem("WanPipeline", 0.5) or "")
    assert "got 0.5" in (capabilities.guidance_problem("WanPipeline", 0.5) or "")
    assert "fixes it before" in (capabilities.guidance_problem("FluxPipeline", 3.0) or "")
    assert "as one batch" in (capabilities.guidance_problem("LTXPipeline", 1.0) or "")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("first_block", {}, None),
        ("first_block", {"threshold": 0.1}, None),
        ("text_kv", {}, None),
        ("mag", {"mag_ratios": (1.0, 0.9), "threshold": 0.1}, None),
        ("mag", {"calibrate": True}, None),
        ("cache_dit", {"whatever": "it takes today"}, None),
        ("last_block", {}, f"cache 'last_block' is unknown: choose one of {', '.join(KINDS)}"),
        ("text_kv", {"x": 1}, "cache 'text_kv' takes no x: it takes no options"),
        (
            "mag",
            {"speed": 1, "pace": 2, "threshold": 0.1},
            (
                "cache 'mag' takes no pace, speed: it takes calibrate, mag_ratios, max_skip_steps, "
                "retention_ratio, threshold"
            ),
        ),
        ("mag", {}, "give mag_ratios, or calibrate = true"),
        ("mag", {"mag_ratios": ()}, "give mag_ratios, or calibrate = true"),
        ("mag", {"calibrate": False}, "give mag_ratios, or calibrate = true"),
        ("mag", {"calibrate": 1}, "give mag_ratios, or calibrate = true"),
    ],
)
def test_a_cache_has_a_kind_and_options_that_it_knows(
    kind: str, options: dict[str, object], said: str | None
) -> None:
    problem = capabilities.cache_problem(kind, options)
    assert problem is None if said is None else said in (problem or "")
