"""Draw the picture that the shipped image-to-video recipes begin with: a walker on a path.

Run to make it again::

    python scripts/draw_example_image.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE = Path(__file__).parents[1] / "recipes" / "images" / "walker.png"
WIDTH, HEIGHT = 512, 288
HORIZON = 0.58

Field = NDArray[np.float64]


def capsule(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float]) -> Field:
    """Distance of every point from a line between two points."""
    ax, ay = start
    bx, by = end[0] - ax, end[1] - ay
    along = np.clip(((x - ax) * bx + (y - ay) * by) / (bx * bx + by * by), 0, 1)
    return np.hypot(x - ax - along * bx, y - ay - along * by)


def paint(picture: Field, distance: Field, color: tuple[float, float, float]) -> None:
    """Colour the points at negative distance, with an edge of one pixel."""
    cover = np.clip(0.5 - distance * HEIGHT, 0, 1)[..., None]
    picture += cover * (np.array(color) - picture)


def draw() -> NDArray[np.uint8]:
    """The picture, (288, 512, 3)."""
    # Heights run from 0 at the top to 1; widths are measured in the same unit, from the middle.
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    y, x = (rows + 0.5) / HEIGHT, (columns + 0.5 - WIDTH / 2) / HEIGHT
    blend = np.clip(y / HORIZON, 0, 1)[..., None]
    picture = (1 - blend) * np.array([0.42, 0.62, 0.86]) + blend * np.array([0.96, 0.87, 0.72])
    paint(picture, np.hypot(x - 0.48, y - 0.2) - 0.06, (1.0, 0.95, 0.75))
    hills = HORIZON - 0.08 - 0.04 * np.sin(4.3 * x + 0.6) - 0.02 * np.sin(11.0 * x)
    paint(picture, hills - y, (0.45, 0.56, 0.55))
    depth = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    meadow = 0.02 * np.sin(90 * x / (0.3 + depth)) * depth
    paint(picture, HORIZON - y, (0.42, 0.58, 0.32))
    picture += np.where(y > HORIZON, meadow, 0)[..., None]
    paint(picture, np.maximum(HORIZON - y, np.abs(x) - 0.02 - 0.34 * depth), (0.78, 0.7, 0.56))
    paint(picture, np.hypot(x / 3.2, y - 0.905) - 0.035, (0.6, 0.54, 0.44))
    for start, end, radius, color in (
        ((-0.005, 0.63), (-0.055, 0.88), 0.024, (0.16, 0.2, 0.32)),  # legs
        ((0.005, 0.63), (0.05, 0.9), 0.024, (0.2, 0.25, 0.4)),
        ((-0.02, 0.46), (0.075, 0.6), 0.017, (0.62, 0.16, 0.14)),  # arms
        ((0.0, 0.44), (0.0, 0.63), 0.048, (0.78, 0.22, 0.18)),  # jacket
        ((0.02, 0.46), (-0.07, 0.61), 0.017, (0.7, 0.18, 0.15)),
        ((0.0, 0.345), (0.0, 0.35), 0.04, (0.9, 0.72, 0.58)),  # head
        ((0.0, 0.322), (0.0, 0.323), 0.037, (0.25, 0.17, 0.12)),
    ):
        paint(picture, capsule(x, y, start, end) - radius, color)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


if __name__ == "__main__":
    IMAGE.parent.mkdir(exist_ok=True)
    Image.fromarray(draw()).save(IMAGE, optimize=True)
    print(f"wrote {IMAGE} ({IMAGE.stat().st_size:,} bytes)")
