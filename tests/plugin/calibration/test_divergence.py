"""How far two denoisers are apart: pure measures, and the log inside a pipeline's call."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from families.registry import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
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
    with_one_buffer,
)
from torch import Tensor

from flowblend_plugin import SwitchError
from flowblend_plugin.calibration.divergence import (
    StepDivergence,
    StepVelocities,
    VelocityLog,
    cosine,
    guidance_weights,
    measure_step,
    relative_l2,
    rms,
    spectral_split,
)

SHAPE = (2, 3, 2, 8, 6)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Pure measures.


def test_known_vectors_have_their_known_distance_and_angle() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    found = torch.tensor([[3.0, 4.0 + 5.0], [0.0, 2.0]])

    assert relative_l2(found, reference).tolist() == pytest.approx([1.0, math.sqrt(5)])
    assert cosine(found, reference).tolist() == pytest.approx([45 / (5 * math.sqrt(90)), 0.0])
    assert rms(reference).tolist() == pytest.approx([5 / math.sqrt(2), 1 / math.sqrt(2)])


def test_equal_velocities_are_at_distance_nothing_even_where_they_are_nothing() -> None:
    assert relative_l2(torch.zeros(SHAPE), torch.zeros(SHAPE)).tolist() == [0.0, 0.0]
    assert cosine(noise(1), 3 * noise(1)).tolist() == pytest.approx([1.0, 1.0])


@given(st.integers(0, 99), st.integers(2, 9), st.integers(2, 9))
def test_the_two_bands_are_all_of_the_distance(seed: int, height: int, width: int) -> None:
    found, reference = (noise(seed + k, (2, 3, height, width)) for k in (0, 100))
    low, high = spectral_split(found, reference)

    assert torch.allclose(low**2 + high**2, relative_l2(found, reference) ** 2, rtol=1e-5)


def test_a_checkerboard_is_all_fine_and_a_constant_is_all_coarse() -> None:
    reference = torch.ones(1, 1, 8, 8)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = ((-1.0) ** (rows + columns))[None, None]

    low, high = spectral_split(reference + 0.5 * board, reference)
    assert (low.item(), high.item()) == pytest.approx((0.0, 0.5), abs=1e-6)
    low, high = spectral_split(1.5 * reference, reference)
    assert (low.item(), high.item()) == pytest.approx((0.5, 0.0), abs=1e-6)


@given(st.lists(st.floats(0.0, 20.0), min_size=2, max_size=2))
def test_the_guidance_scale_of_each_sample_is_read_off_the_output(scales: list[float]) -> None:
    conditional, unconditional = noise(1), noise(2)
    g = torch.tensor(scales).view(2, 1, 1, 1, 1)
    weights = guidance_weights(
        unconditional + g * (conditional - unconditional), [conditional, unconditional]
    )

    assert weights[:, 0].tolist() == pytest.approx(scales, abs=1e-4)
    assert weights[:, 1].tolist() == pytest.approx([1 - s for s in scales], abs=1e-4)


def test_a_velocity_that_is_no_weighted_sum_is_refused() -> None:
    with pytest.raises(SwitchError, match="no weighted sum"):
        guidance_weights(noise(1) * noise(2), [noise(1), noise(2)])


def test_passes_of_another_shape_are_refused() -> None:
    with pytest.raises(SwitchError, match="can't be probed"):
        guidance_weights(noise(1), [noise(1, (2, 36, 8))])


def test_equal_passes_share_their_weight() -> None:
    weights = guidance_weights(noise(1), [noise(1), noise(1)])

    assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0])


# Steps and their neighbours.


def divergences(steps: list[StepVelocities]) -> list[StepDivergence]:
    padded = [None, *steps, None]
    return [
        measure_step(before, present, after)
        for before, present, after in zip(padded, steps, padded[2:], strict=False)
    ]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=8))
def test_derivatives_are_exact_for_velocities_quadratic_in_sigma(gaps: list[int]) -> None:
    sigmas = [1.0]
    for gap in gaps:
        sigmas.append(sigmas[-1] - gap / 240)
    a, b, c = (noise(seed, (1, 1, 4, 4)).double() for seed in range(3))
    # In double precision up to the last rounding: differences of floats lose digits.
    steps = [
        StepVelocities(
            i, s, (a + b * s + c * s * s).float(), torch.zeros(1, 1, 4, 4), continued="output"
        )
        for i, s in enumerate(sigmas)
    ]
    found = divergences(steps)

    assert [one.step for one in found] == list(range(len(sigmas)))
    for i, one in enumerate(found):
        assert ("acceleration" in one.values) == (i > 0)
        assert ("curvature" in one.values) == (0 < i < len(found) - 1)
        if i > 0:
            middle = (sigmas[i - 1] + sigmas[i]) / 2
            assert one.values["acceleration"][0] == pytest.approx(
                rms(b + 2 * c * middle).item(), rel=1e-2
            )
        if "curvature" in one.values:
            assert one.values["curvature"][0] == pytest.approx(rms(2 * c).item(), rel=5e-2)


@pytest.mark.parametrize("what", ["noise", "clean"])
def test_what_is_continued_in_a_straight_line_has_no_curvature(what: Any) -> None:
    # The noise changes by (1 - sigma) times what the velocity changes by, the clean latents by
    # -sigma times that: straight ones come from these velocities.
    field = {"noise": lambda s: -math.log(1 - s), "clean": lambda s: math.log(s)}[what]
    sigmas = [0.8 - 0.6 * i / 400 for i in range(401)]
    steps = [
        StepVelocities(i, s, torch.full((1, 1, 4, 4), field(s)), torch.ones(1, 1, 4, 4),
                       continued=what)
        for i, s in enumerate(sigmas)
    ]  # fmt: skip
    as_output = [replace(step, continued="output") for step in steps]
    bends, of_velocity = (
        [one.values["curvature"][0] for one in divergences(each) if "curvature" in one.values]
        for each in (steps, as_output)
    )
    assert max(bends) < 0.2 * min(of_velocity)


def test_steps_at_one_noise_level_bend_nothing() -> None:
    same = [StepVelocities(i, 0.5, noise(i), noise(9)) for i in range(3)]

    assert all(v == 0 for one in divergences(same) for v in one.values.get("curvature", ()))


def test_tokens_have_no_spatial_frequencies() -> None:
    (one,) = divergences([StepVelocities(0, 1.0, noise(1, (2, 5, 4)), noise(2, (2, 5, 4)))])

    assert not {"low_frequency_l2", "high_frequency_l2"} & one.values.keys()
    assert len(one.values["cosine"]) == 2


# The log.


def small() -> Any:
    return wan_denoiser(layers=1, heads=1, seed=1)


def log_wan(pipe: Any, other: Any, **call: Any) -> tuple[Tensor, list[StepDivergence]]:
    found: list[StepDivergence] = []
    with VelocityLog(pipe, other, found.append):
        latents = run_wan(pipe, **{"steps": 4, **call})
    return latents, found


def test_the_clip_is_that_of_the_plain_run(scheduler: Any) -> None:
    plain = run_wan(wan_pipe(scheduler), steps=4)
    latents, found = log_wan(wan_pipe(scheduler), small())

    assert torch.equal(latents, plain)
    assert [one.step for one in found] == [0, 1, 2, 3]


def test_three_steps_are_held_at_a_time() -> None:
    held = []

    def count(_: StepDivergence) -> None:
        held.append(sum(isinstance(one, StepVelocities) for one in gc.get_objects()))

    pipe = wan_pipe()
    with VelocityLog(pipe, small(), count):
        run_wan(pipe, steps=8)
    assert len(held) == 8
    assert max(held) == 3


def test_each_large_forward_has_exactly_one_small_one() -> None:
    pipe, other = wan_pipe(), small()
    record = ForwardRecorder(large=pipe.transformer, small=other)
    log_wan(pipe, other)

    assert record.roles == ["large", "small"] * 2 * 4


def test_the_measures_are_those_of_what_both_say_of_the_same_latents() -> None:
    pipe, other = wan_pipe(), small()
    asked: list[tuple[Any, Tensor]] = []
    pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: asked.append((kwargs, output[0])), with_kwargs=True
    )
    _, found = log_wan(pipe, other, steps=2)
    with torch.no_grad():
        large = [output for _, output in asked]
        answers = [other(*(), **kwargs)[0] for kwargs, _ in asked]
    for step, one in enumerate(found):
        (cond, uncond), (c, u) = large[2 * step : 2 * step + 2], answers[2 * step : 2 * step + 2]
        guided, theirs = uncond + 3 * (cond - uncond), u + 3 * (c - u)
        assert one.values["guided_relative_l2"][0] == pytest.approx(
            relative_l2(theirs, guided).item(), rel=1e-4
        )
        assert one.values["relative_l2"][0] == pytest.approx(
            relative_l2(torch.cat([c, u], 1), torch.cat([cond, uncond], 1)).item(), rel=1e-4
        )


def test_a_small_denoiser_that_is_the_large_one_is_nowhere_apart() -> None:
    pipe = wan_pipe()
    _, found = log_wan(pipe, pipe.transformer)

    assert [one.values["guided_relative_l2"][0] for one in found] == pytest.approx(
        [0.0] * 4, abs=1e-4
    )


def test_two_passes_in_one_batch_are_told_apart() -> None:
    plain = run_ltx(ltx_pipe(), steps=4)
    pipe, other = ltx_pipe(), ltx_denoiser(layers=1, seed=1)
    record = ForwardRecorder(large=pipe.transformer, small=other)
    found: list[StepDivergence] = []
    with VelocityLog(pipe, other, found.append):
        assert torch.equal(run_ltx(pipe, steps=4), plain)

    assert record.roles == ["large", "small"] * 4
    assert len(found) == 4
    assert all(len(one.values["guided_relative_l2"]) == 1 for one in found)


def test_a_batch_has_a_number_for_each_sample() -> None:
    _, found = log_wan(wan_pipe(), small(), batch=2)
    _, first = log_wan(wan_pipe(), small())

    for both, one in zip(found, first, strict=True):
        assert both.values["guided_relative_l2"][0] == pytest.approx(
            one.values["guided_relative_l2"][0], rel=1e-3
        )


def test_the_second_evaluation_of_a_heun_step_is_left_out() -> None:
    _, found = log_wan(wan_pipe(SCHEDULERS["heun"]()), small())

    assert [one.step for one in found] == [0, 1, 2, 3]


def test_leaving_the_block_puts_the_pipe_back() -> None:
    pipe, other = wan_pipe(), small()
    before = snapshot(pipe)
    log_wan(pipe, other)

    after = snapshot(pipe)
    assert after.pop("transformer") is before.pop("transformer")
    assert after.pop("scheduler") is before.pop("scheduler")
    assert after == before


def test_an_exception_in_mid_call_puts_the_pipe_back_too() -> None:
    pipe, other = wan_pipe(), small()
    before = snapshot(pipe)

    def fail(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), VelocityLog(pipe, other, lambda one: None):
        run_wan(pipe, steps=4, callback_on_step_end=fail)
    after = snapshot(pipe)
    assert after["hooks"] == before["hooks"]
    assert after["transformer"] is before["transformer"]
    assert after["scheduler"] is before["scheduler"]
    assert torch.equal(run_wan(pipe, steps=4), run_wan(wan_pipe(), steps=4))


def test_a_second_call_is_measured_as_the_first() -> None:
    pipe, found = wan_pipe(), []
    with VelocityLog(pipe, small(), found.append):
        run_wan(pipe, steps=3)
        run_wan(pipe, steps=3)

    assert found[:3] == found[3:]


def test_a_call_that_begins_late_cant_be_probed() -> None:
    family = next(f for f in FAMILIES if f.name == "Wan 2.1 video to video")
    pipe = family.make_pipe()
    small = family.make_small()
    with (
        VelocityLog(pipe, small, lambda one: None),
        pytest.raises(SwitchError, match="a pair is probed over a whole one"),
    ):
        family.run(pipe)


def test_denoisers_that_write_into_their_outputs_again_are_measured_alike() -> None:
    pipe, reused = wan_pipe(), wan_pipe()
    with_one_buffer(reused.transformer)
    clip, found = log_wan(pipe, small(), guidance_scale=1.0)
    again, found_again = log_wan(reused, with_one_buffer(small()), guidance_scale=1.0)
    assert torch.equal(clip, again)
    assert found == found_again
