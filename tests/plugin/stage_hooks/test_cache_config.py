"""The configs that stages' caches become, what is counted of them, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks.mag_cache import nearest_interp
from tiny import wan_denoiser, wan_pipe
from torch import nn

from flowblend_plugin import SwitchError
from flowblend_plugin.stage_hooks.cache import KINDS, StageCaches, cache_config
from flowblend_plugin.stage_hooks.layer_counts import LayerCounts
from flowblend_plugin.stages import Cache, Stage

RATIOS = (1.0, 1.02, 0.98, 0.95, 0.9, 0.85, 0.7, 0.5)


def config(kind: str, start: int = 2, steps: int = 3, total: int = 8, **options: Any) -> Any:
    return cache_config(Cache.of(kind, options), start, steps, total, lambda: 700)


def test_mag_counts_the_steps_of_its_stage_and_gets_their_ratios() -> None:
    plain = config("mag", calibrate=True)
    assert plain.num_inference_steps == 3
    cut = config("mag", mag_ratios=RATIOS)
    assert cut.num_inference_steps == 3
    assert torch.allclose(torch.as_tensor(cut.mag_ratios), torch.tensor(RATIOS[2:5]))
    longer = config("mag", start=4, steps=2, total=16, mag_ratios=RATIOS)
    whole = nearest_interp(torch.tensor(RATIOS), 16)
    assert torch.allclose(torch.as_tensor(longer.mag_ratios), whole[4:6])


def test_caches_by_timestep_are_told_it_and_the_others_arent() -> None:
    for kind in ("pab", "faster"):
        assert config(kind).current_timestep_callback() == 700
    for kind in ("first_block", "taylorseer", "sea", "text_kv"):
        assert not hasattr(config(kind), "current_timestep_callback")


def test_faster_leaves_the_unconditional_pass_alone_unless_told_otherwise() -> None:
    assert config("faster").is_guidance_distilled is True
    assert config("faster", is_guidance_distilled=False).is_guidance_distilled is False


def test_a_number_format_is_given_by_its_name() -> None:
    assert config("taylorseer").taylor_factors_dtype is not torch.float16
    named = config("taylorseer", taylor_factors_dtype="float16")
    assert named.taylor_factors_dtype is torch.float16
    with pytest.raises(SwitchError, match=r"cache 'taylorseer': .*no attribute 'float17'"):
        config("taylorseer", taylor_factors_dtype="float17")


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("none", {}, f"cache 'none' is unknown: choose one of {', '.join(KINDS)}"),
        ("first_block", {"b": 1, "a": 2}, "cache 'first_block' takes no a, b: it takes threshold"),
        ("text_kv", {"a": 2}, "cache 'text_kv' takes no a: it takes no options"),
        ("mag", {}, "cache 'mag' can't be made: `mag_ratios` must be provided for MagCache inf"),
    ],
)
def test_what_a_cache_doesnt_take_is_refused_with_what_it_takes(
    kind: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(SwitchError) as caught:
        cache_config(Cache(kind, tuple(options.items())), 0, 1, 1, lambda: 0)
    assert says in str(caught.value)


def stages(kind: str) -> tuple[Stage, ...]:
    return (Stage("large", cache=Cache.of(kind, {})),)


def test_denoisers_that_cant_cache_or_do_already_are_refused_by_their_class() -> None:
    pipe = wan_pipe()
    with pytest.raises(SwitchError, match=r"^Linear can't cache: leave cache out of the stages"):
        StageCaches(pipe, stages("first_block"), [nn.Linear(2, 2)])
    module = wan_denoiser()
    module.enable_cache(config("first_block"))
    with pytest.raises(SwitchError, match=r"^this WanTransformer3DModel has a cache enabled alr"):
        StageCaches(pipe, stages("first_block"), [module])
    StageCaches(pipe, (Stage("large"),), [module])  # nobody asks for one
    StageCaches(pipe, stages("pab"), [wan_denoiser()])


def test_linear_layers_are_counted_by_forward() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    counts = LayerCounts([module])
    for parts in (module, module[:1], module):
        counts.begin()
        parts(torch.zeros(1, 2))
        counts.end(module)
    assert counts.forwards == 3
    assert counts.summary() == (1, 5 / 6)
    counts.begin()
    module(torch.zeros(1, 2))
    counts.begin()  # the one before failed
    counts.end(module)
    counts.close()
    module(torch.zeros(1, 2))
    counts.end(module)
    assert counts.summary() == (3, 5 / 10)


def test_a_denoiser_without_linear_layers_skips_none() -> None:
    counts = LayerCounts([nn.ReLU()])
    counts.begin()
    counts.end(nn.ReLU())
    assert counts.summary() == (0, 1.0)
