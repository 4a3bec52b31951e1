"""Compiled denoisers: one graph each, and none that is compiled again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import Cache, DenoiserSwitch, Stage, StageSchedule
from flowblend_plugin.stage_hooks.cache import cache_config

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


class Backend:
    """Runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        self.graphs += 1
        return module.forward


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


def compiled(module: Any, backend: Backend, how: str) -> Any:
    if how == "wrapped":
        return torch.compile(module, backend=backend)
    module.compile(backend=backend)
    return module


@pytest.mark.parametrize(("letters", "how"), [("LSL", "in place"), ("LSM", "wrapped")])
def test_a_denoiser_is_a_graph_and_a_second_run_compiles_nothing(
    letters: str, how: str, backend: Backend
) -> None:
    stages = StageSchedule.parse(letters, boundaries=(0.4, 0.8), names={"M": "middle"})

    def parts(roles: set[str]) -> dict[str, Any]:
        sizes = {"small": 1, "middle": 3}
        return {name: wan_denoiser(layers=sizes[name], heads=1) for name in sorted(roles)}

    roles = set(stages.roles) - {"large"}
    plain, others = wan_pipe(), parts(roles)
    with DenoiserSwitch(plain, denoisers=others, stages=stages):
        expected = run_wan(plain, steps=5)
    pipe = wan_pipe()
    pipe.transformer = compiled(pipe.transformer, backend, how)
    others = {name: compiled(module, backend, how) for name, module in parts(roles).items()}
    with DenoiserSwitch(pipe, denoisers=others, stages=stages):
        assert torch.equal(run_wan(pipe, steps=5), expected)
        assert backend.graphs == len(stages.roles)
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(run_wan(pipe, steps=5), expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        run_wan(pipe, steps=2)
    assert backend.graphs == len(stages.roles)


def test_compiled_blocks_are_not_compiled_again(backend: Backend) -> None:
    pipe, other = wan_pipe(), wan_denoiser(layers=3, heads=1, seed=1)
    for module in (pipe.transformer, other):
        module.compile_repeated_blocks(backend=backend)
    with DenoiserSwitch(pipe, other, LSL):
        first = run_wan(pipe, steps=5)
        graphs = backend.graphs
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(run_wan(pipe, steps=5), first)
    assert backend.graphs == graphs


SETTINGS = {
    "guidance": StageSchedule((Stage("large", 0.5, guidance_scale=5.0), Stage("small"))),
    "no guidance": StageSchedule((Stage("large", 0.5, guidance_scale=1.0), Stage("small"))),
    "extrapolated": StageSchedule.parse("LSEL", boundaries=(0.3, 0.5, 0.7)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_stage_sets_compiles_nothing_more(setting: str, backend: Backend) -> None:
    pipe, other = wan_pipe(), wan_denoiser(layers=1, heads=1, seed=1)
    with DenoiserSwitch(pipe, other, SETTINGS[setting]):
        expected = run_wan(pipe, steps=5)
    pipe.transformer.compile_repeated_blocks(backend=backend)
    other.compile(backend=backend)
    strictly = torch._dynamo.config.patch(error_on_recompile=True)
    with DenoiserSwitch(pipe, other, SETTINGS[setting]), strictly:
        assert torch.equal(run_wan(pipe, steps=5), expected)
        run_wan(pipe, steps=5)
    assert backend.graphs == 2


@pytest.fixture
def recompiled() -> Iterator[list[str]]:
    """What torch.compile says of everything that it compiles again."""
    said: list[str] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, keeps = logging.getLogger("torch._dynamo.guards.__recompiles"), Keeps()
    torch._logging.set_logs(recompiles=True)
    logger.addHandler(keeps)
    yield said
    logger.removeHandler(keeps)
    torch._logging.set_logs()


CACHES = {
    "first_block": {"threshold": 0.5},
    "mag": {"mag_ratios": (1.0,) * 5, "retention_ratio": 0.0, "max_skip_steps": 1},
    "taylorseer": {
        "cache_interval": 3, "disable_cache_before_step": 1, "taylor_factors_dtype": "float32",
        "cache_identifiers": (r"blocks\.\d+\.attn1",),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("first_block", "blocks"),
        *(pytest.param(kind, "blocks", marks=pytest.mark.night) for kind in ("mag", "taylorseer")),
        *(pytest.param(kind, "whole", marks=pytest.mark.night) for kind in CACHES),
    ],
)
def test_a_stages_cache_compiles_as_much_as_one_enabled_by_hand(
    kind: str, how: str, backend: Backend, recompiled: list[str]
) -> None:
    cache = Cache.of(kind, CACHES[kind])
    stages = StageSchedule((Stage("large", cache=cache),))

    def compiled_pipe() -> Any:
        torch._dynamo.reset()
        pipe = wan_pipe()
        if how == "blocks":
            pipe.transformer.compile_repeated_blocks(backend=backend)
        else:
            pipe.transformer.compile(backend=backend)
        run_wan(pipe, steps=2)
        backend.graphs = 0
        recompiled.clear()
        return pipe

    eager = wan_pipe()
    with DenoiserSwitch(eager, stages=stages) as switch:
        run_wan(eager, steps=5)
    reports = switch.cache_reports
    pipe = compiled_pipe()
    pipe.transformer.enable_cache(cache_config(cache, 0, 5, 5, lambda: 0))
    expected = run_wan(pipe, steps=5)
    graphs, messages = backend.graphs, len(recompiled)
    pipe = compiled_pipe()
    with DenoiserSwitch(pipe, stages=stages) as switch:
        assert torch.equal(run_wan(pipe, steps=5), expected)
    assert switch.cache_reports == reports
    assert (backend.graphs, len(recompiled)) == (graphs, messages)
    assert not [said for said in recompiled if "flowblend" in said]
