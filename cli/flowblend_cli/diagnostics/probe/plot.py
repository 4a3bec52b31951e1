"""The plot of a calibration: divergence, sensitivity, and the stages that criteria choose."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from flowblend_cli.diagnostics.probe.summary import error_in_words
from flowblend_cli.text import shorten
from flowblend_cli.utils.cache_dirs import settings_folder
from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.calibration.criteria import Choice, choose
from flowblend_plugin.errors import StageError

_SHOWN = ("contiguous", "free", "extrapolated")
# Okabe and Ito's colours, which people with any colour vision tell apart.
_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#222222"
_ROLES = {"large": _BLUE, "small": _ORANGE, "extrapolated": "#DDDDDD"}
_HATCHES = {"extrapolated": "///"}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "flowblend",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 10,
    "text.parse_math": False,  # names of models are no formulas
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_SIZE, _DPI = (12.0, 9.0), 100  # 1200 pixels wide
_MARK = "flowblend probe"
_METADATA = re.compile(rb"\s*<metadata>.*?</metadata>", re.DOTALL)
_TICKS = 10


def draw_pictures(calibration: Calibration, choice: Choice) -> tuple[bytes, bytes]:
    """Draw a calibration.

    Args:
        calibration: The calibration.
        choice: The schedule that was chosen from it, at some budget.

    Returns:
        The picture as SVG and as PNG, 1200 pixels wide; the same bytes for the same calibration
        under one version of matplotlib.
    """
    with settings_folder():
        import matplotlib as mpl
        from matplotlib.figure import Figure

        with mpl.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of letters that the font lacks
            mpl.rcdefaults()  # whatever matplotlibrc is about
            mpl.rcParams.update(_STYLE)
            figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
            _fill(figure, calibration, choice)
            svg, png = io.BytesIO(), io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None, "Title": _MARK})
            figure.savefig(
                png, format="png", metadata={"Software": _MARK}, pil_kwargs={"compress_level": 9}
            )
    # Its title stays; what else matplotlib says of it are addresses of other people's sites.
    return _METADATA.sub(b"", svg.getvalue(), count=1), png.getvalue()


def _fill(figure: Any, calibration: Calibration, choice: Choice) -> None:
    choices = _choices(calibration, choice)
    heights = [3.0, 3.0, 0.3 + 0.32 * len(choices)]
    upper, middle, strips = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    figure.suptitle(_title(calibration), fontsize=13, fontweight="bold", x=0.01, ha="left")
    upper.set_title(_conditions(calibration), fontsize=9.5, loc="left", color="#555555", pad=8)
    _draw_divergence(upper, calibration)
    _draw_sensitivity(middle, calibration)
    _draw_choices(strips, calibration, choices, choice)
    count = len(calibration.steps)
    strips.set_xlim(-0.5, count - 0.5)
    stride = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, count) if count / s <= _TICKS)
    ticks = list(range(0, count, stride))
    strips.set_xticks(ticks)
    strips.set_xlabel("step")
    above = upper.secondary_xaxis("top")
    above.set_xticks(ticks, [f"{calibration.steps[tick].sigma:.2f}" for tick in ticks])
    above.set_xlabel("noise level (sigma)")
    above.tick_params(length=3)


def _title(calibration: Calibration) -> str:
    large, small = (calibration.conditions.get(key) for key in ("pipeline", "small"))
    if small in (None, large):
        return f"Probe of {shorten(large, 80)}"
    return f"Probe of {shorten(large, 45)} (large) and {shorten(small, 45)} (small)"


def _conditions(calibration: Calibration) -> str:
    of = calibration.conditions.get
    size = f"{of('width')}x{of('height')}" if of("width") and of("height") else None
    prompts = f"{calibration.prompts} prompts ({calibration.sensitivity_prompts} for sensitivity)"
    parts = [
        size,
        f"{of('num_frames')} frames" if of("num_frames") else None,
        f"{len(calibration.steps)} steps",
        shorten(of("scheduler"), 30) if of("scheduler") else None,
        f"shift {of('flow_shift'):g}" if isinstance(of("flow_shift"), (int, float)) else None,
        f"guidance {of('guidance_scale')}" if of("guidance_scale") is not None else None,
        "SDE" if of("mode") == "sde" else None,
        prompts,
    ]
    return ", ".join(part for part in parts if part)


def _draw_divergence(axes: Any, calibration: Calibration) -> None:
    axes.set_ylabel("divergence of the velocities")
    curves = (
        ("guided_relative_l2", "relative L2, after guidance", _BLUE, False, 2.4, "-"),
        ("relative_l2", "before guidance", _BLUE, False, 1.2, "--"),
        ("guided_cosine", "1 - cosine, after guidance", _ORANGE, True, 2.4, "-"),
        ("cosine", "before guidance", _ORANGE, True, 1.2, "--"),
    )
    steps = [s for s in calibration.steps if all(c[0] in s.mean for c in curves)]
    at = [calibration.steps.index(step) for step in steps]
    for name, label, colour, is_cosine, width, line in curves:
        mean = [1 - s.mean[name] if is_cosine else s.mean[name] for s in steps]
        spread = [s.spread.get(name, 0.0) for s in steps]
        axes.plot(
            at, mean, line, color=colour, linewidth=width, label=label,
            marker="o" if width > 2 else None, markersize=3.5,
        )  # fmt: skip
        if width > 2:
            low = [max(0.0, m - s) for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_ylim(0, 1.18 * axes.get_ylim()[1])  # room for the legend
    axes.legend(ncols=4, loc="upper center", fontsize=9)


def _draw_sensitivity(axes: Any, calibration: Calibration) -> None:
    at = list(calibration.positions)
    effects = [math.sqrt(max(0.0, row[k])) for k, row in enumerate(calibration.interactions)]
    gains = [g or math.nan for g in calibration.gains()]
    axes.set_yscale("log")
    axes.set_ylabel("sensitivity (log scale)")
    axes.plot(
        at, [e or math.nan for e in effects], "-o", color=_GREEN, linewidth=2.4, markersize=6,
        label="change of the final latents by one small step, relative to them",
    )  # fmt: skip
    axes.plot(
        at, gains, "--s", color=_PINK, linewidth=1.4, markersize=5,
        label="gain: size of that change at the end, over its size at the step",
    )  # fmt: skip
    axes.margins(y=0.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.legend(ncols=2, loc="upper center", fontsize=9)


def _choices(calibration: Calibration, choice: Choice) -> list[Choice | str]:
    """The choice of each criterion for the budget; its name where it can't keep the budget."""
    model = calibration.at(calibration.levels)
    budget = float(choice.evidence["budget"])
    names = dict.fromkeys((*_SHOWN, choice.criterion))
    found: list[Choice | str] = []
    for name in names:
        try:
            found.append(choose(model, budget, name))
        except StageError:
            found.append(name)
    return found


