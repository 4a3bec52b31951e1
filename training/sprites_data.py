"""The procedural data set behind the bundled pair: one coloured shape, one motion, one background.

Clips are (3, 17, 64, 64) in [-1, 1], drawn with signed distance fields. The lower half of every
shape is darker, so that a spinning circle is seen to spin; the background carries a faint checker,
so that late steps have fine detail to get right. The vocabulary is a contract: prompts read
"a {colour} {shape} {motion} on a {background} background".
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 64
NUM_FRAMES = 17

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 90, 255),
    "yellow": (250, 225, 50),
    "purple": (150, 60, 210),
    "white": (245, 245, 245),
    "orange": (250, 140, 30),
    "cyan": (60, 215, 230),
}
SHAPES = ("circle", "square", "triangle", "star", "ring")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "bouncing",
    "spinning",
    "growing",
    "orbiting",
    "standing still",
)
BACKGROUNDS = {
    "black": (18, 18, 20),
    "gray": (124, 124, 124),
    "navy": (12, 22, 100),
    "olive": (104, 104, 26),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}
# Two pixels: a period of four is the VAE's patch, so a decoder of nearest-neighbour upsampling
# and convolutions can draw it; a wider checker would alternate between patches, which it can't.
CHECKER_CELL = 2
CHECKER_AMPLITUDE = 9.0 / 127.5
SHADE = 0.68


@dataclass(frozen=True)
class Spec:
    """What one clip shows; each field is an index into the attribute's tuple."""

    colour: int
    shape: int
    motion: int
    background: int

    @property
    def prompt(self) -> str:
        """The canonical sentence of this combination."""
        return (
            f"a {ATTRIBUTES['colour'][self.colour]} {SHAPES[self.shape]} {MOTIONS[self.motion]}"
            f" on a {ATTRIBUTES['background'][self.background]} background"
        )

    @property
    def labels(self) -> tuple[int, int, int, int]:
        """Indices in the order of ``ATTRIBUTES``."""
        return (self.colour, self.shape, self.motion, self.background)


def split_specs(seed: int = 0, held_out: int = 54) -> tuple[list[Spec], list[Spec]]:
    """Split every combination into training and held-out ones.

    Whole (colour, shape, motion) triples are held out with all their backgrounds, so a held-out
    prompt asks for something that no training clip ever showed.

    Args:
        seed: Seed of the draw.
        held_out: Triples to hold out; 54 of 360 give 216 held-out prompts.

    Returns:
        Training and held-out combinations.
    """
    triples = list(itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(MOTIONS))))
    random.Random(seed).shuffle(triples)
    grounds = range(len(BACKGROUNDS))
    held = [Spec(*t, b) for t in triples[:held_out] for b in grounds]
    train = [Spec(*t, b) for t in triples[held_out:] for b in grounds]
    return train, held


