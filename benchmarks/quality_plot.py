"""The plot of the quality table: PSNR to LLL against the time and the FLOPs that are saved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quality_rows import FAMILIES

if TYPE_CHECKING:
    from quality_report import Point

# Colours that are told apart with any colour vision (Okabe and Ito), one for each kind of method;
# within a kind the markers differ.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
LOOKS: dict[str, tuple[str, str, str]] = {
    "extrapolated": (RED, "o", "extrapolated, calibrated"),
    "extrapolated UniPC": (RED, "^", "the same under UniPC"),
    "free": (SKY, "o", "blending, calibrated, free"),
    "contiguous": (SKY, "s", "blending, calibrated, 3 stages"),
    "criteria": (SKY, "X", "blending, other criteria"),
    "combined": (BLACK, "o", "LSL with solver, cache, guidance"),
    "order": (BLACK, "s", "three stages"),
    "reference": (BLACK, "X", "all small"),
    "SL": (PURPLE, "<", "small, then large (T-Stitch)"),
    "LS": (PURPLE, ">", "large, then small (SRDiffusion)"),
    "Euler": (BLUE, "o", "fewer steps, Euler"),
    "UniPC": (BLUE, "^", "fewer steps, UniPC"),
    "DPM++ 2M": (BLUE, "D", "fewer steps, DPM++ 2M"),
    "first_block": (GREEN, "v", "FirstBlockCache"),
    "mag": (GREEN, "P", "MagCache"),
    "taylorseer": (GREEN, "h", "TaylorSeer"),
    "sea": (GREEN, "p", "SeaCache"),
    "cache_dit": (GREEN, "d", "cache-dit"),
    "E": (ORANGE, "*", "extrapolated, by a rule of thumb"),
}
NAMED = frozenset({"extrapolated", "order", "reference"})
STEPS = frozenset({"Euler"})  # the other solvers take the same numbers
CURVES = frozenset(LOOKS) - {"order", "reference", "combined", "criteria", "extrapolated UniPC"}
# Where a label may lie, in points from its point: the first that is free.
OFFSETS = ((6, 4), (6, -5), (-6, 4), (-6, -5), (0, 9), (0, -10), (8, 11), (8, -12), (-8, 11))
AXES = {"speed_up": "times faster than LLL, measured", "savings": "times fewer FLOPs than LLL"}
WIDTH = 1400  # of the picture in pixels, where it isn't a vector graphic


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw the points into a file.

    Args:
        points: Every row but LLL; those without a time are left out of that half.
        path: The file, .svg, .png or .webp. Equal points give equal bytes.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "flowblend", "font.size": 9, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    with mpl.rc_context(style):
        figure, panels = plt.subplots(1, 2, figsize=(11, 5.4), sharey=True, layout="constrained")
        for axis, panel in zip(AXES, panels, strict=True):
            _panel(panel, axis, points)
        panels[0].set_ylabel("PSNR to LLL, dB")
        handles, names = panels[1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
        figure.draw_without_rendering()  # so that places are known
        for axis, panel in zip(AXES, panels, strict=True):
            _labels(panel, axis, points)
        _save(figure, path)
        plt.close(figure)


def _panel(panel: Any, axis: str, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

    shown = [point for point in points if getattr(point, axis) is not None]
    panel.set_xscale("log")
    panel.set_xlabel(AXES[axis])
    panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    panel.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8, 12]))
    panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    for family in FAMILIES:
        found = [point for point in shown if point.family == family]
        if found:
            _family(panel, axis, family, found)
    if shown:
        places = [getattr(point, axis) for point in shown]
        panel.set_xlim(min(1.0, *places) * 0.95, max(places) * 1.2)


def _family(panel: Any, axis: str, family: str, points: Sequence[Point]) -> None:
    colour, marker, name = LOOKS[family]
    ours = family == "extrapolated"
    hollow = {"markerfacecolor": "white"} if family == "combined" else {}
    places = sorted((getattr(point, axis), point.psnr) for point in points)
    panel.plot(
        *zip(*places, strict=True),
        color=colour,
        marker=marker,
        markersize=7 if ours else 5,
        linestyle="-" if family in CURVES else "none",
        linewidth=2.2 if ours else 0.7,
        **hollow,
        zorder=3 if ours else 2,
        label=name,
    )


def _label(point: Point, last: bool) -> str:
    """What a point is called in the picture; most are told by the legend."""
    if point.family in NAMED:
        return point.name.removeprefix("extrapolated ")
    return f"{point.name.rsplit(' ', 1)[-1]} steps" if point.family in STEPS and last else ""


def _labels(panel: Any, axis: str, points: Sequence[Point]) -> None:
    """Write each label where it lies on the fewest points and other labels."""
    from matplotlib.transforms import Bbox

    shown = [point for point in points if getattr(point, axis) is not None]
    places = [(getattr(point, axis), point.psnr) for point in shown]
    taken = [Bbox([place, place]).padded(4) for place in panel.transData.transform(places)]
    last = {point.family: point for point in shown}
    for point, place in zip(shown, places, strict=True):
        text = _label(point, last=point is last[point.family])
        if text:
            ours = point.family == "extrapolated"
            label = panel.annotate(
                text,
                place,
                xytext=OFFSETS[0],
                textcoords="offset points",
                color=LOOKS[point.family][0],
                fontsize=8 if ours else 7,
                fontweight="bold" if ours else "normal",
                in_layout=False,
            )
            taken.append(_placed(label, panel.bbox, taken))


def _placed(label: Any, inside: Any, taken: Sequence[Any]) -> Any:
    """Move a label to the best of its offsets; where it then lies."""

    def move(offset: tuple[int, int]) -> Any:
        across = offset[0]
        label.set(position=offset, ha="left" if across > 0 else "right" if across < 0 else "center")
        return label.get_window_extent()

    def cost(offset: tuple[int, int]) -> int:
        box = move(offset)
        outside = (box.x1 > inside.x1) + (box.x0 < inside.x0)
        return 3 * outside + sum(box.overlaps(other) for other in taken)

    return move(min(OFFSETS, key=cost))


def _save(figure: Any, path: Path) -> None:
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        return
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=WIDTH / figure.get_figwidth(), metadata={})
    picture = Image.open(drawn).convert("RGB")
    if path.suffix == ".png":
        picture.quantize(128).save(path, optimize=True)
    else:
        picture.save(path, lossless=True, method=6)
