"""Train the pair's one VAE: ``AutoencoderKLWan`` on whole clips, from the first step on."""

from __future__ import annotations

import random
import time

import torch
from common import SEED, Muon, cosine, load_checkpoint, log, save_checkpoint
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from sprites_data import draw, split_specs
from torch import Tensor, nn

CONFIG = {
    "base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True],
    "in_channels": 48,
    "out_channels": 48,
    "patch_size": 4,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 8,
}
KL_WEIGHT = 1e-6
DECODER_NOISE = 0.02


def psnr(got: Tensor, want: Tensor, mask: Tensor | None = None) -> float:
    """Mean PSNR in dB over clips in [-1, 1]; with a mask, over the pixels where it exceeds 0.5."""
    error = (got - want).square().mean(1, keepdim=True)
    if mask is None:
        mse = error.mean(dim=(1, 2, 3, 4))
    else:
        weight = (mask > 0.5).float()
        mse = (error * weight).sum(dim=(1, 2, 3, 4)) / weight.sum(dim=(1, 2, 3, 4)).clamp(min=1)
    return float((10 * torch.log10(4 / mse.clamp(min=1e-10))).mean())


def moving_region(mask: Tensor) -> Tensor:
    """Where the shape passes within a few frames, grown by two pixels."""
    return torch.nn.functional.max_pool3d(mask, (5, 5, 5), stride=1, padding=2)


def loss_of(vae: AutoencoderKLWan, clips: Tensor, masks: Tensor, gen: torch.Generator) -> Tensor:
    """Reconstruction loss, weighed on the moving region, plus a little KL."""
    posterior = encode_whole(vae, clips)
    noise = torch.randn(posterior.mean.shape, generator=gen)
    out = decode_whole(vae, posterior.mean + posterior.std * noise)
    weight = 1 + 3 * moving_region(masks)
    difference = out - clips
    loss = (weight * (difference.abs() + 2 * difference.square())).mean()
    return loss + KL_WEIGHT * posterior.kl().mean()


def _per_frame(resample: nn.Module, x: Tensor) -> Tensor:
    batch, channels, frames, height, width = x.shape
    y = resample(x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width))
    return y.view(batch, frames, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def encode_whole(vae: AutoencoderKLWan, clips: Tensor) -> DiagonalGaussianDistribution:
    """Encode all frames in one pass: the same numbers as ``vae.encode``, without its chunks."""
    encoder = vae.encoder
    x = encoder.conv_in(patchify(clips, vae.config.patch_size))
    for layer in encoder.down_blocks:
        if isinstance(layer, WanResample):
            x = _per_frame(layer.resample, x)
            if layer.mode == "downsample3d" and x.shape[2] > 1:
                x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2)
        else:
            x = layer(x)
    x = encoder.mid_block(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))
    return DiagonalGaussianDistribution(vae.quant_conv(x))


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode all frames in one pass and leave out the final clamp, whose gradient dies at +-1."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            up = block.upsamplers[0]
            if up.mode == "upsample3d" and x.shape[2] > 1:
                batch, channels, frames, height, width = x.shape
                y = up.time_conv(x[:, :, 1:]).view(batch, 2, channels, frames - 1, height, width)
                y = y.permute(0, 2, 3, 1, 4, 5).reshape(batch, channels, -1, height, width)
                x = torch.cat([x[:, :, :1], y], 2)
            x = _per_frame(up.resample, x)
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return unpatchify(x, vae.config.patch_size)


@torch.no_grad()
def evaluate(vae: AutoencoderKLWan, count: int = 24) -> dict[str, float]:
    """PSNR of held-out clips: the whole clip, and the shape alone."""
    gen = torch.Generator().manual_seed(SEED + 1)
    _, held = split_specs()
    clips, masks = draw(random.Random(SEED).sample(held, count), gen)
    out = vae.decode(vae.encode(clips).latent_dist.mode()).sample
    return {"psnr": psnr(out, clips), "psnr_shape": psnr(out, clips, masks)}


