"""A LoRA file in a denoiser: as ``pipe.load_lora_weights`` puts it there, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, SkyReelsV2Pipeline
from diffusers.loaders import lora_pipeline
from fake_hub import cache_repo
from families import hunyuan, images, ltx, skyreels, unets, video, wan
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from tiny import wan_denoiser
from torch import nn

from flowblend_plugin import Adapter, AdapterError, DenoiserSwitch, Stage, StageSchedule
from flowblend_plugin.denoisers.adapter_files import load_adapter
from flowblend_plugin.denoisers.loading import denoiser_name

Weights = dict[str, torch.Tensor]
Make = Callable[[], Any]

AB = ("lora_A.weight", "lora_B.weight")
DOWN_UP = ("lora_down.weight", "lora_up.weight")


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, denoiser_name(pipe))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(layer: str, into: int, out: int, rank: int = 2, halves: Iterable[str] = AB) -> Weights:
    down, up = halves
    return {f"{layer}.{down}": numbers(rank, into), f"{layer}.{up}": numbers(out, rank)}


def lora(
    module: Any,
    prefix: str,
    words: Iterable[str] = ("attn",),
    *,
    halves: tuple[str, str] = AB,
    rank: Callable[[int], int] = lambda _: 2,
    alpha: Callable[[int], float] | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    extra: str = "",
) -> Weights:
    """A LoRA of all layers whose names hold one of some words, each weight other than the rest."""
    found: Weights = {}
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, kinds) and any(word in name for word in words)
    ]
    for index, (name, layer) in enumerate(layers):
        out, into, *kernel = layer.weight.shape
        scale = 1 + index / len(layers)
        down, up = (f"{prefix}{name}.{half}" for half in halves)
        found[down] = numbers(rank(index), into, *kernel) * scale
        found[up] = numbers(out, rank(index), *[1] * len(kernel)) * scale
        if alpha is not None:
            found[f"{prefix}{name}.alpha"] = torch.tensor(alpha(index))
        if extra:
            found[f"{prefix}{name}.{extra}"] = numbers(out).abs() + 0.5
    return found


def loaded(module: Any) -> dict[str, Any]:
    """Everything that decides what an adapter called "x" does to a denoiser."""
    layers = {
        name: (layer.scaling["x"], layer.r["x"], "x" in layer.active_adapters)
        for name, layer in module.named_modules()
        if isinstance(layer, BaseTunerLayer) and "x" in layer.scaling
    }
    weights = {
        name: (value.dtype, value.float().tolist())
        for name, value in module.state_dict().items()
        if ".x" in name and "lora" in name
    }
    return layers | weights


def written(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in weights.items()}, str(path), metadata)
    return path


def check_equal(make: Make, file: Path) -> dict[str, Any]:
    theirs, ours = make(), make()
    theirs.load_lora_weights(str(file), adapter_name="x")
    load_adapter(ours, "large", denoiser(ours), "x", file)
    found = loaded(denoiser(ours))
    assert found == loaded(denoiser(theirs))
    assert found
    return found


def refused(make: Make, file: Path) -> str:
    """What is said of a file that can't be used; the denoiser is left as it was."""
    pipe = make()
    with pytest.raises(AdapterError) as caught:
        load_adapter(pipe, "large", denoiser(pipe), "x", file)
    assert not loaded(denoiser(pipe))
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "style.safetensors"


# Every loader of diffusers.

MIXINS = {
    name: mixin
    for name, mixin in vars(lora_pipeline).items()
    # Amused has no pipeline any more, and its loader asks for a unet; the last is only an old name.
    if name.endswith("LoraLoaderMixin") and name not in ("AmusedLoraLoaderMixin", "LoraLoaderMixin")
}


class _WithTransformer(DiffusionPipeline):
    def __init__(self, transformer: Any, text_encoder: Any = None, text_encoder_2: Any = None):
        super().__init__()
        self.register_modules(
            transformer=transformer, text_encoder=text_encoder, text_encoder_2=text_encoder_2
        )


class _WithUnet(DiffusionPipeline):
    def __init__(self, unet: Any, text_encoder: Any = None, text_encoder_2: Any = None):
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, text_encoder_2=text_encoder_2)


