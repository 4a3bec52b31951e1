from __future__ import annotations

import copy
import gc
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from tiny import (
    SCHEDULERS,
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
    DenoiserSwitch,
    FlowBlendScheduler,
    PairMismatchError,
    StageSchedule,
    SwitchError,
    wrap_scheduler,
)

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


def small() -> Any:
    return wan_denoiser(layers=1, heads=1, seed=1)


# Oracles.


def test_all_large_through_the_switch_equals_the_plain_pipeline(scheduler: Any) -> None:
    plain = run_wan(wan_pipe(scheduler))
    pipe = wan_pipe(scheduler)
    with DenoiserSwitch(pipe, small=small(), stages="LLL", boundaries=(0.4, 0.8)) as switch:
        assert torch.equal(run_wan(pipe, callback_on_step_end=switch), plain)


def test_the_same_module_as_large_and_small_equals_the_plain_pipeline(scheduler: Any) -> None:
    plain = run_wan(wan_pipe(scheduler))
    pipe = wan_pipe(scheduler)
    with DenoiserSwitch(pipe, small=pipe.transformer, stages=LSL):
        assert torch.equal(run_wan(pipe), plain)


def test_equal_weights_in_another_module_change_no_bit_under_any_solver(scheduler: Any) -> None:
    plain = run_wan(wan_pipe(scheduler))
    pipe = wan_pipe(scheduler)
    with DenoiserSwitch(pipe, small=wan_denoiser(), stages=LSL):
        assert torch.equal(run_wan(pipe), plain)


# Without Heun: Wan's experts change between the two evaluations of one Heun step, stages never do.
@pytest.mark.parametrize("key", ["euler", "unipc", "dpmpp_2m"])
@pytest.mark.parametrize("boundary", [0.5, 0.875, 0.999])
def test_two_stages_equal_wans_own_two_experts(key: str, boundary: float) -> None:
    scheduler = SCHEDULERS[key]()
    experts = run_wan(
        wan_pipe(scheduler, transformer_2=small(), boundary_ratio=boundary), guidance_scale_2=3.0
    )
    pipe = wan_pipe(scheduler)
    with DenoiserSwitch(pipe, small=small(), stages="LS", boundary_sigmas=(boundary,)):
        assert torch.equal(run_wan(pipe), experts)


@pytest.mark.parametrize("letters", ["LLL", "SSS", "LSS", "SLL", "SSL", "LLS", "LSL"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_recorded_forwards_are_the_planned_ones(letters: str, steps: int) -> None:
    pipe, other = wan_pipe(), small()
    record = ForwardRecorder(large=pipe.transformer, small=other)
    stages = StageSchedule.parse(letters, boundaries=(0.4, 0.8))
    with DenoiserSwitch(pipe, small=other, stages=stages) as switch:
        run_wan(pipe, steps=steps)
    assert record.per_step() == stages.denoisers(steps)
    assert tuple(switch.denoisers_run) == stages.denoisers(steps)


@pytest.mark.parametrize("key", SCHEDULERS)
def test_stage_edges_fall_on_whole_steps_for_every_solver(key: str) -> None:
    pipe, other = wan_pipe(SCHEDULERS[key]()), small()
    record = ForwardRecorder(large=pipe.transformer, small=other)
    with DenoiserSwitch(pipe, small=other, stages=LSL):
        run_wan(pipe, steps=8)
    calls = record.per_step()
    order = pipe.scheduler.order
    whole = LSL.denoisers(8)
    assert calls == tuple(role for role in whole for _ in range(order))[: len(calls)]
    assert len(calls) == len(whole) * order - (order - 1)


def test_ltx_blends_as_planned_and_equals_its_plain_pipeline() -> None:
    plain = run_ltx(ltx_pipe())
    pipe, other = ltx_pipe(), ltx_denoiser(layers=1, seed=1)
    with DenoiserSwitch(pipe, small=other, stages="LLL"):
        assert torch.equal(run_ltx(pipe), plain)
    record = ForwardRecorder(large=pipe.transformer, small=other)
    with DenoiserSwitch(pipe, small=other, stages=LSL) as switch:
        blended = run_ltx(pipe, callback_on_step_end=switch)
    assert record.per_step(forwards=1) == LSL.denoisers(6)
    assert not torch.equal(blended, plain)


def test_blending_changes_the_result() -> None:
    plain = run_wan(wan_pipe())
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages=LSL):
        assert not torch.equal(run_wan(pipe), plain)


def test_the_callback_changes_nothing() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages=LSL) as switch:
        assert torch.equal(run_wan(pipe), run_wan(pipe, callback_on_step_end=switch))


