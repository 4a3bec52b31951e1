"""Stand-ins for the tiny repositories of the Hub that diffusers' tests load, of the same classes.

They are laid out as the Hub's own cache, so that nothing has to be patched and nothing is fetched.
Weights are random; vocabularies hold letters and a few words.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

COMMIT = "0" * 40
_WORDS = ("a", "of", "the", "dance", "monkey", "painting", "squirrel", "cat", "negative", "photo")
_LETTERS = (*string.ascii_letters, *string.digits, *string.punctuation)
_SIZE = 1000


def lay_out(cache: Path) -> None:
    """Write every stand-in into a Hub cache."""
    for name, write in STAND_INS.items():
        repository = cache / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT)
        torch.manual_seed(0)
        write(snapshot)


def _numbered(pieces: Iterable[str], size: int = _SIZE) -> dict[str, int]:
    """Number pieces, filled up to a size."""
    known = list(dict.fromkeys(pieces))
    return {piece: i for i, piece in enumerate([*known, *_fillers(size - len(known))])}


def _fillers(number: int) -> list[str]:
    return [f"\u2581filler{i}" for i in range(number)]


def _sentence_pieces(*specials: str) -> dict[str, int]:
    return _numbered([*specials, "\u2581", *(f"\u2581{word}" for word in _WORDS), *_LETTERS])


def _t5(folder: Path, name: str = "T5") -> None:
    pieces = _sentence_pieces("<pad>", "</s>", "<unk>")
    scores = [(piece, 0.0 if i < 3 else -1.0 - i / _SIZE) for piece, i in pieces.items()]
    transformers.T5Tokenizer(vocab=scores, extra_ids=100).save_pretrained(folder)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=5, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    getattr(transformers, f"{name}EncoderModel")(config).eval().save_pretrained(folder)


def _clip(folder: Path) -> None:
    letters = [letter for letter in _LETTERS if not letter.isupper()]
    ends = [f"{letter}</w>" for letter in letters]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    fillers = _fillers(_SIZE - len(letters) - len(ends) - len(specials))
    vocabulary = _numbered([*letters, *ends, *fillers, *specials])
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder)


def _qwen(folder: Path) -> None:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
                "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
    vocabulary = _numbered([*_LETTERS, "\u0120", "\u010a", *specials], 150)
    transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)


def _gemma(folder: Path) -> None:
    vocabulary = _sentence_pieces("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    transformers.GemmaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)


def _bert(folder: Path) -> None:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *_WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    transformers.BertTokenizer(vocab=_numbered(pieces)).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=1124, hidden_size=32, num_hidden_layers=5, num_attention_heads=4,
        intermediate_size=37,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(folder)


def _llama(folder: Path) -> None:
    vocabulary = _sentence_pieces("<unk>", "<s>", "</s>", "<pad>")
    tokenizer: Any = transformers.LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>")
    tokenizer.save_pretrained(folder / "tokenizer")


STAND_INS: dict[str, Callable[[Path], None]] = {
    "hf-internal-testing/tiny-random-t5": _t5,
    "hf-internal-testing/tiny-random-T5Model": _t5,
    "hf-internal-testing/tiny-random-umt5": lambda folder: _t5(folder, "UMT5"),
    "hf-internal-testing/tiny-random-clip": _clip,
    "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration": _qwen,
    "hf-internal-testing/dummy-gemma": _gemma,
    "hf-internal-testing/dummy-gemma-diffusers": _gemma,
    "hf-internal-testing/tiny-random-BertModel": _bert,
    "finetrainers/dummy-hunyaunvideo": _llama,
}
