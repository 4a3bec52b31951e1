"""Plots of a comparison as small SVG drawings, in the colours and letters of a report's page."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.clips.variants import STEPS, group
from flowblend_cli.analysis.compare.conclusions import Comparison, VariantSummary, pair_of
from flowblend_cli.analysis.compare.findings import RecipeReport
from flowblend_cli.analysis.compare.statistics import summarise
from flowblend_cli.analysis.report.tables import shown_metrics
from flowblend_cli.errors import UsageError
from flowblend_cli.text import shorten
from flowblend_cli.utils.cache_dirs import settings_folder
from flowblend_plugin.metrics.catalogue import METRICS

HUMAN_SCORES = {30: 5.8, 50: 8.4, 70: 8.2, 80: 7.87, 100: 7.2}
"""Scores of five people, 0 to 10, of one clip by its number of steps: the mean of naturalness,
sharpness and temporal consistency."""
HUMAN_SOURCE = "I2VGen-XL step study: 1 picture, 1 prompt, best of 3 renders, 5 raters"

_SIZE = (4.4, 3.0)  # inches of 72 units: small, so that letters stay readable on a phone
_MOST_ROWS = 12
_MOST_METRICS = 6
# Colours of no drawing: each is replaced by a class, and the page says what it looks like.
_INK, _QUIET, _LINE = "#010101", "#020202", "#030303"
_SERIES = ("#0a0000", "#0b0000", "#0c0000", "#0d0000")
_HUMAN = "#0e0000"
_CLASSES = {
    _INK: "ink", _QUIET: "quiet", _LINE: "line", _HUMAN: "human",
    **{colour: f"series{number}" for number, colour in enumerate(_SERIES)},
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "flowblend",
    "svg.fonttype": "none",  # letters stay letters, in the page's own font
    "font.family": "DejaVu Sans",  # comes with matplotlib: every machine lays out the same
    "font.size": 11,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "xtick.color": _LINE, "ytick.color": _LINE,
    "xtick.labelcolor": _QUIET, "ytick.labelcolor": _QUIET,
    "axes.edgecolor": _LINE,
    "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "grid.color": _LINE, "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False,
}  # fmt: skip


Points = dict[tuple[Any, ...], float]


@dataclass(frozen=True)
class Plot:
    """One drawing.

    Args:
        title: Its title.
        unit: Unit of what is drawn; empty for a plain number.
        caption: What is drawn, in words.
        note: A remark below it; empty for none.
        svg: The drawing, to be put into a page as it is.
    """

    title: str
    unit: str
    caption: str
    note: str
    svg: str


def draw(part: RecipeReport, prefix: str) -> tuple[Plot, ...]:
    """Draw a recipe's comparison: score, seconds, and each metric of the score by variant.

    Args:
        part: The clips, and what they say.
        prefix: Start of every id in the drawings: unique in the page.

    Returns:
        The drawings; none where there is nothing to compare. The same for the same clips under one
        version of matplotlib.

    Raises:
        UsageError: matplotlib isn't installed.
    """
    if len(part.comparison.rows) < 2:
        return ()
    try:
        with settings_folder():
            import matplotlib as mpl
    except ImportError as error:
        raise UsageError(
            "pages need matplotlib, which isn't installed: pip install 'flowblend[report]'"
        ) from error
    with settings_folder(), mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of letters that the font lacks
        mpl.rcdefaults()  # whatever matplotlibrc is about
        mpl.rcParams.update(_STYLE)
        return tuple(_drawings(part, prefix))


def _drawings(part: RecipeReport, prefix: str) -> Iterator[Plot]:
    comparison = part.comparison
    clips = {clip.id: clip for clip in part.section.clips}
    number = 0

    def plot(title: str, unit: str, value: Callable[[Clip], float | None]) -> Plot | None:
        nonlocal number
        known: list[Points] = []
        for row in comparison.rows:
            some = {pair_of(clips[job]): value(clips[job]) for job in row.jobs}
            known.append({pair: one for pair, one in some.items() if one is not None})
        if sum(map(bool, known)) < 2:
            return None
        number += 1
        human = title.startswith("Score")
        svg, has_human = _draw(comparison, known, f"{prefix}{number}", human)
        caption = f"{title} of each clip, and the mean of each variant with its 95 % interval"
        note = f"Dashed: what people gave, in tenths. {HUMAN_SOURCE}." if has_human else ""
        return Plot(title, unit, caption, note, svg)

    wanted = [
        plot("Score ↑", "0 to 1", lambda clip: clip.score),
        plot("Seconds ↓", "median of a clip's renders", lambda clip: clip.seconds),
    ]
    for name in shown_metrics(comparison)[:_MOST_METRICS]:
        metric = METRICS[name]
        better = {"higher": " ↑", "lower": " ↓"}.get(metric.better, "")
        title = name.replace("_", " ").capitalize() + better
        wanted.append(plot(title, metric.unit, _metric_of(name)))
    yield from (one for one in wanted if one is not None)


def _metric_of(name: str) -> Callable[[Clip], float | None]:
    return lambda clip: clip.record.metrics.get(name)


def _draw(
    comparison: Comparison, points: list[Points], prefix: str, human: bool
) -> tuple[str, bool]:
    from matplotlib.figure import Figure

    over_steps = STEPS in comparison.axes
    figure = Figure(figsize=_SIZE, layout=None if over_steps else "constrained")
    axes = figure.subplots()
    drawn = False
    if over_steps:
        figure.subplots_adjust(left=0.13, right=0.985, bottom=0.17, top=0.97)
        lines = _lines_over_steps(comparison.rows)
        for number, (name, places) in enumerate(lines.items()):
            colour = _SERIES[number % len(_SERIES)]
            steps = [comparison.rows[place].steps or 0 for place in places]
            _line(axes, steps, [points[place] for place in places], colour, name)
        drawn = human and _human(axes, [row.steps or 0 for row in comparison.rows])
        axes.set_xlabel("steps")
        axes.locator_params(axis="x", integer=True)
        axes.grid(visible=False, axis="x")
        if len(lines) > 1 or drawn:
            axes.legend(fontsize=10, labelcolor=_QUIET)
    else:
        shown = range(min(len(points), _MOST_ROWS))
        for place in shown:
            values = list(points[place].values())
            summary = summarise(values)
            if summary is None:
                continue
            row = comparison.rows[place]
            axes.plot(values, [place] * summary.n, "o", color=_SERIES[0], ms=4, alpha=0.45)
            ends = [[summary.half or 0.0]] * 2
            axes.errorbar([summary.mean], [place], xerr=ends, fmt="D" if row.is_winner else "s",
                          color=_SERIES[0], ms=6, capsize=4, lw=1.6)  # fmt: skip
        labels = [shorten(comparison.rows[place].label, 24) for place in shown]
        axes.set_yticks(list(shown), labels=labels)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
    return _svg(figure, prefix), drawn


def _lines_over_steps(rows: Sequence[VariantSummary]) -> dict[str, list[int]]:
    """Rows that differ in steps alone are one line; places of rows by the line's name."""
    names = [shorten(", ".join(row.labels_without_steps) or "mean", 30) for row in rows]
    lines = group(range(len(rows)), lambda place: names[place])
    return dict(list(lines.items())[: len(_SERIES)])


