"""The score on moving shapes: nothing that spoils a clip may raise it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics import (
    DEFAULT_WEIGHTS,
    JITTER,
    METRICS,
    MOTION_FLOOR,
    WEAK_MOTION,
    measure,
    motion_floor,
    score,
)
from flowblend_plugin.metrics.score import HALF

FRAMES, SIZE = 13, 64
PATHS: dict[str, Callable[[float], tuple[float, float, float]]] = {
    "sideways": lambda t: (16 + 30 * t, 32, 10),
    "down": lambda t: (36, 18 + 26 * t, 11),
    "round": lambda t: (32 + 14 * math.cos(6 * t), 32 + 14 * math.sin(6 * t), 9),
    "growing": lambda t: (32, 32, 6 + 14 * t),
}


def drawn(path: str, shimmer: float = 0.0) -> Any:
    """A shaded disc on a striped ground, (13, 64, 64, 3)."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    ground = np.stack([70 + 12 * np.sin(x / 3), 80 + 12 * np.sin(y / 4), 90 + 0 * x], -1)
    found = []
    for t in np.linspace(0, 1, FRAMES):
        left, top, radius = PATHS[path](float(t))
        inside = 1 / (1 + np.exp(2 * (np.hypot(x - left, y - top) - radius)))[..., None]
        ink = np.array([230, 120, 40]) * (0.85 + 0.15 * np.sin((x - left) / 2))[..., None]
        found.append(ground * (1 - inside) + ink * inside)
    noise = np.random.default_rng(1).normal(0, 1, (FRAMES, SIZE, SIZE, 3))
    return to_bytes(np.stack(found) + shimmer * noise)


@cache
def whole(path: str) -> dict[str, float]:
    """What is measured of a clip that nothing spoils, but for a little noise."""
    return measure(drawn(path, shimmer=1.0))


def to_bytes(values: Any) -> Any:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noisy(frames: Any, deviation: float) -> Any:
    return to_bytes(frames + np.random.default_rng(0).normal(0, deviation, frames.shape))


def thrown(frames: Any) -> Any:
    moves = np.random.default_rng(0).integers(-5, 6, (len(frames), 2))
    return np.stack([np.roll(f, move, (0, 1)) for f, move in zip(frames, moves, strict=True)])


DAMAGES: dict[str, Callable[[Any], Any]] = {
    "frozen": lambda f: np.repeat(f[:1], len(f), 0),
    "frozen and noisy": lambda f: noisy(np.repeat(f[:1], len(f), 0), 2),
    "noisy": lambda f: noisy(f, 12),
    "shuffled": lambda f: f[np.random.default_rng(0).permutation(len(f))],
    "thrown about": thrown,
    "one jump": lambda f: np.concatenate([f[:6], np.roll(f[6:], 9, 1)]),
    "every frame twice": lambda f: f[np.arange(len(f)) // 2 * 2],
    "flickering": lambda f: to_bytes(f * (1 + 0.1 * (-1.0) ** np.arange(len(f)))[:, None, None, None]),  # noqa: E501
    "blurred": lambda f: np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in f]),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_spoilt_clip_scores_below_what_it_was(path: str, damage: str) -> None:
    spoilt = measure(DAMAGES[damage](drawn(path, shimmer=1.0)))

    assert score(spoilt) < score(whole(path))


@pytest.mark.parametrize("path", PATHS)
def test_a_frozen_clip_scores_nothing_by_any_weights(path: str) -> None:
    frozen = measure(DAMAGES["frozen"](drawn(path)))

    assert score(frozen) == 0
    assert score(frozen, {"inter_frame_ssim": 1}) == 0
    assert score({name: v for name, v in frozen.items() if name != "change"}) == 0