def test_a_second_run_equals_the_first(scheduler: Any) -> None:
    pipe = wan_pipe(scheduler)
    with DenoiserSwitch(pipe, small=small(), stages=LSL):
        first = run_wan(pipe)
        run_wan(pipe, steps=3, seed=5)
        assert torch.equal(run_wan(pipe), first)


def test_step_counts_may_change_from_call_to_call() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages=LSL) as switch:
        for steps in (5, 12, 1):
            run_wan(pipe, steps=steps)
            assert tuple(switch.denoisers_run) == LSL.denoisers(steps)


# Everything is put back.


def test_leaving_the_block_restores_the_pipe() -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)
    with DenoiserSwitch(pipe, small=small(), stages="LS", boundaries=(0.5,)):
        run_wan(pipe)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_mid_trajectory_restores_the_pipe(error: type[BaseException]) -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)

    def fail(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 3:
            assert pipe.transformer is not before["transformer"]
            raise error
        return kwargs

    with (
        pytest.raises(error),
        DenoiserSwitch(pipe, small=small(), stages="LS", boundaries=(0.5,)),
    ):
        run_wan(pipe, callback_on_step_end=fail)
    assert snapshot(pipe) == before


def test_the_last_step_of_a_call_gives_the_large_denoiser_back() -> None:
    pipe = wan_pipe()
    large = pipe.transformer
    switch = DenoiserSwitch(pipe, small=small(), stages="LS", boundaries=(0.5,))
    run_wan(pipe)
    assert pipe.transformer is large
    switch.detach()
    switch.detach()


def test_a_call_that_failed_outside_with_is_put_right_by_the_next_one() -> None:
    pipe, other = wan_pipe(), small()
    with DenoiserSwitch(pipe, small=other, stages="LS", boundaries=(0.5,)):
        expected = run_wan(pipe)

    def fail(*_: Any) -> dict[str, Any]:
        if pipe.transformer is other:
            raise RuntimeError
        return {}

    switch = DenoiserSwitch(pipe, small=other, stages="LS", boundaries=(0.5,))
    with pytest.raises(RuntimeError):
        run_wan(pipe, callback_on_step_end=fail)
    assert torch.equal(run_wan(pipe), expected)
    switch.detach()


# The ways to use it.


def test_a_scheduler_with_stages_drives_the_switch() -> None:
    pipe, other = wan_pipe(), small()
    with DenoiserSwitch(pipe, small=other, stages=LSL):
        expected = run_wan(pipe)
    pipe.scheduler = FlowBlendScheduler.from_config(
        pipe.scheduler.config, stages="LSL", boundaries=(0.4, 0.8)
    )
    switch = DenoiserSwitch(pipe, small=other)
    assert torch.equal(run_wan(pipe, callback_on_step_end=switch), expected)
    switch.detach()
    assert isinstance(pipe.scheduler, FlowBlendScheduler)


def test_stages_without_a_living_switch_raise_instead_of_running_all_large() -> None:
    pipe = wan_pipe(wrap_scheduler(SCHEDULERS["unipc"](), LSL))
    with pytest.raises(SwitchError, match="no living DenoiserSwitch"):
        run_wan(pipe)
    DenoiserSwitch(pipe, small=small())
    gc.collect()
    with pytest.raises(SwitchError, match="no living DenoiserSwitch"):
        run_wan(pipe)


def test_a_new_switch_takes_over_from_one_that_was_forgotten() -> None:
    pipe = wan_pipe()
    original = pipe.scheduler
    DenoiserSwitch(pipe, small=small(), stages=LSL)
    gc.collect()
    with DenoiserSwitch(pipe, small=small(), stages="LS", boundaries=(0.5,)) as switch:
        run_wan(pipe)
        assert switch.denoisers_run == ["large"] * 3 + ["small"] * 3
    assert pipe.scheduler is original


def test_the_switch_is_a_callback_without_tensor_inputs() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages=LSL) as switch:
        assert isinstance(switch, PipelineCallback)
        assert switch.tensor_inputs == []
        expected = run_wan(pipe)
        both = MultiPipelineCallbacks([switch, switch])
        assert torch.equal(run_wan(pipe, callback_on_step_end=both), expected)


