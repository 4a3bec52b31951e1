"""Raters' scores as tables and sentences, for a report's page and the terminal. Pure Python."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flowblend_cli.analysis.clips.variants import group
from flowblend_cli.analysis.compare.sentences import Sentence, answer, note
from flowblend_cli.text import count

if TYPE_CHECKING:
    from flowblend_cli.analysis.review.unblinding import Agreement, RatingRow, Reviews

_GOOD, _FAIR = 0.8, 0.667


def sentences(reviews: Reviews) -> Iterator[Sentence]:
    """Sentences about the variants that people preferred, and about their agreement."""
    for recipe, rows in group(reviews.by_variant, lambda row: row.recipe).items():
        means = _means(rows)
        if len(means) < 2:
            continue
        best = max(means, key=lambda name: means[name])
        others = [name for name in means if name != best and means[name] == means[best]]
        tie = f", as {', '.join(others)}" if others else ""
        yield answer(
            f"{count(len(reviews.raters), 'rater')} of {recipe} gave the most to {best}{tie}: "
            f"{means[best]:.1f} of 10 over all criteria."
        )
    for one in reviews.agreement:
        yield _agreement(one)


def _agreement(one: Agreement) -> Sentence:
    if one.alpha is None:
        return note(f"Agreement on {one.criterion} can't be told: {one.reason}.")
    word = (
        "good" if one.alpha >= _GOOD else "fair" if one.alpha >= _FAIR else "too little to rest on"
    )
    return note(
        f"Agreement on {one.criterion}: Krippendorff's alpha {one.alpha:.2f}, {word} "
        f"({count(one.raters, 'rater')}, {count(one.items, 'clip')})."
    )


def _means(rows: list[RatingRow]) -> dict[str, float]:
    """Mean over criteria of each variant."""
    named = group(rows, lambda row: row.name)
    return {name: statistics.fmean(row.mean for row in some) for name, some in named.items()}


def table(reviews: Reviews) -> dict[str, Any]:
    """The values of the reviews that a page shows."""
    blocks = []
    for recipe, rows in group(reviews.by_variant, lambda row: row.recipe).items():
        means = _means(rows)
        best = max(means.values())
        lines = [
            {
                "name": name,
                "is_best": len(means) > 1 and means[name] == best,
                "mean": means[name],
                "cells": [{row.criterion: row for row in some}.get(c) for c in reviews.criteria],
            }
            for name, some in group(rows, lambda row: row.name).items()
        ]
        blocks.append({"recipe": recipe, "rows": lines})
    return {
        "raters": reviews.raters,
        "criteria": reviews.criteria,
        "blocks": blocks,
        "sentences": list(sentences(reviews)),
        "remarks": reviews.remarks,
    }
