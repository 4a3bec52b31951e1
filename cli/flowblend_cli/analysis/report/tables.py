"""The tables of a report's page, as text that is safe to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowblend_cli.analysis.clips.clip import MetricInfo, Spread
from flowblend_cli.analysis.clips.variants import STEPS
from flowblend_cli.analysis.compare import sentences
from flowblend_cli.analysis.compare.conclusions import (
    MOST_LOST,
    TOLERANCE,
    Comparison,
    VariantSummary,
)
from flowblend_cli.analysis.compare.determinism import Determinism, EqualGroup
from flowblend_cli.analysis.compare.drafts import AdaptedRender, DraftCosts
from flowblend_cli.analysis.compare.statistics import SampleSummary
from flowblend_cli.text import printable

_MOST_METRICS = 8
_LIKENESS = ("psnr", "ssim", "delta_e")


def table(comparison: Comparison) -> list[dict[str, Any]]:
    """Each variant's score, how far it is from the best, and its seconds."""
    if len(comparison.rows) < 2:
        return []
    return [
        {
            "label": printable(row.label),
            "n": _number(row),
            "score": _summary(row.score),
            "apart": _apart(row),
            "median": sentences.seconds(row.seconds.median) if row.seconds else "",
            "range": _range(row.seconds),
            "share": sentences.share(row.share) if row.share else "",
            "use": row.use,
            "is_winner": row.is_winner,
            "is_best": row.is_best,
        }
        for row in comparison.rows
    ]


def printed(comparison: Comparison) -> list[str]:
    """Steps, seconds, scores and uses in aligned columns, for a terminal; empty without a curve."""
    rows = [
        {
            "steps": f"{row.steps}{' *' if row.is_winner else ''}",
            "seconds": sentences.seconds(row.seconds.median) if row.seconds else "",
            "share": sentences.share(row.share) if row.share else "",
            "score": sentences.with_interval(row.score) if row.score else "",
            "psnr": f"{row.metrics['psnr'].mean:.1f} dB" if "psnr" in row.metrics else "",
            "for": row.use,
        }
        for row in comparison.curve()
    ]
    if not rows:
        return []
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    width = {head: max(len(head), *(len(row[head]) for row in rows)) for head in heads}
    lines = [{head: head for head in heads}, *rows]
    return ["  " + "  ".join(f"{line[h]:<{width[h]}}" for h in heads).rstrip() for line in lines]


def _number(row: VariantSummary) -> str:
    """How many clips a row is of, and how many of them differ."""
    if row.score is None or row.score.n == len(row.jobs):
        return str(len(row.jobs))
    return f"{len(row.jobs)}, {row.score.n} distinct"


def _summary(told: SampleSummary | None) -> dict[str, str] | None:
    if told is None:
        return None
    return {
        "mean": sentences.points(told.mean),
        "sd": "" if told.sd is None else sentences.points(told.sd),
        "interval": _interval(told),
    }


def _interval(told: SampleSummary) -> str:
    if told.low is None or told.high is None:
        return "unknown (n = 1)"
    return f"{sentences.points(told.low)} to {sentences.points(told.high)}"


def _range(told: SampleSummary | None) -> str:
    if told is None or told.n < 2:
        return ""
    return f"{sentences.seconds(told.least)} to {sentences.seconds(told.most)}"


def _apart(row: VariantSummary) -> str:
    if row.is_best:
        return "best"
    if row.to_best is None:
        return ""
    half = "" if row.to_best.half is None else f" ± {sentences.points(row.to_best.half)}"
    how = ", as good" if row.is_as_good else ""
    return f"{sentences.signed(row.to_best.mean)}{half}{how}"


def shown_metrics(comparison: Comparison, infos: Mapping[str, MetricInfo]) -> list[str]:
    """Names of what was measured, likeness to the reference first."""
    known = {name for row in comparison.rows for name in row.metrics}
    return sorted((name for name in infos if name in known), key=lambda name: name not in _LIKENESS)


def metrics_table(comparison: Comparison, infos: Mapping[str, MetricInfo]) -> dict[str, Any] | None:
    """Each variant's metrics, mean and half the interval."""
    names = shown_metrics(comparison, infos)[:_MOST_METRICS]
    if not names or len(comparison.rows) < 2:
        return None
    arrows = {"higher": "↑", "lower": "↓"}
    return {
        "heads": [(name.replace("_", " "), arrows.get(infos[name].better, "")) for name in names],
        "rows": [
            {
                "label": printable(row.label),
                "is_winner": row.is_winner,
                "cells": [_metric(row.metrics.get(name)) for name in names],
            }
            for row in comparison.rows
        ],
    }


def _metric(told: SampleSummary | None) -> str:
    if told is None:
        return ""
    half = f" ± {sentences.number(told.half, 2)}" if told.half is not None else ""
    return sentences.number(told.mean) + half


def rule(comparison: Comparison) -> str:
    """How the winner was found, in a sentence for the table's foot."""
    if comparison.winner is None:
        return ""
    few = ""
    if STEPS in comparison.axes:
        few = (
            "; among those that differ from it in steps alone, the one with the fewest steps wins "
            "that is as good"
        )
    share = f" Share: of the seconds of {comparison.standard}." if comparison.standard else ""
    return (
        "± and intervals are 95 % (Student's t), over all renders of a variant, scenes included; "
        f"differences are paired by scene and seed where possible. The best mean score wins{few}. "
        f"As good means: less than {TOLERANCE} below it, or less than {MOST_LOST} with an interval "
        f"that includes 0.{printable(share)}"
    )


def same(one: Determinism, group: EqualGroup) -> dict[str, Any]:
    """Renders that must be equal."""
    return {
        "mode": one.mode.upper(),
        "scene": printable(group.scene),
        "text": f"{group.equal} of {group.renders}",
        "holds": group.equal == group.renders,
        "jobs": printable(", ".join(group.jobs)),
        "pixels": group.pixels,
    }


def spread(one: Spread) -> dict[str, Any]:
    """How far renders of one variant are apart."""
    return {
        "mode": one.mode.upper(),
        "scene": printable(one.scene),
        "renders": f"{len(one.jobs)} {'noise seeds' if one.across == 'noise' else 'seeds'}",
        "paths": "" if one.trajectory_spread is None else sentences.number(one.trajectory_spread),
        "psnr": "" if one.psnr_mean is None else f"{one.psnr_mean:.1f} dB",
        "equal": f"{one.equal_pairs} of {one.pairs}",
    }


def drafts(one: DraftCosts) -> dict[str, Any]:
    """What one scene's drafts saved."""
    return {
        "scene": printable(one.scene),
        "drafts": f"{one.drafts}" + (f", {one.abandoned} abandoned" if one.abandoned else ""),
        "finals": one.finals,
        "spent": sentences.seconds(one.draft_s + one.final_s),
        "full": sentences.seconds(one.full_s),
        "saved": sentences.share(one.saved),
        "best": printable(one.best),
    }


def adapted(one: AdaptedRender) -> dict[str, Any]:
    """One render of a job that was rendered once more."""
    return {
        "job": printable(one.job),
        "round": one.round,
        "reason": printable(one.reason) or "as the recipe has it",
        "steps": one.steps,
        "guidance": "" if one.guidance is None else f"{one.guidance:g}",
        "score": "" if one.score is None else sentences.points(one.score),
        "motion": sentences.number(one.flow_mean) if one.flow_mean is not None else "",
        "jitter": sentences.number(one.unsteadiness) if one.unsteadiness is not None else "",
        "accepted": one.accepted,
    }