@pytest.mark.parametrize("boundary", [{"boundaries": (0.5,)}, {"boundary_sigmas": (0.7,)}])
def test_the_callback_drives_where_a_pipeline_steps_private_copies_of_its_scheduler(
    boundary: Any,
) -> None:
    pipe, other = wan_pipe(), small()
    told: list[tuple[int, str]] = []
    with DenoiserSwitch(
        pipe, small=other, stages="LS", on_step=lambda *step: told.append(step), **boundary
    ) as switch:
        pipe.scheduler.set_timesteps(4)
        private = copy.deepcopy(pipe.scheduler)
        private.set_timesteps(4)
        seen = []
        for index in range(4):
            seen.append("small" if pipe.transformer is other else "large")
            private.step(torch.zeros(1, 2), private.timesteps[index], torch.zeros(1, 2))
            switch(pipe, index, private.timesteps[index], {})
    assert told == list(enumerate(seen))
    assert seen == ["large", "large", "small", "small"]


def test_the_small_denoiser_loads_from_a_folder_with_the_pipes_dtype(tmp_path: Path) -> None:
    pipe = wan_pipe()
    small().half().save_pretrained(tmp_path / "transformer_small")
    other = WanTransformer3DModel.from_pretrained(
        tmp_path, subfolder="transformer_small", dtype=torch.float32
    )
    with DenoiserSwitch(pipe, small=other, stages=LSL):
        expected = run_wan(pipe)
    with DenoiserSwitch(pipe, small=str(tmp_path), stages=LSL):
        assert torch.equal(run_wan(pipe), expected)
    with DenoiserSwitch(pipe, small=str(tmp_path / "transformer_small"), stages=LSL):
        assert torch.equal(run_wan(pipe), expected)


def test_a_folder_without_a_denoiser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SwitchError, match="holds no denoiser"):
        DenoiserSwitch(wan_pipe(), small=str(tmp_path), stages=LSL)


def test_reset_history_forgets_and_keep_does_not() -> None:
    results = {}
    for history in ("keep", "reset"):
        pipe = wan_pipe(SCHEDULERS["unipc"]())
        with DenoiserSwitch(pipe, small=small(), stages=LSL, solver_history=history):
            results[history] = run_wan(pipe, steps=10)
            assert torch.equal(run_wan(pipe, steps=10), results[history])
    assert torch.isfinite(results["reset"]).all()
    assert not torch.equal(results["keep"], results["reset"])


def test_a_stage_without_a_step_is_legal_and_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages="LSL", boundaries=(0.4, 0.45)) as switch:
        run_wan(pipe, steps=3)
    assert switch.denoisers_run == ["large", "large", "large"]
    assert "stage 1 (small) gets no step at 3 steps" in caplog.text


# What is refused.


def test_a_second_switch_on_one_pipe_is_refused() -> None:
    pipe = wan_pipe()
    with (
        DenoiserSwitch(pipe, small=small(), stages=LSL),
        pytest.raises(SwitchError, match="already"),
    ):
        DenoiserSwitch(pipe, small=small(), stages=LSL)
    DenoiserSwitch(pipe, small=small(), stages=LSL).detach()


def test_contradicting_stages_are_refused() -> None:
    pipe = wan_pipe(wrap_scheduler(SCHEDULERS["euler"](), LSL))
    with pytest.raises(SwitchError, match="one place"):
        DenoiserSwitch(pipe, small=small(), stages="LS", boundaries=(0.5,))
    with DenoiserSwitch(pipe, small=small(), stages=LSL):
        run_wan(pipe)


def test_no_stages_anywhere_are_refused() -> None:
    with pytest.raises(SwitchError, match="no stages"):
        DenoiserSwitch(wan_pipe(), small=small())


def test_a_missing_small_denoiser_is_refused_only_where_a_stage_uses_it() -> None:
    with pytest.raises(SwitchError, match="small="):
        DenoiserSwitch(wan_pipe(), stages=LSL)
    with DenoiserSwitch(wan_pipe(), stages="LLL"):
        pass