def _paths(motion: Tensor, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x and y, radius (pixels) and angle (radians) per frame, each (B, T)."""
    count = motion.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=gen)

    t = torch.linspace(0, 1, NUM_FRAMES)[None]
    rest = torch.zeros(count, NUM_FRAMES)
    radius = uniform(10.5, 13.5) + rest
    across, jitter, travel = uniform(21, 43), uniform(-3, 3), uniform(24, 32)
    forward = 32 + jitter + travel * (t - 0.5)
    backward = 32 + jitter - travel * (t - 0.5)
    x0, y0 = uniform(22, 42), uniform(22, 42)
    x, y, angle = x0 + rest, y0 + rest, rest.clone()

    def where(name: str, value: Tensor, other: Tensor) -> Tensor:
        chosen = (motion == MOTIONS.index(name))[:, None]
        return torch.where(chosen, value + rest, other)

    x = where("moving left", backward, x)
    x = where("moving right", forward, x)
    y = where("moving up", backward, y)
    y = where("moving down", forward, y)
    for name in ("moving left", "moving right"):
        y = where(name, across, y)
    for name in ("moving up", "moving down"):
        x = where(name, across, x)
    height, phase = uniform(22, 28), uniform(0, 0.5)
    y = where("bouncing", 47 - height * torch.sin(math.pi * (2 * t + phase)).abs(), y)
    x = where("bouncing", across, x)
    angle = where("spinning", 2 * math.pi * t + uniform(-0.4, 0.4), angle)
    radius = where("growing", radius * (0.45 + 1.0 * t), radius)
    turn = 2 * math.pi * (t + uniform(0, 1))
    orbit, cx, cy = uniform(13, 16), uniform(30, 34), uniform(30, 34)
    x = where("orbiting", cx + orbit * torch.cos(turn), x)
    y = where("orbiting", cy + orbit * torch.sin(turn), y)
    return x, y, radius, angle


def _polygon(u: Tensor, v: Tensor, radii: tuple[float, ...]) -> Tensor:
    """Signed distance to a closed polygon whose corners lie at even angles, first one on top."""
    n = len(radii)
    corners = [
        (r * math.sin(2 * math.pi * k / n), -r * math.cos(2 * math.pi * k / n))
        for k, r in enumerate(radii)
    ]
    best = torch.full_like(u, 1e9)
    inside = torch.zeros_like(u, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        s = (((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        best = torch.minimum(best, (u - ax - s * ex).square() + (v - ay - s * ey).square())
        if ey != 0:
            crosses = ((v >= ay) != (v >= by)) & (u < ax + (v - ay) * ex / ey)
            inside ^= crosses
    return best.sqrt() * torch.where(inside, -1.0, 1.0)


def _distance(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance of unit-sized shapes; negative inside."""
    r = (u * u + v * v).sqrt()
    if name == "circle":
        return r - 0.95
    if name == "ring":
        return (r - 0.78).abs() - 0.27
    if name == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.82
    if name == "triangle":
        return _polygon(u, v + -0.12, (1.2, 1.2, 1.2))
    return _polygon(u, v, (1.25, 0.52) * 5)


def draw(specs: list[Spec], gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one clip per combination.

    Args:
        specs: What to draw.
        gen: Source of positions, sizes and textures.

    Returns:
        Clips (B, 3, 17, 64, 64) in [-1, 1], and masks (B, 1, 17, 64, 64) that are 1 on the shape.
    """
    labels = torch.tensor([s.labels for s in specs])
    x, y, radius, angle = _paths(labels[:, 2], gen)
    grid = torch.arange(SIZE) + 0.5
    dx = grid[None, None, None, :] - x[..., None, None]
    dy = grid[None, None, :, None] - y[..., None, None]
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    scale = radius[..., None, None]
    u, v = (dx * cos + dy * sin) / scale, (dy * cos - dx * sin) / scale
    sdf = torch.empty_like(u)
    for index, name in enumerate(SHAPES):
        chosen = labels[:, 1] == index
        if chosen.any():
            sdf[chosen] = _distance(name, u[chosen], v[chosen])
    mask = torch.sigmoid(-2.0 * sdf * scale)[:, None]
    shade = (SHADE + (1 - SHADE) * torch.sigmoid(-2.0 * v * scale))[:, None]
    ink = torch.tensor(list(COLOURS.values())).float()[labels[:, 0]][:, :, None, None, None]
    ground = torch.tensor(list(BACKGROUNDS.values())).float()[labels[:, 3]][:, :, None, None, None]
    shift = torch.randint(0, 2, (len(specs), 2), generator=gen) * (CHECKER_CELL // 2)
    pixel = torch.arange(SIZE)
    rows = (pixel[None, :] + shift[:, :1]) // CHECKER_CELL
    cols = (pixel[None, :] + shift[:, 1:]) // CHECKER_CELL
    checker = ((rows[:, :, None] + cols[:, None, :]) % 2 * 2 - 1)[:, None, None].float()
    backdrop = ground / 127.5 - 1 + CHECKER_AMPLITUDE * checker
    shape = ink * shade / 127.5 - 1
    return (backdrop * (1 - mask) + shape * mask).clamp(-1, 1), mask


_SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "white": ("white", "snowy"),
    "orange": ("orange",),
    "cyan": ("cyan", "turquoise", "aqua"),
    "circle": ("circle", "disc", "disk", "ball", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop", "donut"),
    "moving left": ("moving left", "going left", "sliding to the left", "drifting left"),
    "moving right": ("moving right", "going right", "sliding to the right", "drifting right"),
    "moving up": ("moving up", "going up", "rising", "moving upwards"),
    "moving down": ("moving down", "going down", "falling", "moving downwards"),
    "bouncing": ("bouncing", "jumping", "hopping", "bouncing up and down"),
    "spinning": ("spinning", "rotating", "turning", "rotating in place"),
    "growing": ("growing", "getting bigger", "expanding", "becoming larger"),
    "orbiting": ("orbiting", "circling", "moving in a circle", "going around"),
    "standing still": ("standing still", "not moving", "static", "motionless"),
    "black": ("black", "dark"),
    "gray": ("gray", "grey"),
    "navy": ("navy", "navy blue", "dark blue"),
    "olive": ("olive", "olive green"),
}  # fmt: skip
_TEMPLATES = (
    "a {c} {s} {m} on a {b} background",
    "a {c} {s} {m} against a {b} background",
    "on a {b} background, a {c} {s} {m}",
    "{c} {s}, {m}, {b} background",
    "{b} background with a {c} {s} {m}",
    "the {s} is {c} and it is {m} in front of a {b} wall",
    "video of a {c} {s} that is {m}, the background is {b}",
    "a {s} {m}, {c}, on {b}",
)
_PARTIAL = (
    ("a {c} {s} {m}", "csm"),
    ("a {c} {s} on a {b} background", "csb"),
    ("a {s} {m} on a {b} background", "smb"),
    ("something {c} {m} on a {b} background", "cmb"),
    ("a {c} {s}", "cs"),
    ("a {s} {m}", "sm"),
    ("a {c} shape {m}", "cm"),
    ("a {b} background", "b"),
    ("a {s}", "s"),
)


def caption(spec: Spec, rng: random.Random) -> tuple[str, tuple[int, int, int, int]]:
    """Word a combination the way a person might: canonical half of the time, else varied.

    Args:
        spec: What the clip shows.
        rng: Source of the wording.

    Returns:
        The sentence, and per attribute the index that it states or -1 where it is silent.
    """
    draw_word = rng.random()
    if draw_word < 0.5:
        return spec.prompt, spec.labels
    template, stated = rng.choice(_TEMPLATES), "csmb"
    if draw_word > 0.9:
        template, stated = rng.choice(_PARTIAL)
    words = {
        key: rng.choice(_SYNONYMS[names[index]])
        for key, names, index in zip("csmb", ATTRIBUTES.values(), spec.labels, strict=True)
    }
    labels = tuple(i if k in stated else -1 for k, i in zip("csmb", spec.labels, strict=True))
    article = (
        template.format(**words).replace("a orange", "an orange").replace("a olive", "an olive")
    )
    return article, labels  # type: ignore[return-value]
