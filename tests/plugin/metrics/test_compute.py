"""Metrics of frames against what is known of them: drawn clips, and the libraries' own answers."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from flowblend_plugin import FlowBlendError, metrics
from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics import METRICS, measure, tracks, trajectory_spread

ROOT = Path(__file__).resolve().parents[3]
SIZE, SPEED = 64, 1.5
DIAGONAL = SIZE * 2**0.5


def ground(seed: int = 0, size: int = SIZE) -> Any:
    """A smooth random texture, (size, size, 3), 0..255, that repeats at its edges."""
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    reach = np.exp(-60 * (np.fft.fftfreq(size)[:, None] ** 2 + np.fft.fftfreq(size) ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * reach[..., None], axes=(0, 1)).real
    return 128 + 45 * smooth / smooth.std()


def moving(speeds: Any, size: int = SIZE) -> Any:
    """A texture that moves right by so many pixels from frame to frame."""
    spectrum = np.fft.fft(ground(size=size), axis=1)
    places = np.concatenate([[0], np.cumsum(speeds)])
    turn = np.exp(-2j * np.pi * np.fft.fftfreq(size)[None, :, None] * places[:, None, None, None])
    return to_bytes(np.fft.ifft(spectrum * turn, axis=2).real)


def to_bytes(values: Any) -> Any:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clip() -> Any:
    return moving([SPEED] * 8)


@pytest.fixture(scope="module")
def other() -> Any:
    return moving([0.5] * 8)


def test_inter_frame_ssim_is_scikit_images_over_neighbours(clip: Any) -> None:
    wanted = [structural_similarity(a, b, channel_axis=-1) for a, b in pairwise(clip)]

    found = measure(clip, ["inter_frame_ssim", "inter_frame_ssim_min"])

    assert found == {"inter_frame_ssim": np.mean(wanted), "inter_frame_ssim_min": min(wanted)}


def test_flow_is_as_long_as_the_drawn_motion(clip: Any) -> None:
    found = measure(clip, ["flow_mean", "flow_std"])

    assert found["flow_mean"] == pytest.approx(1000 * SPEED / DIAGONAL, rel=0.1)
    assert found["flow_std"] < 0.03 * found["flow_mean"]


def test_flow_is_a_share_of_the_diagonal_so_that_sizes_compare() -> None:
    small = measure(moving([1.0] * 4), ["flow_mean"])["flow_mean"]
    large = measure(moving([2.0] * 4, size=2 * SIZE), ["flow_mean"])["flow_mean"]

    assert small == pytest.approx(large, rel=0.1)


def test_flow_that_alternates_has_the_deviation_of_its_two_lengths() -> None:
    found = measure(moving([1.0, 3.0] * 4), ["flow_mean", "flow_std"])

    assert found["flow_mean"] == pytest.approx(1000 * 2 / DIAGONAL, rel=0.1)
    assert found["flow_std"] == pytest.approx(1000 * 1 / DIAGONAL, rel=0.15)


def test_flicker_sees_pulsing_light_and_neither_motion_nor_an_even_fade(clip: Any) -> None:
    fade = to_bytes(np.linspace(60, 160, 11)[:, None, None, None] * np.ones((1, 16, 16, 3)))
    pulse = to_bytes(clip + 10.0 * (np.arange(9) % 2)[:, None, None, None])

    assert measure(fade, ["flicker"])["flicker"] == pytest.approx(0)
    assert measure(clip, ["flicker"])["flicker"] < 0.2
    assert measure(pulse, ["flicker"])["flicker"] == pytest.approx(20, rel=0.1)


def test_blur_lowers_both_measures_of_detail_and_noise_raises_them(clip: Any) -> None:
    names = ["sharpness", "high_frequency"]
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in clip])
    noisy = to_bytes(clip + np.random.default_rng(0).normal(0, 12, clip.shape))

    low, clean, high = (measure(frames, names) for frames in (blurred, clip, noisy))

    for name in names:
        assert low[name] < clean[name] < high[name]


def test_high_frequency_is_the_share_of_a_known_wave() -> None:
    def waves(fast: float) -> Any:
        x = np.arange(64)
        row = 30 * np.cos(2 * np.pi * x / 16) + fast * np.cos(2 * np.pi * x * 7 / 16)
        return to_bytes(128 + row[None, None, :, None] * np.ones((1, 64, 1, 3)))

    assert measure(waves(0), ["high_frequency"])["high_frequency"] < 0.001
    assert measure(waves(30), ["high_frequency"])["high_frequency"] == pytest.approx(0.5, abs=0.02)


def test_psnr_and_ssim_are_scikit_images(clip: Any, other: Any) -> None:
    found = measure(clip, ["psnr", "ssim"], reference=other)

    pairs = list(zip(clip, other, strict=True))
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(other, clip))
    assert found["ssim"] == np.mean([structural_similarity(*p, channel_axis=-1) for p in pairs])


def test_equal_clips_have_the_best_finite_similarity(clip: Any) -> None:
    assert measure(clip, ["psnr", "ssim", "delta_e"], reference=clip) == {
        "psnr": 100.0,
        "ssim": 1.0,
        "delta_e": 0.0,
    }


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [((255, 0, 0), (0, 255, 0), 86.6), ((0, 0, 0), (255, 255, 255), 100.0)],
)
def test_delta_e_is_ciede2000(a: Any, b: Any, wanted: float) -> None:
    frames, reference = (np.full((2, 8, 8, 3), colour, np.uint8) for colour in (a, b))

    found = measure(frames, ["delta_e"], reference=reference)["delta_e"]

    assert found == pytest.approx(wanted, abs=0.1)


def test_a_chart_is_as_far_off_as_its_patches_are_on_average() -> None:
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, :10] = (255, 0, 0)
    left, right = (0, 0, 10, 10), (10, 0, 20, 10)

    exact = metrics.chart_difference(picture, [(left, (255, 0, 0)), (right, (0, 0, 0))])
    half = metrics.chart_difference(picture, [(left, (255, 0, 0)), (right, (255, 255, 255))])

    assert exact == pytest.approx(0, abs=1e-6)
    assert half == pytest.approx(50, abs=0.1)
    for patches in ([], [((0, 0, 21, 10), (0, 0, 0))], [((5, 5, 5, 9), (0, 0, 0))]):
        with pytest.raises(MeasureError):
            metrics.chart_difference(picture, patches)


def test_tracks_follow_the_drawn_motion(clip: Any) -> None:
    found = tracks(clip)

    assert found.shape == (64, 9, 2)
    inside = found[:, -1, 0] < 0.9 * SIZE / DIAGONAL
    moved = (found[inside, -1] - found[inside, 0]) * DIAGONAL
    assert np.median(moved, axis=0) == pytest.approx([8 * SPEED, 0], abs=0.5)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_spread_of_two_speeds_is_half_of_how_far_they_drift_apart() -> None:
    steps = np.arange(5.0)
    paths = [np.stack([np.tile(v * steps, (3, 1)), np.zeros((3, 5))], -1) for v in (0.01, 0.03)]

    found = trajectory_spread(paths)

    assert found == pytest.approx(1000 * 0.01 * np.sqrt(np.mean(steps**2)))
    assert trajectory_spread([paths[0], paths[0].tolist()]) == 0


@pytest.mark.parametrize("paths", [[], [np.zeros((2, 3, 2))], [np.zeros((2, 3, 2)), np.zeros((2, 4, 2))]])  # fmt: skip  # noqa: E501
def test_tracks_that_cannot_be_compared_are_refused(paths: Any) -> None:
    with pytest.raises(MeasureError, match="two or more"):
        trajectory_spread(paths)


def test_bit_equality_wants_every_pixel_and_the_shape(clip: Any) -> None:
    changed = clip.copy()
    changed[-1, -1, -1, -1] ^= 1

    assert metrics.bit_equal([clip, clip.copy(), clip.copy()])
    assert not metrics.bit_equal([clip, clip.copy(), changed])
    assert not metrics.bit_equal([clip, clip[:-1]])


def test_defaults_are_what_the_frames_are_enough_for(clip: Any, other: Any) -> None:
    short = {"inter_frame_ssim", "inter_frame_ssim_min", "flow_mean"}
    of_clip = short | {"change", "flow_std", "unsteadiness", "flicker"}
    flow = {"flow_mean", "flow_std", "unsteadiness"}
    of_picture = {"sharpness", "high_frequency"}

    assert set(measure(clip)) == of_clip | of_picture
    assert set(measure(clip[:1])) == of_picture
    assert set(measure(clip[:2])) == short | of_picture
    assert set(measure(clip[:, :8, :8])) == of_clip - flow | of_picture
    assert set(measure(clip[:, :2, :2])) == {"flicker", "sharpness"}
    assert set(measure(clip[:1], reference=other[:1])) == of_picture | {"psnr", "ssim", "delta_e"}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_any_clip_can_be_measured_and_gives_the_same_finite_numbers_again(
    count: int, height: int, width: int, seed: int
) -> None:
    shape = (count, height, width, 3)
    frames = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    before = frames.copy()

    found = measure(frames, reference=frames)

    assert found == measure(frames, reference=frames)
    assert list(found) == [name for name in METRICS if name in found]
    assert all(np.isfinite(value) for value in found.values())
    assert np.array_equal(frames, before)


def test_measuring_leaves_opencvs_threads_as_they_were(clip: Any) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        measure(clip)
        tracks(clip)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 8, 8, 3)),
        np.zeros((3, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        [[1]],
        None,
    ],
    ids=["floats", "alpha", "picture", "empty", "list", "nothing"],
)
def test_what_is_no_clip_is_refused(wrong: Any) -> None:
    for take in (measure, tracks, lambda frames: metrics.bit_equal([frames])):
        with pytest.raises(MeasureError, match="have to be"):
            take(wrong)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["sharp"], "unknown"),
        (["elapsed_s"], "no metric of one clip"),
        (["trajectory_spread"], "no metric of one clip"),
        (["psnr"], "give it as reference"),
        (["clip_similarity"], "give it as reference"),
    ],
)
def test_names_that_cannot_be_measured_are_refused(clip: Any, names: Any, match: str) -> None:
    with pytest.raises(MeasureError, match=match):
        measure(clip, names)


def test_metrics_that_frames_are_too_few_or_too_small_for_are_refused(clip: Any) -> None:
    with pytest.raises(MeasureError, match="2 or more"):
        measure(clip[:1], ["inter_frame_ssim"])
    with pytest.raises(MeasureError, match="7x7 or more"):
        measure(clip[:, :6], ["inter_frame_ssim"])
    with pytest.raises(MeasureError, match="16x16 or more"):
        measure(clip[:, :12, :12], ["flow_mean"])
    with pytest.raises(MeasureError, match="can't be compared"):
        measure(clip, reference=clip[:3])


def test_the_error_is_one_of_ours_and_a_value_error() -> None:
    assert issubclass(MeasureError, FlowBlendError)
    assert issubclass(MeasureError, ValueError)


def test_without_the_extra_it_says_what_to_install(
    clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metrics.is_available()
    assert metrics.missing() == ""
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for module in ("cv2", "skimage"):
        monkeypatch.delitem(sys.modules, module)

    assert not metrics.is_available()
    with pytest.raises(MeasureError, match=r"opencv-python-headless and scikit-image.*\[metrics\]"):
        measure(clip)


def test_importing_it_loads_neither_torch_nor_the_extra() -> None:
    code = "import sys; from flowblend_plugin import metrics; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert not {"torch", "numpy", "cv2", "skimage", "transformers"} & set(done.stdout.split())


def test_every_metric_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.definition.endswith(".")
        assert metric.source
        assert metric.better in ("higher", "lower", "neither")
        assert not metric.is_default or metric.needs in ("frames", "reference")
