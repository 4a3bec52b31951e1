"""The bundled pair: a plain diffusers folder that needs no code of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from transformers import UMT5EncoderModel

from flowblend_cli.models.bundled import bundled_dir
from flowblend_plugin.denoisers.compatibility import config_mismatches

SPRITES = bundled_dir() / "models" / "sprites"
MAX_BYTES = 20 * 1000 * 1000


@pytest.fixture(scope="module")
def pipe() -> WanPipeline:
    loaded = WanPipeline.from_pretrained(SPRITES)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_made_of_the_real_classes_in_float32(pipe: WanPipeline) -> None:
    assert isinstance(pipe.transformer, WanTransformer3DModel)
    assert isinstance(pipe.vae, AutoencoderKLWan)
    assert isinstance(pipe.text_encoder, UMT5EncoderModel)
    for module in (pipe.transformer, pipe.vae, pipe.text_encoder):
        assert module.dtype == torch.float32


def test_it_is_small_and_stored_in_half_precision() -> None:
    files = [path for path in SPRITES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 7  # four models, two adapters, a preview's projection
    for path in weights:
        with safe_open(path, "pt") as file:
            kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
        assert kinds == {torch.float16}


def test_its_two_denoisers_fit_and_differ_sevenfold_in_size() -> None:
    configs = {
        name: json.loads((SPRITES / name / "config.json").read_text("utf-8"))
        for name in ("transformer", "transformer_small")
    }
    assert config_mismatches(configs["transformer"], configs["transformer_small"]) == ()
    sizes = {
        name: sum(p.numel() for p in WanTransformer3DModel.from_config(config).parameters())
        for name, config in configs.items()
    }
    assert sizes["transformer"] > 7 * sizes["transformer_small"]


def test_padding_to_any_length_gives_nearly_the_same_picture(pipe: WanPipeline) -> None:
    def render(length: int) -> torch.Tensor:
        return pipe(
            "a red circle standing still on a gray background",
            height=64,
            width=64,
            num_frames=1,
            num_inference_steps=8,
            max_sequence_length=length,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).frames

    assert (render(64) - render(512)).abs().mean() < 0.05


def test_the_tokenizer_spells_any_word(pipe: WanPipeline) -> None:
    ids = pipe.tokenizer("A Ruby hexagon, whirling!").input_ids
    assert pipe.tokenizer.unk_token_id not in ids
    assert ids[-1] == pipe.tokenizer.eos_token_id


def test_no_file_of_it_is_executable_code() -> None:
    allowed = {".json", ".safetensors", ".md"}
    assert {Path(path).suffix for path in SPRITES.rglob("*") if path.is_file()} <= allowed
