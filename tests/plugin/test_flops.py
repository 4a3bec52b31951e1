from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    I2VGenXLUNet,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    SkyReelsV2Transformer3DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from flowblend_plugin.flops import MAKERS, Clip, FlopsError, count_flops

TEXT = 6
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 24,
    "num_layers": 2,
}
LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "caption_channels": 8,
}
COG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
}
SDXL = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "projection_class_embeddings_input_dim": 6 * 8 + 8,
    "cross_attention_dim": 8,
}


def wan_vae() -> Any:
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def ltx_vae() -> Any:
    shape = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": (1, 1, 1, 1, 1)}
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        **shape,
        decoder_block_out_channels=(8, 8, 8, 8),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def image_vae() -> Any:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
    )


def clip(encoder: Any) -> Any:
    """A tiny image encoder that cuts a picture into as many tokens as the published ones."""
    shape = {"image_size": 224, "patch_size": 14, "num_hidden_layers": 2, "hidden_size": 8}
    more = {"intermediate_size": 8, "num_attention_heads": 2, "projection_dim": 8}
    return encoder(CLIPVisionConfig(**shape, **more)).eval()


def picture(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(1, 3, height, width)


@dataclass(frozen=True)
class Case:
    """A pipeline around a tiny denoiser, what it is called with, and the clip that this makes."""

    pipeline: str
    denoiser: Callable[..., Any]
    config: dict[str, Any]
    clip: Clip
    parts: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    text_width: int = 8
    embeds: tuple[str, ...] = ()


PADDED = ("prompt_attention_mask",)
POOLED = ("pooled_prompt_embeds",)
SMALL_CLIP = Clip(64, 96, 9, TEXT)
PICTURE = Clip(64, 96, 1, TEXT)
CASES = [
    Case("WanPipeline", WanTransformer3DModel, WAN, Clip(64, 80, 12, TEXT)),
    Case("WanPipeline", WanTransformer3DModel, WAN, Clip(64, 96, 9, TEXT, timestep_per_token=True),
         parts={"expand_timesteps": True}),
    Case("WanImageToVideoPipeline", WanTransformer3DModel,
         {**WAN, "in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 24}, SMALL_CLIP,
         parts={"vae": wan_vae, "image_encoder": lambda: clip(CLIPVisionModel),
                "image_processor": CLIPImageProcessor},
         call={"image": picture()}),
    Case("WanVACEPipeline", WanVACETransformer3DModel,
         {**WAN, "vace_layers": [0, 1], "vace_in_channels": 8 + 64}, SMALL_CLIP,
         parts={"vae": wan_vae}),
    Case("SkyReelsV2Pipeline", SkyReelsV2Transformer3DModel, WAN, SMALL_CLIP),
    Case("LTXPipeline", LTXVideoTransformer3DModel, LTX, Clip(64, 96, 17, TEXT), embeds=PADDED),
    Case("LTXImageToVideoPipeline", LTXVideoTransformer3DModel, LTX,
         Clip(64, 96, 17, TEXT, timestep_per_token=True),
         parts={"vae": ltx_vae}, call={"image": picture()}, embeds=PADDED),
    Case("LTXConditionPipeline", LTXVideoTransformer3DModel, LTX, Clip(64, 96, 17, TEXT),
         parts={"vae": ltx_vae}, embeds=PADDED),
    Case("LTXConditionPipeline", LTXVideoTransformer3DModel, LTX,
         Clip(64, 96, 17, TEXT, timestep_per_token=True),
         parts={"vae": ltx_vae}, call={"image": picture()}, embeds=PADDED),
    Case("QwenImagePipeline", QwenImageTransformer2DModel,
         {"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 12,
          "num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": (4, 4, 4)},
         PICTURE, call={"true_cfg_scale": 4.0}, embeds=("prompt_embeds_mask",)),
    Case("FluxPipeline", FluxTransformer2DModel,
         {"in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 12,
          "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8,
          "guidance_embeds": True, "axes_dims_rope": (4, 4, 4)},
         PICTURE, parts={"text_encoder_2": None, "tokenizer_2": None},
         call={"true_cfg_scale": 4.0}, embeds=POOLED),
    Case("StableDiffusion3Pipeline", SD3Transformer2DModel,
         {"sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
          "attention_head_dim": 12, "num_attention_heads": 2, "joint_attention_dim": 8,
          "caption_projection_dim": 24, "pooled_projection_dim": 8, "pos_embed_max_size": 16},
         PICTURE,
         parts=dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")),
         embeds=POOLED),
    Case("HunyuanVideoPipeline", HunyuanVideoTransformer3DModel,
         {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12,
          "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 8,
          "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 4)},
         SMALL_CLIP, parts={"text_encoder_2": None, "tokenizer_2": None},
         call={"true_cfg_scale": 4.0}, embeds=(*PADDED, *POOLED)),
    Case("CogVideoXPipeline", CogVideoXTransformer3DModel, COG, SMALL_CLIP,
         parts={"scheduler": CogVideoXDDIMScheduler}),
    Case("CogVideoXPipeline", CogVideoXTransformer3DModel,
         {**COG, "patch_size_t": 2, "patch_bias": False}, SMALL_CLIP,
         parts={"scheduler": CogVideoXDDIMScheduler}),
    Case("MochiPipeline", MochiTransformer3DModel,
         {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
          "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 32, "time_embed_dim": 8,
          "max_sequence_length": TEXT},
         Clip(64, 96, 7, TEXT), text_width=32, embeds=PADDED),
    Case("I2VGenXLPipeline", I2VGenXLUNet,
         {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
          "cross_attention_dim": 8, "attention_head_dim": 4,
          "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
          "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
         Clip(64, 64, 3, TEXT),
         parts={"vae": image_vae, "image_encoder": lambda: clip(CLIPVisionModelWithProjection),
                "feature_extractor": CLIPImageProcessor, "scheduler": DDIMScheduler},
         call={"image": Image.new("RGB", (64, 64), (200, 40, 90))}),
    Case("StableDiffusionXLPipeline", UNet2DConditionModel, SDXL, PICTURE,
         parts={"text_encoder_2": None, "tokenizer_2": None, "scheduler": EulerDiscreteScheduler},
         embeds=POOLED),
]  # fmt: skip


def make_pipe(case: Case, denoiser: Any) -> Any:
    parts = {
        "vae": None,
        "text_encoder": None,
        "tokenizer": None,
        "scheduler": FlowMatchEulerDiscreteScheduler,
        **case.parts,
    }
    parts = {name: part() if callable(part) else part for name, part in parts.items()}
    attribute = "unet" if "UNet" in type(denoiser).__name__ else "transformer"
    pipe = getattr(diffusers, case.pipeline)(**{attribute: denoiser}, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(case: Case) -> dict[str, Any]:
    """The call's arguments: two steps with guidance, which is four forwards."""
    clip = case.clip
    tokens = clip.text_tokens + (77 if case.pipeline == "StableDiffusion3Pipeline" else 0)
    given: dict[str, Any] = {"prompt_embeds": torch.rand(1, tokens, case.text_width)}
    for name in case.embeds:
        given[name] = torch.rand(1, 8) if "pooled" in name else torch.ones(1, tokens)
    given |= {f"negative_{name}": value for name, value in given.items()}
    size = {"height": clip.height, "width": clip.width, "num_inference_steps": 2}
    if clip.num_frames != 1:
        size["num_frames"] = clip.num_frames
    return {"guidance_scale": 3.0, "output_type": "latent", **given, **size, **case.call}


@pytest.mark.filterwarnings(
    "ignore:CPU Autocast:UserWarning",
    "ignore:In CPU autocast:UserWarning",
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.pipeline)
def test_a_real_run_does_exactly_the_counted_operations(case: Case) -> None:
    torch.manual_seed(0)
    denoiser = case.denoiser(**case.config).eval()
    pipe = make_pipe(case, denoiser)

    # In the plain backend every product of attention is an operation of its own.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe(**arguments(case))

    ran = counter.get_flop_counts()[type(denoiser).__name__]
    attention = sum(flops for name, flops in ran.items() if "bmm" in str(name))
    if case.pipeline == "MochiPipeline":
        heads, half = case.config["num_attention_heads"], case.config["attention_head_dim"] // 2
        tokens = 4 * 6 * 2  # its rotary angles are a product too: 3 numbers for each token
        attention -= 2 * (2 * tokens * 3 * heads * half)
        ran = {"bmm": attention, **{n: f for n, f in ran.items() if "bmm" not in str(n)}}
    counted = count_flops({"_class_name": type(denoiser).__name__, **denoiser.config}, case.clip)
    assert 4 * counted.full == sum(ran.values())
    assert 4 * counted.linear_only == sum(ran.values()) - attention


def test_every_class_of_the_table_exists_in_diffusers() -> None:
    assert all(hasattr(diffusers, name) for name in MAKERS)


def test_attention_costs_what_its_two_products_cost() -> None:
    config = {"_class_name": "WanTransformer3DModel", **WAN}
    tokens, width, layers = 3 * 4 * 6, 24, 2

    counted = count_flops(config, SMALL_CLIP)

    scores_and_values = 2 * (2 * tokens * tokens * width + 2 * tokens * TEXT * width)
    assert counted.full - counted.linear_only == layers * scores_and_values


def test_linear_layers_cost_two_operations_a_weight_and_token() -> None:
    small, large = (
        count_flops({"_class_name": "WanTransformer3DModel", **WAN, "ffn_dim": ffn}, SMALL_CLIP)
        for ffn in (24, 25)
    )

    tokens, width, layers = 3 * 4 * 6, 24, 2
    assert large.linear_only - small.linear_only == layers * 2 * 2 * tokens * width


def test_the_second_frame_embedding_of_first_and_last_frame_pairs_is_counted() -> None:
    one = {"_class_name": "WanTransformer3DModel", **WAN, "image_dim": 8, "added_kv_proj_dim": 24}

    counted = [
        count_flops(config, SMALL_CLIP).linear_only
        for config in (one, {**one, "pos_embed_seq_len": 514})
    ]

    assert counted[1] > counted[0]


def test_the_vae_of_the_pipeline_decides_the_size_of_the_latents() -> None:
    config = {"_class_name": "WanTransformer3DModel", **WAN}
    finer = Clip(64, 96, 9, TEXT, vae={"scale_factor_spatial": 4, "scale_factor_temporal": 2})

    assert count_flops(config, finer).full > 4 * count_flops(config, SMALL_CLIP).full


def test_a_config_may_name_the_size_that_a_call_leaves_out() -> None:
    config = {"_class_name": "CogVideoXTransformer3DModel", **COG}

    assert count_flops(config, Clip(None, None, None, TEXT)) == count_flops(config, SMALL_CLIP)


@pytest.mark.parametrize(
    ("config", "clip", "message"),
    [
        ({"_class_name": "LlamaModel"}, SMALL_CLIP, "LlamaModel can't be counted: known are"),
        ({}, SMALL_CLIP, "a denoiser without _class_name"),
        ({"_class_name": "WanTransformer3DModel", "num_layers": "two"}, SMALL_CLIP,
         "WanTransformer3DModel can't be built from its config"),
        ({"_class_name": "WanTransformer3DModel", **WAN}, Clip(None, None, 9, TEXT),
         "its config names no size: give height and width"),
        ({"_class_name": "WanTransformer3DModel", **WAN}, Clip(64, 64, None, TEXT),
         "its config names no number of frames"),
        ({"_class_name": "SD3Transformer2DModel", "num_layers": 1, "pos_embed_max_size": 16},
         Clip(512, 512, 1, TEXT), "can't run 512x512, 1 frames"),
    ],
)  # fmt: skip
def test_what_cant_be_counted_says_why(config: dict[str, Any], clip: Clip, message: str) -> None:
    with pytest.raises(FlopsError, match=message):
        count_flops(config, clip)


def test_counting_hangs_nothing_on_the_modules_of_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []
    forward = torch.nn.Linear.forward

    def look(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.nn.modules.module._has_any_global_hook())
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", look)
    count_flops({"_class_name": "WanTransformer3DModel", **WAN}, SMALL_CLIP)
    assert seen
    assert not any(seen)
