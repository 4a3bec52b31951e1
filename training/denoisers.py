"""Train the large and the small denoiser by flow matching, in the one VAE's latent space."""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import time
from typing import Any

import text
import torch
import vae as vae_stage
from common import SEED, Ema, Muon, cosine, load_checkpoint, log, save_checkpoint, work_dir
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from sprites_data import Spec, caption, draw, split_specs
from torch import Tensor

SHARED = {
    "patch_size": (1, 2, 2),
    "in_channels": vae_stage.CONFIG["z_dim"],
    "out_channels": vae_stage.CONFIG["z_dim"],
    "text_dim": text.WIDTH,
    "freq_dim": 128,
    "cross_attn_norm": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "large": {"num_attention_heads": 4, "attention_head_dim": 48, "num_layers": 6, "ffn_dim": 768},
    "small": {"num_attention_heads": 3, "attention_head_dim": 32, "num_layers": 3, "ffn_dim": 384},
}
STEPS = {"large": 5000, "small": 8000}
DISTILLED_STEPS = 500  # of the small one, after its own
POOL_CLIPS = 8_000
GUIDANCE, GUIDED_WEIGHT = 5.0, 0.1
SHARD = 500


def make(role: str) -> WanTransformer3DModel:
    """A denoiser with random weights; its last layer starts at zero."""
    torch.manual_seed(SEED)
    model = WanTransformer3DModel(**SHARED, **CONFIGS[role])
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


