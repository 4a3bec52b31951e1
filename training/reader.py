"""A small trained reader: tells which shape, colour, background and motion a clip shows."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import vae as vae_stage
from common import SEED, log
from safetensors.torch import load_file, save_file
from sprites_data import ATTRIBUTES, draw, split_specs
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("reader.safetensors")
FRAMES = slice(0, 17, 2)


class Reader(nn.Module):
    """Per-frame convolutions; appearance is pooled over space, motion read from positions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 48)):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.GroupNorm(4, after)]
            layers += [nn.SiLU(), nn.Conv2d(after, after, 3, padding=1), nn.SiLU()]
        self.frames = nn.Sequential(*layers)
        self.appearance = nn.Sequential(nn.Linear(96, 96), nn.SiLU())
        self.positions = nn.Conv2d(48, 8, 1)
        self.motion = nn.Sequential(nn.Linear(9 * 8 * 64, 96), nn.SiLU())
        widths = {"colour": 96, "shape": 96, "motion": 96, "background": 96}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(widths[name], len(ATTRIBUTES[name])) for name in ATTRIBUTES}
        )

    def features(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Appearance and motion features of clips (B, 3, 17, 64, 64) in [-1, 1]: (B, 96) each."""
        frames = clips[:, :, FRAMES].transpose(1, 2)
        batch, count = frames.shape[:2]
        maps = self.frames(frames.flatten(0, 1))
        pooled = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)
        appearance = self.appearance(pooled.view(batch, count, -1)).mean(1)
        motion = self.motion(self.positions(maps).reshape(batch, -1))
        return appearance, motion

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits per attribute."""
        appearance, motion = self.features(clips)
        return {
            name: head(motion if name == "motion" else appearance)
            for name, head in self.heads.items()
        }

    @torch.no_grad()
    def read(self, clips: Tensor) -> Tensor:
        """Index of every attribute, in the order of ``ATTRIBUTES``: (B, 4)."""
        logits = self(clips)
        return torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], 1)


def worsened(clips: Tensor, gen: torch.Generator) -> Tensor:
    """Blur, noise and brightness, so that the reader forgives what a person would forgive."""
    clips = clips + 0.1 * torch.rand(len(clips), 1, 1, 1, 1, generator=gen) * torch.randn(
        clips.shape, generator=gen
    )
    if torch.rand((), generator=gen) < 0.4:
        flat = clips.transpose(1, 2).flatten(0, 1)
        flat = nn.functional.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)
        clips = flat.view(len(clips), -1, 3, 64, 64).transpose(1, 2)
    shift = 0.12 * (torch.rand(len(clips), 3, 1, 1, 1, generator=gen) - 0.5)
    return (clips + shift).clamp(-1, 1)


@torch.no_grad()
def pool(count: int, reconstruct: float) -> tuple[Tensor, Tensor]:
    """Real clips of every combination as uint8, a share of them passed through the VAE."""
    train, held = split_specs()
    rng, gen = random.Random(SEED + 5), torch.Generator().manual_seed(SEED + 5)
    vae = vae_stage.load() if reconstruct else None
    parts, labels = [], []
    for start in range(0, count, 20):
        specs = [rng.choice(train + held) for _ in range(20)]
        clips, _ = draw(specs, gen)
        if vae is not None and start < count * reconstruct:
            clips = vae_stage.decode_whole(vae, vae_stage.encode_whole(vae, clips).mode())
        parts.append(((clips.clamp(-1, 1) + 1) * 127.5).round().byte())
        labels += [s.labels for s in specs]
    return torch.cat(parts), torch.tensor(labels)


def train(steps: int = 900, batch: int = 32, count: int = 3000) -> Reader:
    """Train the reader, or load the one beside this file."""
    torch.manual_seed(SEED)
    reader = Reader()
    if WEIGHTS.exists():
        reader.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
        return reader.eval()
    clips, labels = pool(count, reconstruct=0.4)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    gen = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        chosen = torch.randint(0, count, (batch,), generator=gen)
        logits = reader(worsened(clips[chosen].float() / 127.5 - 1, gen))
        wanted = labels[chosen]
        loss = sum(
            nn.functional.cross_entropy(logits[name], wanted[:, i])
            for i, name in enumerate(ATTRIBUTES)
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log("reader", step=step + 1, loss=loss.item())
    save_file({k: v.half() for k, v in reader.state_dict().items()}, WEIGHTS)
    return train()


if __name__ == "__main__":
    train()