def test_every_mismatch_of_a_pair_is_listed_at_once() -> None:
    other = wan_denoiser(in_channels=6, out_channels=6, text_dim=16).half()
    with pytest.raises(PairMismatchError) as caught:
        DenoiserSwitch(wan_pipe(), small=other, stages=LSL)
    for word in ("in_channels", "out_channels", "text_dim", "dtype"):
        assert word in str(caught.value)
    assert len(caught.value.mismatches) == 4


def test_another_class_is_refused() -> None:
    with pytest.raises(PairMismatchError, match=r"class: large Wan.*, small LTX"):
        DenoiserSwitch(wan_pipe(), small=ltx_denoiser(), stages=LSL)


def test_a_failed_attachment_leaves_the_pipe_alone() -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)
    with pytest.raises(PairMismatchError):
        DenoiserSwitch(pipe, small=wan_denoiser(in_channels=6), stages=LSL)
    assert snapshot(pipe) == before
    DenoiserSwitch(pipe, small=small(), stages=LSL).detach()


def test_a_scheduler_replaced_behind_the_switch_is_noticed() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages=LSL) as switch:
        pipe.scheduler = SCHEDULERS["euler"]()
        with pytest.raises(SwitchError, match="replaced"):
            run_wan(pipe, callback_on_step_end=switch)


# Saving.


def test_an_attached_pipe_saves_as_the_stock_one(tmp_path: Path) -> None:
    pipe = wan_pipe(SCHEDULERS["unipc"]())
    with DenoiserSwitch(pipe, small=small(), stages=LSL):
        run_wan(pipe)
        pipe.save_pretrained(tmp_path)
    again = WanPipeline.from_pretrained(tmp_path, vae=None, text_encoder=None, tokenizer=None)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run_wan(again), run_wan(pipe))


def test_a_wrapped_scheduler_keeps_the_signatures_that_pipelines_inspect(scheduler: Any) -> None:
    wrapped = wrap_scheduler(wrap_scheduler(scheduler, LSL), LSL)
    for name in ("set_timesteps", "step"):
        mine, theirs = getattr(wrapped, name), getattr(scheduler, name)
        assert inspect.signature(mine) == inspect.signature(theirs)
    assert isinstance(wrapped, type(scheduler))
    assert dict(wrapped.config) == dict(scheduler.config)


# Awkward pipes.


def test_a_bfloat16_pair_blends(tmp_path: Path) -> None:
    for seed, name in ((0, "large"), (1, "small")):
        wan_denoiser(seed=seed).save_pretrained(tmp_path / name)
    large = WanTransformer3DModel.from_pretrained(tmp_path / "large", dtype=torch.bfloat16)
    pipe = wan_pipe(transformer=large)
    with DenoiserSwitch(pipe, small=tmp_path / "small", stages=LSL) as switch:
        assert torch.isfinite(run_wan(pipe)).all()
    assert switch.denoisers_run == list(LSL.denoisers(6))
    with pytest.raises(
        PairMismatchError, match=r"dtype: large torch.bfloat16, small torch.float32"
    ):
        DenoiserSwitch(pipe, small=small(), stages=LSL)


@pytest.mark.parametrize("first", [0, 3, 5, 7])
def test_a_late_start_begins_in_the_stage_of_its_step(first: int) -> None:
    """As image- and video-to-video pipelines do, with set_begin_index or without."""
    stages = StageSchedule.parse("LSL", boundaries=(0.4, 0.7))
    for announce in ("set_begin_index", "scale_noise"):
        pipe, other = wan_pipe(), small()
        with DenoiserSwitch(pipe, small=other, stages=stages) as switch:
            scheduler = pipe.scheduler
            scheduler.set_timesteps(10)
            sample = torch.zeros(1, 2)
            if announce == "set_begin_index":
                scheduler.set_begin_index(first)
            else:
                scheduler.scale_noise(sample, scheduler.timesteps[first : first + 1], sample)
            for t in scheduler.timesteps[first:]:
                scheduler.step(sample, t, sample)
        assert tuple(switch.denoisers_run) == stages.denoisers(10)[first:]


