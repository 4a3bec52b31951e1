"""What components' files lack or have too much; real checkpoints' ways of being whole are no fault.

The oracle of what is whole are the classes themselves: what they save, and what their own loaders
take in former and shared forms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from families.base import Family
from families.registry import FAMILIES
from safetensors.torch import load_file
from tiny import wan_denoiser
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    UMT5ForConditionalGeneration,
)

from flowblend_plugin.completeness import config_fault, store_tokenizer, tensor_faults

T5 = {"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLIP_TEXT = CLIPTextConfig(**SMALL, projection_dim=8)
VISION = {**SMALL, "image_size": 8, "patch_size": 4}
CLIP_BOTH = CLIPConfig(text_config=CLIP_TEXT.to_dict(), vision_config=VISION, projection_dim=8)
LLAMA = LlamaConfig(**SMALL, num_key_value_heads=1)
TIED = LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True)
QWEN = Qwen2_5_VLConfig(
    text_config={**SMALL, "num_key_value_heads": 1},
    vision_config={"depth": 1, "hidden_size": 8, "out_hidden_size": 8, "num_heads": 2},
)

DENOISERS = {family.denoiser: family for family in FAMILIES}

Shapes = dict[str, list[int]]


def saved(module: Any, folder: Path) -> Shapes:
    """A component as its class saves it, and the shapes of its tensors there."""
    module.save_pretrained(folder)
    tensors = load_file(next(folder.glob("*.safetensors")))
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def renamed(shapes: Shapes, old: str, new: str) -> Shapes:
    return {name.replace(old, new): shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: CLIPTextModel(CLIP_TEXT),
        lambda: CLIPTextModelWithProjection(CLIP_TEXT),
        lambda: LlamaModel(LLAMA),
        lambda: LlamaForCausalLM(TIED),
        lambda: Qwen2_5_VLForConditionalGeneration(QWEN),
        lambda: T5EncoderModel(T5Config(**T5)),
        lambda: UMT5EncoderModel(UMT5Config(**T5)),
    ],
    ids=["clip", "clip-2", "llama", "tied", "qwen-vl", "t5", "umt5"],
)
def test_what_a_class_saves_is_whole_and_lacks_any_tensor_that_is_taken_out(
    make: Any, tmp_path: Path
) -> None:
    module = make()
    shapes = saved(module, tmp_path)
    asked = ("transformers", type(module).__name__, tmp_path)
    taken = sorted(shapes)[len(shapes) // 2]
    strange = {**shapes, "surprise.weight": [3]}

    assert tensor_faults(*asked, shapes) == []
    found = tensor_faults(*asked, {name: shapes[name] for name in shapes if name != taken})
    assert len(found) == 1
    # Loaders know some tensors by another name than files do.
    assert taken.removeprefix("model.") in found[0]["problem"].replace("language_model.", "")
    assert [one["tensor"] for one in tensor_faults(*asked, strange)] == ["surprise.weight"]


def test_both_names_of_tied_embeddings_are_right_and_one_of_them_is_needed(tmp_path: Path) -> None:
    shapes = saved(UMT5EncoderModel(UMT5Config(**T5)), tmp_path)
    asked = ("transformers", "UMT5EncoderModel", tmp_path)
    rest = {name: shape for name, shape in shapes.items() if "shared" not in name}
    table = shapes["shared.weight"]
    other = "encoder.embed_tokens.weight"

    assert tensor_faults(*asked, {**rest, other: table, "shared.weight": table}) == []
    assert tensor_faults(*asked, {**rest, other: table}) == []
    assert "shared.weight" in {one["tensor"] for one in tensor_faults(*asked, rest)}


def test_parts_of_a_whole_checkpoint_that_a_component_leaves_aside_are_no_fault(
    tmp_path: Path,
) -> None:
    both = saved(UMT5ForConditionalGeneration(UMT5Config(**T5)), tmp_path / "umt5")
    clip = saved(CLIPModel(CLIP_BOTH), tmp_path / "clip")
    llama = saved(LlamaForCausalLM(LLAMA), tmp_path / "llama")

    assert tensor_faults("transformers", "UMT5EncoderModel", tmp_path / "umt5", both) == []
    assert tensor_faults("transformers", "CLIPTextModel", tmp_path / "clip", clip) == []
    assert tensor_faults("transformers", "LlamaModel", tmp_path / "llama", llama) == []


def test_former_names_and_tables_that_are_computed_today_are_no_fault(tmp_path: Path) -> None:
    clip = saved(CLIPTextModel(CLIP_TEXT), tmp_path / "clip")
    clip["text_model.embeddings.position_ids"] = [1, 77]
    llama = saved(LlamaModel(LLAMA), tmp_path / "llama")
    llama["layers.0.self_attn.rotary_emb.inv_freq"] = [2]

    assert tensor_faults("transformers", "CLIPTextModel", tmp_path / "clip", clip) == []
    assert tensor_faults("transformers", "LlamaModel", tmp_path / "llama", llama) == []


def test_former_names_of_a_vision_language_model_are_no_fault(tmp_path: Path) -> None:
    shapes = saved(Qwen2_5_VLForConditionalGeneration(QWEN), tmp_path)
    former = renamed(renamed(shapes, "model.language_model.", "model."), "model.visual.", "visual.")

    assert (
        tensor_faults("transformers", "Qwen2_5_VLForConditionalGeneration", tmp_path, former) == []
    )


def test_former_names_of_a_vaes_attention_are_no_fault(tmp_path: Path) -> None:
    shapes = saved(AutoencoderKL(block_out_channels=(8,), norm_num_groups=2), tmp_path)
    former = shapes
    for new, old in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                     ("to_out.0", "proj_attn")]:  # fmt: skip
        former = renamed(former, f"attentions.0.{new}", f"attentions.0.{old}")

    assert former != shapes
    assert tensor_faults("diffusers", "AutoencoderKL", tmp_path, former) == []


def test_each_fault_of_a_denoiser_is_named_with_its_tensor(tmp_path: Path) -> None:
    shapes = saved(wan_denoiser(), tmp_path)
    lacking, misshapen = "blocks.0.attn1.to_k.weight", "blocks.1.ffn.net.2.bias"
    shapes = {name: shape for name, shape in shapes.items() if name != lacking}
    shapes |= {misshapen: [5], "blocks.2.attn1.to_k.weight": [24, 24]}

    found = {
        one["tensor"]: one["problem"] for one in tensor_faults("diffusers", "", tmp_path, shapes)
    }

    assert set(found) == {lacking, misshapen, "blocks.2.attn1.to_k.weight"}
    assert "lacks" in found[lacking]
    assert "[5]" in found[misshapen]
    assert "[24]" in found[misshapen]
    assert "unexpected" in found["blocks.2.attn1.to_k.weight"]


def test_a_config_that_makes_nothing_is_a_fault_and_an_unknown_class_is_none(
    tmp_path: Path,
) -> None:
    shapes = saved(wan_denoiser(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": "two"'))

    (fault,) = tensor_faults("diffusers", "WanTransformer3DModel", tmp_path, shapes)
    assert "WanTransformer3DModel can't be made of it" in fault["problem"]
    assert tensor_faults("elsewhere", "Thing", tmp_path, shapes) == []


def test_nothing_is_left_of_a_check_in_torchs_and_the_loaders_settings(tmp_path: Path) -> None:
    import transformers

    shapes = saved(CLIPTextModel(CLIP_TEXT), tmp_path)
    before = transformers.utils.logging.get_verbosity()

    tensor_faults("transformers", "CLIPTextModel", tmp_path, shapes)

    assert transformers.utils.logging.get_verbosity() == before
    assert torch.empty(1).device.type == "cpu"


def test_a_scheduler_or_tokenizer_that_cant_be_made_says_so(tmp_path: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    asked = ("diffusers", "FlowMatchEulerDiscreteScheduler", tmp_path)
    assert config_fault(*asked) is None

    (tmp_path / "scheduler_config.json").write_text('{"num_train_timesteps": "many"}')

    assert "FlowMatchEulerDiscreteScheduler can't be made of it" in str(config_fault(*asked))


def test_a_tokenizer_of_another_form_is_stored_as_one_file_that_reads_alike(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    (tmp_path / "vocab.json").write_text(
        '{"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3, "a": 4, "b": 5}'
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')

    store_tokenizer("transformers", "CLIPTokenizer", tmp_path, tmp_path / "one.json")

    ours = Tokenizer.from_file(str(tmp_path / "one.json")).encode("a b b").ids
    assert ours == CLIPTokenizer.from_pretrained(tmp_path)("a b b").input_ids


@pytest.mark.parametrize("family", DENOISERS.values(), ids=DENOISERS)
def test_every_proven_denoiser_is_whole_as_its_class_saves_it_and_not_without_a_tensor(
    family: Family, tmp_path: Path
) -> None:
    pipe = family.make_pipe()
    module = getattr(pipe, family.attributes[0])
    module.save_pretrained(tmp_path)
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    lost = max(shapes)

    assert tensor_faults("diffusers", "", tmp_path, shapes) == []
    del shapes[lost]
    assert [one["tensor"] for one in tensor_faults("diffusers", "", tmp_path, shapes)] == [lost]
