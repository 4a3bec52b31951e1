"""Prompts longer than a pipeline reads: the oracle is what the tokenizer itself keeps of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import AutoTokenizer, CLIPTokenizer

from flowblend_cli.jobs import Batch
from flowblend_cli.models import prompt_length
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.prompt_length import clean, prompt_readers

SPRITES = bundled_dir() / "models" / "sprites"
LONG = "a red square moving left on a navy background while a white star, very small, shines above"


@pytest.mark.parametrize("most", [1, 2, 5, 9, 14, 15, 40])
@pytest.mark.parametrize(
    "prompt", [LONG, f"  {LONG}  ", "a  red &amp; caf\u00c3\u00a9 star " + LONG]
)
def test_the_words_that_are_told_are_those_that_the_tokenizer_cuts(prompt: str, most: int) -> None:
    readers = prompt_readers("sprites", Path.cwd())
    tokenizer = AutoTokenizer.from_pretrained(SPRITES / "tokenizer")
    text = prompt_clean(prompt)
    whole = tokenizer(text).input_ids
    kept = tokenizer(text, max_length=most, truncation=True).input_ids
    assert readers is not None

    found = readers.unread(prompt, most)

    assert (found is None) == (len(whole) <= most)
    if found is not None:
        words, tokens = found
        assert tokens == most
        assert text.endswith(words)
        read = text.removesuffix(words)
        # What is told to be read is read, and the next word isn't, not as a whole.
        assert len(tokenizer(read.rstrip()).input_ids) <= max(len(kept), 1)
        one_more = read + words.split(" ")[0]
        assert len(tokenizer(one_more).input_ids) > most


@pytest.mark.parametrize("text", ["a  b\n c ", "caf\u00c3\u00a9", "&amp;lt;b&gt;", "\u2018x\u2019"])
def test_prompts_are_cleaned_as_wans_pipelines_do(text: str) -> None:
    assert clean(text) == prompt_clean(text)


def test_a_short_prompt_needs_no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = prompt_readers("sprites", Path.cwd())
    monkeypatch.setattr(prompt_length, "_tokenizer", lambda reader: pytest.fail("asked"))
    assert readers is not None

    assert readers.unread("a red square") is None


def test_clip_reads_its_own_length_whatever_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_length, "cache_path", lambda *parts: tmp_path.joinpath(*parts))
    letters = "abcdefghijklmnopqrstuvwxyz,."
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    for name in ("tokenizer", "tokenizer_2"):
        folder = tmp_path / "model" / name
        folder.mkdir(parents=True)
        vocabulary = {word: number for number, word in enumerate(words)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    clip = ["transformers", "CLIPTokenizer"]
    index = {"_class_name": "StableDiffusionXLPipeline", "tokenizer": clip, "tokenizer_2": clip}
    (tmp_path / "model/model_index.json").write_text(json.dumps(index))
    readers = prompt_readers(str(tmp_path / "model"), tmp_path)
    prompt = " ".join("abcdefghij"[n % 10] for n in range(80))
    assert readers is not None

    found = readers.unread(prompt)

    oracle = CLIPTokenizer.from_pretrained(tmp_path / "model/tokenizer")
    lost = len(oracle(prompt).input_ids) - 77
    assert found == (" ".join(prompt.split(" ")[-lost:]), 77)
    assert readers.unread(" ".join(prompt.split(" ")[:-lost])) is None


@pytest.mark.parametrize(
    "pipeline_class",
    ["Cosmos2_5_PredictBasePipeline", "Flux2KleinPipeline", "QwenImageLayeredPipeline"],
)
@pytest.mark.parametrize("room", [3, 9, 200])
def test_what_stands_around_a_prompt_takes_its_tokens(
    tmp_path: Path, pipeline_class: str, room: int
) -> None:
    """The text around it counts, but for what the pipeline drops of its beginning."""
    shutil.copytree(SPRITES / "tokenizer", tmp_path / "tokenizer")
    index = {"_class_name": pipeline_class, "tokenizer": ["transformers", "TokenizersBackend"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    readers = prompt_readers(str(tmp_path), tmp_path)
    assert readers is not None
    before, _, after = readers.template.partition("{}")
    tokenizer = AutoTokenizer.from_pretrained(SPRITES / "tokenizer")
    dropped = readers.start
    most = len(tokenizer(before).input_ids) - dropped + room

    found = readers.unread(LONG, most)

    whole = tokenizer(before + LONG + after).input_ids
    kept = tokenizer.decode(
        whole[: dropped + most - 1], skip_special_tokens=True
    )  # one is the end's
    if len(whole) <= dropped + most or LONG in kept:
        assert found is None
    else:
        assert found is not None
        assert found[1] == most
        read = LONG.removesuffix(found[0])
        assert len(tokenizer(before + read.rstrip()).input_ids) <= dropped + most
        one_more = read + found[0].split(" ")[0]
        assert len(tokenizer(before + one_more).input_ids) > dropped + most


def test_hunyuan_video_1_5_reads_a_number_of_tokens_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(SPRITES / "tokenizer", tmp_path / "tokenizer")
    entry = ["transformers", "TokenizersBackend"]
    index = {"_class_name": "HunyuanVideo15Pipeline", "tokenizer": entry}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    readers = prompt_readers(str(tmp_path), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(SPRITES / "tokenizer")
    prompt = " ".join(["red"] * 1200)
    own = len(tokenizer(prompt).input_ids)
    assert readers is not None

    words, tokens = readers.unread(prompt) or ("", 0)

    assert tokens == 1000
    assert own - 1000 == len(tokenizer(words, add_special_tokens=False).input_ids)
    assert readers.unread(" ".join(["red"] * 900)) is None


def test_a_tokenizer_that_isnt_here_tells_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SPRITES, tmp_path / "model"))
    (folder / "tokenizer/tokenizer.json").write_text("{")
    readers = prompt_readers(str(folder), tmp_path)
    assert readers is not None

    assert readers.unread(LONG, 4) is None


def test_check_warns_of_prompts_and_negative_prompts_with_the_words(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    recipe = minimal + f'negative_prompt = "{LONG}"\nmax_sequence_length = 12\n'

    (warning,) = batch_of(recipe).warnings

    _, place, said = warning.partition("recipe.toml:18:19: scene[0].negative_prompt: ")
    assert place
    assert said.startswith("the negative prompt is longer than the 12 tokens")
    assert warning.endswith("shines above")