@pytest.mark.parametrize("path", PATHS)
def test_what_moves_is_above_the_floor_and_noise_on_a_frozen_clip_far_below(path: str) -> None:
    assert measure(drawn(path), ["change"])["change"] > 2 * MOTION_FLOOR
    still = measure(DAMAGES["frozen and noisy"](drawn(path)), ["change"])["change"]
    assert still < MOTION_FLOOR / 5


def test_a_still_clip_scores_well_where_stillness_was_asked_for() -> None:
    still = measure(DAMAGES["frozen"](drawn("down")))

    assert score(still, floor=motion_floor("a disc standing still")) > 0.8


@pytest.mark.parametrize(
    "prompt",
    ["a star standing still", "Motionless water", "a cat sitting very still", "a static square",
     "a still life with pears", "a ring, not moving", "no movement at all",
     "他静止地站着", "猫一动不动"],
)  # fmt: skip
def test_prompts_that_ask_for_stillness_have_no_floor(prompt: str) -> None:
    assert motion_floor(prompt) == 0


@pytest.mark.parametrize(
    "prompt",
    ["a star moving left", "an ecstatic dancer", "static camera, a dog runs",
     "static shot of waves", "it is still raining", "a film still", "静止镜头, 狗在跑", ""],
)  # fmt: skip
def test_other_prompts_keep_the_floor(prompt: str) -> None:
    assert motion_floor(prompt) == MOTION_FLOOR


def test_a_picture_is_scored_by_what_a_picture_has() -> None:
    picture = drawn("down")[:1]
    blurred = DAMAGES["blurred"](picture)

    assert 0 < score(measure(blurred)) < score(measure(picture)) < 1


def test_the_score_is_the_weighted_mean_of_the_mapped_values() -> None:
    values = {"ssim": 0.8, "flicker": HALF["flicker"], "psnr": 3 * HALF["psnr"]}

    assert score(values, {"ssim": 1}) == pytest.approx(0.8)
    assert score(values, {"flicker": 2}) == pytest.approx(0.5)
    assert score(values, {"psnr": 1}) == pytest.approx(0.75)
    assert score(values, {"ssim": 1, "flicker": 3}) == pytest.approx((0.8 + 3 * 0.5) / 4)
    assert score({"sharpness": 9 * HALF["sharpness"]}, {"sharpness": 1}) == pytest.approx(0.75)
    assert score(values, {"ssim": 1, "delta_e": 5}) == pytest.approx(0.8)


@given(
    st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(-1e9, 1e9), min_size=1),
    st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(0, 1e6)),
    st.floats(0, 10),
)
def test_a_score_is_from_0_to_1_or_an_error(values: Any, weights: Any, floor: float) -> None:
    if sum(weight for name, weight in weights.items() if name in values):
        assert 0 <= score(values, weights, floor=floor) <= 1 + 1e-9
    else:
        with pytest.raises(MeasureError, match="can't be told"):
            score(values, weights, floor=floor)


@given(st.sampled_from(sorted(METRICS)), st.floats(0, 100), st.floats(0, 100))
def test_a_better_value_never_scores_lower(name: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if METRICS[name].better == "lower":
        low, high = high, low

    assert score({name: low}, {name: 1}, floor=0) <= score({name: high}, {name: 1}, floor=0)


@pytest.mark.parametrize("weights", [{"beauty": 1}, {"ssim": -1}, {"ssim": math.nan}, {"ssim": math.inf}])  # fmt: skip  # noqa: E501
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(MeasureError, match="no weight of a metric"):
        score({"ssim": 1.0}, weights)


def test_every_metric_without_an_end_has_the_value_that_counts_half() -> None:
    bounded = {name for name in METRICS if "ssim" in name or "similarity" in name} | {"bit_equal"}

    assert set(HALF) == set(METRICS) - bounded
    assert set(DEFAULT_WEIGHTS) <= {name for name, metric in METRICS.items() if metric.is_default}
    assert MOTION_FLOOR > 0
    assert WEAK_MOTION > 0
    assert JITTER > 0