def test_chunked_pipelines_begin_every_trajectory_with_its_first_stage() -> None:
    pipe = wan_pipe()
    with DenoiserSwitch(pipe, small=small(), stages="LS", boundaries=(0.5,)) as switch:
        for _ in range(3):
            pipe.scheduler.set_timesteps(4)
            for t in pipe.scheduler.timesteps[:3]:
                pipe.scheduler.step(torch.zeros(1, 2), t, torch.zeros(1, 2))
            assert switch.denoisers_run == ["large", "large", "small"]


def test_heun_with_the_callback_tells_each_whole_step_once() -> None:
    told: list[int] = []
    pipe = wan_pipe(SCHEDULERS["heun"]())
    with DenoiserSwitch(
        pipe, small=small(), stages=LSL, on_step=lambda index, _: told.append(index)
    ) as switch:
        run_wan(pipe, steps=5, callback_on_step_end=switch)
    assert told == [0, 1, 2, 3, 4]
    assert tuple(switch.denoisers_run) == LSL.denoisers(5)


def test_one_scheduler_cant_drive_two_pipes() -> None:
    shared = FlowBlendScheduler(stages="LS", boundaries=(0.5,))
    one, two = wan_pipe(shared), wan_pipe(shared)
    with (
        DenoiserSwitch(one, small=small()),
        pytest.raises(SwitchError, match="another pipe"),
    ):
        DenoiserSwitch(two, small=small())


def test_a_switch_forgotten_after_a_failure_leaves_no_small_denoiser_behind() -> None:
    pipe, other = wan_pipe(), small()
    large = pipe.transformer

    def fail(*_: Any) -> dict[str, Any]:
        if pipe.transformer is other:
            raise RuntimeError
        return {}

    switch = DenoiserSwitch(pipe, small=other, stages="LS", boundaries=(0.5,))
    with pytest.raises(RuntimeError):
        run_wan(pipe, callback_on_step_end=fail)
    del switch
    gc.collect()
    with DenoiserSwitch(pipe, small=other, stages=LSL):
        assert pipe.transformer is large
    assert pipe.transformer is large


def test_a_detached_switch_as_callback_is_noticed() -> None:
    pipe = wan_pipe()
    switch = DenoiserSwitch(pipe, small=small(), stages=LSL)
    switch.detach()
    with pytest.raises(SwitchError, match="detached"):
        run_wan(pipe, callback_on_step_end=switch)


def test_a_folder_that_isnt_there_is_no_hub_id() -> None:
    with pytest.raises(SwitchError, match=r"\./nope is no folder"):
        DenoiserSwitch(wan_pipe(), small="./nope", stages=LSL)


def test_a_detached_switch_holds_no_model_and_still_says_what_ran() -> None:
    pipe = wan_pipe()
    switch = DenoiserSwitch(pipe, small=small(), stages=LSL)
    assert (switch.attached, switch.is_at_rest, switch.pipe is pipe) == (True, True, True)
    assert set(switch.slots) == {"large", "small"}
    assert switch.denoisers_run == []
    run_wan(pipe, steps=5)
    switch.detach()
    assert (switch.attached, switch.is_at_rest, switch.pipe) == (False, True, None)
    assert switch.slots == {}
    assert tuple(switch.denoisers_run) == switch.denoisers == LSL.denoisers(5)
    assert switch.step_stages == (0, 0, 1, 1, 2)


@pytest.mark.parametrize("history", ["KEEP", "", None])
def test_a_history_of_another_name_is_refused(history: Any) -> None:
    with pytest.raises(SwitchError, match=rf"must be 'keep' or 'reset', got {history!r}"):
        DenoiserSwitch(wan_pipe(), small=small(), stages=LSL, solver_history=history)


def test_steps_are_told_with_their_role_and_what_that_raises_ends_the_call() -> None:
    told: list[tuple[int, str]] = []
    pipe = wan_pipe()
    with DenoiserSwitch(
        pipe, small=small(), stages=LSL, on_step=lambda *step: told.append(step)
    ) as switch:
        assert switch.denoisers == ()
        run_wan(pipe, steps=5)
    assert told == list(enumerate(LSL.denoisers(5)))

    def stop(index: int, role: str) -> None:
        if index == 2:
            raise InterruptedError(role)

    with (
        pytest.raises(InterruptedError, match="small"),
        DenoiserSwitch(pipe, small=small(), stages=LSL, on_step=stop) as switch,
    ):
        run_wan(pipe, steps=5)
    assert switch.denoisers_run == ["large", "large", "small"]
