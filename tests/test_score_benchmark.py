"""The benchmark of the score: its prompts, its damages, its tables, without a render."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("score")
    sys.path[:] = before
    for name in set(sys.modules) - known:  # benchmarks' and training's names anyone could have
        if str(ROOT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_its_prompts_are_held_out_and_show_every_motion(bench: Any) -> None:
    specs = bench.chosen(36)

    assert len(set(specs)) == 36
    assert set(Counter(spec.motion for spec in specs).values()) == {4}
    assert set(specs) <= set(bench.split_specs()[1])
    assert bench.chosen(5) == specs[:5]


def test_every_damage_changes_the_pixels_and_is_the_same_again(bench: Any) -> None:
    ((_, frames), *_) = bench.drawn(1)
    first, again = (list(bench.damages(frames, 7)) for _ in range(2))

    assert len({name for name, _ in first}) == len(first) == 11
    for (_, spoilt), (_, same) in zip(first, again, strict=True):
        assert spoilt.shape == frames.shape
        assert spoilt.dtype == np.uint8
        assert not np.array_equal(spoilt, frames)
        assert np.array_equal(spoilt, same)


def test_what_stands_still_is_not_compared_with_being_frozen(bench: Any) -> None:
    found = bench.Comparisons()
    clips = [(spec, frames) for spec, frames in bench.drawn(1) if spec.motion == bench.STILL]
    ((spec, frames),) = clips
    bench.compare_damaged(found, "drawn", 0, spec, frames, bench.metrics.measure(frames))

    assert {name.removeprefix("drawn: clean above ").split()[0] for name in found.pairs} == {
        "noise", "light", "blur",
    }  # fmt: skip


def test_the_halves_of_the_prompts_are_counted_apart(bench: Any) -> None:
    found = bench.Comparisons()
    good, bad = {"sharpness": 9.0}, {"sharpness": 1.0}
    for index, pair in enumerate([(good, bad), (good, bad), (bad, good), (good, bad)]):
        found.add("a above b", index, "a star moving left", *pair)

    assert "| a above b | 1 of 2 [9, 91] | 2 of 2 |" in bench.ranking(found, 2)
    assert "| a above b | 1/2 |" in bench.alone(found, 2)


def test_a_threshold_lies_in_the_gap(bench: Any) -> None:
    value, rate = bench.threshold([1.0, 2.0], [4.0, 6.0])

    assert (value, rate) == (3.0, 1.0)
