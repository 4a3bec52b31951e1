"""IP-Adapters change a UNet itself: both denoisers have one, or the switch says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families.unets import run_sdxl, sdxl_denoiser, sdxl_pipe
from snapshots import Snapshot, check

from flowblend_plugin import DenoiserSwitch, PairMismatchError, StageSchedule, SwitchError

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
PICTURE = [torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))]


def load_ip_adapter(unet: Any) -> None:
    """Load one of random weights, as ``pipe.load_ip_adapter`` does it in the end."""
    width, channels = unet.config.cross_attention_dim, unet.config.block_out_channels
    generator = torch.Generator().manual_seed(2)
    weights, key = {}, 1
    for name in unet.attn_processors:
        if "attn2" not in name:
            continue
        kind, _, rest = name.partition("_blocks.")
        sizes = {"up": channels[::-1], "down": channels}.get(kind, channels[-1:])
        size = sizes[int(rest[0]) if rest and kind in ("up", "down") else 0]
        for half in ("to_k_ip", "to_v_ip"):
            value = torch.randn(size, width, generator=generator)
            weights[f"{key}.{half}.weight"] = value
        key += 2
    projection = {
        "proj.weight": torch.randn(4 * width, 8, generator=generator),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


def run(pipe: Any) -> torch.Tensor:
    return run_sdxl(pipe, ip_adapter_image_embeds=PICTURE)


def test_an_ip_adapter_in_both_denoisers_works_and_its_scale_is_the_users() -> None:
    pipe = sdxl_pipe()
    load_ip_adapter(pipe.unet)
    expected, same = run(pipe), copy.deepcopy(pipe.unet)
    before = Snapshot(pipe, small=same)
    with DenoiserSwitch(pipe, same, LSL):
        assert torch.equal(run(pipe), expected)
        pipe.set_ip_adapter_scale(0.0)
        assert not torch.equal(run(pipe), expected)
        pipe.set_ip_adapter_scale(1.0)
    assert torch.equal(run(pipe), expected)
    check(before, Snapshot(pipe, small=same))


@pytest.mark.parametrize("whose", ["large", "small"])
def test_an_ip_adapter_in_one_denoiser_is_a_mismatch(whose: str) -> None:
    pipe, small = sdxl_pipe(), sdxl_denoiser(seed=1)
    load_ip_adapter(pipe.unet if whose == "large" else small)
    with pytest.raises(PairMismatchError, match=r"encoder_hid_dim_type.*ip_image_proj"):
        DenoiserSwitch(pipe, small, LSL)


def test_an_ip_adapter_that_is_loaded_into_one_meanwhile_is_refused_before_the_first_step() -> None:
    pipe, small = sdxl_pipe(), sdxl_denoiser(seed=1)
    with DenoiserSwitch(pipe, small, LSL) as switch:
        run_sdxl(pipe)
        load_ip_adapter(pipe.unet)
        with pytest.raises(SwitchError, match=r"doesn't fit .* any more: encoder_hid_dim_type"):
            run(pipe)
        assert switch.denoisers_run == []
        load_ip_adapter(small)
        run(pipe)
