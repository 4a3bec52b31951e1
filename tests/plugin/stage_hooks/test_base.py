"""A hook of one's own is called in order, undone however a call ends, and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tiny import SCHEDULERS, run_wan, snapshot, wan_denoiser, wan_pipe

from flowblend_plugin import (
    Checkpoint,
    CheckpointError,
    Checkpoints,
    DenoiserSwitch,
    Stage,
    StageHook,
    StageSchedule,
    SwitchError,
)
from flowblend_plugin.stages import Cache

LSL = StageSchedule.parse("LSL", (0.4, 0.8))
STEPS = 5


class Counter(StageHook):
    """Counts the forwards of each stage's denoiser, and marks the pipe during a trajectory."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.forwards = pipe, 0
        self.calls: list[str] = []
        self.handles: list[Any] = []

    def start(self, scheduler: Any) -> None:
        self.calls.append(f"start of {len(scheduler.timesteps)}")
        self.pipe.is_marked = True

    def enter(self, step: Any) -> None:
        self.calls.append(f"enter {step.stage_index} {step.stage.denoiser} of {step.count}")
        self.handles += [m.register_forward_pre_hook(self._count) for m in step.modules]

    def begin_step(self, step: Any) -> None:
        self.calls.append(f"step {step.index}, {step.position} of its stage")

    def leave(self) -> None:
        self.calls.append("leave")
        while self.handles:
            self.handles.pop().remove()

    def finish(self) -> None:
        self.calls.append("finish")
        self.pipe.is_marked = False

    def remove(self) -> None:
        self.calls.append("remove")

    def _count(self, *_: Any) -> None:
        self.forwards += 1


def hooks_on(module: Any) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def test_a_hook_hears_of_every_stage_and_step_in_order() -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    hook = Counter(pipe)

    with DenoiserSwitch(pipe, small, LSL, hooks=[hook]):
        run_wan(pipe, STEPS)
        told = list(hook.calls)

    begun = ["leave", "start of 5", "leave", "enter 0 large of 2", "step 0, 0 of its stage"]
    assert told == [
        *begun, *begun,  # Wan says where it begins, after it set its timesteps
        "step 1, 1 of its stage", "leave",
        "enter 1 small of 2", "step 2, 0 of its stage", "step 3, 1 of its stage", "leave",
        "enter 2 large of 1", "step 4, 0 of its stage", "leave",
        "finish",
    ]  # fmt: skip
    assert hook.calls[len(told) :] == ["leave", "finish", "remove"]
    assert hook.forwards == 2 * STEPS


def test_a_hook_that_does_nothing_changes_no_bit() -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    with DenoiserSwitch(pipe, small, LSL):
        expected = run_wan(pipe)
    with DenoiserSwitch(pipe, small, LSL, hooks=[StageHook(), StageHook()]):
        assert torch.equal(run_wan(pipe), expected)


# However a call ends.


