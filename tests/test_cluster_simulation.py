"""The simulation of a cluster: what it must give where the answer can be worked out by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("simulated_run")
    sys.path[:] = before
    for name in set(sys.modules) - known:  # benchmarks' names are ones that anyone could have
        if str(ROOT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def simulated(bench: Any, tmp_path: Path) -> Any:
    def run(costs: dict[str, float], **case: Any) -> dict[str, float]:
        given = {"workers": 4, "jobs": 44, "is_spot": False, **case}
        found: dict[str, float] = bench.simulate(
            bench.Case(**given), replace(bench.Costs(), **costs), Path(mkdtemp(dir=tmp_path))
        )
        parts = ("useful", "lost", "loading", "encoding", "idle")
        assert sum(found[part] for part in parts) == pytest.approx(1.0)
        assert min(found[part] for part in parts) >= -1e-9
        return found

    return run


def test_without_losses_all_time_goes_into_the_steps(simulated: Any) -> None:
    found = simulated({"load_s": 0.0}, encode="worker")
    assert found["lost"] == found["loading"] == found["losses"] == found["failed"] == 0
    assert found["encoding"] == pytest.approx(3.5 / 330, rel=0.05)
    assert found["useful"] > 0.95
    assert found["hours"] == pytest.approx(44 * 333.5 / 4 / 3600, rel=0.05)


def test_a_driver_that_encodes_longer_than_its_workers_render_decides_the_pace(
    simulated: Any,
) -> None:
    found = simulated({"encode_s": 400.0}, encode="driver", jobs=11)
    assert found["hours"] > 11 * 400 / 3600
    assert found["publishing"] > 0.85  # all but the first render
    beside = simulated({"encode_s": 400.0}, encode="worker", jobs=11)
    assert beside["hours"] < 0.7 * found["hours"]


@pytest.mark.night
def test_lost_work_is_less_with_stored_states(simulated: Any) -> None:
    costs = {"lifetime_s": 900.0, "replaced_s": 60.0}
    anew = simulated(costs, is_spot=True)
    kept = simulated(costs, is_spot=True, every=2)
    assert anew["losses"] > 5
    assert 0 < kept["lost"] < 0.5 * anew["lost"]
