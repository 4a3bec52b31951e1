"""Metrics over networks: tiny random ones of the real classes, read from a folder."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
)

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics import measure
from flowblend_plugin.metrics.learned import DEFAULT_MODELS

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each metric, as the Hub's are laid out."""
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    made = {
        "clip_similarity": (
            CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)),
            CLIPImageProcessor(**SIZES),
        ),
        "dino_similarity": (Dinov2Model(Dinov2Config(**VISION)), BitImageProcessor(**SIZES)),
        "lpips": (
            ResNetModel(
                ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
            ),
            BitImageProcessor(**SIZES),
        ),
    }
    folder = tmp_path_factory.mktemp("networks")
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def clips() -> tuple[Any, Any]:
    made = np.random.default_rng(0).integers(0, 256, (2, 10, 40, 48, 3), np.uint8)
    return made[0], made[1]


def cosine(a: Any, b: Any) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


def test_clip_similarity_is_the_cosine_of_clips_image_features(
    networks: dict[str, Path], clips: Any
) -> None:
    whole = CLIPModel.from_pretrained(networks["clip_similarity"]).eval()
    processor = CLIPImageProcessor.from_pretrained(networks["clip_similarity"])
    words = torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad():
        a, b = (
            whole(**processor(list(c), return_tensors="pt"), input_ids=words).image_embeds
            for c in clips
        )

    found = measure(clips[0], ["clip_similarity"], reference=clips[1], models=networks)

    assert found["clip_similarity"] == pytest.approx(cosine(a, b), abs=1e-5)
    assert abs(cosine(a, b)) < 0.9999


def test_dino_similarity_is_the_cosine_of_the_class_tokens(
    networks: dict[str, Path], clips: Any
) -> None:
    model = Dinov2Model.from_pretrained(networks["dino_similarity"]).eval()
    processor = BitImageProcessor.from_pretrained(networks["dino_similarity"])
    with torch.no_grad():
        a, b = (model(**processor(list(c), return_tensors="pt")).pooler_output for c in clips)

    found = measure(clips[0], ["dino_similarity"], reference=clips[1], models=networks)

    assert found["dino_similarity"] == pytest.approx(cosine(a, b), abs=1e-5)


def test_the_perceptual_distance_is_that_of_unit_features_layer_by_layer(
    networks: dict[str, Path], clips: Any
) -> None:
    model = ResNetModel.from_pretrained(networks["lpips"]).eval()
    processor = BitImageProcessor.from_pretrained(networks["lpips"])
    with torch.no_grad():
        ours, theirs = (
            model(**processor(list(c), return_tensors="pt"), output_hidden_states=True)
            for c in clips
        )
    layers = [
        2 - 2 * torch.nn.functional.cosine_similarity(a, b, dim=1).double().mean()
        for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True)
    ]

    found = measure(clips[0], ["lpips"], reference=clips[1], models=networks)

    assert found["lpips"] == pytest.approx(float(torch.stack(layers).mean()), rel=1e-3)


def test_equal_clips_are_as_close_as_can_be(networks: dict[str, Path], clips: Any) -> None:
    found = measure(clips[0], list(networks), reference=clips[0], models=networks)

    assert found["lpips"] == 0
    assert found["clip_similarity"] == pytest.approx(1, abs=1e-5)
    assert found["dino_similarity"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", DEFAULT_MODELS)
def test_a_network_that_is_not_here_is_named_and_never_asked_for(
    name: str, clips: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    with pytest.raises(MeasureError, match=f"hf download someone/{name}"):
        measure(clips[0], [name], reference=clips[1], models={name: f"someone/{name}"})


def test_a_folder_without_a_network_is_said(clips: Any, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="can't be read"):
        measure(clips[0], ["lpips"], reference=clips[1], models={"lpips": tmp_path})


def test_a_network_that_lacks_weights_is_refused_not_made_up(
    networks: dict[str, Path], clips: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(networks["dino_similarity"], folder)
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(MeasureError, match=r"lacks 1 weights, such as layernorm\.weight"):
        measure(
            clips[0], ["dino_similarity"], reference=clips[1], models={"dino_similarity": folder}
        )


def test_a_network_of_another_kind_is_refused(networks: dict[str, Path], clips: Any) -> None:
    other = {"clip_similarity": networks["dino_similarity"]}

    with pytest.raises(MeasureError, match="needs a whole CLIP"):
        measure(clips[0], ["clip_similarity"], reference=clips[1], models=other)


def test_a_network_without_layers_of_pixels_has_no_perceptual_distance(
    networks: dict[str, Path], clips: Any
) -> None:
    with pytest.raises(MeasureError, match="convolutional"):
        measure(
            clips[0],
            ["lpips"],
            reference=clips[1],
            models={"lpips": networks["dino_similarity"]},
        )


def test_weights_are_never_needed_unless_they_are_asked_for(clips: Any) -> None:
    assert not set(DEFAULT_MODELS) & set(measure(clips[0], reference=clips[1]))
