"""Criteria that choose who runs which step, from a calibration or from rendered candidates.

Pure Python. Every criterion gives a ``Choice``: a schedule with the evidence it was chosen by.
Those that take a budget never exceed it: a share of the all-large cost, in full FLOPs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowblend_plugin.calibration.calibration import ErrorModel, most_large_steps
from flowblend_plugin.errors import BudgetError, StageError
from flowblend_plugin.stages import StageSchedule

Span = tuple[int, int]
_MOST_STAGES = 5
_SWAPS = 100


@dataclass(frozen=True)
class Choice:
    """A schedule, and why it was chosen.

    Args:
        criterion: Name of the criterion.
        denoisers: The role of each step.
        share: Cost relative to all large; None where the criterion doesn't know the costs.
        predicted_error: Predicted squared error of the final latents, relative to their squared
            norm; None where the criterion predicts none.
        evidence: What the criterion looked at, as plain values.
        stages: The schedule itself, where it wasn't chosen step by step.
    """

    criterion: str
    denoisers: tuple[str, ...]
    share: float | None
    predicted_error: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    stages: StageSchedule | None = None

    @property
    def schedule(self) -> StageSchedule:
        """The stages, which end at fractions of this number of steps."""
        return self.stages or StageSchedule.from_denoisers(self.denoisers)


@dataclass(frozen=True)
class Scores:
    """How near a rendered candidate comes to the all-large result.

    Args:
        similarity: Higher is nearer, such as PSNR in dB.
        detail: Fine detail relative to the all-large result's, 1 where nothing is lost.
    """

    similarity: float
    detail: float


def large_steps(model: ErrorModel, budget: float) -> int:
    """Most steps by the large denoiser that keep a budget, where the small one runs the others.

    Raises:
        BudgetError: Even all small costs more, or it is no share.
    """
    ratio, steps = model.cost_ratio, len(model)
    if not ratio <= budget <= 1:
        raise BudgetError(
            f"a budget of {budget} can't be kept: it is a share of the all-large cost, from "
            f"{math.ceil(ratio * 1000) / 1000:g} (all small) to 1"
        )
    return most_large_steps(steps, ratio, budget)


def contiguous(model: ErrorModel, budget: float, max_stages: int = 3) -> Choice:
    """Keep a budget in few stages, so that the predicted error is smallest.

    Every way to lay the small denoiser's stages is tried, so this is the optimum of what
    ``ErrorModel.small_error`` predicts.

    Args:
        model: The calibration at the steps of this trajectory.
        budget: Share of the all-large cost.
        max_stages: 1 to 5.

    Raises:
        StageError: See ``large_steps``; or ``max_stages`` is out of range.
    """
    if not 1 <= max_stages <= _MOST_STAGES:
        raise StageError(
            f"max_stages must be from 1 to {_MOST_STAGES}, got {max_stages}; switching without a "
            "limit is the criterion 'free'"
        )
    count = len(model) - large_steps(model, budget)

    def predicted(spans: tuple[Span, ...]) -> float:
        return sum(model.between(a, b) for a in spans for b in spans)

    spans = min(_layouts(len(model), count, max_stages), key=predicted)
    small = [step for a, b in spans for step in range(a, b)]
    return _choice(model, "contiguous", small, budget)


def _layouts(steps: int, count: int, max_stages: int) -> Iterator[tuple[Span, ...]]:
    """Every set of spans of ``count`` steps together that makes so many stages at most."""
    if count in (0, steps) or max_stages == 1:
        yield () if count == 0 else ((0, steps),)
        return
    for start in range(steps - count + 1):
        if 1 + (start > 0) + (start + count < steps) <= max_stages:
            yield ((start, start + count),)
    for first in range(1, count) if max_stages >= 3 else ():
        last = steps - (count - first)
        for a in range(last - first if max_stages > 3 else 1):
            # Where the first span begins inside, four stages leave the other only the end.
            nearest = last if max_stages == 3 or (max_stages == 4 and a > 0) else a + first + 1
            for b in range(nearest, last + 1):
                yield ((a, a + first), (b, b + count - first))
    # Three spans make five stages at least, where they begin and end the trajectory.
    for first, last in itertools.combinations(range(1, count), 2) if max_stages >= 5 else ():
        for start in range(first + 1, steps - count + first):
            end = start + last - first
            yield ((0, first), (start, end), (steps - count + last, steps))


def free(model: ErrorModel, budget: float) -> Choice:
    """Keep a budget switching as often as it pays, so that the predicted error is small.

    Steps are given to the small denoiser one by one, the least harmful next to those given before;
    then pairs of steps change places while that helps.

    Args:
        model: The calibration at the steps of this trajectory.
        budget: Share of the all-large cost.

    Raises:
        StageError: See ``large_steps``.
    """
    steps, gram = range(len(model)), model.gram
    reach = [0.0] * len(model)  # of each step, on those that the small denoiser runs
    small: set[int] = set()

    def move(step: int, sign: int) -> None:
        (small.add if sign > 0 else small.remove)(step)
        for other in steps:
            reach[other] += sign * gram[step][other]

    for _ in range(len(model) - large_steps(model, budget)):
        move(min(set(steps) - small, key=lambda s: (gram[s][s] + 2 * reach[s], s)), 1)
    for _ in range(_SWAPS):
        pairs = itertools.product(sorted(small), sorted(set(steps) - small))
        change, out, into = min(
            (
                (
                    gram[a][a] - 2 * reach[a] + gram[b][b] + 2 * (reach[b] - gram[a][b]), a, b
                )
                for a, b in pairs
            ),
            default=(0.0, 0, 0),
        )  # fmt: skip
        if change >= -1e-15:
            break
        move(out, -1)
        move(into, 1)
    return _choice(model, "free", sorted(small), budget)


def extrapolated(model: ErrorModel, budget: float) -> Choice:
    """Keep a budget by computing only some steps, and extrapolating the velocity at the others.

    Computed steps are given up one by one, each time the one whose loss is predicted to harm least.
    The small denoiser isn't used.

    Args:
        model: The calibration at the steps of this trajectory.
        budget: Share of the all-large cost.

    Raises:
        BudgetError: The budget isn't even one step.
        StageError: The calibration doesn't tell how straight its trajectories are.
    """
    if not model.tells_extrapolation:
        raise StageError(
            "this calibration doesn't tell what extrapolation would miss: it has no curvature "
            "(probe at three steps or more), or its two denoisers agree"
        )
    count = math.floor(budget * len(model) + 1e-9)
    if not 1 <= count <= len(model):
        raise BudgetError(
            f"a budget of {budget} can't be kept: it is a share of the all-large cost, from "
            f"{1 / len(model):g} (one step of {len(model)}) to 1"
        )
    computed = list(range(len(model)))
    stretch = functools.cache(model.stretch_error)

    def loss(k: int) -> float:
        """What giving up the k-th computed step adds: the stretches around it change."""
        former, before, at, end, after = (
            computed[i] if 0 <= i < len(computed) else None for i in range(k - 2, k + 3)
        )
        assert before is not None
        assert at is not None
        if end is None:
            whole = stretch(former, before, len(model))
            return whole - stretch(former, before, at) - stretch(before, at, len(model))
        last = len(model) if after is None else after
        now = stretch(former, before, at) + stretch(before, at, end) + stretch(at, end, last)
        return stretch(former, before, end) + stretch(before, end, last) - now

    while len(computed) > count:
        del computed[min(range(1, len(computed)), key=lambda k: (loss(k), k))]
    kept = set(computed)
    roles = tuple("large" if s in kept else "extrapolated" for s in range(len(model)))
    return Choice(
        "extrapolated", roles, model.share(roles), model.extrapolation_error(computed),
        {"budget": budget, "curvature": list(model.curvature), "gain": list(model.gain)},
    )  # fmt: skip


def divergence_threshold(model: ErrorModel, budget: float) -> Choice:
    """Give the small denoiser the stretch of steps in which the two are nearest to each other.

    The threshold is the lowest under which a stretch is long enough for the budget. It says
    nothing of what an error does later, so it is a proxy for those without sensitivities.

    Args:
        model: The calibration at the steps of this trajectory.
        budget: Share of the all-large cost.

    Raises:
        StageError: See ``large_steps``.

    Reference:
        FlowBlending, arXiv:2512.24724: the divergence of the two models over the steps.
    """
    count = len(model) - large_steps(model, budget)
    apart = model.divergence
    start = min(
        range(len(model) - count + 1),
        key=lambda s: (max(apart[s : s + count], default=0.0), sum(apart[s : s + count])),
    )
    threshold = max(apart[start : start + count], default=0.0)
    return _choice(
        model, "divergence", range(start, start + count), budget, threshold=threshold,
        divergence=list(apart),
    )  # fmt: skip


def complexity_balanced(model: ErrorModel, budget: float | None = None) -> Choice:
    """Split the trajectory where its complexity, its acceleration summed over sigma, is balanced.

    Without a budget the three stages carry a third each. With one, the small stage's length
    follows from it, and the two large stages beside it carry the same.

    Args:
        model: The calibration at the steps of this trajectory.
        budget: Share of the all-large cost; None for thirds.

    Raises:
        StageError: See ``large_steps``.

    Reference:
        Complexity-balanced splitting of flows, arXiv:2606.06477, whose acceleration of the
        trajectory is taken here; the choice of the small stage is ours.
    """
    parts = [a * w for a, w in zip(model.acceleration, model.widths, strict=True)]
    so_far = [0.0, *itertools.accumulate(parts)]
    steps, total = range(len(model) + 1), so_far[-1]
    if budget is None:
        start, end = (min(steps, key=lambda s: abs(so_far[s] - total * k / 3)) for k in (1, 2))
    else:
        count = len(model) - large_steps(model, budget)
        start = min(
            range(len(model) - count + 1),
            key=lambda s: abs(so_far[s] - (total - so_far[s + count])),
        )
        end = start + count
    return _choice(
        model, "complexity", range(start, end), budget, complexity=[v / total for v in so_far]
        if total else so_far,
    )  # fmt: skip


def similarity_and_detail(
    evaluate: Callable[[StageSchedule], Scores],
    candidates: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    max_drop: float = 1.0,
    min_detail: float = 0.97,
) -> Choice:
    """The paper's way: render candidates, and look where similarity, then detail, is lost.

    The early boundary is the smallest candidate whose LS result is as similar to all large as the
    largest candidate's, up to ``max_drop``; the late one is the largest that keeps enough detail.

    Args:
        evaluate: Renders a schedule and compares it with all large.
        candidates: Fractions of the steps.
        max_drop: Most similarity that may be lost between one candidate and the next larger one,
            in the unit of ``Scores.similarity``.
        min_detail: Least detail relative to all large.

    Raises:
        StageError: The candidates aren't ascending fractions.

    Reference:
        FlowBlending, arXiv:2512.24724, section on stage boundaries.
    """
    if not candidates or list(candidates) != sorted(set(candidates)):
        raise StageError(f"candidates must be ascending fractions, got {list(candidates)}")
    seen: dict[str, dict[str, float]] = {}

    def look(stages: StageSchedule) -> Scores:
        scores = evaluate(stages)
        seen[str(stages)] = {"similarity": scores.similarity, "detail": scores.detail}
        return scores

    early = candidates[-1]
    reference = look(StageSchedule.parse("LS", [early])).similarity
    for fraction in reversed(candidates[:-1]):
        similarity = look(StageSchedule.parse("LS", [fraction])).similarity
        if similarity < reference - max_drop:
            break
        early, reference = fraction, similarity
    late = early
    for fraction in reversed([c for c in (*candidates, 1.0) if c > early]):
        if look(StageSchedule.parse("LSL", [early, fraction])).detail >= min_detail:
            late = fraction
            break
    stages = StageSchedule.parse("LSL", [early, late])
    evidence = {"boundaries": [early, late], "candidates": seen}
    return Choice("similarity", stages.denoisers(100), None, None, evidence, stages)


CRITERIA: Mapping[str, Callable[[ErrorModel, float], Choice]] = {
    "extrapolated": extrapolated,
    "free": free,
    "contiguous": contiguous,
    "divergence": divergence_threshold,
    "complexity": complexity_balanced,
}


def choose(
    model: ErrorModel, budget: float, criterion: str = "best", max_stages: int = 3
) -> Choice:
    """Choose a schedule by a criterion's name.

    Args:
        model: The calibration at the steps of this trajectory.
        budget: Share of the all-large cost.
        criterion: A name in ``CRITERIA``; ``"best"`` is the one that predicts the smallest error.
        max_stages: For ``"contiguous"``.

    Raises:
        StageError: The criterion is unknown, or can't answer.
        BudgetError: The budget can't be kept.
    """
    if criterion == "contiguous":
        return contiguous(model, budget, max_stages)
    if criterion in CRITERIA:
        return CRITERIA[criterion](model, budget)
    if criterion != "best":
        raise StageError(
            f"{criterion!r} is no criterion: use 'best' or one of {', '.join(CRITERIA)}"
        )
    # Those that predict an error, each with the least budget that it can keep.
    least = {"contiguous": model.cost_ratio, "free": model.cost_ratio}
    if model.tells_extrapolation:
        least["extrapolated"] = 1 / len(model)
    if budget + 1e-9 < min(least.values()) or budget > 1:
        raise BudgetError(
            f"a budget of {budget} can't be kept: it is a share of the all-large cost, from "
            f"{math.ceil(min(least.values()) * 1000) / 1000:g} to 1"
        )
    possible = [p for p in least if budget + 1e-9 >= least[p]]
    choices = [choose(model, budget, p, max_stages) for p in possible]
    return min(choices, key=lambda choice: choice.predicted_error or 0.0)


def _choice(
    model: ErrorModel, criterion: str, small: Sequence[int], budget: float | None, **evidence: Any
) -> Choice:
    given = set(small)
    roles = tuple("small" if step in given else "large" for step in range(len(model)))
    if budget is not None:
        evidence["budget"] = budget
    return Choice(criterion, roles, model.share(roles), model.small_error(sorted(given)), evidence)
