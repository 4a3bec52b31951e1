from __future__ import annotations

from typing import Any

import pytest
import torch
from families import wan
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugin.denoisers.conditioning import fit_inputs, fit_scales

depths = st.lists(st.integers(1, 39), unique=True, max_size=15).map(
    lambda layers: [layer / 39 for layer in sorted({0, *layers})]
)


@given(depths, depths, st.floats(-2, 2, width=32))
def test_equal_scales_stay_exactly_what_they_are(
    large: list[float], small: list[float], scale: float
) -> None:
    fitted = fit_scales(torch.full((len(large),), scale), large, small)
    assert torch.equal(fitted, torch.full((len(small),), scale))


@given(depths)
def test_equal_depths_keep_every_scale(large: list[float]) -> None:
    scales = torch.arange(len(large), dtype=torch.float32)
    assert torch.equal(fit_scales(scales, large, large), scales)


def test_scales_between_layers_are_interpolated_and_constant_beyond_the_last() -> None:
    fitted = fit_scales(torch.tensor([1.0, 2.0, 0.0]), (0.0, 0.5, 0.8), (0.0, 0.25, 0.65, 1.0))
    assert torch.allclose(fitted, torch.tensor([1.0, 1.5, 1.0, 0.0]))
    assert fit_scales(torch.tensor([0.3]), (0.0,), (0.0, 0.4, 1.0)).tolist() == pytest.approx(
        [0.3] * 3
    )


def test_scales_keep_their_dtype() -> None:
    scales = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert fit_scales(scales, (0.0, 1.0), (0.0, 0.5, 1.0)).dtype == torch.bfloat16


def vace_call(module: Any, scales: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(
            hidden_states=torch.ones(1, 4, 1, 4, 4),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.ones(1, 2, 8),
            control_hidden_states=torch.ones(1, 72, 1, 4, 4),
            control_hidden_states_scale=scales,
            return_dict=False,
        )[0]


def test_a_small_vace_denoiser_reads_the_large_ones_scales_at_its_own_depths() -> None:
    large = wan.vace_denoiser(layers=5, conditioned=(0, 2, 4))
    small = wan.vace_denoiser(layers=3, conditioned=(0, 2))
    expected = vace_call(small, torch.tensor([0.5, 2.0]))
    given_scales = torch.tensor([0.5, 1.0, 2.0])
    fitted = fit_inputs(large, small)
    assert torch.equal(vace_call(small, given_scales), expected)
    assert torch.equal(vace_call(small, torch.tensor([0.5, 2.0])), expected), "its own are its own"
    fitted.close()
    with pytest.raises(ValueError, match="should be equal to 2"):
        vace_call(small, given_scales)
    assert not small._forward_pre_hooks


def test_pairs_that_agree_need_nothing() -> None:
    large, small = wan.vace_denoiser(), wan.vace_denoiser(layers=3)
    for pair in ((large, small), (large, large), (wan.denoiser(), wan.denoiser(layers=1))):
        before = [(dict(vars(module)), dict(module._forward_pre_hooks)) for module in pair]
        fit_inputs(*pair)
        assert [(vars(module), module._forward_pre_hooks) for module in pair] == before