def stand_in(mixin: Any) -> Any:
    """A pipeline of nothing but a denoiser, with one loader of diffusers."""
    base = _WithUnet if hasattr(mixin, "unet_name") else _WithTransformer
    return type("Pipe", (base, mixin), {})(wan_denoiser(layers=1))


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranks": {"rank": lambda i: 2 + i % 3},
    "bias": {"extra": "lora_B.bias"},
    "DoRA": {"extra": "lora_magnitude_vector"},
    "rsLoRA": {},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mixin", MIXINS)
def test_every_loader_is_followed(mixin: str, setting: str, file: Path) -> None:
    def make() -> Any:
        return stand_in(MIXINS[mixin])

    place = denoiser_name(make())
    weights = lora(denoiser(make()), f"{place}.", ("attn1.to_q", "attn1.to_v"), **SETTINGS[setting])
    config = {"r": 2, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"to_q": 1}}
    config["target_modules"] = [key.split(".lora")[0].partition(".")[2] for key in weights]
    told = {"lora_adapter_metadata": json.dumps({f"{place}.{k}": v for k, v in config.items()})}

    found = check_equal(make, written(file, weights, told if setting == "rsLoRA" else None))

    if setting == "rsLoRA":
        scales = {entry[0] for entry in found.values() if len(entry) == 3}
        assert sorted(scales) == pytest.approx([2**-0.5, 8 * 2**-0.5])


PIPES: dict[str, tuple[Make, Callable[..., torch.Tensor]]] = {
    "Wan": (wan.text_pipe, wan.run_text),
    "Flux": (images.flux_pipe, images.run_flux),
    "SD3": (images.sd3_pipe, images.run_sd3),
    "SDXL": (unets.sdxl_pipe, unets.run_sdxl),
    "LTX-2": (ltx.sound_pipe, ltx.run_sound),
    "HunyuanVideo": (hunyuan.pipe, hunyuan.run),
    "Mochi": (video.mochi_pipe, video.run_mochi),
}


@pytest.mark.parametrize("family", PIPES)
def test_pictures_with_a_lora_in_every_stage_are_the_pipelines_own(family: str, file: Path) -> None:
    make, run = PIPES[family]
    place = denoiser_name(make())
    written(file, lora(denoiser(make()), f"{place}.", rank=lambda i: 1 + i % 3))
    theirs, ours = make(), make()
    theirs.load_lora_weights(str(file))
    with DenoiserSwitch(
        ours,
        stages=StageSchedule((Stage("large", adapters=(Adapter("x"),)),)),
        adapters={"x": file},
    ):
        got = run(ours, steps=2)

    assert torch.equal(got, run(theirs, steps=2))
    assert not torch.equal(got, run(make(), steps=2))


# Spellings.


def respelled(weights: Weights, spell: Callable[[str], str]) -> Weights:
    return {spell(key): value for key, value in weights.items()}