def fails(pipe: Any, small: Any) -> None:
    handle = small.register_forward_hook(raising(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        run_wan(pipe, STEPS)
    handle.remove()


def is_interrupted(pipe: Any, small: Any) -> None:
    handle = small.register_forward_hook(raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_wan(pipe, STEPS)
    handle.remove()


def is_given_up(pipe: Any, small: Any) -> None:
    def give_up(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        pipe._interrupt = step == 2
        return kwargs

    run_wan(pipe, STEPS, callback_on_step_end=give_up)
    pipe._interrupt = False


def ends(pipe: Any, small: Any) -> None:
    run_wan(pipe, STEPS)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        raise error

    return hook


ENDS = [ends, fails, is_interrupted, is_given_up]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("by", ["with", "detach"])
def test_everything_is_undone_however_the_call_ends(end: Any, by: str) -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    before, hook = snapshot(pipe), Counter(pipe)
    switch = DenoiserSwitch(pipe, small, LSL, hooks=[hook])

    if by == "with":
        with switch:
            end(pipe, small)
    else:
        end(pipe, small)
        switch.detach()

    assert hook.calls[-3:] == ["leave", "finish", "remove"]
    assert not hook.handles
    assert not pipe.is_marked
    assert hooks_on(small) == 0
    del pipe.is_marked
    assert snapshot(pipe) == before


@pytest.mark.parametrize("end", ENDS)
def test_the_next_call_undoes_what_the_former_one_left_and_has_its_bits(end: Any) -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    hook = Counter(pipe)
    with DenoiserSwitch(pipe, small, LSL):
        expected = run_wan(pipe, STEPS)
    with DenoiserSwitch(pipe, small, LSL, hooks=[hook]):
        end(pipe, small)
        hook.forwards = 0
        assert torch.equal(run_wan(pipe, STEPS), expected)
        assert hook.forwards == 2 * STEPS
        assert hooks_on(pipe.transformer) == hooks_on(small) == 0


@pytest.mark.parametrize("method", ["start", "enter", "begin_step", "model_output"])
def test_a_hook_that_raises_ends_the_call_and_is_undone(method: str) -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    before, hook, failing = snapshot(pipe), Counter(pipe), StageHook()
    setattr(failing, method, raising(ZeroDivisionError))

    with (
        DenoiserSwitch(pipe, small, LSL, hooks=[hook, failing]),
        pytest.raises(ZeroDivisionError),
    ):
        run_wan(pipe, STEPS)

    assert not hook.handles
    assert not pipe.is_marked
    del pipe.is_marked
    assert snapshot(pipe) == before


@pytest.fixture
def backend() -> Iterator[Any]:
    """The attention backend of all modules, which stages mustn't leave changed."""
    before = _AttentionBackendRegistry.get_active_backend()[0]
    yield before
    assert _AttentionBackendRegistry.get_active_backend()[0] == before


@pytest.mark.parametrize("method", ["leave", "finish", "remove"])
def test_where_one_hook_cant_be_undone_the_others_are(method: str, backend: Any) -> None:
    cache = Cache("first_block", (("threshold", 0.1),))
    stages = StageSchedule(
        (
            Stage("large", until=0.4, guidance_scale=2.0, attention_backend="_native_math"),
            Stage("small", guidance_scale=1.0, attention_backend="_native_math", cache=cache),
        )
    )
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    before, hook, failing = snapshot(pipe), Counter(pipe), StageHook()
    setattr(failing, method, raising(ZeroDivisionError))

    switch = DenoiserSwitch(pipe, small, stages, hooks=[hook, failing])
    with pytest.raises(ZeroDivisionError), switch:
        run_wan(pipe, STEPS)

    assert not switch.attached
    assert hook.calls[-1] == "remove"
    assert not hook.handles
    assert not small.is_cache_enabled
    processors = [m.processor for m in small.modules() if hasattr(m, "processor")]
    assert {processor._attention_backend for processor in processors} == {None}
    assert hooks_on(small) == 0
    with suppress(AttributeError):
        del pipe.is_marked
    assert snapshot(pipe) == before


def test_a_switch_that_cant_be_undone_wholly_is_followed_by_another() -> None:
    pipe, small, failing = wan_pipe(), wan_denoiser(seed=1), StageHook()
    failing.leave = raising(ZeroDivisionError)  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), DenoiserSwitch(pipe, small, LSL, hooks=[failing]):
        pass
    with DenoiserSwitch(pipe, small, LSL) as switch:
        run_wan(pipe, STEPS)
    assert switch.denoisers_run == list(LSL.denoisers(STEPS))


# What a hook may change.


class Scale(StageHook):
    """Scales what the solver takes."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        return self.factor * output


def test_the_solver_takes_what_the_hooks_make_of_the_model_output() -> None:
    pipe = wan_pipe()
    handle = pipe.transformer.register_forward_hook(lambda m, a, out: (0.25 * out[0],))
    expected = run_wan(pipe)
    handle.remove()

    with DenoiserSwitch(pipe, stages="L", hooks=[Scale(0.5), Scale(0.5)]):
        assert torch.equal(run_wan(pipe), expected)


class EndAfter(StageHook):
    """Ends the first stage after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def revise_stages(self, done: int, stage_indices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(i >= self.steps) for i in range(len(stage_indices)))


def test_a_hook_may_end_a_stage_early() -> None:
    pipe, small = wan_pipe(), wan_denoiser(seed=1)
    with DenoiserSwitch(pipe, small, "LS", (0.2,)):
        expected = run_wan(pipe, STEPS)
    with DenoiserSwitch(pipe, small, "LS", (0.8,), hooks=[EndAfter(1)]) as switch:
        assert torch.equal(run_wan(pipe, STEPS), expected)
    assert switch.denoisers_run == ["large", *["small"] * 4]


# In checkpoints.


class Momentum(StageHook):
    """Adds a share of the sum of all former outputs, which a call that goes on has to know."""

    name = "momentum"

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None

    def start(self, scheduler: Any) -> None:
        self.total = None

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        self.total = output if self.total is None else self.total + output
        return output + 0.1 * self.total

    def state_dict(self) -> Any:
        return {"total": self.total}

    def load_state_dict(self, state: Any) -> None:
        self.total = state["total"]


def call(hooks: list[StageHook], checkpoints: Checkpoints | None = None) -> torch.Tensor:
    pipe = wan_pipe(SCHEDULERS["unipc"]())
    stores = checkpoints or Checkpoints(0, lambda checkpoint: None)
    switch = DenoiserSwitch(pipe, wan_denoiser(seed=1), LSL, hooks=hooks)
    with switch, stores.keep(switch):
        return run_wan(pipe, STEPS)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_its_state_travels_through_a_checkpoint(step: int) -> None:
    stored: dict[int, bytes] = {}

    def store(checkpoint: Checkpoint) -> None:
        stored[checkpoint.step] = checkpoint.to_bytes()

    expected = call([Momentum()], Checkpoints(1, store))
    again = Checkpoint.from_bytes(stored[step], torch.device("cpu"))

    assert torch.equal(call([Momentum()], Checkpoints(0, store, again)), expected)
    assert not torch.equal(call([]), expected)
    with pytest.raises(CheckpointError, match="hooks momentum, which this one lacks"):
        call([], Checkpoints(0, store, again))


def test_a_stored_state_names_what_it_named_before() -> None:
    """Files of former versions are read, so that the keys inside stay."""
    stored: list[Checkpoint] = []
    call([Counter(wan_pipe())], Checkpoints(1, stored.append))

    for checkpoint in stored:
        values = checkpoint.values
        assert set(values) == {"scheduler", "switch", "generators", "torch", "result", "answers"}
        assert set(values["scheduler"]) == {"calls", "solver", "phases", "noise"}
        assert set(values["switch"]) == {"stage_indices", "extrapolation", "online", "caches"}
        assert set(values["switch"]["extrapolation"]) == {"history", "last"}
        assert set(values["switch"]["online"]) == {"before", "differences"}


def test_nothing_is_stored_where_a_hook_cant_tell_its_state() -> None:
    class Shy(Momentum):
        @property
        def can_be_stored(self) -> bool:
            return False

    stored: list[Checkpoint] = []
    call([Shy()], Checkpoints(1, stored.append))
    assert stored == []


def test_two_hooks_cant_store_their_state_under_one_name() -> None:
    pipe = wan_pipe()
    before = snapshot(pipe)
    with pytest.raises(SwitchError, match="two hooks store their state as 'momentum'"):
        DenoiserSwitch(pipe, wan_denoiser(seed=1), LSL, hooks=[Momentum(), Momentum()])
    assert snapshot(pipe) == before