def _line(axes: Any, steps: list[int], points: list[Points], colour: str, name: str) -> None:
    summary = [
        (step, summarise(list(some.values()))) for step, some in zip(steps, points, strict=True)
    ]
    known = [(step, one) for step, one in summary if one is not None]
    for pair in {pair: None for some in points for pair in some}:
        own = [(x, some[pair]) for x, some in zip(steps, points, strict=True) if pair in some]
        axes.plot(*zip(*own, strict=True), "-o", color=colour, ms=3.2, lw=0.7, alpha=0.35, mew=0)
    xs = [step for step, _ in known]
    axes.plot(xs, [one.mean for _, one in known], "-o", color=colour, ms=5, lw=1.8, label=name)
    if all(one.low is not None for _, one in known):
        lows, highs = [one.low for _, one in known], [one.high for _, one in known]
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.16, lw=0)


def _human(axes: Any, steps: Sequence[int]) -> bool:
    """Draw people's scores as tenths, where the range of steps allows it."""
    first, last = min(steps), max(steps)
    if last < min(HUMAN_SCORES) or first > max(HUMAN_SCORES):
        return False
    axes.autoscale(enable=True)
    limits = axes.get_xlim()
    axes.plot(list(HUMAN_SCORES), [score / 10 for score in HUMAN_SCORES.values()], "--",
              color=_HUMAN, lw=1.4, label="people, I2VGen-XL")  # fmt: skip
    margin = 0.05 * max(last - first, 1)
    axes.set_xlim(min(limits[0], first - margin), max(limits[1], last + margin))
    return True


def _svg(figure: Any, prefix: str) -> str:
    """The figure as an element that a page can hold: no style, no address, ids of its own."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - our own drawing
    text = ET.tostring(root, encoding="unicode")
    used = set(re.findall(r"#([\w-]+)", text))
    _clean(root, prefix, used)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.set("aria-hidden", "true")  # the caption and the table say the same in words
    root.set("focusable", "false")
    return ET.tostring(root, encoding="unicode")


_DROPPED = {"metadata", "style", "title"}


def _clean(element: ET.Element, prefix: str, used: set[str]) -> None:
    element.tag = element.tag.rpartition("}")[2]
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.rpartition("}")[2] in _DROPPED:
            element.remove(child)
        else:
            _clean(child, prefix, used)
    attributes = dict(element.attrib)
    element.attrib.clear()
    for key, value in attributes.items():
        name = key.rpartition("}")[2]
        if name == "id":
            if value in used:
                element.set("id", f"{prefix}-{value}")
        elif name == "style":
            _spread_style(element, value)
        elif name == "href":
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        else:
            element.set(name, value.replace("url(#", f"url(#{prefix}-"))


def _spread_style(element: ET.Element, style: str) -> None:
    """Turn a style, which the page's policy forbids, into attributes and classes."""
    classes = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name in ("fill", "stroke") and value in _CLASSES:
            classes.append(f"{name}-{_CLASSES[value]}")
        elif name == "font":
            size = re.search(r"([\d.]+)px", value)
            element.set("font-size", size[1] if size else "9")
        elif name and name != "font-family":
            element.set(name, value)
    if element.tag == "text" and not classes:
        classes.append("fill-ink")
    if classes:
        element.set("class", " ".join(classes))