def in_wans_own_names(key: str) -> str:
    for ours, theirs in (
        ("attn1.to_out.0", "self_attn.o"),
        ("attn2.to_out.0", "cross_attn.o"),
        ("attn1.to_", "self_attn."),
        ("attn2.to_", "cross_attn."),
        ("attn2.add_k_proj", "cross_attn.k_img"),
        ("attn2.add_v_proj", "cross_attn.v_img"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        (".lora_B.bias", ".diff_b"),
    ):
        key = key.replace(ours, theirs)
    return key


def in_kohyas_names(key: str) -> str:
    layer, dot, end = key.partition(".lora_")
    if not dot:
        layer, dot, end = key.partition(".alpha")
    return f"lora_unet_{layer.replace('.', '_')}{dot}{end}"


def in_the_first_diffusers_names(key: str) -> str:
    for layer in ("to_q", "to_k", "to_v"):
        key = key.replace(f".{layer}.lora", f".processor.{layer}_lora")
    return key.replace(".to_out.0.lora", ".processor.to_out_lora")


BLOCKS = ("blocks.",)
WAN = wan.text_pipe().transformer
WAN_PICTURE = wan.image_pipe().transformer
UNET = unets.sdxl_pipe().unet
QWEN = images.qwen_pipe(images.QwenImagePipeline, with_vae=False).transformer
D = images.flux_pipe().transformer.inner_dim
HD = hunyuan.pipe().transformer.transformer_blocks[0].attn.to_q.in_features


def comfy(module: Any, words: Iterable[str] = BLOCKS, **more: Any) -> Weights:
    return respelled(lora(module, "diffusion_model.", words, **more), in_wans_own_names)


def kohya(module: Any, words: Iterable[str], **more: Any) -> Weights:
    return respelled(lora(module, "", words, halves=DOWN_UP, **more), in_kohyas_names)


def musubi(words: Iterable[str] = BLOCKS) -> Weights:
    own = lora(WAN, "", words, halves=DOWN_UP, alpha=lambda i: 1.0 + i)
    return respelled(own, lambda key: in_kohyas_names(in_wans_own_names(key)))


def skyreels_pipe() -> Any:
    return skyreels.make(SkyReelsV2Pipeline)


def ltx_pipe() -> Any:
    return ltx.make(ltx.LTXPipeline, with_vae=False)


def qwen_pipe() -> Any:
    return images.qwen_pipe(images.QwenImagePipeline, with_vae=False)


FLUX_KOHYA = {
    **pair("lora_unet_double_blocks_0_img_attn_qkv", D, 3 * D, 6, DOWN_UP),
    **pair("lora_unet_double_blocks_1_txt_mlp_0", D, 4 * D, 4, DOWN_UP),
    "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.5),
    "lora_unet_double_blocks_1_txt_mlp_0.alpha": torch.tensor(9.0),
}
LIGHTX2V = {
    **comfy(WAN, extra="lora_B.bias"),
    "diffusion_model.head.head.diff": numbers(*WAN.proj_out.weight.shape),
    "diffusion_model.head.head.diff_b": numbers(WAN.proj_out.out_features),
    "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.zeros(24),
    "diffusion_model.blocks.1.norm3.diff_b": torch.zeros(24),
}


def by_layer(index: int) -> float:
    return 0.5 + index % 3


SPELLINGS: dict[str, tuple[Make, Weights]] = {
    "Wan, ComfyUI": (wan.text_pipe, comfy(WAN)),
    "Wan, ComfyUI, some layers": (wan.text_pipe, comfy(WAN, ("attn1.to_q", "ffn.net.0"))),
    "Wan, ComfyUI, alphas": (wan.text_pipe, comfy(WAN, halves=DOWN_UP, alpha=by_layer)),
    "Wan, diff_b": (wan.text_pipe, comfy(WAN, extra="lora_B.bias")),
    "Wan, lightx2v": (wan.text_pipe, LIGHTX2V),
    "Wan, musubi-tuner": (wan.text_pipe, musubi()),
    "Wan, video LoRA for pictures": (wan.image_pipe, comfy(WAN)),
    "Wan, video LoRA with biases": (wan.image_pipe, comfy(WAN, extra="lora_B.bias")),
    "Wan, picture LoRA": (wan.image_pipe, comfy(WAN_PICTURE)),
    "Wan, a convolution": (
        wan.text_pipe, lora(WAN, "transformer.", ("patch",), kinds=(nn.Conv3d,))
    ),
    "SkyReels, ComfyUI": (skyreels_pipe, comfy(skyreels_pipe().transformer)),
    "LTX, ComfyUI": (ltx_pipe, lora(ltx_pipe().transformer, "diffusion_model.")),
    "LTX-2, ComfyUI": (
        ltx.sound_pipe,
        respelled(
            lora(ltx.sound_pipe().transformer, "diffusion_model.", ("attn", "proj_in")),
            lambda key: key.replace("proj_in", "patchify_proj"),
        ),
    ),
    "HunyuanVideo, ComfyUI": (
        hunyuan.pipe,
        pair("diffusion_model.double_blocks.0.img_attn_qkv", HD, 3 * HD)
        | pair("diffusion_model.double_blocks.1.txt_mlp.fc1", HD, 4 * HD),
    ),
    "Qwen, alphas": (qwen_pipe, lora(QWEN, "", alpha=by_layer)),
    "Qwen, ComfyUI": (
        qwen_pipe, lora(QWEN, "diffusion_model.", halves=DOWN_UP, alpha=by_layer)
    ),
    "Qwen, kohya": (qwen_pipe, kohya(QWEN, ("attn", "img_in"), alpha=by_layer)),
    "Qwen, peft": (
        qwen_pipe,
        respelled(lora(QWEN, ""), lambda k: k.replace(".weight", ".default.weight")),
    ),
    "Flux, alphas": (
        images.flux_pipe,
        lora(images.flux_pipe().transformer, "transformer.", alpha=lambda _: 0.25),
    ),
    "Flux, alphas by layer": (
        images.flux_pipe,
        lora(
            images.flux_pipe().transformer, "transformer.", alpha=by_layer,
            rank=lambda i: 1 + i % 2,
        ),
    ),
    "Flux, kohya": (images.flux_pipe, FLUX_KOHYA),
    "Flux, narrower than a widened denoiser": (
        images.flux_pipe, pair("transformer.x_embedder", 8, D)
    ),
    "Flux, XLabs": (
        images.flux_pipe,
        pair("double_blocks.0.processor.qkv_lora1", D, 3 * D, 2, ("down.weight", "up.weight"))
        | pair("double_blocks.0.processor.proj_lora1", D, D, 2, ("down.weight", "up.weight")),
    ),
    "SDXL, kohya": (unets.sdxl_pipe, kohya(UNET, ("attn",), alpha=lambda _: 1.0)),
    "SDXL, kohya, alphas by layer": (unets.sdxl_pipe, kohya(UNET, ("attn",), alpha=by_layer)),
    "SDXL, convolutions": (
        unets.sdxl_pipe,
        kohya(UNET, ("resnets",), alpha=lambda _: 1.0, kinds=(nn.Conv2d,)),
    ),
    "SDXL, the first diffusers names": (
        unets.sdxl_pipe,
        respelled(
            lora(UNET, "unet.", halves=("lora.down.weight", "lora.up.weight")),
            in_the_first_diffusers_names,
        ),
    ),
    "AnimateDiff, kohya": (
        unets.motion_pipe,
        kohya(unets.motion_pipe().unet, ("attentions",), alpha=lambda _: 1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read(spelling: str, file: Path) -> None:
    make, weights = SPELLINGS[spelling]

    check_equal(make, written(file, weights))


@pytest.mark.parametrize("spelling", ["Wan, ComfyUI, alphas", "Flux, alphas", "Qwen, alphas"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_files_dtype_is_treated_alike(dtype: torch.dtype, spelling: str, file: Path) -> None:
    make, weights = SPELLINGS[spelling]

    check_equal(make, written(file, {key: value.to(dtype) for key, value in weights.items()}))


def test_a_denoisers_own_file_is_read_as_the_denoiser_does(tmp_path: Path) -> None:
    trained = wan.text_pipe().transformer
    written(tmp_path / "first.safetensors", lora(trained, "", alpha=lambda _: 0.5))
    for index, prefix in enumerate(("", "base_model.model.")):
        file = tmp_path / f"{index}.safetensors"
        own = lora(trained, "", rank=lambda i: 1 + i % 2)
        written(file, respelled(own, lambda key, prefix=prefix: prefix + key))
        pipe, expected = wan.text_pipe(), wan.text_pipe().transformer
        expected.load_lora_adapter(own, prefix=None, adapter_name="x")
        load_adapter(pipe, "large", pipe.transformer, "x", file)

        assert loaded(pipe.transformer) == loaded(expected)
    pipe = wan.text_pipe()
    load_adapter(pipe, "large", pipe.transformer, "x", tmp_path / "first.safetensors")
    scales = {entry[0] for entry in loaded(pipe.transformer).values() if len(entry) == 3}
    assert scales == {0.25}


@pytest.mark.parametrize("is_rslora", [False, True])
def test_an_adapter_folder_of_peft_has_the_strength_that_peft_gives_it(
    tmp_path: Path, is_rslora: bool
) -> None:
    trained = wan.text_pipe()
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=["to_q", "ffn.net.2"], alpha_pattern={"to_q": 2},
        use_rslora=is_rslora, init_lora_weights=False,
    )  # fmt: skip
    get_peft_model(trained.transformer, config).save_pretrained(str(tmp_path))
    pipe = wan.text_pipe()
    with DenoiserSwitch(
        pipe,
        stages=StageSchedule((Stage("large", adapters=(Adapter("x"),)),)),
        adapters={"x": tmp_path / "adapter_model.safetensors"},
    ):
        got = wan.run_text(pipe, steps=2)

    assert torch.equal(got, wan.run_text(trained, steps=2))


def test_a_bias_that_some_layers_have_is_zero_in_the_others(file: Path) -> None:
    some = lora(WAN, "transformer.", ("attn1",), extra="lora_B.bias")
    written(file, some | lora(WAN, "transformer.", ("attn2",)))
    pipe = wan.text_pipe()

    load_adapter(pipe, "large", pipe.transformer, "x", file)

    biases = {key: value for key, value in loaded(pipe.transformer).items() if "bias" in key}
    zeros = {key for key, (_, value) in biases.items() if not any(value)}
    assert zeros == {key for key in biases if "attn2" in key}
    assert len(biases) == 2 * len(zeros)


# What is left out, and said.


@pytest.mark.parametrize(
    ("make", "weights", "text"),
    [
        (images.flux_pipe, FLUX_KOHYA, "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        (wan.text_pipe, musubi(), "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        (unets.sdxl_pipe, lora(UNET, "unet."), "text_encoder_2.text_model.encoder.layers.0.mlp"),
        (ltx.sound_pipe, lora(ltx.sound_pipe().transformer, "transformer."), "connectors.proj"),
    ],
    ids=["kohya", "musubi-tuner", "diffusers", "connectors"],
)
def test_a_text_encoders_weights_are_left_out_and_said(
    make: Make, weights: Weights, text: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halves = AB if "." in text else DOWN_UP
    written(file, weights | pair(text, 4, 4, halves=halves))
    expected, pipe = make(), make()
    load_adapter(pipe, "large", denoiser(pipe), "x", file)
    assert f"2 weights are a text encoder's ({text}.lora" in caplog.text
    load_adapter(expected, "large", denoiser(expected), "x", written(file, weights))

    assert loaded(denoiser(pipe)) == loaded(denoiser(expected))


def test_a_pictures_layers_are_left_out_for_text_to_video_and_said(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(file, comfy(WAN_PICTURE))

    check_equal(wan.text_pipe, file)

    assert "8 weights of a LoRA (transformer.blocks.0.attn2.add_k_proj.lora_A.weight" in caplog.text


# What can't be used whole, and is refused by name.

SOME = comfy(WAN, ("attn1",))
FIRST = "diffusion_model.blocks.0.self_attn.q"

UNUSABLE: dict[str, tuple[Make, Weights, list[str]]] = {
    **{
        kind: (wan.text_pipe, SOME | {f"{FIRST}.{end}": torch.ones(4, 4)}, [kind, f"{FIRST}.{end}"])
        for kind, end in (
            ("LoHa", "hada_w1_a"),
            ("LoKr", "lokr_w1"),
            ("OFT", "oft_R.weight"),
            ("DoRA", "dora_scale"),
            ("Tucker", "lora_mid.weight"),
            ("GLoRA", "a1.weight"),
        )
    },
    "LoHa alone": (wan.text_pipe, {f"{FIRST}.hada_w1_a": torch.ones(4, 4)}, ["LoHa"]),
    "DoRA of kohya for a unet": (
        unets.sdxl_pipe,
        kohya(UNET, ("attn",), alpha=lambda _: 1.0)
        | {"lora_unet_down_blocks_0.dora_scale": torch.ones(4, 1)},
        ["kohya's DoRA", "lora_unet_down_blocks_0.dora_scale"],
    ),
    "a norm's difference": (
        wan.text_pipe,
        SOME | {"diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(24)},
        ["blocks.0.self_attn.norm_q.diff", "norms"],
    ),
    "a bias of a layer without a LoRA": (
        wan.text_pipe,
        SOME | {"diffusion_model.time_projection.1.diff_b": torch.ones(144)},
        ["time_projection.1.diff_b"],
    ),
    "a whole layer's difference": (
        wan.text_pipe,
        SOME | {"diffusion_model.patch_embedding.diff": torch.ones(24, 4, 1, 2, 2)},
        ["patch_embedding.diff"],
    ),
    "a half": (
        wan.text_pipe,
        {k: v for k, v in SOME.items() if k != f"{FIRST}.lora_B.weight"},
        [f"{FIRST}.lora_A.weight", "one half"],
    ),
    "a half of kohya": (
        unets.sdxl_pipe,
        dict(list(kohya(UNET, ("attn",)).items())[1:]),
        ["one half", "lora_up.weight"],
    ),
    "halves of other ranks": (
        wan.text_pipe,
        SOME | {f"{FIRST}.lora_B.weight": torch.ones(24, 3)},
        ["different rank", f"{FIRST}.lora_A.weight (2, 24) with (24, 3)"],
    ),
    "an alpha of no layer": (
        qwen_pipe,
        lora(QWEN, "diffusion_model.") | {"diffusion_model.nobody.alpha": torch.tensor(1.0)},
        ["nobody.alpha", "without a LoRA"],
    ),
    "alphas that the class doesn't read": (
        wan.text_pipe,
        lora(WAN, "transformer.", alpha=by_layer),
        ["network alphas", "WanPipeline"],
    ),
    "magnitudes for some layers": (
        wan.text_pipe,
        lora(WAN, "transformer.", ("attn1",), extra="lora_magnitude_vector")
        | lora(WAN, "transformer.", ("attn2",)),
        ["attn2.to_q.lora_A.weight", "no magnitude"],
    ),
    "layers that the denoiser hasn't": (
        wan.text_pipe,
        SOME | pair("diffusion_model.blocks.7.self_attn.q", 24, 24),
        ["blocks.7.attn1.to_q.lora_A.weight: no such layer"],
    ),
    "layers that the reader doesn't know": (
        images.flux_pipe,
        FLUX_KOHYA | pair("lora_unet_double_blocks_40_img_attn_proj", D, D, 2, DOWN_UP),
        ["kohya", "lora_unet_double_blocks_40_img_attn_proj"],
    ),
    "sizes that the reader doesn't expect": (
        images.flux_pipe,
        pair("lora_unet_single_blocks_0_linear1", D, 7 * D, 2, DOWN_UP),
        ["kohya", "sizes"],
    ),
    "some of a block's layers, where the reader asks for all": (
        wan.text_pipe,
        musubi(("attn1",)),
        ["musubi-tuner", "blocks_0_cross_attn_q.lora_down.weight"],
    ),
    "a control LoRA": (
        images.flux_pipe,
        pair("transformer.x_embedder", 32, D),
        ["x_embedder.lora_A.weight: 32 wide, the layer has 16", "control LoRA"],
    ),
    "a control LoRA's norms": (
        images.flux_pipe,
        pair("transformer.x_embedder", 16, D)
        | {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.ones(12)},
        ["norm_q.weight", "no LoRA's"],
    ),
    "a whole checkpoint": (
        wan.text_pipe, dict(list(WAN.state_dict().items())[:9]), ["9 weights", "no LoRA's"]
    ),
    "a text encoder's alone": (
        wan.text_pipe, pair("lora_te_text_model_a", 2, 2, 2, DOWN_UP), ["text encoder"]
    ),
    "nothing": (wan.text_pipe, {}, ["no weights of a denoiser"]),
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_cant_be_used_whole_is_refused_by_name(what: str, file: Path) -> None:
    make, weights, says = UNUSABLE[what]

    message = refused(make, written(file, weights))

    assert "'x'" in message
    assert [words for words in says if words not in message] == []


@pytest.mark.parametrize(
    "told",
    ["{", "[1]", '{"transformer.r": "many"}', '{"transformer.nonsense": 1}'],
)
def test_broken_metadata_is_refused(told: str, file: Path) -> None:
    written(file, lora(WAN, "transformer."), {"lora_adapter_metadata": told})

    assert "style.safetensors" in refused(wan.text_pipe, file)


def test_a_denoiser_that_takes_no_lora_is_named(file: Path) -> None:
    written(file, lora(WAN, "transformer."))

    assert "I2VGenXLUNet takes no LoRA" in refused(unets.i2vgen_pipe, file)


def test_the_pipe_need_not_be_the_denoisers(file: Path) -> None:
    pipe, small = wan.text_pipe(), wan_denoiser(layers=1)
    written(file, comfy(small))

    load_adapter(pipe, "small", small, "x", file)

    assert loaded(small)
    assert not loaded(pipe.transformer)


def test_a_file_of_the_hub_is_found_with_its_name_or_under_the_usual_one(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(file, lora(WAN, "transformer.")).read_bytes()
    cache_repo(tmp_path / "hub", "owner/style", {"loras/style.safetensors": data})
    cache_repo(tmp_path / "hub", "owner/usual", {"pytorch_lora_weights.safetensors": data})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("owner/style/loras/style.safetensors", "owner/usual"):
        pipe = wan.text_pipe()
        load_adapter(pipe, "large", pipe.transformer, "x", source)
        assert loaded(pipe.transformer)
    for source in ("owner/style", "owner/usual/other.safetensors", "owner/nothing"):
        assert f"{source} can't be read" in refused(wan.text_pipe, Path(source))
