"""Sentences that say what a report's numbers mean, for its page and the terminal. Pure Python."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from flowblend_cli.analysis.clips.clip import Clip, Section, Spread
from flowblend_cli.analysis.compare.conclusions import (
    MOST_LOST,
    TOLERANCE,
    Comparison,
    VariantSummary,
    Winner,
    peak_and_fall,
)
from flowblend_cli.analysis.compare.determinism import Determinism
from flowblend_cli.analysis.compare.drafts import AdaptedRender, DraftCosts
from flowblend_cli.analysis.compare.statistics import Difference, SampleSummary
from flowblend_cli.text import count

_SLOW_STEP = 3.0  # times the median step
_NAMED = 4
_SHORT_HASH = 12


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report.

    Args:
        tone: ``"answer"``, ``"note"`` that limits an answer, or ``"warning"``.
        text: The sentence.
    """

    tone: Literal["answer", "note", "warning"]
    text: str


answer = partial(Sentence, "answer")
note = partial(Sentence, "note")
warning = partial(Sentence, "warning")


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it: three significant digits, none of them spent on noise."""
    if value is None:
        return "unknown"
    if value and abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if value else "0"


def points(value: float) -> str:
    """A score: two digits, three where two would hide a difference of the tolerance."""
    return f"{value:.3f}"


def with_interval(summary: SampleSummary) -> str:
    """A mean score with half its 95 % interval: ``"0.810 ± 0.020"``."""
    return points(summary.mean) + (f" ± {points(summary.half)}" if summary.half is not None else "")


def seconds(value: float | None) -> str:
    """Seconds, or minutes where they are many."""
    if value is None:
        return "unknown"
    if value < 0.995:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {value % 60:.0f} s"


def share(value: float) -> str:
    """A share in percent: ``"52 %"``."""
    return f"{100 * value:.0f} %"


def compared(comparison: Comparison) -> Iterator[Sentence]:
    """Sentences about a comparison: the winner, its certainty, and the winning clips."""
    if len(comparison.rows) > 1:
        if comparison.best is None:
            yield warning(
                f"No winner among {count(len(comparison.rows), 'variant')}: none has a score, "
                "because nothing was measured. pip install 'flowblend[metrics]', then run the "
                "report again."
            )
        elif len(comparison.curve()) > 1:
            yield from _about_steps(comparison)
        else:
            yield from _about_variants(comparison)
    yield from _about_winners(comparison.winners, is_sweep=len(comparison.rows) > 1)
    if not comparison.is_balanced:
        yield note(
            "Not every variant has the same scenes and seeds, so the means in the table aren't "
            "quite of the same things; the winner was found by pairs where there are pairs."
        )
    if comparison.is_pictures and len(comparison.curve()) > 1:
        yield from _uses(comparison)
    if comparison.is_by_sharpness and comparison.best is not None:
        yield note(
            "A picture's default score is its sharpness alone, which noise raises too: flowblend "
            "review lets people judge, and [score] weights what you trust."
        )


def _about_steps(comparison: Comparison) -> Iterator[Sentence]:
    best, winner = comparison.best, comparison.winner
    if best is None or winner is None or best.score is None or winner.score is None:
        return
    curve = comparison.curve()
    where = "".join(f" ({value})" for value in best.labels_without_steps)
    ratio = _time(winner, best)
    cost = f", for {share(ratio)} of the time" if ratio else ""
    if winner is not best:
        yield answer(
            f"More steps stop paying at {winner.steps}{where}: score {with_interval(winner.score)} "
            f"against {with_interval(best.score)} at {best.steps}{cost}."
        )
    elif best is curve[0]:
        yield answer(
            f"{best.steps} steps score best{where}, the fewest that were tried: "
            f"{with_interval(best.score)}. More don't pay."
        )
    else:
        yield _paid(best, curve[curve.index(best) - 1], where, is_most=best is curve[-1])
    yield from _fall(comparison)
    yield from _certainty(curve)
    yield from _similarity(curve)


def _paid(best: VariantSummary, former: VariantSummary, where: str, *, is_most: bool) -> Sentence:
    """A sentence about the best number of steps, and whether chance could explain it."""
    assert best.score is not None
    score, apart = with_interval(best.score), former.to_best
    if former.score is not None:
        score += f", against {with_interval(former.score)} at {former.steps}"
    text = f"{best.steps} steps score best{where}: {score}."
    if apart is None or (apart.low is not None and not apart.is_within(0.0)):
        how = "the most that were tried" if is_most else "and no further"
        text = f"More steps paid up to {best.steps}{where}, {how}: score {score}."
    elif apart.low is not None:
        chance = f"by means that chance could have put apart: {score}"
        difference = signed_with_interval(apart)
        text = f"{best.steps} steps score best{where}, {chance}, difference {difference}."
    return answer(text)


def _time(row: VariantSummary, to: VariantSummary) -> float | None:
    if row.seconds is None or to.seconds is None or not to.seconds.median:
        return None
    return row.seconds.median / to.seconds.median


def _fall(comparison: Comparison) -> Iterator[Sentence]:
    """A sentence about whether scores fall after their peak."""
    found = peak_and_fall(comparison)
    if found is None:
        return
    peak, last, lost = found
    if peak is last or lost is None or peak.score is None or last.score is None:
        yield answer(
            f"No fall after a peak: the mean score is still highest at {last.steps} steps."
        )
        return
    numbers = (
        f"{points(last.score.mean)} at {last.steps}, {points(peak.score.mean)} at {peak.steps}"
    )
    if lost.low is None:
        text = f"Whether scores fall after {peak.steps} steps isn't known ({numbers}): "
        yield note(text + "one render of each setting shows no spread.")
        return
    if lost.is_within(0.0):
        text = f"No fall after the peak at {peak.steps} steps that repeats could confirm: "
    elif abs(lost.mean) <= TOLERANCE:
        text = f"Hardly any fall after the peak at {peak.steps} steps: "
    else:
        text = f"More steps are worse after {peak.steps}: the score falls to "
    yield answer(f"{text}{numbers}, difference {signed_with_interval(lost)}.")


def signed_with_interval(apart: Difference) -> str:
    """A difference of scores with half its 95 % interval: ``"+0.012 ± 0.020"``."""
    mean = f"{apart.mean:+.3f}".replace("-", "\N{MINUS SIGN}")
    return mean + (f" ± {points(apart.half)}" if apart.half is not None else "")


def _certainty(rows: Sequence[VariantSummary]) -> Iterator[Sentence]:
    """A note on the smallest difference that repeats could have shown."""
    fewest = min((row.score.n for row in rows if row.score), default=0)
    if fewest < 2:
        yield note(
            "Some settings have one score only (equal renders count once), so no spread is known "
            "and the order may be chance: repeats = 3 in [sweep] would tell."
        )
        return
    halves = [
        row.to_best.half for row in rows if row.to_best and not row.is_best and row.to_best.half
    ]
    widest = max(halves, default=0.0)
    if widest > MOST_LOST:
        yield note(
            f"With {count(fewest, 'render')} of each setting, differences of up to "
            f"{points(widest)} can't be told from chance: more repeats would."
        )


def _similarity(rows: Sequence[VariantSummary]) -> Iterator[Sentence]:
    """A sentence about the distance to the reference by steps, where one was measured."""
    known = [row for row in rows if "psnr" in row.metrics and row.metrics["psnr"].mean < 99.5]
    if len(known) > 1:
        first, last = known[0], known[-1]
        yield answer(
            f"Closeness to the reference goes from {first.metrics['psnr'].mean:.1f} dB PSNR at "
            f"{first.steps} steps to {last.metrics['psnr'].mean:.1f} dB at {last.steps}."
        )


def _about_variants(comparison: Comparison) -> Iterator[Sentence]:
    best = comparison.best
    if best is None or best.score is None:
        return
    alike = [row.label for row in comparison.rows if row.is_as_good and row is not best]
    yield answer(f"{_capital(best.label)} scores best: {with_interval(best.score)}.")
    if alike:
        yield note(f"Not to be told from it: {_list(alike)}.")
    yield from _certainty(comparison.rows)


def _about_winners(winners: Sequence[Winner], *, is_sweep: bool) -> Iterator[Sentence]:
    for one in winners[:_NAMED]:
        choice = f"the best of {count(one.of, 'repeat')}" if one.of > 1 else "the only one finished"
        within = f" at {one.label}" if is_sweep else ""
        noise = "" if one.noise_seed is None else f", noise {one.noise_seed}"
        seed = f"seed {one.seed}{noise}"
        verb = "scores" if len(one.ties) == 1 else "score"
        tie = f"; {_list(one.ties)} {verb} the same" if one.ties else ""
        yield answer(
            f"Winner of {one.scene}: {seed}, {choice}{within}, score {points(one.score)}{tie}."
        )
    if len(winners) > _NAMED:
        yield answer(f"And {count(len(winners) - _NAMED, 'winner')} more, marked below.")


def _uses(comparison: Comparison) -> Iterator[Sentence]:
    uses = [
        f"{row.use} at {row.steps} steps ({seconds(row.seconds.median)})"
        for row in comparison.curve() or comparison.rows
        if row.use and row.seconds
    ]
    if uses:
        yield answer(f"{_capital('; '.join(uses))}: medians on this machine.")


def same(modes: Sequence[Determinism]) -> Iterator[Sentence]:
    """Sentences about renders that must be equal, by sampling mode."""
    for one in modes:
        mode = one.mode.upper()
        if one.groups:
            where = f", in {count(len(one.groups), 'group')}" if len(one.groups) > 1 else ""
            digest = f" (sha256 {one.groups[0].pixels[:_SHORT_HASH]}…)" if not where else ""
            say = answer if one.holds else warning
            yield say(
                f"{mode}: {'' if one.holds else 'only '}{one.equal} of {one.renders} renders "
                f"equal in every bit{where}{digest if one.holds else ''}."
            )
        if one.noises:
            yield answer(
                f"{mode}: {one.noises} added noises gave {count(one.different, 'different clip')}."
            )


def spread(spreads: Sequence[Spread]) -> Iterator[Sentence]:
    """Sentences about distances between renders, by sampling mode."""
    means: dict[str, float] = {}
    for mode in dict.fromkeys(one.mode for one in spreads):
        some = [one for one in spreads if one.mode == mode]
        paths = [one.trajectory_spread for one in some if one.trajectory_spread is not None]
        psnrs = [one.psnr_mean for one in some if one.psnr_mean is not None]
        renders = max(len(one.jobs) for one in some)
        between = "seeds" if some[0].across == "seeds" else "noise seeds"
        said = []
        if paths:
            means[mode] = statistics.fmean(paths)
        if paths and means[mode]:
            said.append(f"motion paths {number(means[mode])} ‰ of the diagonal from their mean")
        if psnrs:
            said.append(f"{statistics.fmean(psnrs):.1f} dB PSNR between any two")
        elif all(one.pairs and one.pairs == one.equal_pairs for one in some):
            said.append("no pixel differs")
        if said:
            yield answer(f"Spread of {mode.upper()} across {renders} {between}: {', '.join(said)}.")
    if set(means) == {"ode", "sde"} and means["ode"] and means["sde"]:
        less = 1 - means["ode"] / means["sde"]
        word = "less" if less >= 0 else "more"
        yield answer(f"Motion under ODE spreads {share(abs(less))} {word} than under SDE.")


def drafted(costs: Sequence[DraftCosts]) -> Iterator[Sentence]:
    """Sentences about savings by drafts, and whether the best draft became the best final."""
    if not costs:
        return
    spent = sum(one.draft_s + one.final_s for one in costs)
    full = sum(one.full_s for one in costs)
    looked_at, finals = sum(one.drafts for one in costs), sum(one.finals for one in costs)
    saved = 1 - spent / full if full else 0.0
    word = f"saved {share(saved)}" if saved >= 0 else f"cost {share(-saved)} more"
    yield answer(
        f"Drafts {word}: {count(looked_at, 'draft')} and {count(finals, 'final')} took "
        f"{seconds(spent)}, against {seconds(full)} for finishing every draft (estimated from the "
        "finals' median)."
    )
    known = [one.is_best_kept for one in costs if one.is_best_kept is not None]
    if known:
        yield note(
            f"The best draft became the best final in {sum(known)} of {count(len(known), 'scene')}."
        )


def adapted(renders: Sequence[AdaptedRender]) -> Iterator[Sentence]:
    """A sentence about jobs that were rendered once more."""
    own = {one.of for one in renders}
    if not own:
        return
    further = [one for one in renders if one.round]
    kept = [one for one in further if one.accepted]
    yield answer(
        f"{count(len(own), 'job')} rendered once more, {count(len(further), 'time')} in all: the "
        f"adapted clip was kept {count(len(kept), 'time')}."
    )


def slow_steps(clips: Sequence[Clip]) -> Iterator[Sentence]:
    """Warn of renders in which a step took far longer than the others."""
    slow = []
    for clip in clips:
        usual = clip.seconds_per_step
        if usual and max(clip.record.step_s[1:], default=0.0) > _SLOW_STEP * usual:
            slow.append(clip.id)
    if slow:
        yield warning(
            f"In {count(len(slow), 'render')} a step took over {_SLOW_STEP:.0f} times the median "
            f"step, so their seconds are doubtful: {_list(slow)}."
        )


def nothing_compared(section: Section) -> Sentence:
    """The sentence about clips that can't be compared."""
    subjects = len({clip.subject for clip in section.clips})
    noun = "picture" if all(clip.is_picture for clip in section.clips) else "clip"
    return answer(
        f"{count(len(section.clips), noun)} of {count(subjects, 'scene')}, one of each: "
        "nothing to compare yet. A [sweep], or several seeds, gives a report something to choose."
    )


def _list(words: Sequence[str]) -> str:
    shown = list(words[:_NAMED])
    if len(words) > _NAMED:
        shown.append(f"{len(words) - _NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