def _draw_choices(
    axes: Any, calibration: Calibration, choices: Sequence[Choice | str], chosen: Choice
) -> None:
    from matplotlib.patches import Patch

    names = []
    for row, one in enumerate(choices):
        if isinstance(one, str):
            names.append(f"{one}: not possible")
            continue
        _draw_strip(axes, row, one)
        is_chosen = one.criterion == chosen.criterion
        names.append(
            f"{'▸ ' if is_chosen else ''}{one.criterion}\nshare {one.share:.2f}, error "
            f"{error_in_words(one.predicted_error).replace(' of the result', '')}"
        )
    axes.set_yticks(range(len(choices)), names, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    for label, one in zip(axes.get_yticklabels(), choices, strict=True):
        if isinstance(one, Choice) and one.criterion == chosen.criterion:
            label.set_fontweight("bold")
    axes.set_ylim(len(choices) - 0.4, -0.6)
    axes.grid(visible=False)
    for side in ("left", "top"):
        axes.spines[side].set_visible(False)
    budget = float(chosen.evidence["budget"])
    axes.set_title(f"chosen for a budget of {budget:g} of the all-large cost", fontsize=10,
                   loc="left")  # fmt: skip
    handles = [
        Patch(facecolor=colour, edgecolor="white", hatch=_HATCHES.get(role), label=role)
        for role, colour in _ROLES.items()
    ]
    axes.legend(handles=handles, ncols=3, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.98))


def _draw_strip(axes: Any, row: int, choice: Choice) -> None:
    start = 0
    for role, group in itertools.groupby(choice.denoisers):
        length = len(list(group))
        axes.barh(
            row, length, left=start - 0.5, height=0.62, color=_ROLES.get(role, _BLACK),
            edgecolor="white", linewidth=0.8,
            hatch=_HATCHES.get(role),
        )  # fmt: skip
        start += length
