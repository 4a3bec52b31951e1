"""Comparison: a recipe's variants side by side, the winner and how sure it is. Pure Python.

``compare`` makes it, for reports. The rule: the variant with the best mean score wins. Among
variants that differ from it in the number of steps alone, the one with the fewest steps wins whose
mean can't be told from the best and isn't far below it, however few repeats there are. The winning
clip of each scene is the best repeat of the winning variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowblend_cli.analysis.clips.clip import Clip, Section, own_job
from flowblend_cli.analysis.clips.variants import (
    MODE,
    STEPS,
    VariantGroup,
    find_axes,
    find_variants,
    fixed_settings,
    group,
)
from flowblend_cli.analysis.compare.statistics import (
    Difference,
    SampleSummary,
    difference,
    summarise,
)
from flowblend_plugin.metrics.catalogue import METRICS

TOLERANCE = 0.01
"""Difference of mean scores, from 0 to 1, that is too small to pay for."""

MOST_LOST = 0.05
"""Loss in mean score beyond which a variant isn't as good, even if few repeats leave that open."""

STANDARD_STEPS = 50
USES = {20: "explore", 40: "produce", 60: "final"}
"""Use of single pictures, by their number of steps."""


@dataclass(frozen=True)
class VariantSummary:
    """One variant in numbers.

    Args:
        label: The variant in words.
        values: Its values of the axes.
        jobs: Ids of its jobs.
        steps: Its number of steps, where that is an axis.
        score: Its scores in short; None where there are none.
        metrics: Its metrics in short, by name.
        seconds: Seconds of its jobs in short.
        share: Its seconds relative to those of ``Comparison.standard``; None without it.
        to_best: Its mean score minus that of the best variant.
        is_best: Whether its mean score is the highest.
        is_winner: Whether it is the one to use.
        is_as_good: Whether its mean can't be told from the best one's.
        use: The use of pictures of so many steps; empty for clips.
    """

    label: str
    values: tuple[tuple[str, Any], ...]
    jobs: tuple[str, ...]
    steps: int | None
    score: SampleSummary | None
    metrics: Mapping[str, SampleSummary]
    seconds: SampleSummary | None
    share: float | None = None
    to_best: Difference | None = None
    is_best: bool = False
    is_winner: bool = False
    is_as_good: bool = False
    use: str = ""

    @property
    def others(self) -> tuple[tuple[str, Any], ...]:
        """The values of all axes but the number of steps."""
        return tuple(pair for pair in self.values if pair[0] != STEPS)

    @property
    def labels_without_steps(self) -> list[str]:
        """The parts of the label that aren't about the number of steps."""
        return [part for part in self.label.split(", ") if not part.endswith(" steps")]


@dataclass(frozen=True)
class Winner:
    """The clip to keep of one scene and prompt.

    Args:
        job: Its id.
        scene: Its scene.
        label: Its variant in words; empty where there is one variant only.
        seed: Its seed.
        score: Its score.
        of: The number of repeats that it was chosen from.
        ties: Ids of other clips with the very same score.
        noise_seed: Seed of the noise that was added at each step, where the recipe names one.
    """

    job: str
    scene: str
    label: str
    seed: int
    score: float
    of: int
    ties: tuple[str, ...] = ()
    noise_seed: int | None = None


