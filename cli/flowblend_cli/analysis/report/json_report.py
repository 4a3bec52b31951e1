"""``report.json``: everything that a report knows, as plain JSON values. Pure Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flowblend_cli import __version__
from flowblend_cli.analysis.clips.clip import Clip, Section
from flowblend_cli.analysis.compare.conclusions import Comparison, VariantSummary, peak_and_fall
from flowblend_cli.analysis.compare.findings import RecipeReport, Report
from flowblend_plugin.metrics.catalogue import METRICS, Metric

if TYPE_CHECKING:
    from flowblend_cli.analysis.review.unblinding import Reviews

VERSION = 1
_METRIC_KEYS = ("name", "unit", "better", "definition", "source", "needs")


def to_document(report: Report, reviews: Reviews | None = None) -> dict[str, Any]:
    """A report as plain JSON values.

    Args:
        report: The report.
        reviews: What people scored, un-blinded and joined; None without reviews.
    """
    clips = [clip for part in report.parts for clip in part.section.clips]
    document: dict[str, Any] = {
        "v": VERSION,
        "flowblend": __version__,
        "report": report.folder.name,
        "jobs": [_job(clip, part) for part in report.parts for clip in part.section.clips],
        "studies": [_study(part) for part in report.parts],
        "determinism": [
            {"recipe": part.section.name, **asdict(one), "renders": one.renders,
             "equal": one.equal, "holds": one.holds}
            for part in report.parts
            for one in part.determinism
        ],
        "warnings": list(report.folder.warnings),
        "recipes": [_recipe(part.section) for part in report.parts],
        "versions": distinct_versions(clips),
        "machine": {"device": sorted({clip.device for clip in clips if clip.device})},
        "metrics": {
            name: {key: getattr(metric, key) for key in _METRIC_KEYS}
            for name, metric in METRICS.items()
        },
    }  # fmt: skip
    if reviews is not None:
        document["reviews"] = asdict(reviews)
    return document


def to_text(document: Mapping[str, Any]) -> str:
    """Write a report's document for machines and people."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _job(clip: Clip, part: RecipeReport) -> dict[str, Any]:
    row = next((row for row in part.comparison.rows if clip.id in row.jobs), None)
    record = clip.record
    values = {**clip.record.metrics, **_run_metrics(clip, row)}
    names = [*METRICS, *(name for name in values if name not in METRICS)]
    return {
        "job": clip.id,
        "recipe": clip.job.recipe,
        "scene": clip.job.scene,
        "seed": clip.seed,
        "noise_seed": clip.job.sampling.noise_seed,
        "num_inference_steps": clip.job.num_inference_steps,
        "elapsed_s": clip.seconds,
        "metrics": {
            name: _metric(values[name], METRICS.get(name)) for name in names if name in values
        },
        "score": clip.score,
        "winner": clip.id in part.winners,
        "path": clip.name,
        "prompt": clip.job.prompt,
        "variant": {} if row is None else dict(row.values),
        "variant_label": "" if row is None else row.label,
        "origin": asdict(clip.job.origin) if clip.job.origin else None,
        "accepted": record.accepted,
        "renders_s": list(record.elapsed_s),
        "renders_equal": len(set(record.pixels)) == 1 if len(record.pixels) > 1 else None,
        "pixels_sha256": record.pixels_sha256,
        "denoisers": clip.denoisers,
        "measured_on": record.measured_on or None,
    }


def _metric(value: float, metric: Metric | None) -> dict[str, Any]:
    unit, better = (metric.unit, metric.better) if metric else ("", "neither")
    return {"value": value, "unit": unit, "better": better}


def _run_metrics(clip: Clip, row: VariantSummary | None) -> dict[str, float]:
    """Time, memory and equality of a clip's renders, under the names that metrics have."""
    found = clip.costs
    pixels = clip.record.pixels
    if len(pixels) > 1:
        found["bit_equal"] = float(len(set(pixels)) == 1)
    if row is not None and row.share and row.seconds and clip.seconds is not None:
        found["elapsed_share"] = 100 * clip.seconds * row.share / row.seconds.median
    return found


def _study(part: RecipeReport) -> dict[str, Any]:
    comparison = part.comparison
    return {
        "recipe": part.section.name,
        "verdicts": [asdict(verdict) for verdict in part.sentences],
        "axes": list(comparison.axes),
        "fixed": dict(comparison.fixed),
        "variants": [{**asdict(row), "values": dict(row.values)} for row in comparison.rows],
        "winner": comparison.winner.label if comparison.winner else None,
        "best": comparison.best.label if comparison.best else None,
        "winners": [asdict(one) for one in comparison.winners],
        "share_of": comparison.standard or None,
        "peak": _peak(comparison),
        "spreads": [asdict(one) for one in part.section.spreads],
        "drafts": [{**asdict(one), "saved": one.saved} for one in part.drafts],
        "adapted": [asdict(one) for one in part.adapted],
    }


def _peak(comparison: Comparison) -> dict[str, Any] | None:
    found = peak_and_fall(comparison)
    if found is None:
        return None
    peak, last, lost = found
    return {"steps": peak.steps, "most_steps": last.steps, "fall": asdict(lost) if lost else None}


def _recipe(section: Section) -> dict[str, Any]:
    kept = section.recipe
    return {
        "name": section.name,
        "path": kept.path if kept else None,
        "text": kept.text if kept else None,
        "overrides": list(kept.overrides) if kept else [],
    }


def distinct_versions(clips: Iterable[Clip]) -> dict[str, list[str]]:
    """Versions that the clips were rendered with, by package."""
    found: dict[str, set[str]] = {}
    for clip in clips:
        for name, version in clip.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(values) for name, values in sorted(found.items())}