def load() -> AutoencoderKLWan:
    """Read the trained VAE from its checkpoint."""
    vae = AutoencoderKLWan(**CONFIG)
    state = load_checkpoint("vae")
    if state is None:
        raise SystemExit("no VAE yet: run train_sprites.py, which trains it first")
    vae.load_state_dict(state["model"])
    return vae.eval()


def crop(clips: Tensor, masks: Tensor, rng: random.Random, size: int = 48) -> tuple[Tensor, Tensor]:
    """Cut the same window, aligned to the latents, out of all frames."""
    top, left = (8 * rng.randrange((64 - size) // 8 + 1) for _ in range(2))
    window = (..., slice(top, top + size), slice(left, left + size))
    return clips[window], masks[window]


def train(
    steps: int = 2000, batch: int = 4, lr: float = 0.01, stage: str = "vae"
) -> AutoencoderKLWan:
    """Train, or go on from the checkpoint, and return the VAE."""
    torch.manual_seed(SEED)
    vae = AutoencoderKLWan(**CONFIG)
    optimiser = Muon(vae.named_parameters(), lr=lr, adam_lr=lr * 0.2)
    start = 0
    if state := load_checkpoint(stage):
        vae.load_state_dict(state["model"])
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    specs, _ = split_specs()
    began = time.time()
    for step in range(start, steps):
        gen = torch.Generator().manual_seed(SEED + 10 + step)
        rng = random.Random(SEED + 10 + step)
        clips, masks = draw([rng.choice(specs) for _ in range(batch)], gen)
        if step % 3:  # two steps in three see a window: half the cost, twice the shape
            clips, masks = crop(clips, masks, rng)
        optimiser.scale_lr(cosine(step, steps))
        loss = loss_of(vae, clips, masks, gen)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
        optimiser.step()
        done = step + 1
        if done % 100 == 0 or done == steps:
            log(stage, step=done, loss=loss.item(), seconds=time.time() - began, **evaluate(vae))
            save_checkpoint(
                stage, model=vae.state_dict(), optimiser=optimiser.state_dict(), step=done
            )
    return vae


def train_decoder(steps: int = 1200, batch: int = 4, lr: float = 0.004) -> None:
    """Go on with the decoder alone: the latent space, and so the denoisers, stay as they are.

    Reads and writes the stage ``vae``'s checkpoint, whose ``decoder_step`` counts.
    """
    vae = load()
    state = load_checkpoint("vae")
    assert state is not None
    trained = [*vae.decoder.named_parameters("decoder"), *vae.post_quant_conv.named_parameters()]
    optimiser = Muon(trained, lr=lr, adam_lr=lr * 0.2)
    start = state.get("decoder_step", 0)
    if "decoder_optimiser" in state:
        optimiser.load_state_dict(state["decoder_optimiser"])
    specs, _ = split_specs()
    for step in range(start, steps):
        gen = torch.Generator().manual_seed(SEED + 500_000 + step)
        rng = random.Random(SEED + 500_000 + step)
        clips, masks = draw([rng.choice(specs) for _ in range(batch)], gen)
        with torch.no_grad():
            latents = encode_whole(vae, clips).mode()
            noise = torch.randn(latents.shape, generator=gen)
            latents = latents + DECODER_NOISE * latents.std() * noise
        optimiser.scale_lr(cosine(step, steps))
        difference = decode_whole(vae, latents) - clips
        weight = 1 + 3 * moving_region(masks)
        loss = (weight * (difference.abs() + 2 * difference.square())).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 0.5)
        optimiser.step()
        done = step + 1
        if done % 100 == 0 or done == steps:
            log("vae", decoder_step=done, loss=loss.item(), **evaluate(vae))
            state |= {"model": vae.state_dict(), "decoder_step": done,
                      "decoder_optimiser": optimiser.state_dict()}  # fmt: skip
            save_checkpoint("vae", **state)


if __name__ == "__main__":
    train()