@dataclass(frozen=True)
class Comparison:
    """The variants of one recipe side by side.

    Args:
        axes: The settings that vary.
        rows: One for each variant.
        winners: One for each scene and prompt.
        fixed: The settings that all clips share.
        standard: Label of the variant that seconds are shares of; empty without one.
        is_pictures: Whether these are single pictures.
        is_balanced: Whether every variant has the same scenes, prompts and seeds.
        is_by_sharpness: Whether the score is sharpness alone: of pictures, without own weights.
    """

    axes: tuple[str, ...]
    rows: tuple[VariantSummary, ...]
    winners: tuple[Winner, ...]
    fixed: tuple[tuple[str, str], ...]
    standard: str = ""
    is_pictures: bool = False
    is_balanced: bool = True
    is_by_sharpness: bool = False

    @property
    def best(self) -> VariantSummary | None:
        """The variant with the highest mean score."""
        return next((row for row in self.rows if row.is_best), None)

    @property
    def winner(self) -> VariantSummary | None:
        """The variant to use."""
        return next((row for row in self.rows if row.is_winner), None)

    def curve(self) -> tuple[VariantSummary, ...]:
        """The rows that differ from the best in nothing but steps, by steps; empty without any."""
        best = self.best
        if STEPS not in self.axes or best is None:
            return ()
        rows = [row for row in self.rows if row.others == best.others]
        rows.sort(key=lambda row: row.steps or 0)
        return tuple(rows) if len(rows) > 1 else ()


def compare(section: Section) -> Comparison:
    """Compare the clips of a recipe: its own and finals, or drafts where there is nothing else.

    Args:
        section: The clips of one recipe.
    """
    clips = [clip for clip in section.clips if clip.kind in ("", "final")] or [
        clip for clip in section.clips if clip.kind == "draft"
    ]
    if not clips:
        return Comparison((), (), (), ())
    axes = find_axes(clips, section.study.axes)
    variants = find_variants(clips, axes)
    rows = _judged([_row(variant) for variant in variants], variants)
    standard = _standard(rows)
    rows = [
        replace(row, share=_share(row, rows, standard), use=_use(row, rows, clips)) for row in rows
    ]
    is_pictures = all(clip.is_picture for clip in clips)
    return Comparison(
        axes,
        tuple(rows),
        _winners(rows, variants, section),
        fixed_settings(clips, axes),
        standard.label if standard and len(variants) > 1 else "",
        is_pictures,
        len({tuple(sorted(map(pair_of, variant.clips))) for variant in variants}) <= 1,
        is_pictures and not section.study.measure.weights,
    )


def pair_of(clip: Clip) -> tuple[Any, ...]:
    """Scene, prompt and seeds, which clips of two variants share where they make a pair."""
    return (*clip.subject, *clip.noise)


def _distinct(clips: Sequence[Clip]) -> list[Clip]:
    """Clips without those that repeat another's pixels: equal renders are no further evidence."""
    groups = group(clips, lambda clip: (*clip.subject, clip.seed, clip.record.pixels_sha256))
    return [alike[0] for alike in groups.values()]


def _row(variant: VariantGroup) -> VariantSummary:
    metrics = {}
    clips = _distinct(variant.clips)
    measured = [clip.record.metrics for clip in clips]
    for name in METRICS:
        summary = summarise([values[name] for values in measured if name in values])
        if summary is not None:
            metrics[name] = summary
    return VariantSummary(
        variant.label,
        variant.values,
        tuple(clip.id for clip in variant.clips),
        variant.steps,
        summarise([clip.score for clip in clips if clip.score is not None]),
        metrics,
        summarise([clip.seconds for clip in variant.clips if clip.seconds is not None]),
    )


def _judged(rows: list[VariantSummary], variants: Sequence[VariantGroup]) -> list[VariantSummary]:
    """Mark the best variant, those as good, and the winner; nothing where nothing has a score."""
    scored = [row for row in rows if row.score is not None]
    if len(rows) < 2 or not scored:
        return rows
    best = max(scored, key=lambda row: row.score.mean if row.score else 0.0)
    scores = {
        row.values: {pair_of(c): c.score for c in _distinct(variant.clips) if c.score is not None}
        for row, variant in zip(rows, variants, strict=True)
    }
    judged = []
    for row in rows:
        apart = difference(scores[row.values], scores[best.values])
        as_good = row is best or (
            apart is not None and apart.is_within(TOLERANCE) and apart.mean >= -MOST_LOST
        )
        judged.append(replace(row, to_best=apart, is_best=row is best, is_as_good=as_good))
    rivals = [row for row in judged if row.is_as_good and row.others == best.others]
    winner = min(rivals, key=lambda row: row.steps or 0)
    return [replace(row, is_winner=row is winner) for row in judged]


