from __future__ import annotations

import json
from typing import Any

import pytest
from families import images, ltx, unets, video, wan
from families.base import Family
from families.registry import FAMILIES
from tiny import wan_denoiser

from flowblend_plugin.denoisers.compatibility import config_mismatches, latent_space_mismatches


def config(module: Any, **changes: Any) -> dict[str, Any]:
    """A denoiser's config as its config.json would hold it, with lists for tuples."""
    named = {**module.config, "_class_name": type(module).__name__, **changes}
    return json.loads(json.dumps(named))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_familys_pair_fits_in_both_orders_and_its_misfit_doesnt(family: Family) -> None:
    large = getattr(family.make_pipe(), family.attributes[0])
    small, misfit = family.make_small(), family.make_misfit()
    if isinstance(small, tuple):
        small, misfit = small[0], misfit[0]
    assert config_mismatches(config(large), config(small)) == ()
    assert config_mismatches(config(small), config(large)) == ()
    assert family.misfit in "\n".join(config_mismatches(config(large), config(misfit)))


# What the released pairs differ in, in their own words; the rest of their configs agrees.
RELEASED = {
    "Wan 2.1 T2V 14B and 1.3B": (
        wan_denoiser,
        {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    ),
    "Wan VACE 14B and 1.3B": (
        wan.vace_denoiser,
        {"num_layers": 40, "vace_layers": list(range(0, 40, 5))},
        {"num_layers": 30, "vace_layers": list(range(0, 30, 2))},
    ),
    "LTX-Video 13B and 2B": (
        ltx.denoiser,
        {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48},
        {"attention_head_dim": 64, "cross_attention_dim": 2048, "num_layers": 28},
    ),
    "Cosmos-Predict2 14B and 2B": (
        video.cosmos_denoiser,
        {"num_attention_heads": 40, "num_layers": 36},
        {"num_attention_heads": 16, "num_layers": 28},
    ),
    "Kandinsky 5 Pro and Lite": (
        video.kandinsky_denoiser,
        {"model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "num_visual_blocks": 60},
        {"model_dim": 1792, "ff_dim": 7168, "time_dim": 512, "num_visual_blocks": 32},
    ),
    "Stable Diffusion 3.5 large and medium": (
        images.sd3_denoiser,
        {"caption_projection_dim": 2432, "num_layers": 38, "pos_embed_max_size": 192},
        {"caption_projection_dim": 1536, "num_layers": 24, "pos_embed_max_size": 384},
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_pairs_that_fit_are_let_through(name: str) -> None:
    make, large, small = RELEASED[name]
    module = make()
    assert config_mismatches(config(module, **large), config(module, **small)) == ()


MISFITS = {
    "Wan 2.2 A14B with TI2V-5B": (
        wan_denoiser, {"in_channels": 16, "out_channels": 16},
        {"in_channels": 48, "out_channels": 48}, ("in_channels", "out_channels"),
    ),
    "CogVideoX 5B with 2B": (
        video.cog_denoiser, {"use_rotary_positional_embeddings": True},
        {"use_rotary_positional_embeddings": False}, ("use_rotary_positional_embeddings",),
    ),
    "CogVideoX of two rotary grids": (
        lambda: video.cog_denoiser(rotary=True), {"sample_height": 60}, {"sample_height": 96},
        ("sample_height",),
    ),
    "Wan image to video with and without image attention": (
        wan.image_denoiser, {}, {"image_dim": None, "added_kv_proj_dim": None},
        ("image_dim", "added_kv_proj_dim"),
    ),
    "SDXL with and without its size conditions": (
        unets.sdxl_denoiser, {}, {"addition_embed_type": None}, ("addition_embed_type",),
    ),
    "SDXL with an IP-Adapter and without": (
        unets.sdxl_denoiser, {"encoder_hid_dim_type": "ip_image_proj"}, {},
        ("encoder_hid_dim_type",),
    ),
    "LTX-2 that takes its texts as they come, of two widths": (
        ltx.sound_denoiser, {"use_prompt_embeddings": False, "cross_attention_dim": 4096},
        {"use_prompt_embeddings": False, "cross_attention_dim": 2048}, ("cross_attention_dim",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_cant_fit_is_named_with_both_values(name: str) -> None:
    make, large, small, keys = MISFITS[name]
    module = make()
    found = config_mismatches(config(module, **large), config(module, **small))
    assert len(found) == len(keys)
    for line, key in zip(found, keys, strict=True):
        assert line.startswith(f"{key} (")
        assert "large" in line
        assert "small" in line


def test_another_class_is_a_mismatch() -> None:
    found = config_mismatches(config(wan_denoiser()), config(wan.vace_denoiser()))
    assert "class: large WanTransformer3DModel, small WanVACETransformer3DModel" in found


def test_widths_that_the_pipeline_never_sees_may_differ() -> None:
    mochi = video.mochi_denoiser()
    assert config_mismatches(config(mochi), config(mochi, pooled_projection_dim=1536)) == ()
    sd3 = images.sd3_denoiser()
    assert config_mismatches(config(sd3), config(sd3, pooled_projection_dim=1536)) != ()


def test_a_key_that_one_config_leaves_out_is_its_classs_default() -> None:
    short = config(wan_denoiser())
    del short["rope_max_seq_len"]
    assert config_mismatches(config(wan_denoiser()), short) == ()


def test_latent_spaces_are_compared_by_what_their_configs_say() -> None:
    vae = {"_class_name": "AutoencoderKLWan", "z_dim": 16, "latents_mean": [0.1] * 16}
    assert latent_space_mismatches(vae, dict(vae)) == ()
    other = {**vae, "z_dim": 48, "latents_mean": [0.2] * 48}
    found = latent_space_mismatches(vae, other)
    assert [line.split(":")[0] for line in found] == ["vae z_dim", "vae latents_mean"]
    assert max(map(len, found)) < 120, "long lists are cut short"
