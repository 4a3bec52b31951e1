"""Cells and captions of a report's tables, for its page and the terminal. Pure Python."""

from __future__ import annotations

from flowblend_cli.analysis.clips.variants import STEPS
from flowblend_cli.analysis.compare import sentences
from flowblend_cli.analysis.compare.conclusions import (
    MOST_LOST,
    TOLERANCE,
    Comparison,
    VariantSummary,
)
from flowblend_cli.analysis.compare.statistics import SampleSummary
from flowblend_plugin.metrics.catalogue import METRICS

_LIKENESS = ("psnr", "ssim", "delta_e")


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


def sample_size(row: VariantSummary) -> str:
    """The number of a variant's clips, and of those that differ: ``"6, 4 distinct"``."""
    if row.score is None or row.score.n == len(row.jobs):
        return str(len(row.jobs))
    return f"{len(row.jobs)}, {row.score.n} distinct"


def from_best(row: VariantSummary) -> str:
    """A variant's distance from the best one: ``"-0.012 ± 0.020, as good"``."""
    if row.is_best:
        return "best"
    if row.to_best is None:
        return ""
    return sentences.signed_with_interval(row.to_best) + (", as good" if row.is_as_good else "")


def metric_with_interval(values: SampleSummary | None) -> str:
    """A metric's mean with half its 95 % interval; empty for None."""
    if values is None:
        return ""
    half = f" ± {sentences.number(values.half, 2)}" if values.half is not None else ""
    return sentences.number(values.mean) + half


def shown_metrics(comparison: Comparison) -> list[str]:
    """Names of the metrics that were measured, likeness to the reference first."""
    known = {name for row in comparison.rows for name in row.metrics}
    names = [name for name in METRICS if name in known]
    return sorted(names, key=lambda name: name not in _LIKENESS)


def rule(comparison: Comparison) -> str:
    """The rule by which the winner was found, in words below the table."""
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
        f"that includes 0.{share}"
    )
