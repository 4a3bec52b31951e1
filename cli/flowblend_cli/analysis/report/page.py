"""``report.html``: one page with everything but the clips, which lie beside it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flowblend_cli import __version__
from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.clips.variants import find_variants, group
from flowblend_cli.analysis.compare import sentences
from flowblend_cli.analysis.compare.findings import RecipeReport, Report
from flowblend_cli.analysis.report import opinions, tables
from flowblend_cli.analysis.report.json_report import distinct_versions
from flowblend_cli.analysis.report.plots import draw
from flowblend_cli.analysis.web import render_page
from flowblend_cli.text import count, printable
from flowblend_cli.utils.files import open_regular
from flowblend_cli.utils.limits import MAX_FINISHED_BYTES
from flowblend_plugin.metrics.catalogue import METRICS

if TYPE_CHECKING:
    from flowblend_cli.analysis.review.unblinding import Reviews
    from flowblend_cli.utils.frames import Frames

MARK = "flowblend report"
MOST_POSTERS = 60
"""Pictures on one page; further clips stand in the table of all clips."""

MOST_PLAYED = 120
"""Clips that the player offers."""

_FIRM = "\N{NO-BREAK SPACE}"
_MOST_COLUMNS = 8
_MOST_METRICS = 8
_SIDE = 200
_QUALITY = 80


def to_html(report: Report, folder: Path, reviews: Reviews | None = None) -> str:
    """Make the page of a report.

    Args:
        report: The report.
        folder: Where the clips are, beside which the page will lie.
        reviews: What people scored, un-blinded and joined; None without reviews.

    Returns:
        The page; the same for the same files and versions.

    Raises:
        UsageError: The extra ``report`` isn't installed.
    """
    left = MOST_POSTERS
    parts = []
    for number, part in enumerate(report.parts):
        parts.append(_part(part, folder, f"p{number}", left))
        left -= len(parts[-1]["cards"])
    clips = [clip for part in report.parts for clip in part.section.clips]
    known = {name for clip in clips for name in clip.record.metrics}
    page = render_page(
        "report.html.j2",
        scripts=("player.js", "report.js"),
        styles=("player.css", "report.css"),
        filters=_FILTERS,
        mark=f"{MARK} {__version__}",
        title=parts[0]["name"] if len(parts) == 1 else report.folder.name,
        facts=_facts(clips),
        parts=parts,
        warnings=report.folder.warnings,
        catalogue=METRICS,
        metrics=[metric for name, metric in METRICS.items() if name in known],
        versions=distinct_versions(clips),
        reviews=None if reviews is None else opinions.table(reviews),
        most_posters=MOST_POSTERS,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def address(name: str) -> str:
    """The URL of a file beside the page, whatever characters its name has."""
    return quote(os.fsencode(name), safe="")


def _or_nothing(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """A way to write a value that writes nothing for None."""
    return lambda value: "" if value is None else write(value)


def _sentence(text: str) -> str:
    """A sentence in which no line ends between a number and what belongs to it."""
    for part in (" ± ", " %", " s ", " dB"):
        text = text.replace(part, part.replace(" ", _FIRM, 1 if part == " s " else 2))
    return text


_FILTERS: dict[str, Callable[..., Any]] = {
    "address": address,
    "sentence": _sentence,
    "number": _or_nothing(sentences.number),
    "points": _or_nothing(sentences.points),
    "seconds": _or_nothing(sentences.seconds),
    "share": _or_nothing(sentences.share),
    "decibels": _or_nothing("{:.1f} dB".format),
    "mebibytes": _or_nothing(lambda size: f"{size / 2**20:,.0f} MiB"),
    "sample_size": tables.sample_size,
    "from_best": tables.from_best,
    "metric_with_interval": tables.metric_with_interval,
}


def _facts(clips: Sequence[Clip]) -> list[str]:
    """The size of the folder and the cost of its clips, in a few words each."""
    pictures = sum(clip.is_picture for clip in clips)
    nouns = [(len(clips) - pictures, "clip"), (pictures, "picture")]
    seconds = [second for clip in clips for second in clip.record.elapsed_s]
    devices = sorted({clip.device for clip in clips if clip.device})
    return [
        " and ".join(count(number, noun) for number, noun in nouns if number),
        count(len({clip.job.scene for clip in clips}), "scene"),
        *([f"{sentences.seconds(sum(seconds))} of rendering"] if seconds else []),
        *([f"on {', '.join(devices)}"] if devices else []),
    ]


def _part(part: RecipeReport, folder: Path, prefix: str, left: int) -> dict[str, Any]:
    """The template's values of one recipe, with pictures of at most ``left`` clips."""
    comparison, section = part.comparison, part.section
    labels = {job: row.label for row in comparison.rows for job in row.jobs}
    winners = [clip for clip in section.clips if clip.id in part.winners]
    shown = list({clip.id: clip for clip in (*winners, *section.clips)}.values())[:left]
    cards = {clip.id: _card(clip, part, folder, labels) for clip in shown}
    metrics = tables.shown_metrics(comparison) if len(comparison.rows) > 1 else []
    return {
        "id": prefix,
        "name": section.name,
        "report": part,
        "section": section,
        "rows": comparison.rows if len(comparison.rows) > 1 else (),
        "winners": [cards[one.job] for one in comparison.winners if one.job in cards],
        "cards": cards,
        "sheet": _sheet(part, cards, labels),
        "plots": draw(part, prefix),
        "metrics": metrics[:_MOST_METRICS],
        "rule": tables.rule(comparison),
        "equal": [(one.mode, each) for one in part.determinism for each in one.groups],
        "player": _played(part, labels),
        "labels": labels,
    }