def _standard(rows: Sequence[VariantSummary]) -> VariantSummary | None:
    """The variant that seconds are shares of: the one of 50 steps, else the longest."""
    timed = [row for row in rows if row.seconds]
    standard = [row for row in timed if row.steps == STANDARD_STEPS]
    return standard[0] if standard else max(timed, key=_median_s, default=None)


def _median_s(row: VariantSummary) -> float:
    return row.seconds.median if row.seconds else 0.0


def _share(
    row: VariantSummary, rows: Sequence[VariantSummary], standard: VariantSummary | None
) -> float | None:
    """Seconds relative to the standard with the same other settings, where there is one."""
    if standard is None or len(rows) < 2:
        return None
    like = [one for one in rows if one.steps == standard.steps and one.others == row.others]
    base = _median_s(like[0] if like and standard.steps is not None else standard)
    own = _median_s(row)
    return own / base if base and own else None


def _use(row: VariantSummary, rows: Sequence[VariantSummary], clips: Sequence[Clip]) -> str:
    """The use of single pictures of a variant's number of steps; empty for clips."""
    if row.steps is None or not all(clip.is_picture for clip in clips):
        return ""
    steps = sorted({one.steps for one in rows if one.steps is not None})
    if set(steps) & set(USES):
        return USES.get(row.steps, "")
    named = (
        ("explore", row.steps == steps[0]),
        ("produce", row.is_winner),
        ("final", row.steps == steps[-1]),
    )
    return " and ".join(use for use, fits in named if fits)


def _winners(
    rows: Sequence[VariantSummary], variants: Sequence[VariantGroup], section: Section
) -> tuple[Winner, ...]:
    """The best repeat of the winning variant, of every scene and prompt with a choice."""
    single = len(variants) == 1
    chosen = next((i for i, row in enumerate(rows) if row.is_winner), 0 if single else None)
    if chosen is None:
        return ()
    explored = {name for each in section.study.selections for name in each.finals}
    winners = []
    for some in group(_distinct(variants[chosen].clips), lambda clip: clip.subject).values():
        scored = [clip for clip in some if clip.score is not None]
        if not scored or (single and len(some) < 2 and some[0].id not in explored):
            continue
        best = max(scored, key=lambda clip: clip.score or 0.0)
        ties = tuple(clip.id for clip in scored if clip is not best and clip.score == best.score)
        kept = _accepted_instead(best, section.clips)
        assert kept.score is not None
        label = "" if single else variants[chosen].label
        winners.append(
            Winner(
                kept.id,
                kept.job.scene,
                label,
                kept.seed,
                kept.score,
                len(some),
                ties,
                kept.job.sampling.noise_seed,
            )
        )
    return tuple(winners)


def _accepted_instead(clip: Clip, clips: Sequence[Clip]) -> Clip:
    """The adapted clip that took a clip's place, or the clip itself."""
    taken = [
        one
        for one in clips
        if one.kind == "adapted" and one.record.accepted and one.score is not None
        and own_job(one.id, clips) == clip.id
    ]  # fmt: skip
    return taken[-1] if taken else clip


def peak_and_fall(
    comparison: Comparison,
) -> tuple[VariantSummary, VariantSummary, Difference | None] | None:
    """The best number of steps, the most that were tried, and what was lost on the way.

    Returns:
        The row of the peak, that of the most steps, and the latter's mean score minus the former's;
        None where scores don't tell.
    """
    curve = [row for row in comparison.curve() if row.score is not None]
    if len(curve) < 2:
        return None
    peak = next(row for row in curve if row.is_best)
    return peak, curve[-1], curve[-1].to_best


def modes(comparison: Comparison) -> tuple[str, ...]:
    """The sampling modes that were compared."""
    found = [str(dict(row.values).get(MODE, "")) for row in comparison.rows]
    return tuple(dict.fromkeys(mode for mode in found if mode))
