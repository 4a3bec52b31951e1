"""``report.html``: one page that holds everything but the clips beside it."""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flowblend_cli import __version__
from flowblend_cli.analysis.clips.clip import Clip, MetricInfo, Section
from flowblend_cli.analysis.clips.variants import find_variants, group
from flowblend_cli.analysis.compare import sentences
from flowblend_cli.analysis.compare.findings import RecipeReport, Report
from flowblend_cli.analysis.report import opinions, tables
from flowblend_cli.analysis.report.json_report import distinct_versions
from flowblend_cli.analysis.report.plots import draw
from flowblend_cli.analysis.web import render_page
from flowblend_cli.text import count, printable

if TYPE_CHECKING:
    from flowblend_cli.analysis.review.unblinding import Reviews

MARK = "flowblend report"
MOST_POSTERS = 60
"""Pictures on one page; further clips stand in the table of all clips."""

MOST_PLAYED = 120
"""Clips that the player offers."""

_FIRM = "\N{NO-BREAK SPACE}"
_MOST_COLUMNS = 8


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
        shown, left = _part(part, report, folder, f"p{number}", left)
        parts.append(shown)
    clips = [clip for part in report.parts for clip in part.section.clips]
    page = render_page(
        "report.html.j2",
        scripts=("player.js", "report.js"),
        styles=("player.css", "report.css"),
        mark=f"{MARK} {__version__}",
        title=parts[0]["name"] if len(parts) == 1 else printable(report.folder.name),
        facts=_facts(clips),
        parts=parts,
        warnings=[printable(warning) for warning in report.folder.warnings],
        metrics=_definitions(report.folder.metrics, clips),
        versions=[(n, ", ".join(map(printable, v))) for n, v in distinct_versions(clips).items()],
        reviews=None if reviews is None else opinions.table(reviews),
        most_posters=MOST_POSTERS,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _sentence(text: str) -> str:
    """A sentence in which no line ends between a number and what belongs to it."""
    for part in (" ± ", " %", " s ", " dB"):
        text = text.replace(part, part.replace(" ", _FIRM, 1 if part == " s " else 2))
    return printable(text)


def _facts(clips: Sequence[Clip]) -> list[str]:
    """The size of it all, in a few words each."""
    pictures = sum(clip.is_picture for clip in clips)
    nouns = [(len(clips) - pictures, "clip"), (pictures, "picture")]
    seconds = [second for clip in clips for second in clip.record.elapsed_s]
    devices = sorted({clip.device for clip in clips if clip.device})
    return [
        " and ".join(count(number, noun) for number, noun in nouns if number),
        count(len({clip.job.scene for clip in clips}), "scene"),
        *([f"{sentences.seconds(sum(seconds))} of rendering"] if seconds else []),
        *([f"on {printable(', '.join(devices))}"] if devices else []),
    ]


def _part(
    part: RecipeReport, report: Report, folder: Path, prefix: str, left: int
) -> tuple[dict[str, Any], int]:
    cards, sheet = _pictures(part, folder, left)
    infos = report.folder.metrics
    labels = {job: row.label for row in part.comparison.rows for job in row.jobs}
    clips = part.section.clips
    return {
        "id": prefix,
        "name": printable(part.section.name),
        "lead": _sentence(part.sentences[0].text),
        "verdicts": [(one.tone, _sentence(one.text)) for one in part.sentences[1:]],
        "winners": [cards[one.job] for one in part.comparison.winners if one.job in cards],
        "sheet": sheet,
        "hidden": len(clips) - len(cards),
        "plots": draw(part, infos, prefix),
        "table": tables.table(part.comparison),
        "metrics": tables.metrics_table(part.comparison, infos),
        "rule": tables.rule(part.comparison),
        "determinism": [
            tables.same(one, group) for one in part.determinism for group in one.groups
        ],
        "spreads": [tables.spread(one) for one in part.section.spreads],
        "drafts": [tables.drafts(one) for one in part.drafts],
        "adapted": [tables.adapted(one) for one in part.adapted],
        "player": _played(part, labels),
        "clips": [_clip_row(clip, part, labels) for clip in clips],
        "fixed": [(printable(key), printable(value)) for key, value in part.comparison.fixed],
        "recipe": _recipe(part.section),
    }, left - len(cards)


def _pictures(
    part: RecipeReport, folder: Path, left: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Cards of the clips that are shown, winners first, and how they are laid out."""
    winners = [clip for clip in part.section.clips if clip.id in part.winners]
    shown = list({clip.id: clip for clip in (*winners, *part.section.clips)}.values())[:left]
    labels = {job: row.label for row in part.comparison.rows for job in row.jobs}
    cards = {clip.id: _card(clip, part, folder, labels) for clip in shown}
    rows = part.comparison.rows
    kept = [clip for clip in part.section.clips if clip.id in cards]
    if not 2 <= len(rows) <= _MOST_COLUMNS:
        return cards, {"heads": [], "rows": [], "cards": [cards[clip.id] for clip in kept]}
    listed = [clip for clip in kept if clip.id in labels]
    variants = find_variants(listed, part.comparison.axes)
    lines = group(listed, lambda clip: (*clip.subject, *clip.noise))
    columns = [{clip.id for clip in variant.clips} for variant in variants]
    matrix = [
        {
            "head": printable(some[0].job.scene),
            "seed": _seed(some[0]),
            "cells": [next((cards[c.id] for c in some if c.id in ids), None) for ids in columns],
        }
        for some in lines.values()
    ]
    rest = [cards[clip.id] for clip in kept if clip.id not in labels]
    heads = [printable(variant.label) for variant in variants]
    return cards, {"heads": heads, "rows": matrix, "cards": rest}


def _seed(clip: Clip) -> str:
    noise = clip.job.sampling.noise_seed
    return f"seed {clip.seed}" + ("" if noise is None else f", noise {noise}")


def _card(
    clip: Clip, part: RecipeReport, folder: Path, labels: Mapping[str, str]
) -> dict[str, Any]:
    is_kept = clip.kind == "adapted" and clip.record.accepted
    return {
        "url": address(clip.name),
        "poster": poster(folder / clip.name),
        "is_video": not clip.is_picture,
        "scene": printable(clip.job.scene),
        "label": printable(labels.get(clip.id, "") if len(part.comparison.rows) > 1 else ""),
        "seed": _seed(clip),
        "alt": printable(f"{clip.job.scene}, {_seed(clip)}: {clip.job.prompt}"),
        "prompt": printable(clip.job.prompt),
        "score": None if clip.score is None else sentences.points(clip.score),
        "seconds": None if clip.seconds is None else sentences.seconds(clip.seconds),
        "is_winner": clip.id in part.winners,
        "tag": printable(f"{clip.kind}, kept" if is_kept else clip.kind),
        "id": printable(clip.id),
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
    told = [named, clip.job.scene, _seed(clip), clip.kind]
    star = "★ " if clip.id in part.winners else ""
    return {
        "id": printable(clip.id),
        "label": printable(star + " · ".join(one for one in told if one)),
        "url": address(clip.name),
        "poster": None,
        "fps": clip.job.output.fps,
        "frames": clip.job.argument("num_frames"),
        "kind": "image" if clip.is_picture else "video",
    }


def _clip_row(clip: Clip, part: RecipeReport, labels: Mapping[str, str]) -> dict[str, Any]:
    step = clip.seconds_per_step
    memory = clip.record.peak_vram_bytes or clip.record.peak_rss_bytes
    return {
        "id": printable(clip.id),
        "url": address(clip.name),
        "scene": printable(clip.job.scene),
        "prompt": printable(clip.job.prompt),
        "seed": _seed(clip),
        "steps": clip.job.num_inference_steps,
        "label": printable(labels.get(clip.id, clip.kind)),
        "score": "" if clip.score is None else sentences.points(clip.score),
        "seconds": "" if clip.seconds is None else sentences.seconds(clip.seconds),
        "step": "" if step is None else sentences.seconds(step),
        "memory": f"{memory / 2**20:,.0f} MiB" if memory else "",
        "measured": clip.record.measured_on,
        "is_winner": clip.id in part.winners,
    }


def _recipe(section: Section) -> dict[str, Any] | None:
    kept = section.recipe
    if kept is None:
        return None
    return {
        "path": printable(kept.path),
        "text": "\n".join(map(printable, kept.text.expandtabs(4).splitlines())),
        "overrides": [printable(one) for one in kept.overrides],
    }


def _definitions(infos: Mapping[str, MetricInfo], clips: Iterable[Clip]) -> list[dict[str, str]]:
    known = {name for clip in clips for name in clip.record.metrics}
    better = {"higher": "higher is better", "lower": "lower is better", "neither": "no direction"}
    return [
        {
            "name": name,
            "unit": info.unit,
            "better": better.get(info.better, ""),
            "definition": info.definition,
            "source": info.source,
        }
        for name, info in infos.items()
        if name in known
    ]


def poster(path: Path) -> str:
    """One frame of a clip, from its middle, or a picture, small, as a ``data:`` address.

    Args:
        path: A finished file, mp4 or PNG.

    Returns:
        The address of a WebP of at most 200 pixels a side; empty where the file can't be decoded.
    """
    from PIL import Image

    try:
        image = _still(path)
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=6)
    except (OSError, ValueError, IndexError):  # FFmpeg's errors are among them
        return ""
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _still(path: Path) -> Any:
    from PIL import Image

    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.convert("RGB")
    import av

    with av.open(str(path), format="mp4") as container:
        stream = container.streams.video[0]
        middle = max(stream.frames // 2, 0)
        frames = itertools.islice(container.decode(stream), middle + 1)
        *_, frame = frames
        return Image.fromarray(frame.to_ndarray(format="rgb24"))


def address(name: str) -> str:
    """Where a file beside the page is, whatever characters its name has."""
    return quote(os.fsencode(name), safe="")