@torch.no_grad()
def latent_pool(vae: AutoencoderKLWan) -> tuple[Tensor, list[Spec]]:
    """Encode the training clips, shard by shard, or read the shards that are there.

    Returns:
        Latents (N, z, 5, 4, 4), not yet normalised, float16; and what each clip shows.
    """
    weights = torch.cat([p.detach().flatten() for p in vae.encoder.parameters()])
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:12]
    folder = work_dir() / f"latents-{digest}"  # another encoder makes other latents
    folder.mkdir(exist_ok=True)
    train, _ = split_specs()
    shards, specs = [], []
    for index in range(POOL_CLIPS // SHARD):
        rng = random.Random(SEED + 1000 + index)
        chosen = [rng.choice(train) for _ in range(SHARD)]
        path = folder / f"{index:03d}.pt"
        if not path.exists():
            gen = torch.Generator().manual_seed(SEED + 1000 + index)
            parts = []
            for start in range(0, SHARD, 20):
                clips, _ = draw(chosen[start : start + 20], gen)
                parts.append(vae_stage.encode_whole(vae, clips).mode().half())
            torch.save(torch.cat(parts), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            log("latents", shard=index)
        shards.append(torch.load(path, weights_only=True))
        specs += chosen
    return torch.cat(shards), specs


def normalised_pool() -> tuple[Tensor, list[Spec]]:
    """The pool as the denoisers see it: float32, each channel of mean 0 and deviation 1."""
    latents, specs = latent_pool(vae_stage.load())
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(value).view(shape) for value in statistics(latents))
    return (latents.float() - mean) / std, specs


def statistics(latents: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, for the VAE's config."""
    flat = latents[:4000].float().transpose(0, 1).flatten(1)
    return flat.mean(1).tolist(), flat.std(1).tolist()


class PaddedCrossAttention(WanAttnProcessor):
    """Cross-attention in which one padding token stands for many.

    The pipeline pads text embeddings with zeros to ``max_sequence_length`` and masks nothing.
    n equal tokens weigh as much as one whose score is raised by log n, so training needs one.
    """

    bias: Tensor | None = None

    def __call__(
        self, attn: Any, hidden: Tensor, text: Any = None, mask: Any = None, rope: Any = None
    ) -> Tensor:
        return super().__call__(attn, hidden, text, self.bias, rope)


def install_padding(model: WanTransformer3DModel) -> PaddedCrossAttention:
    """Give every cross-attention the one processor and return it."""
    processor = PaddedCrossAttention()
    for block in model.blocks:
        block.attn2.set_processor(processor)
    return processor


def noise_level(count: int, gen: torch.Generator) -> Tensor:
    """Sigmas to train at: logit-normal, leaning to the noisy side as the shifted sampler does."""
    sigma = torch.sigmoid(0.4 + 1.1 * torch.randn(count, generator=gen))
    uniform = torch.rand(count, generator=gen)
    return torch.where(torch.rand(count, generator=gen) < 0.15, uniform, sigma)


class Captions:
    """Text embeddings for training: worded anew each time, one caption in ten left out."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tokenizer, self.encoder = text.train()

    @torch.no_grad()
    def embed(self, specs: list[Spec]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T + 1, width) with zeros for padding, and the bias of their scores."""
        return self.embed_texts(["" if self.rng.random() < 0.1 else self._worded(s) for s in specs])

    @torch.no_grad()
    def embed_pairs(self, specs: list[Spec]) -> tuple[Tensor, Tensor]:
        """As ``embed``, of twice as many: every caption, and then as many empty ones."""
        return self.embed_texts([self._worded(s) for s in specs] + [""] * len(specs))

    def embed_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """As ``embed``, of given texts."""
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        hidden = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        hidden = hidden * tokens.attention_mask[..., None]
        hidden = torch.cat([hidden, hidden.new_zeros(len(texts), 1, text.WIDTH)], 1)
        count = hidden.shape[1]
        total = math.exp(self.rng.uniform(math.log(count + 2), math.log(512)))
        bias = torch.zeros(1, 1, 1, count)
        bias[..., -1] = math.log(max(1.0, total - count + 1))
        return hidden, bias

    def _worded(self, spec: Spec) -> str:
        return text.dressed(caption(spec, self.rng)[0], self.rng)


class FlowMatching:
    """The velocity of the clips themselves, as what to learn.

    Args:
        captions: Where embeddings come from.
        processor: The denoiser's cross-attention.
        compiled: Whether to compile the denoiser: it needs a C++ compiler, takes minutes to start
            and then saves a fifth of each step.
    """

    ema_decay = 0.999

    def __init__(self, captions: Captions, processor: PaddedCrossAttention, compiled: bool) -> None:
        self.captions, self.processor, self.compiled = captions, processor, compiled
        self._forward: Any = None

    def loss(
        self, model: WanTransformer3DModel, clean: Tensor, noise: Tensor, sigma: Tensor,
        specs: list[Spec],
    ) -> Tensor:  # fmt: skip
        """Mean squared error of a batch."""
        if self._forward is None:
            self._forward = torch.compile(model, dynamic=True) if self.compiled else model
        embeds, self.processor.bias = self.captions.embed(specs)
        run = self._forward if clean.shape[2] > 1 else model
        out = run(noised(clean, noise, sigma), sigma * 1000, embeds, return_dict=False)[0]
        loss: Tensor = (out - (noise - clean)).square().mean()
        return loss


class Distillation:
    """The trained large denoiser's velocity, as what a small one is to learn.

    What a step of sampling takes is the guided velocity, ``u + g (c - u)`` of the velocities with
    and without caption: at g = 5 the errors of c count fivefold and those of u fourfold, so that
    errors that agree are worth more than small ones. The loss has both.
    """

    ema_decay = 0.99

    def __init__(self, captions: Captions, processor: PaddedCrossAttention) -> None:
        self.captions, self.own = captions, processor
        self.teacher = averaged("large", load_checkpoint("large") or {})
        self.processor = install_padding(self.teacher)

    def loss(
        self, model: WanTransformer3DModel, clean: Tensor, noise: Tensor, sigma: Tensor,
        specs: list[Spec],
    ) -> Tensor:  # fmt: skip
        """Mean squared error of half a batch, each clip with and without its caption."""
        half = len(specs) // 2
        embeds, bias = self.captions.embed_pairs(specs[:half])
        self.own.bias = self.processor.bias = bias
        noisy = noised(clean[:half], noise[:half], sigma[:half]).repeat(2, 1, 1, 1, 1)
        inputs = (noisy, sigma[:half].repeat(2) * 1000, embeds)
        with torch.no_grad():
            wanted = self.teacher(*inputs, return_dict=False)[0]
        error = model(*inputs, return_dict=False)[0] - wanted
        with_caption, without = error.chunk(2)
        guided = without + GUIDANCE * (with_caption - without)
        loss: Tensor = error.square().mean() + GUIDED_WEIGHT * guided.square().mean()
        return loss


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Latents on the straight way from clean ones (sigma 0) to noise (sigma 1)."""
    level = sigma.view(-1, 1, 1, 1, 1)
    return (1 - level) * clean + level * noise


def train(
    role: str,
    steps: int,
    batch: int = 32,
    lr: float = 0.004,
    compiled: bool = False,
    distilled: bool = False,
) -> WanTransformer3DModel:
    """Train one denoiser, or go on from its checkpoint; return it with averaged weights.

    ``distilled`` learns from the trained large denoiser instead of from clips' own velocities.
    """
    model = make(role)
    captions, processor = Captions(random.Random(SEED)), install_padding(model)
    objective: Any = FlowMatching(captions, processor, compiled)
    if distilled:
        objective = Distillation(captions, processor)
    optimiser = Muon(model.named_parameters(), lr=lr, adam_lr=lr * 0.3)
    ema, start = Ema(model, objective.ema_decay), 0
    if state := load_checkpoint(role):
        model.load_state_dict(state["model"])
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        ema.shadow, start = state["ema"], state["step"]
    if start < steps:
        latents, specs = normalised_pool()
    began, losses = time.time(), []
    for step in range(start, steps):
        gen, captions.rng = torch.Generator().manual_seed(SEED + step), random.Random(SEED + step)
        chosen = torch.randint(0, len(specs), (batch,), generator=gen)
        clean = latents[chosen]
        if captions.rng.random() < 0.12:
            clean = clean[:, :, :1]  # single images: the first latent frame stands alone
        noise = torch.randn(clean.shape, generator=gen)
        sigma = noise_level(batch, gen)
        optimiser.scale_lr(cosine(step, steps, warmup=100))
        loss = objective.loss(model, clean, noise, sigma, [specs[i] for i in chosen.tolist()])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        ema.update(model, step)
        losses.append(loss.item())
        done = step + 1
        if done % 100 == 0 or done == steps:
            log(role, step=done, loss=sum(losses) / len(losses), seconds=time.time() - began)
            losses = []
            save_checkpoint(role, model=model.state_dict(), optimiser=optimiser.state_dict(),
                            ema=ema.shadow, step=done)  # fmt: skip
    return averaged(role, {"ema": ema.shadow})


def averaged(role: str, state: dict[str, Any]) -> WanTransformer3DModel:
    """The denoiser of a checkpoint, with its averaged weights."""
    model = make(role)
    model.load_state_dict(state["ema"])
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=CONFIGS)
    parser.add_argument("steps", type=int, help="where to stop, earlier steps counted")
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--distilled", action="store_true")
    train(**vars(parser.parse_args()))
