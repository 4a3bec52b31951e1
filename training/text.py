"""Train the pair's one text encoder: every token of a caption learns to tell what the caption says.

The denoisers then read attributes off any token, instead of having to learn language themselves.
"""

from __future__ import annotations

import random

import torch
from common import SEED, load_checkpoint, log, save_checkpoint, work_dir
from sprites_data import ATTRIBUTES, caption, split_specs
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WIDTH = 96
FILLERS = ("please", "show me", "a short clip of", "an animation:", "there is", "nice", "simple",
           "slowly", "smoothly", "small", "big", "in the scene", "we see", "cartoon")  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train, or load, a lower-casing BPE tokenizer that can spell any word."""
    path = work_dir() / "tokenizer.json"
    if not path.exists():
        rng = random.Random(SEED)
        train, _ = split_specs()
        corpus = [caption(rng.choice(train), rng)[0] for _ in range(20_000)] + list(FILLERS) * 50
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()")
        tokenizer.train_from_iterator(
            corpus,
            trainers.BpeTrainer(
                vocab_size=512,
                special_tokens=["<pad>", "</s>", "<unk>"],
                initial_alphabet=alphabet,
            ),
        )
        end = tokenizer.token_to_id("</s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", end)]
        )
        tokenizer.save(str(path))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def make_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A UMT5 encoder of a third of a million parameters."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=WIDTH,
            d_kv=24,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


class Heads(nn.Module):
    """One classifier per attribute, over every token; class 0 says that the caption is silent."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(v) + 1) for v in ATTRIBUTES.values())

    def forward(self, tokens: Tensor) -> list[Tensor]:
        return [head(tokens) for head in self.heads]


def dressed(text: str, rng: random.Random) -> str:
    """Put a filler around a caption now and then, so that a person's own words do no harm."""
    if rng.random() < 0.25:
        text = f"{rng.choice(FILLERS)} {text}"
    if rng.random() < 0.1:
        text = f"{text}, {rng.choice(FILLERS)}"
    if rng.random() < 0.1:
        text = text.rstrip(".") + "."
    return text


def batch_of(count: int, rng: random.Random) -> tuple[list[str], Tensor]:
    """Captions of any combination (language is not held out), and what they state (0 = silent)."""
    train, held = split_specs()
    everything, silent = train + held, ("", (-1, -1, -1, -1))
    pairs = [
        silent if rng.random() < 0.03 else caption(rng.choice(everything), rng)
        for _ in range(count)
    ]
    texts = [dressed(text, rng) if text else text for text, _ in pairs]
    return texts, torch.tensor([labels for _, labels in pairs]) + 1


def train(steps: int = 700, batch: int = 64) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """Train, or load the finished encoder."""
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    encoder, heads = make_encoder(len(tokenizer)), Heads()
    if state := load_checkpoint("text"):
        encoder.load_state_dict(state["model"])
        return tokenizer, encoder.eval()
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    rng = random.Random(SEED)
    for step in range(steps):
        texts, labels = batch_of(batch, rng)
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        mask = tokens.attention_mask.bool()
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        wanted = labels[:, None, :].expand(-1, mask.shape[1], -1)[mask]
        logits = heads(hidden[mask])
        loss = sum(nn.functional.cross_entropy(x, wanted[:, i]) for i, x in enumerate(logits))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            right = torch.stack([x.argmax(-1) == wanted[:, i] for i, x in enumerate(logits)])
            log("text", step=step + 1, loss=loss.item(), tokens_right=right.float().mean().item())
    save_checkpoint("text", model=encoder.state_dict())
    return tokenizer, encoder.eval()


if __name__ == "__main__":
    train()
