"""Extrapolated steps: no denoiser runs, and the solver takes what the last two outputs lead to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from fake_device import FakeDevice
from families import skyreels, wan
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import FLOW, SCHEDULERS, ForwardRecorder, run_wan, snapshot, wan_denoiser, wan_pipe

from flowblend_plugin import (
    Adapter,
    Cache,
    DenoiserSwitch,
    FlowBlendBlock,
    FlowBlendScheduler,
    Stage,
    StageError,
    StageSchedule,
    SwitchError,
)
from flowblend_plugin.schedulers.solver_state import reset_history
from flowblend_plugin.stage_hooks.extrapolation import extrapolate
from flowblend_plugin.stages import letters, stage_letters

LEL = StageSchedule.parse("LELE", boundaries=(0.4, 0.6, 0.8))
MIXED = StageSchedule.parse("LESELE", boundaries=(0.2, 0.4, 0.5, 0.7, 0.8))
ONE_EVALUATION = [key for key in SCHEDULERS if key != "heun"]
levels = st.floats(0, 1, allow_nan=False)


def small() -> Any:
    return wan_denoiser(layers=1, heads=1, seed=1)


# The line.


@given(levels, levels, levels, st.floats(-3, 3), st.floats(-3, 3))
def test_what_is_linear_in_the_noise_level_is_told_exactly(
    first: float, second: float, level: float, offset: float, slope: float
) -> None:
    def output(at: float) -> torch.Tensor:
        return torch.tensor([offset + slope * at, slope * at], dtype=torch.float64)

    if abs(first - second) < 1e-3:
        return
    told = extrapolate([(0.5, output(9)), (first, output(first)), (second, output(second))], level)
    assert torch.allclose(told, output(level), atol=1e-9)


def test_one_output_is_held() -> None:
    output = torch.randn(3)
    assert extrapolate([(0.9, output)], 0.4) is output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_single_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    one, two = torch.randn(2, 1000).to(dtype)
    told = extrapolate([(0.9, one), (0.8, two)], 0.5)
    exact = two.double() + (two.double() - one.double()) / (0.8 - 0.9) * (0.5 - 0.8)
    in_half = two + (two - one) / (0.8 - 0.9) * (0.5 - 0.8)

    def share_of_right(found: torch.Tensor) -> float:
        return (found == exact.to(dtype)).float().mean().item()

    assert told.dtype == dtype
    assert share_of_right(told) > 0.95 > 0.8 > share_of_right(in_half)


# Oracles.


class Linear(WanTransformer3DModel):
    """A denoiser that sees noise which is a line over the noise level, wherever the latents are."""

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor]:
        pattern = torch.linspace(-1, 1, hidden_states[0].numel()).view(hidden_states[0].shape)
        level = timestep.view(-1, 1, 1, 1, 1) / 1000
        noise = 0.7 + 2 * pattern * level
        return ((noise - hidden_states) / (1 - level).clamp(min=0.1),)


def test_noise_that_is_linear_in_the_noise_level_loses_nothing() -> None:
    def pipe() -> Any:
        return wan_pipe(transformer=Linear(**wan_denoiser().config))

    plain = run_wan(pipe())
    blended = pipe()
    with DenoiserSwitch(blended, stages="LE", boundaries=(2 / 3,)) as switch:
        assert torch.allclose(run_wan(blended), plain, atol=1e-5)
    assert letters(switch.denoisers_run) == "LLLLEE"


def by_hand(roles: str, scheduler: Any, reset: bool, **denoisers: Any) -> torch.Tensor:
    """``run_wan`` with each step's role, written in plain diffusers."""
    numbers = torch.Generator().manual_seed(99)
    prompts = [torch.randn(1, 4, 8, generator=numbers) for _ in range(2)]
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(len(roles))
    ran: list[tuple[str, float, torch.Tensor]] = []
    for role, t, sigma in zip(roles, scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        level, weight = t.item() / 1000, 1 - float(sigma)
        if role == "E":
            *_, (_, former, before), (_, latest, last) = [ran[0], *ran]
            slope = (last - before) / (latest - former) if len(ran) > 1 else 0 * last
            noise = last + slope * (level - latest)
            scheduler_takes = (noise - latents) / weight
        else:
            if reset and ran and ran[-1][0] != role:
                reset_history(scheduler)
            conditional, unconditional = (
                denoisers[role](latents, t.expand(1), prompt, return_dict=False)[0]
                for prompt in prompts
            )
            scheduler_takes = unconditional + 3.0 * (conditional - unconditional)
            ran.append((role, level, latents + weight * scheduler_takes))
        latents = scheduler.step(scheduler_takes, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("history", ["keep", "reset"])
@pytest.mark.parametrize(
    "stages", [LEL, MIXED, StageSchedule.parse("SE", boundaries=(0.1,))], ids=str
)
@pytest.mark.parametrize("key", ONE_EVALUATION)
@torch.no_grad()
def test_it_is_what_a_loop_by_hand_does(key: str, stages: StageSchedule, history: Any) -> None:
    pipe, other = wan_pipe(SCHEDULERS[key]()), small()
    roles = letters(stages.denoisers(10))
    expected = by_hand(roles, SCHEDULERS[key](), history == "reset", L=wan_denoiser(), S=small())
    with DenoiserSwitch(pipe, other, stages, solver_history=history) as switch:
        assert torch.equal(run_wan(pipe, steps=10), expected)
        assert letters(switch.denoisers_run) == roles
        assert torch.equal(run_wan(pipe, steps=10), expected)


# What runs, and what is left.


def test_no_forward_runs_in_an_extrapolated_step() -> None:
    pipe, other = wan_pipe(), small()
    whole = ForwardRecorder(large=pipe.transformer, small=other)
    inside = ForwardRecorder(large=pipe.transformer.blocks[0], small=other.blocks[0])
    with DenoiserSwitch(pipe, other, MIXED) as switch:
        run_wan(pipe, steps=10)
        run = tuple(role for role in switch.denoisers_run if role != "extrapolated")
    assert run == ("large", "large", "small", "large")
    assert whole.per_step() == inside.per_step() == run
    assert tuple(switch.denoisers_run) == MIXED.denoisers(10)


class StopError(Exception):
    pass


def stop_after(step: int) -> Callable[..., Any]:
    def callback(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        if index == step:
            raise StopError
        return kwargs

    return callback


def contents(pipe: Any) -> dict[str, Any]:
    """All that hangs on the denoiser itself, and on the pipe."""
    own = {name: copy.copy(value) for name, value in vars(pipe.transformer).items()}
    del own["_diffusers_hook"]  # made by the pipeline's own passes
    return {"own": own, "pipe": snapshot(pipe)}


def used_pipe(scheduler: Any = None) -> Any:
    pipe = wan_pipe(scheduler)
    run_wan(pipe, steps=1)
    return pipe


def test_everything_is_put_back() -> None:
    pipe, other = used_pipe(), small()
    before, others = contents(pipe), {**vars(other), "_diffusers_hook": None}
    with DenoiserSwitch(pipe, other, MIXED):
        run_wan(pipe, steps=10)
    assert contents(pipe) == before
    assert {**vars(other), "_diffusers_hook": None} == others


@pytest.mark.parametrize("step", [1, 3, 8])
def test_everything_is_put_back_after_a_failure_in_mid_call(step: int) -> None:
    pipe = used_pipe()
    before = contents(pipe)
    with pytest.raises(StopError), DenoiserSwitch(pipe, small(), MIXED):
        run_wan(pipe, steps=10, callback_on_step_end=stop_after(step))
    assert contents(pipe) == before


def test_the_call_after_a_failed_one_is_like_any_other() -> None:
    pipe = wan_pipe()
    large = pipe.transformer
    with DenoiserSwitch(pipe, stages=LEL):
        expected = run_wan(pipe, steps=5)
        with pytest.raises(StopError):
            run_wan(pipe, steps=5, callback_on_step_end=stop_after(1))
        assert torch.equal(run_wan(pipe, steps=5), expected)
    assert pipe.transformer is large


def test_the_pipe_looks_the_same_in_an_extrapolated_stage() -> None:
    pipe = wan_pipe()
    large, seen = pipe.transformer, []

    def look(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        seen.append((pipe.transformer, dict(pipe.config)["transformer"], pipe.device, pipe.dtype))
        return kwargs

    with DenoiserSwitch(pipe, stages="LEL", boundaries=(0.3, 0.8)):
        run_wan(pipe, steps=6, callback_on_step_end=look)
    assert all(denoiser is large for denoiser, *_ in seen)
    assert len({tuple(rest) for _, *rest in seen}) == 1


def test_without_extrapolated_stages_nothing_hangs_on_a_denoiser() -> None:
    pipe, hooks = wan_pipe(), []

    def look(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        hooks.append(len(pipe.transformer._forward_hooks))
        return kwargs

    with DenoiserSwitch(pipe, small(), "LSL", (0.4, 0.8)):
        run_wan(pipe, callback_on_step_end=look)
    assert hooks == [0] * 6


def test_offloaded_denoisers_dont_move_for_extrapolated_steps() -> None:
    other = small()
    pipe = wan_pipe()
    device = FakeDevice(large=pipe.transformer, small=other)
    pipe.enable_model_cpu_offload(device="cpu")
    stages = StageSchedule.parse("LELESE", boundaries=(0.2, 0.3, 0.5, 0.6, 0.8))
    with DenoiserSwitch(pipe, other, stages):
        device.moves.clear()
        run_wan(pipe, steps=10)
    assert [name for name, where in device.moves if where != "cpu"] == ["large", "small"]


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_denoisers_are_extrapolated_without_another_graph(how: str) -> None:
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    plain, pipe = wan_pipe(), wan_pipe()
    with DenoiserSwitch(plain, stages=LEL):
        expected = run_wan(plain, steps=5)
    torch._dynamo.reset()
    if how == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    else:
        pipe.transformer.compile(backend=backend)
    for _ in range(2):
        with DenoiserSwitch(pipe, stages=LEL):
            assert torch.equal(run_wan(pipe, steps=5), expected)
    torch._dynamo.reset()
    assert len(graphs) == 1


# Guidance, caches and adapters of the stages around, and steps of one level.


def test_a_stage_without_the_unconditional_pass_may_come_before() -> None:
    pipe = wan_pipe()
    record = ForwardRecorder(large=pipe.transformer)
    stages = StageSchedule(
        (
            Stage("large", 0.25),
            Stage("large", 0.5, guidance_scale=1.0),
            Stage("extrapolated", 0.75),
            Stage("large"),
        )
    )
    with DenoiserSwitch(pipe, stages=stages):
        assert torch.isfinite(run_wan(pipe, steps=4)).all()
    assert len(record.roles) == 2 + 1 + 0 + 2


def test_a_cache_before_and_after_is_a_stages_own() -> None:
    pipe = wan_pipe()
    stages = StageSchedule(
        (
            Stage("large", 0.5, cache=Cache.of("first_block", {"threshold": 1e9})),
            Stage("extrapolated", 0.75),
            Stage("large"),
        )
    )
    with DenoiserSwitch(pipe, stages=stages) as switch:
        first = run_wan(pipe, steps=8)
        assert torch.equal(run_wan(pipe, steps=8), first)
        (report,) = switch.cache_reports
    assert report.forwards == 8
    assert not pipe.transformer.is_cache_enabled


def test_adapters_stay_as_they_are(tmp_path: Path) -> None:
    query, weights = "transformer.blocks.0.attn1.to_q", torch.randn(2, 24)
    save_file(
        {f"{query}.lora_A.weight": weights, f"{query}.lora_B.weight": weights.T.contiguous()},
        tmp_path / "style.safetensors",
    )
    own, pipe = wan_pipe(), wan_pipe()
    own.load_lora_weights(tmp_path / "style.safetensors")
    styled = Stage("large", adapters=(Adapter("style"),))
    stages = (replace(styled, until=0.4), Stage("extrapolated", 0.8), styled)
    with (
        DenoiserSwitch(own, stages="LEL", boundaries=(0.4, 0.8)),
        DenoiserSwitch(
            pipe,
            stages=StageSchedule(stages),
            adapters={"style": tmp_path / "style.safetensors"},
        ),
    ):
        assert torch.equal(run_wan(pipe), run_wan(own))
    assert torch.equal(run_wan(pipe), run_wan(wan_pipe()))


def test_steps_of_one_noise_level_are_one_point_of_the_line() -> None:
    pipe = wan_pipe(UniPCMultistepScheduler(**{**FLOW, "flow_shift": 60.0}))
    with DenoiserSwitch(pipe, stages="LE", boundaries=(0.2,)):
        assert torch.isfinite(run_wan(pipe, steps=30)).all()
        timesteps = pipe.scheduler.timesteps[:6]
    assert len(timesteps.unique()) < len(timesteps)


# A trajectory that begins late.


def test_a_late_start_holds_the_one_output_that_there_is() -> None:
    pipe = wan.video_pipe()
    with DenoiserSwitch(pipe, stages="LEL", boundaries=(0.5, 0.75)) as switch:
        assert torch.isfinite(wan.run_video(pipe, steps=8, strength=0.7)).all()
    assert letters(switch.denoisers_run) == "LEELL"


def test_a_late_start_in_an_extrapolated_stage_says_what_to_do() -> None:
    pipe = wan.video_pipe()
    large = pipe.transformer
    with (
        DenoiserSwitch(pipe, stages="LEL", boundaries=(0.25, 0.75)),
        pytest.raises(SwitchError, match="begins at step 3, which is extrapolated"),
    ):
        wan.run_video(pipe, steps=8, strength=0.7)
    assert pipe.transformer is large


# What can't be.


@pytest.mark.parametrize("text", ["E", "EEE", "EL", "ELE"])
def test_the_first_stage_is_run_by_a_denoiser(text: str) -> None:
    edges = [(i + 1) / len(text) for i in range(len(text) - 1)]
    with pytest.raises(StageError, match="the first stage can't be extrapolated, because no"):
        StageSchedule.parse(text, boundaries=edges)


@pytest.mark.parametrize("edges", [(0.0, 0.5), (0.04, 0.5)])
def test_stages_without_a_step_before_it_dont_count(edges: tuple[float, float]) -> None:
    stages = StageSchedule.parse("LEL", boundaries=edges)
    with pytest.raises(StageError, match="the first one falls into stage 2 of LEL"):
        stages.denoisers(10)
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, stages=stages), pytest.raises(StageError, match="at 10 steps"):
        run_wan(pipe, steps=10)
    with pytest.raises(StageError, match="at 1 steps the first one"):
        LEL.denoisers(1)


@pytest.mark.parametrize(
    "setting",
    [{"guidance_scale": 3.0}, {"cache": Cache("first_block")}, {"attention_backend": "native"}],
    ids=str,
)
def test_an_extrapolated_stage_sets_nothing(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(StageError, match=f"stage 2 is extrapolated and sets {name}"):
        StageSchedule((Stage("large", 0.5), Stage("extrapolated", **setting)))


def test_solvers_that_ask_twice_a_step_are_refused() -> None:
    pipe = used_pipe(SCHEDULERS["heun"]())
    before = contents(pipe)
    with pytest.raises(SwitchError, match="FlowMatchHeunDiscreteScheduler asks the denoiser twice"):
        DenoiserSwitch(pipe, stages=LEL)
    assert contents(pipe) == before
    DenoiserSwitch(pipe, small(), "LSL", (0.4, 0.8)).detach()


def test_private_copies_of_the_scheduler_are_refused() -> None:
    pipe = skyreels.make(skyreels.SkyReelsV2DiffusionForcingPipeline)
    with (
        DenoiserSwitch(pipe, stages=LEL) as switch,
        pytest.raises(
            SwitchError, match=r"^SkyReels\w+ steps private copies of its scheduler, which extrap"
        ),
    ):
        skyreels.run_forcing(pipe, callback_on_step_end=switch)


class Direct(WanTransformer3DModel):
    """A denoiser that is called past its hooks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def test_a_denoiser_that_is_called_past_the_module_is_refused() -> None:
    pipe = wan_pipe(transformer=Direct(**wan_denoiser().config))
    with (
        DenoiserSwitch(pipe, stages=LEL),
        pytest.raises(SwitchError, match="or calls it past the module itself"),
    ):
        run_wan(pipe)


def test_modular_stages_choose_denoisers_only() -> None:
    with pytest.raises(StageError, match="chooses its denoiser only, got extrapolated"):
        FlowBlendBlock(LEL)


def test_the_name_and_the_letter_are_taken() -> None:
    with pytest.raises(SwitchError, match="'extrapolated' steps are those that no denoiser runs"):
        DenoiserSwitch(wan_pipe(), denoisers={"extrapolated": small()}, stages=LEL)
    with pytest.raises(SwitchError, match="never use the denoiser 'eager': rename it"):
        DenoiserSwitch(wan_pipe(), denoisers={"eager": small()}, stages=LEL)
    assert stage_letters(("eager", "distilled")) == {"D": "distilled"}
    pipe = wan_pipe()
    stages = StageSchedule((Stage("eager", 0.5), Stage("extrapolated")))
    with DenoiserSwitch(pipe, denoisers={"eager": small()}, stages=stages) as switch:
        run_wan(pipe, steps=2)
    assert switch.denoisers_run == ["eager", "extrapolated"]


def test_extrapolated_stages_survive_the_schedulers_config(tmp_path: Path) -> None:
    FlowBlendScheduler(stages="LELE", boundaries=(0.4, 0.6, 0.8)).save_pretrained(tmp_path)
    again = FlowBlendScheduler.from_pretrained(tmp_path)
    assert again.stages == LEL
    assert again.config["stages"] == "LELE"
    assert again.stages.describe(5) == "steps 0-1 large, 2 extrapolated, 3 large, 4 extrapolated"
