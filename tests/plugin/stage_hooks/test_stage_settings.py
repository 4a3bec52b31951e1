"""What stages may set beyond the denoiser's role: names, guidance, adapters, caches, attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tiny import (
    ForwardRecorder,
    ltx_denoiser,
    ltx_pipe,
    run_ltx,
    run_wan,
    snapshot,
    wan_denoiser,
    wan_pipe,
)

from flowblend_plugin import (
    Adapter,
    AdapterError,
    Cache,
    DenoiserSwitch,
    Stage,
    StageError,
    StageSchedule,
    SwitchError,
)


def small(seed: int = 1) -> Any:
    return wan_denoiser(layers=1, heads=1, seed=seed)


def schedule(*stages: Stage) -> StageSchedule:
    return StageSchedule(stages)


# Named denoisers.


def test_letters_are_the_initials_of_named_denoisers() -> None:
    pipe, distilled = wan_pipe(), small(2)
    record = ForwardRecorder(large=pipe.transformer, distilled=distilled)
    with DenoiserSwitch(
        pipe, denoisers={"distilled": distilled}, stages="LDL", boundaries=(0.5, 0.75)
    ) as switch:
        run_wan(pipe, steps=8)
    assert record.per_step() == ("large",) * 4 + ("distilled",) * 2 + ("large",) * 2
    assert tuple(switch.denoisers_run) == record.per_step()


def test_three_sizes_take_turns_and_a_named_small_is_the_small_one() -> None:
    pipe, first, second = wan_pipe(), small(1), small(2)
    with DenoiserSwitch(pipe, small=first, stages="LS", boundaries=(0.5,)):
        expected = run_wan(pipe)
    with DenoiserSwitch(pipe, denoisers={"small": first}, stages="LS", boundaries=(0.5,)):
        assert torch.equal(run_wan(pipe), expected)
    with DenoiserSwitch(
        pipe, first, "LSM", boundaries=(0.25, 0.5), denoisers={"middle": second}
    ) as switch:
        run_wan(pipe, steps=4)
    assert switch.denoisers_run == ["large", "small", "middle", "middle"]


@pytest.mark.parametrize(
    ("given", "stages", "error", "says"),
    [
        ({"large": 0}, "LL", SwitchError, "pipe's own"),
        ({"a": 0, "b": 0}, "LCL", StageError, "'C'.*A for a, B for b"),
        ({"apple": 0, "ant": 0}, "LAL", StageError, "unknown letter 'A'"),
        ({"small": 0}, "LSL", SwitchError, "twice"),
    ],
)
def test_names_that_cant_be_meant_are_refused(
    given: dict[str, Any], stages: str, error: type[Exception], says: str
) -> None:
    pipe, other = wan_pipe(), small()
    with pytest.raises(error, match=says):
        DenoiserSwitch(
            pipe, other, stages, boundaries=(0.2, 0.4)[: len(stages) - 1],
            denoisers=dict.fromkeys(given, other),
        )  # fmt: skip
    DenoiserSwitch(pipe, other, "LLL").detach()


def test_a_stage_whose_denoiser_was_not_given_is_refused() -> None:
    with pytest.raises(SwitchError, match=r"draft.*denoisers="):
        DenoiserSwitch(wan_pipe(), stages=schedule(Stage("draft")))


# Wan 2.2: two experts.


def experts(**kwargs: Any) -> Any:
    return wan_pipe(transformer_2=wan_denoiser(seed=3), boundary_ratio=0.9, **kwargs)


def test_two_experts_all_large_equal_the_plain_pipeline() -> None:
    plain = run_wan(experts(), guidance_scale_2=2.0)
    pipe = experts()
    with DenoiserSwitch(pipe, small=small(), stages="LLL"):
        assert torch.equal(run_wan(pipe, guidance_scale_2=2.0), plain)


@pytest.mark.parametrize("pair", [False, True])
def test_stages_ride_on_top_of_two_experts(pair: bool) -> None:
    pipe, one, two = experts(), small(1), small(2)
    high, low = pipe.transformer, pipe.transformer_2
    record = ForwardRecorder(high=high, low=low, one=one, two=two)
    steps = 8
    run_wan(pipe, steps=steps)
    plain = record.per_step()
    record.roles.clear()
    given = (one, two) if pair else one
    with DenoiserSwitch(pipe, small=given, stages="LSL", boundaries=(0.125, 0.75)) as switch:
        run_wan(pipe, steps=steps)
    small_of = {"high": "one", "low": "two" if pair else "one"}
    assert record.per_step() == tuple(
        small_of[expert] if 1 <= i < 6 else expert for i, expert in enumerate(plain)
    )
    assert "high" in plain[1:6]
    assert tuple(switch.denoisers_run) == ("large",) + ("small",) * 5 + ("large",) * 2
    assert (pipe.transformer, pipe.transformer_2) == (high, low)


def test_an_expert_can_be_a_named_denoiser() -> None:
    pipe = experts()
    low = pipe.transformer_2
    record = ForwardRecorder(high=pipe.transformer, low=low)
    stages = schedule(Stage("low", until=0.125), Stage("large"))
    with DenoiserSwitch(pipe, denoisers={"low": low}, stages=stages):
        run_wan(pipe, steps=8)
    assert record.per_step()[:2] == ("low", "high")


def test_the_wrong_number_of_experts_is_refused() -> None:
    with pytest.raises(SwitchError, match="3 modules"):
        DenoiserSwitch(experts(), small=(small(),) * 3, stages="SSS")
    with pytest.raises(SwitchError, match="2 modules"):
        DenoiserSwitch(wan_pipe(), small=(small(),) * 2, stages="SSS")


# Guidance.


def test_stages_with_the_calls_own_guidance_change_no_bit() -> None:
    plain = run_wan(wan_pipe(), guidance_scale=3.0)
    pipe = wan_pipe()
    stages = schedule(Stage("large", 0.5, guidance_scale=3.0), Stage("large"))
    with DenoiserSwitch(pipe, stages=stages):
        assert torch.equal(run_wan(pipe, guidance_scale=3.0), plain)


@pytest.mark.parametrize("scale", [1.5, 6.0])
def test_one_stage_of_another_scale_equals_a_call_with_that_scale(
    scale: float, scheduler: Any
) -> None:
    plain = run_wan(wan_pipe(scheduler), guidance_scale=scale)
    pipe = wan_pipe(scheduler)
    with DenoiserSwitch(pipe, stages=schedule(Stage("large", guidance_scale=scale))):
        assert torch.equal(run_wan(pipe, guidance_scale=3.0), plain)


def test_guidance_of_one_drops_the_unconditional_pass_in_its_stage_only() -> None:
    pipe = wan_pipe()
    record = ForwardRecorder(large=pipe.transformer)
    for stages, passes in (
        (schedule(Stage("large", 0.5), Stage("large", guidance_scale=1.0)), 4 * 2 + 4),
        (schedule(Stage("large", 0.25, guidance_scale=1.0), Stage("large")), 2 + 6 * 2),
    ):
        record.roles.clear()
        with DenoiserSwitch(pipe, stages=stages):
            run_wan(pipe, steps=8)
        assert len(record.roles) == passes
    only = schedule(Stage("large", guidance_scale=1.0))
    with DenoiserSwitch(pipe, stages=only):
        dropped = run_wan(pipe)
    assert torch.equal(dropped, run_wan(wan_pipe(), guidance_scale=1.0))
    assert pipe.guidance_scale == 3.0


def test_guidance_follows_each_expert() -> None:
    pipe = experts()
    stages = schedule(Stage("large", guidance_scale=4.0))
    with DenoiserSwitch(pipe, stages=stages):
        got = run_wan(pipe, guidance_scale=3.0, guidance_scale_2=2.0)
    assert torch.equal(got, run_wan(experts(), guidance_scale=4.0, guidance_scale_2=4.0))


def test_a_batched_pipeline_reads_the_stages_scale_and_refuses_one() -> None:
    plain = run_ltx(ltx_pipe(), guidance_scale=5.0)
    pipe = ltx_pipe()
    with DenoiserSwitch(pipe, stages=schedule(Stage("large", guidance_scale=5.0))):
        assert torch.equal(run_ltx(pipe, guidance_scale=3.0), plain)
    with pytest.raises(SwitchError, match="one batch"):
        DenoiserSwitch(pipe, stages=schedule(Stage("large", guidance_scale=1.0)))


def test_guidance_that_the_call_has_no_pass_for_is_refused() -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)
    with (
        pytest.raises(
            SwitchError,
            match=r"wants guidance_scale 5\.0, but the call runs with 1\.0 and so has no uncond",
        ),
        DenoiserSwitch(pipe, stages=schedule(Stage("large", guidance_scale=5.0))),
    ):
        run_wan(pipe, guidance_scale=1.0)
    assert snapshot(pipe) == before


def test_guidance_hooks_are_gone_after_a_failure() -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)

    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError

    with (
        pytest.raises(RuntimeError),
        DenoiserSwitch(pipe, stages=schedule(Stage("large", guidance_scale=5.0))),
    ):
        run_wan(pipe, callback_on_step_end=fail)
    assert snapshot(pipe) == before
    assert pipe.guidance_scale == 3.0


# Adapters.


def write_lora(module: Any, path: Path, seed: int = 0, prefix: str = "transformer.") -> Path:
    """Random LoRA weights of a denoiser's attention queries, as published files spell them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in module.named_modules():
        if name.endswith("to_q"):
            rows, columns = layer.weight.shape
            weights[f"{prefix}{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            weights[f"{prefix}{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    save_file(weights, str(path))
    return path


@pytest.fixture
def lora(tmp_path: Path) -> dict[str, Path]:
    return {
        "large": write_lora(wan_denoiser(), tmp_path / "large.safetensors"),
        "small": write_lora(small(), tmp_path / "small.safetensors", seed=1),
    }


def names(module: Any) -> list[str]:
    return [name for name, _ in module.named_modules()]


STYLE = (Adapter("style"),)


def test_a_lora_in_one_stage_changes_that_stage_only_and_leaves_nothing(lora: Any) -> None:
    pipe, other = wan_pipe(), small()
    before, modules = snapshot(pipe), (names(pipe.transformer), names(other))
    results = {}
    for key, stages in {
        "none": schedule(Stage("large", 0.5), Stage("small")),
        "first": schedule(Stage("large", 0.5, adapters=STYLE), Stage("small")),
        "second": schedule(Stage("large", 0.5), Stage("small", adapters=STYLE)),
        "both": schedule(Stage("large", 0.5, adapters=STYLE), Stage("small", adapters=STYLE)),
    }.items():
        sources = None if key == "none" else {"style": lora}
        with DenoiserSwitch(pipe, other, stages, adapters=sources):
            results[key] = run_wan(pipe)
            assert torch.equal(run_wan(pipe), results[key])
        assert snapshot(pipe) == before
        assert (names(pipe.transformer), names(other)) == modules
    keys = list(results)
    for i, one in enumerate(keys):
        for two in keys[i + 1 :]:
            assert not torch.equal(results[one], results[two])


def test_a_lora_in_every_stage_equals_the_pipelines_own(lora: Any) -> None:
    plain = wan_pipe()
    plain.load_lora_weights(lora["large"])
    expected = run_wan(plain)
    pipe = wan_pipe()
    with DenoiserSwitch(
        pipe, stages=schedule(Stage("large", adapters=STYLE)), adapters={"style": lora["large"]}
    ):
        assert torch.equal(run_wan(pipe), expected)
    assert torch.equal(run_wan(pipe), run_wan(wan_pipe()))


def test_weights_ramp_over_the_stage(lora: Any) -> None:
    ramp = Adapter("style", 0.0, end_weight=1.0)
    assert [ramp.weight_at(i, 5) for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ramp.weight_at(0, 1) == 0.0
    pipe = wan_pipe()
    seen: list[float] = []

    def watch(module: Any, args: Any) -> None:
        layer = module.blocks[0].attn1.to_q
        seen.append(layer.scaling["style"])

    handle = pipe.transformer.register_forward_pre_hook(watch)
    stages = schedule(Stage("large", adapters=(Adapter("style", 0.25, end_weight=1.0),)))
    with DenoiserSwitch(pipe, stages=stages, adapters={"style": lora["large"]}):
        run_wan(pipe, steps=4, guidance_scale=1.0)
    handle.remove()
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_adapters_that_were_active_before_are_active_again(lora: Any) -> None:
    pipe = wan_pipe()
    pipe.load_lora_weights(lora["large"], adapter_name="mine")
    pipe.set_adapters(["mine"], [0.5])
    expected = run_wan(pipe)
    stages = schedule(Stage("large", 0.5), Stage("large", adapters=STYLE))
    with DenoiserSwitch(pipe, stages=stages, adapters={"style": lora["large"]}):
        assert not torch.equal(run_wan(pipe), expected)
    assert torch.equal(run_wan(pipe), expected)
    assert list(pipe.transformer.peft_config) == ["mine"]


def test_a_lora_of_another_denoiser_is_refused_naming_its_weights(lora: Any) -> None:
    pipe = wan_pipe()
    before = names(pipe.transformer)
    with pytest.raises(AdapterError, match=r"style.*large.*\n.*attn1\.to_q\.lora_A.*wide"):
        DenoiserSwitch(
            pipe, stages=schedule(Stage("large", adapters=STYLE)),
            adapters={"style": lora["small"]},
        )  # fmt: skip
    assert names(pipe.transformer) == before
    DenoiserSwitch(pipe, stages="LLL").detach()


def test_unknown_layers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "alien.safetensors"
    save_file({"transformer.mid.9.lora_A.weight": torch.zeros(2, 24)}, str(path))
    with pytest.raises(AdapterError, match=r"mid\.9\.lora_A\.weight: no such layer"):
        DenoiserSwitch(
            wan_pipe(), stages=schedule(Stage("large", adapters=STYLE)), adapters={"style": path}
        )


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (None, "no source"),
        ({"style": "./nope.safetensors"}, "doesn't exist"),
        ({"style": {"small": "x"}}, "no source"),
    ],
)
def test_adapters_without_weights_are_refused(sources: Any, says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        DenoiserSwitch(
            wan_pipe(), stages=schedule(Stage("large", adapters=STYLE)), adapters=sources
        )


def test_pickles_and_unused_adapters_are_refused(tmp_path: Path, lora: Any) -> None:
    path = tmp_path / "evil.bin"
    path.write_bytes(b"x")
    with pytest.raises(AdapterError, match="no safetensors"):
        DenoiserSwitch(
            wan_pipe(), stages=schedule(Stage("large", adapters=STYLE)), adapters={"style": path}
        )
    with pytest.raises(AdapterError, match="no stage uses"):
        DenoiserSwitch(wan_pipe(), stages="LLL", adapters={"style": lora["large"]})


# Caches.

FIRST_BLOCK = Cache("first_block", (("threshold", 1e9),))
CACHES = {
    "first_block": FIRST_BLOCK,
    "mag": Cache("mag", (("mag_ratios", (1.0,) * 8), ("retention_ratio", 0.0))),
    "taylorseer": Cache(
        "taylorseer",
        (
            ("cache_identifiers", (r"blocks\.\d+\.attn1",)),
            ("cache_interval", 3),
            ("disable_cache_before_step", 1),
            ("taylor_factors_dtype", "float32"),
        ),
    ),
    "pab": Cache("pab", (("spatial_attention_block_skip_range", 2),)),
    "sea": Cache("sea", (("threshold", 1e9),)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_in_the_middle_saves_there_and_run_two_equals_run_one(kind: str) -> None:
    pipe, other = wan_pipe(), wan_denoiser(seed=1)
    stages = schedule(
        Stage("large", 0.25), Stage("small", 0.75, cache=CACHES[kind]), Stage("large")
    )
    with DenoiserSwitch(pipe, other, stages) as switch:
        first = run_wan(pipe, steps=12)
        (report,) = switch.cache_reports
        assert torch.equal(run_wan(pipe, steps=12), first)
        assert switch.cache_reports == (report,)
    assert (report.stage, report.denoiser, report.forwards) == (1, "small", 12)
    assert report.computed < 1
    assert report.skipped > 0
    assert not other.is_cache_enabled
    assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize(
    "cache",
    [Cache("first_block", (("threshold", 0.0),)), Cache("text_kv"), Cache("taylorseer")],
    ids=lambda cache: cache.kind,
)
def test_a_cache_that_does_nothing_shows(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    pipe = wan_pipe()
    stages = schedule(Stage("large", cache=cache))
    with DenoiserSwitch(pipe, stages=stages) as switch:
        got = run_wan(pipe)
    assert torch.equal(got, run_wan(wan_pipe()))
    assert [(r.skipped, r.computed) for r in switch.cache_reports] == [(0, 1.0)]
    assert f"cache {cache.kind!r} of stage 0 (large) skipped nothing" in caplog.text


def test_an_exception_in_a_cached_stage_leaves_no_cache() -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)

    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError

    with (
        pytest.raises(RuntimeError),
        DenoiserSwitch(pipe, stages=schedule(Stage("large", cache=FIRST_BLOCK))),
    ):
        run_wan(pipe, callback_on_step_end=fail)
    assert not pipe.transformer.is_cache_enabled
    assert snapshot(pipe) == before


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        (Cache("magic"), "unknown: choose one of first_block"),
        (Cache("first_block", (("treshold", 1),)), "takes no treshold: it takes threshold"),
        (Cache("mag"), "mag_ratios"),
    ],
)
def test_caches_that_cant_be_made_are_refused_at_once(cache: Cache, says: str) -> None:
    with pytest.raises(SwitchError, match=says):
        DenoiserSwitch(wan_pipe(), stages=schedule(Stage("large", cache=cache)))


def test_a_denoiser_with_a_cache_of_its_own_is_refused_another() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = wan_pipe()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(SwitchError, match="already"):
        DenoiserSwitch(pipe, stages=schedule(Stage("large", cache=FIRST_BLOCK)))


# Attention backends.


def test_an_attention_backend_holds_in_its_stage_only() -> None:
    pipe = wan_pipe()
    seen = []
    processor = pipe.transformer.blocks[0].attn1.processor
    handle = pipe.transformer.register_forward_pre_hook(
        lambda *_: seen.append(processor._attention_backend)
    )
    stages = schedule(Stage("large", 0.5, attention_backend="_native_math"), Stage("large"))
    with DenoiserSwitch(pipe, stages=stages):
        run_wan(pipe, steps=2, guidance_scale=1.0)
    handle.remove()
    assert [backend and backend.value for backend in seen] == ["_native_math", None]
    assert torch.equal(run_wan(pipe), run_wan(wan_pipe()))
    with pytest.raises(SwitchError, match="unknown: diffusers has"):
        DenoiserSwitch(pipe, stages=schedule(Stage("large", attention_backend="fast")))


# A peft module by hand: what training writes, the switch reads.


def test_an_adapter_that_peft_saved_is_read(tmp_path: Path) -> None:
    trained = wan_denoiser()
    trained.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    trained.save_lora_adapter(tmp_path, adapter_name="default", safe_serialization=True)
    pipe = wan_pipe(transformer=trained)
    expected = run_wan(pipe)
    fresh = wan_pipe()
    path = next(tmp_path.glob("*.safetensors"))
    with DenoiserSwitch(
        fresh, stages=schedule(Stage("large", adapters=STYLE)), adapters={"style": path}
    ):
        assert torch.equal(run_wan(fresh), expected)


def test_ltx_has_caches_too() -> None:
    pipe = ltx_pipe()
    stages = schedule(Stage("large", 0.5), Stage("small", cache=FIRST_BLOCK))
    with DenoiserSwitch(pipe, ltx_denoiser(seed=1), stages) as switch:
        run_ltx(pipe)
    assert [r.computed < 1 for r in switch.cache_reports] == [True]
