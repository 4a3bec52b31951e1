"""A trajectory that goes on from a stored state ends in the bits of one that wasn't interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from families.registry import FAMILIES
from tiny import SCHEDULERS, ltx_denoiser, ltx_pipe, run_ltx, run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, FlowBlendScheduler, StageSchedule
from flowblend_plugin.checkpoints.checkpoint import Checkpoint, Checkpoints
from flowblend_plugin.checkpoints.safetensors_header import metadata_of
from flowblend_plugin.checkpoints.serialization import pack, unpack
from flowblend_plugin.errors import CheckpointError
from flowblend_plugin.schedulers.factory import FLOW_NAMES, make_scheduler
from flowblend_plugin.stage_hooks.early_exit import SelfDifference
from flowblend_plugin.stages import Cache, Stage

CPU = torch.device("cpu")
STEPS = 6
LARGE, SMALL = wan_denoiser(), wan_denoiser(layers=1, seed=1)
STOCHASTIC = {"flow_match_euler": "sde", "sa_solver": "sde"}

PHASES = [
    Stage("large", until_sigma=0.8, steps=2),
    Stage("small", until_sigma=0.4, steps=2, scheduler="unipc"),
    Stage("large", steps=2, scheduler="dpmpp_2m_sde"),
]
GUIDED = StageSchedule(
    (Stage("large", until=0.5), Stage("small", until=0.7, guidance_scale=1.0),
     Stage("large", guidance_scale=2.0))
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "LSL": {"stages": "LSL", "boundaries": (0.4, 0.8)},
    "reset": {"stages": "LSL", "boundaries": (0.4, 0.8), "solver_history": "reset"},
    "guidance": {"stages": GUIDED},
    "extrapolated": {"stages": "LELE", "boundaries": (0.4, 0.5, 0.7)},
    "phases": {"stages": StageSchedule(tuple(PHASES))},
    "adaptive": {"stages": "LSL", "boundaries": (0.6, 0.8), "adaptive": SelfDifference(0.9)},
}


class Killed(BaseException):
    """What stands for the end of a process."""


class Run:
    """Calls of a pipeline of which one is interrupted and another, of a new pipe, goes on."""

    def __init__(self, scheduler: Callable[[], Any], **settings: Any) -> None:
        self._scheduler, self._settings = scheduler, settings
        self.stored: dict[int, bytes] = {}
        self.denoisers: list[str] = []
        self.forwards = 0

    def call(self, checkpoints: Checkpoints | None = None, kill_after: int = -1) -> torch.Tensor:
        pipe = wan_pipe(self._scheduler(), LARGE)
        noise = torch.Generator().manual_seed(5)

        def on_step(index: int, role: str) -> None:
            if index == kill_after:
                raise Killed

        def count(*_: Any) -> None:
            self.forwards += 1

        self.forwards = 0
        handles = [module.register_forward_hook(count) for module in (LARGE, SMALL)]
        settings = {"seed": 7, "denoisers": {"small": SMALL}, **self._settings}
        try:
            with DenoiserSwitch(pipe, on_step=on_step, **settings) as switch:
                if checkpoints is None:
                    found = run_wan(pipe, STEPS, generator=noise)
                else:
                    with checkpoints.keep(switch, [noise]):
                        found = run_wan(pipe, STEPS, generator=noise)
                self.denoisers = list(switch.denoisers_run)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def keep(self, checkpoint: Checkpoint) -> None:
        self.stored[checkpoint.step] = checkpoint.to_bytes()

    def resumed(self, step: int) -> torch.Tensor:
        return self.call(Checkpoints(0, self.keep, Checkpoint.from_bytes(self.stored[step], CPU)))


def check(run: Run, steps: set[int]) -> None:
    """Every stored state leads to the same latents and roles, and computes the rest only."""
    expected, roles, forwards = run.call(), run.denoisers, run.forwards
    watched = run.call(Checkpoints(1, run.keep))
    assert torch.equal(watched, expected)
    assert set(run.stored) == steps
    for step in (1, 3, 5):
        assert torch.equal(run.resumed(step), expected), step
        assert run.denoisers == roles
        assert run.forwards < forwards


EVERY = set(range(1, STEPS + 1))


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_every_solver_goes_on_with_the_same_bits(name: str) -> None:
    mode = STOCHASTIC.get(name, "ode")
    run = Run(lambda: make_scheduler(SCHEDULERS["euler"](), name, mode=mode), **SETTINGS["LSL"])
    check(run, EVERY)


@pytest.mark.parametrize("name", ["LSL", "reset", "guidance", "extrapolated", "phases", "adaptive"])
def test_whatever_stages_set_comes_back(name: str) -> None:
    check(Run(SCHEDULERS["euler" if name == "phases" else "unipc"], **SETTINGS[name]), EVERY)


def test_a_call_that_goes_on_is_interrupted_and_goes_on_again() -> None:
    run = Run(SCHEDULERS["dpmpp_2m"], **SETTINGS["LSL"])
    expected = run.call()
    for begun, killed in [(0, 2), (2, 4)]:
        stored = run.stored.get(begun)
        resumed = None if stored is None else Checkpoint.from_bytes(stored, CPU)
        with pytest.raises(Killed):
            run.call(Checkpoints(2, run.keep, resumed), kill_after=killed)
    assert set(run.stored) == {2, 4}
    assert torch.equal(run.resumed(4), expected)


def test_nothing_is_stored_within_a_stage_that_has_a_cache() -> None:
    cached = StageSchedule(
        (
            Stage("large", until=0.5),
            Stage("small", cache=Cache("first_block", (("threshold", 0.1),))),
        )
    )
    run = Run(SCHEDULERS["euler"], stages=cached, denoisers={"small": wan_denoiser(3, seed=1)})
    check_small = run.call()
    run.call(Checkpoints(1, run.keep))
    assert set(run.stored) == {1, 2, 3, STEPS}
    for step in sorted(run.stored):
        assert torch.equal(run.resumed(step), check_small)


def test_a_stop_stores_the_step_that_it_comes_after() -> None:
    run = Run(SCHEDULERS["unipc"], **SETTINGS["LSL"])
    expected = run.call()
    kept = Checkpoints(50, run.keep)
    pipe = wan_pipe(SCHEDULERS["unipc"](), LARGE)
    noise = torch.Generator().manual_seed(5)

    def on_step(index: int, role: str) -> None:
        if index == 2:
            assert kept.stop_after_step(Killed())

    with (
        pytest.raises(Killed),
        DenoiserSwitch(pipe, SMALL, on_step=on_step, seed=7, **SETTINGS["LSL"]) as switch,
        kept.keep(switch, [noise]),
    ):
        run_wan(pipe, STEPS, generator=noise)
    assert pipe.transformer is LARGE
    assert set(run.stored) == {3}
    assert torch.equal(run.resumed(3), expected)
    assert not Checkpoints(0, run.keep).stop_after_step(Killed())


def test_a_call_that_was_given_up_while_it_skips_leaves_the_pipe_as_it_was() -> None:
    run = Run(SCHEDULERS["euler"], **SETTINGS["LSL"])
    run.call(Checkpoints(4, run.keep))
    kept = Checkpoints(0, run.keep, Checkpoint.from_bytes(run.stored[4], CPU))
    pipe, hooks = wan_pipe(SCHEDULERS["euler"](), LARGE), len(LARGE._forward_hooks)
    scheduler = pipe.scheduler

    def on_step(index: int, role: str) -> None:
        raise Killed

    with (
        pytest.raises(Killed),
        DenoiserSwitch(pipe, SMALL, on_step=on_step, **SETTINGS["LSL"]) as s,
        kept.keep(s, [torch.Generator()]),
    ):
        run_wan(pipe, STEPS)
    assert pipe.transformer is LARGE
    assert pipe.scheduler is scheduler
    assert len(LARGE._forward_hooks) == hooks


def test_pipelines_without_a_step_callback_and_other_latents_go_on_too() -> None:
    small, stored = ltx_denoiser(layers=1, seed=1), {}

    def call(kept: Checkpoints | None) -> torch.Tensor:
        pipe, noise = ltx_pipe(), torch.Generator().manual_seed(3)
        with DenoiserSwitch(pipe, small, **SETTINGS["LSL"]) as switch:
            if kept is None:
                return run_ltx(pipe, generator=noise)
            with kept.keep(switch, [noise]):
                return run_ltx(pipe, generator=noise)

    expected = call(None)
    call(Checkpoints(2, lambda c: stored.update({c.step: c.to_bytes()})))
    for data in stored.values():
        resumed = Checkpoint.from_bytes(data, CPU)
        assert torch.equal(call(Checkpoints(0, lambda c: None, resumed)), expected)
    assert set(stored) == {2, 4, 6}


def test_a_state_of_another_trajectory_is_refused() -> None:
    run = Run(SCHEDULERS["euler"], **SETTINGS["LSL"])
    run.call(Checkpoints(3, run.keep))
    other = Run(SCHEDULERS["heun"], **SETTINGS["LSL"])
    other.stored = run.stored
    with pytest.raises(CheckpointError, match="another trajectory"):
        other.resumed(3)


def test_a_scheduler_that_keeps_what_cant_be_stored_is_told_of_once() -> None:
    class Odd(UniPCMultistepScheduler):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            self.noise_sampler = object()
            return super().step(*args, **kwargs)

    told: list[str] = []
    run = Run(lambda: Odd(**dict(SCHEDULERS["unipc"]().config)), **SETTINGS["LSL"])
    expected = run.call()
    assert torch.equal(run.call(Checkpoints(1, run.keep, tell=told.append)), expected)
    assert not run.stored
    assert len(told) == 1
    assert "object can't be stored" in told[0]


def test_a_scheduler_that_is_copied_in_mid_call_is_not_stored() -> None:
    import copy

    told: list[str] = []
    run = Run(SCHEDULERS["euler"], **SETTINGS["LSL"])
    pipe, kept = wan_pipe(transformer=LARGE), Checkpoints(1, run.keep, tell=told.append)
    with DenoiserSwitch(pipe, SMALL, **SETTINGS["LSL"]) as switch, kept.keep(switch):
        copy.deepcopy(pipe.scheduler)
        run_wan(pipe, STEPS)
    assert not run.stored
    assert "private copies" in told[0]


def test_values_come_back_as_they_were_and_damage_is_found() -> None:
    values = {
        "a": [1, 2.5, None, True, "text"], "t": torch.arange(3, dtype=torch.bfloat16),
        "pair": (torch.tensor(2), {"deep": [torch.ones(2, 2)]}),
    }  # fmt: skip
    data = pack(values, {"about": "this"})
    again = unpack(data, CPU)
    assert again["a"] == values["a"]
    assert torch.equal(again["t"], torch.arange(3, dtype=torch.bfloat16))
    assert again["pair"][0].shape == ()
    assert torch.equal(again["pair"][1]["deep"][0], torch.ones(2, 2))
    assert metadata_of(data)["about"] == "this"
    for damaged in (b"", data[:40], b"\xff" * 64):
        with pytest.raises(CheckpointError):
            unpack(damaged, CPU)


@pytest.mark.parametrize("step", [3, 4, 5])
def test_what_a_pipeline_keeps_for_its_solver_is_forgotten_at_the_same_switch(step: int) -> None:
    family = next(family for family in FAMILIES if family.name == "CogVideoX, DPM")
    stored: dict[int, Checkpoint] = {}

    def call(resumed: Checkpoint | None = None) -> torch.Tensor:
        pipe = family.make_pipe()
        kept = Checkpoints(1, lambda one: stored.setdefault(one.step, one), resumed)
        with (
            DenoiserSwitch(
                pipe, family.make_small(), "LSL", (0.4, 0.8), solver_history="reset", seed=3
            ) as switch,
            kept.keep(switch),
        ):
            switch.scheduler.own_noise = True
            return family.run(pipe, steps=8)

    whole = call()
    data = stored[step].to_bytes()
    assert torch.equal(call(Checkpoint.from_bytes(data, torch.device("cpu"))), whole)


def test_a_seed_that_was_drawn_is_told_after_going_on_too() -> None:
    stored: list[bytes] = []

    def call(resumed: Checkpoint | None = None) -> tuple[torch.Tensor, Any]:
        pipe = wan_pipe(FlowBlendScheduler(mode="sde"), transformer=LARGE)
        kept = Checkpoints(2, lambda one: stored.append(one.to_bytes()), resumed)
        with DenoiserSwitch(pipe, SMALL, "LSL", (0.4, 0.8)) as switch, kept.keep(switch):
            return run_wan(pipe, STEPS), switch.scheduler.seed_used

    whole, seed = call()
    again, told = call(Checkpoint.from_bytes(stored[0], CPU))
    assert torch.equal(again, whole)
    assert told == seed is not None