def _sheet(
    part: RecipeReport, cards: Mapping[str, dict[str, Any]], labels: Mapping[str, str]
) -> dict[str, Any]:
    """The contact sheet: a row for each scene and seed, a column for each variant, if they fit."""
    kept = [clip for clip in part.section.clips if clip.id in cards]
    if not 2 <= len(part.comparison.rows) <= _MOST_COLUMNS:
        return {"heads": [], "rows": [], "cards": [cards[clip.id] for clip in kept]}
    listed = [clip for clip in kept if clip.id in labels]
    variants = find_variants(listed, part.comparison.axes)
    columns = [{clip.id for clip in variant.clips} for variant in variants]
    lines = group(listed, lambda clip: (*clip.subject, *clip.noise)).values()
    return {
        "heads": [variant.label for variant in variants],
        "rows": [
            (some[0], [next((cards[c.id] for c in some if c.id in ids), None) for ids in columns])
            for some in lines
        ],
        "cards": [cards[clip.id] for clip in kept if clip.id not in labels],
    }


def _card(
    clip: Clip, part: RecipeReport, folder: Path, labels: Mapping[str, str]
) -> dict[str, Any]:
    is_kept = clip.kind == "adapted" and clip.record.accepted
    return {
        "clip": clip,
        "poster": poster(folder / clip.name),
        "label": labels.get(clip.id, "") if len(part.comparison.rows) > 1 else "",
        "is_winner": clip.id in part.winners,
        "tag": f"{clip.kind}, kept" if is_kept else clip.kind,
    }


def _played(part: RecipeReport, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The player's clips: a winner first, then another variant of the same scene and seed."""
    clips = list(part.section.clips)
    if len(clips) < 2:
        return []
    first = next((clip for clip in clips if clip.id in part.winners), clips[0])
    rest = [clip for clip in clips if clip is not first]

    def distance(clip: Clip) -> tuple[bool, bool, int]:
        steps = abs(clip.job.num_inference_steps - first.job.num_inference_steps)
        return clip.subject != first.subject, clip.noise != first.noise, -steps

    second = min(rest, key=distance)
    ordered = [first, second, *(clip for clip in rest if clip is not second)]
    return [_played_clip(clip, part, labels) for clip in ordered[:MOST_PLAYED]]


def _played_clip(clip: Clip, part: RecipeReport, labels: Mapping[str, str]) -> dict[str, Any]:
    named = labels.get(clip.id, "") if len(part.comparison.rows) > 1 else ""
    words = [named, clip.job.scene, clip.seed_label, clip.kind]
    star = "★ " if clip.id in part.winners else ""
    return {
        "id": printable(clip.id),
        "label": printable(star + " · ".join(one for one in words if one)),
        "url": address(clip.name),
        "poster": None,
        "fps": clip.job.output.fps,
        "frames": clip.job.argument("num_frames"),
        "kind": "image" if clip.is_picture else "video",
    }


def poster(path: Path) -> str:
    """One frame of a clip, from its middle, or a picture, small, as a ``data:`` address.

    Args:
        path: A finished file, mp4 or PNG.

    Returns:
        The address of a WebP of at most 200 pixels a side; empty where the file can't be decoded.
    """
    from PIL import Image

    try:
        image = Image.fromarray(_still(path))
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=6)
    except (OSError, ValueError, IndexError):  # FFmpeg's errors are among them
        return ""
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _still(path: Path) -> Frames:
    from flowblend_cli.artifacts.reading import decode_picture, middle_frame

    with open_regular(path, MAX_FINISHED_BYTES) as file:
        return decode_picture(file) if path.suffix == ".png" else middle_frame(file)
