"""Compiled denoisers: one graph each, and none that is compiled again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import DenoiserSwitch, StageSchedule

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
