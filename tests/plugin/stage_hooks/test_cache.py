"""Every cache against the same cache without a switch, and against what it must leave behind."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    MagCacheConfig,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
)
from diffusers.hooks import HookRegistry, ModelHook
from snapshots import Snapshot, check
from tiny import ltx_denoiser, ltx_pipe, run_ltx, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import Cache, DenoiserSwitch, Stage, StageSchedule, SwitchError
from flowblend_plugin.stage_hooks.cache import KINDS, CacheReport, StageCaches, cache_config

STEPS = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "first_block": {"threshold": 1e9},
    "mag": {"mag_ratios": (1.0,) * STEPS, "retention_ratio": 0.0, "max_skip_steps": 1},
    "taylorseer": {
        "cache_interval": 3,
        "disable_cache_before_step": 1,
        "taylor_factors_dtype": "float32",
        "cache_identifiers": (r"blocks\.\d+\.attn1",),
    },
    "pab": {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 990),
    },
    "faster": {"spatial_attention_timestep_skip_range": (-1, 990)},
    "sea": {"threshold": 1e9},
    "cache_dit": {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1e9},
}
needs_cache_dit = pytest.mark.skipif(
    importlib.util.find_spec("cache_dit") is None, reason="the extra cache-dit isn't installed"
)
WORKING = [
    pytest.param(kind, marks=needs_cache_dit) if kind == "cache_dit" else kind for kind in OPTIONS
]


def cache(kind: str, **options: Any) -> Cache:
    return Cache.of(kind, {**OPTIONS.get(kind, {}), **options})


def all_of(kind: str, **options: Any) -> StageSchedule:
    return StageSchedule((Stage("large", cache=cache(kind, **options)),))


@functools.cache
def uncached(**call: Any) -> torch.Tensor:
    return run_wan(wan_pipe(), steps=STEPS, **call)


def switched(
    pipe: Any, stages: StageSchedule, small: Any = None, **call: Any
) -> tuple[torch.Tensor, tuple[CacheReport, ...]]:
    """Latents and reports of a run, done twice."""
    with DenoiserSwitch(pipe, small, stages) as switch:
        first = run_wan(pipe, steps=STEPS, **call)
        reports = switch.cache_reports
        assert torch.equal(run_wan(pipe, steps=STEPS, **call), first), "run 2 differs"
        assert switch.cache_reports == reports
    return first, reports


def test_every_kind_is_tested() -> None:
    assert {*OPTIONS, "text_kv"} == set(KINDS)


# Oracle: the same cache, enabled by hand.


def by_hand(pipe: Any, kind: str, guided: bool) -> Callable[[], None]:
    denoiser = pipe.transformer
    if kind == "cache_dit":
        import cache_dit

        config = cache_dit.DBCacheConfig(**OPTIONS[kind], enable_separate_cfg=guided)
        cache_dit.enable_cache(denoiser, cache_config=config)
        return lambda: cache_dit.disable_cache(denoiser)
    config = cache_config(cache(kind), 0, STEPS, STEPS, lambda: int(pipe.current_timestep))
    denoiser.enable_cache(config)
    return denoiser.disable_cache


@pytest.mark.parametrize("kind", WORKING)
def test_a_cache_on_all_steps_equals_the_same_cache_without_a_switch(kind: str) -> None:
    # diffusers' PAB and FasterCache mix the passes of guidance, ours don't: one pass, then.
    scale = 1.0 if kind in ("pab", "faster") else 3.0
    pipe = wan_pipe()
    disable = by_hand(pipe, kind, guided=scale > 1)
    expected = run_wan(pipe, steps=STEPS, guidance_scale=scale)
    disable()
    found, (report,) = switched(wan_pipe(), all_of(kind), guidance_scale=scale)
    assert torch.equal(found, expected)
    assert not torch.equal(found, uncached(guidance_scale=scale))
    assert (report.kind, report.forwards) == (kind, STEPS * (1 if scale == 1 else 2))
    assert report.computed < 1


@pytest.mark.parametrize("kind", WORKING)
def test_the_two_passes_of_guidance_dont_share_a_memory(kind: str) -> None:
    # With one prompt for both passes, guidance changes nothing: so two passes equal one.
    embeds = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    prompts = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds.clone()}
    two, (guided,) = switched(wan_pipe(), all_of(kind), guidance_scale=3.0, **prompts)
    one, (single,) = switched(wan_pipe(), all_of(kind), guidance_scale=1.0, **prompts)
    assert torch.equal(two, one)
    assert (guided.forwards, guided.skipped) == (2 * single.forwards, 2 * single.skipped)
    assert guided.computed == single.computed


# Stages.


@pytest.mark.parametrize("kind", WORKING)
def test_caches_in_every_stage_begin_empty_and_leave_nothing(kind: str) -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    ours = cache(kind)
    stages = StageSchedule(
        (Stage("large", 0.375, cache=ours), Stage("small", 0.75, cache=ours), Stage("large"))
    )
    before = [traces(module, kind) for module in (pipe.transformer, small)]
    _, reports = switched(pipe, stages, small)
    assert [traces(module, kind) for module in (pipe.transformer, small)] == before
    assert [(r.stage, r.denoiser, r.forwards) for r in reports] == [
        (0, "large", 6),
        (1, "small", 6),
    ]
    assert all(r.skipped > 0 and r.computed < 1 for r in reports)
    assert torch.equal(run_wan(pipe, steps=STEPS), uncached())


def traces(denoiser: Any, kind: str) -> Any:
    """Whatever a cache could leave on a denoiser, but for what diffusers' own leave by themselves.

    Those keep empty registries of hooks, and set what they replaced instead of deleting it.
    """
    replaced = set() if kind == "cache_dit" else {"forward", "_cache_config"}
    return [
        (
            name,
            sorted(set(vars(module)) - {"_diffusers_hook"} - replaced),
            list(module._modules),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            list(module._diffusers_hook.hooks) if hasattr(module, "_diffusers_hook") else [],
        )
        for name, module in denoiser.named_modules()
    ]


@pytest.mark.parametrize("kind", WORKING)
def test_a_cached_stage_after_a_plain_one_starts_at_any_noise_level(kind: str) -> None:
    # The last quarter lies inside every timestep range, where FasterCache has nothing to reuse yet.
    stages = StageSchedule((Stage("large", 0.625), Stage("large", cache=cache(kind))))
    found, (report,) = switched(wan_pipe(), stages)
    assert found.isfinite().all()
    assert report.forwards == 6


def test_mag_cache_gets_its_stages_part_of_the_ratios() -> None:
    ratios = tuple(1 - i / 100 for i in range(20))
    ours = Cache.of("mag", {"mag_ratios": ratios})
    whole = cache_config(ours, 0, 20, 20, int).mag_ratios
    for start, steps in ((0, 8), (8, 8), (16, 4)):
        part = cache_config(ours, start, steps, 20, int)
        assert part.num_inference_steps == steps
        assert torch.equal(part.mag_ratios, whole[start : start + steps])
    for total in (1, 7, 50):
        diffusers_own = MagCacheConfig(mag_ratios=list(ratios), num_inference_steps=total)
        found = cache_config(ours, 0, total, total, int).mag_ratios
        assert torch.equal(found, diffusers_own.mag_ratios)


# TextKV, which is for one family only.


def nucleus_denoiser() -> Any:
    torch.manual_seed(0)
    return NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=2.0,
        moe_enabled=False,
        capacity_factors=[8.0, 8.0],
    ).eval()


def run_nucleus(pipe: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(99)
    prompts = [torch.randn(1, 4, 8, generator=noise) for _ in range(2)]
    return pipe(
        prompt_embeds=prompts[0],
        prompt_embeds_mask=torch.ones(1, 4, dtype=torch.long),
        negative_prompt_embeds=prompts[1],
        negative_prompt_embeds_mask=torch.ones(1, 4, dtype=torch.long),
        height=32,
        width=32,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def test_text_kv_saves_the_texts_projections_and_changes_no_bit() -> None:
    pipe = NucleusMoEImagePipeline(
        transformer=nucleus_denoiser(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    expected = run_nucleus(pipe)
    stages = StageSchedule((Stage("large", 0.5), Stage("large", cache=Cache("text_kv"))))
    with DenoiserSwitch(pipe, stages=stages) as switch:
        first = run_nucleus(pipe)
        assert torch.equal(run_nucleus(pipe), first)
    assert torch.allclose(first, expected, atol=1e-5)
    (report,) = switch.cache_reports
    assert report.skipped > 0
    assert 0 < report.computed < 1


# What can't be done is refused before a run.


@pytest.mark.parametrize("kind", ["pab", "faster"])
def test_a_pipeline_that_doesnt_tell_its_timestep_is_refused(kind: str) -> None:
    class Silent:
        """What a pipeline is to a cache, without ``current_timestep``."""

    with pytest.raises(SwitchError, match="a Silent doesn't tell"):
        StageCaches(Silent(), all_of(kind).stages, [wan_denoiser()])


@needs_cache_dit
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"Fn_compute_blocks": 3}, "Fn_compute_blocks .* is 3, and this .* has 2 blocks"),
        ({"Bn_compute_blocks": 9}, "Bn_compute_blocks"),
        ({"fn": 1}, r"takes no fn: it takes Bn_compute_blocks, .*taylorseer_order"),
        ({"cache_type": "DBPrune"}, "takes no cache_type"),
    ],
)
def test_cache_dit_refuses_what_it_cant_do(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SwitchError, match=says):
        DenoiserSwitch(wan_pipe(), stages=all_of("cache_dit", **options))


@needs_cache_dit
def test_cache_dit_refuses_a_denoiser_that_it_has_already() -> None:
    import cache_dit

    pipe = wan_pipe()
    cache_dit.enable_cache(pipe.transformer)
    with pytest.raises(SwitchError, match="already"):
        DenoiserSwitch(pipe, stages=all_of("cache_dit"))


@needs_cache_dit
def test_cache_dit_says_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    import cache_dit

    handlers = logging.getLogger("CACHE_DIT").handlers
    (handler,) = [handler for handler in handlers if type(handler) is logging.StreamHandler]
    handler.setStream(sys.stdout)  # as a fresh import leaves it
    handler.setLevel(logging.INFO)
    cache_dit.disable_cache(wan_denoiser())
    assert "disabled" in capsys.readouterr().out
    switched(wan_pipe(), all_of("cache_dit"))
    assert capsys.readouterr() == ("", "")


@needs_cache_dit
def test_cache_dit_leaves_hooks_that_were_there_in_place() -> None:
    pipe = wan_pipe()
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    registry.register_hook(ModelHook(), "mine")
    forward = pipe.transformer.forward
    found, _ = switched(pipe, all_of("cache_dit"))
    assert pipe.transformer.forward is forward
    assert list(registry.hooks) == ["mine"]
    assert torch.equal(found, switched(wan_pipe(), all_of("cache_dit"))[0])


@needs_cache_dit
def test_cache_dit_extrapolates_when_asked_to() -> None:
    reused, _ = switched(wan_pipe(), all_of("cache_dit", max_warmup_steps=4))
    stages = all_of("cache_dit", max_warmup_steps=4, taylorseer_order=1)
    extrapolated, (report,) = switched(wan_pipe(), stages)
    assert report.computed < 1
    assert not torch.equal(extrapolated, reused)


@needs_cache_dit
def test_cache_dit_works_on_a_pipeline_that_batches_its_passes() -> None:
    pipe = ltx_pipe()
    stages = StageSchedule((Stage("large", 0.5), Stage("small", cache=cache("cache_dit"))))
    with DenoiserSwitch(pipe, ltx_denoiser(seed=1), stages) as switch:
        first = run_ltx(pipe)
        assert torch.equal(run_ltx(pipe), first)
    assert [(r.forwards, r.skipped) for r in switch.cache_reports] == [(3, 2)]


def test_without_cache_dit_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(SwitchError, match=r"pip install 'flowblend\[cache-dit\]'"):
        DenoiserSwitch(wan_pipe(), stages=all_of("cache_dit"))


@pytest.mark.parametrize("ends", ["well", "failed"])
@pytest.mark.parametrize("kind", WORKING)
def test_a_stages_cache_leaves_no_trace_on_any_denoiser(kind: str, ends: str) -> None:
    pipe, other = wan_pipe(), wan_denoiser(layers=2, seed=1)
    cached = cache(kind)
    stages = StageSchedule((Stage("large", 0.4, cache=cached), Stage("small", cache=cached)))

    def fail(pipe: Any, index: int, timestep: Any, given: Any) -> Any:
        if ends == "failed" and index == 5:
            raise ZeroDivisionError
        return given

    before = Snapshot(pipe, small=other)
    with DenoiserSwitch(pipe, other, stages), contextlib.suppress(ZeroDivisionError):
        run_wan(pipe, steps=STEPS, callback_on_step_end=fail)
    check(before, Snapshot(pipe, small=other))
