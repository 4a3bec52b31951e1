"""Study: what a recipe asks to be measured, compared and chosen, as plain data beside the jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MeasureSpec:
    """What is measured of every render.

    Args:
        names: Names of ``flowblend_plugin.metrics`` metrics; None for the default ones, where the
            extra ``metrics`` is installed, and an empty tuple for none.
        reference: The sweep's values that make a job the reference of the others of its scene,
            prompt and seed, as pairs of axis and value; empty for none.
        weights: Weight of each metric in the score; empty for the default score.
    """

    names: tuple[str, ...] | None = None
    reference: tuple[tuple[str, Any], ...] = ()
    weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class AdaptSpec:
    """When a measured clip is rendered once more with other settings.

    Args:
        rounds: Most further renders of one job.
        weak_motion: ``flow_mean`` of ``flowblend_plugin.metrics`` below which motion is too weak,
            in thousandths of the frame's diagonal a frame; None for the calibrated threshold.
        jitter: ``unsteadiness`` above which motion jitters, likewise.
        guidance_step: What is added to the guidance scale before steps are touched; 0 leaves
            guidance alone.
        max_guidance: Highest guidance scale that is tried.
    """

    rounds: int = 2
    weak_motion: float | None = None
    jitter: float | None = None
    guidance_step: float = 1.0
    max_guidance: float = 8.0


@dataclass(frozen=True)
class ReviewSpec:
    """What people are asked about a clip.

    Args:
        criteria: Names of what is scored from 0 to 10; empty for the default ones.
    """

    criteria: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Drafts of which only the best become finals.

    Args:
        scene: Name of the scene.
        drafts: Ids of the draft jobs, one a seed.
        finals: Ids of the jobs that finish them, in the same order; they are among the batch's
            ``reserve``.
        keep: How many are finished.
        reject_after: Steps after which drafts are looked at first; None renders each to its end.
        reject_keep: How many drafts go on after that look.
    """

    scene: str
    drafts: tuple[str, ...]
    finals: tuple[str, ...]
    keep: int
    reject_after: int | None = None
    reject_keep: int | None = None


@dataclass(frozen=True)
class StepChoice:
    """How many steps a prompt of a scene is rendered with, and why.

    Args:
        scene: Name of the scene.
        prompt: The prompt with every alternative chosen.
        steps: The steps; None where the sweep varies them.
        reason: Who decided, in words.
        preset: Name of the preset; empty for none.
        words: Words of the prompt that chose it, where it was left to them.
        is_auto: Whether it was left to them.
    """

    scene: str
    prompt: str
    steps: int | None
    reason: str
    preset: str = ""
    words: tuple[str, ...] = ()
    is_auto: bool = False


@dataclass(frozen=True)
class Study:
    """Everything of a recipe that decides no pixel, but what is measured and compared.

    Args:
        axes: The sweep's axes in their order, dotted as in the recipe.
        time_repeats: How often every job is rendered for its median seconds.
        measure: What is measured.
        adapt: When a clip is rendered once more; None never.
        step_ranges: Of each scene with a preset, fewest and most steps that suit it.
        max_steps: Most steps that any job may have; None where nothing is said.
        review: What people are asked.
        selections: Drafts of which only some become finals.
        choices: How many steps each prompt has, and why.
        report: Whether a render ends with a report of the folder.
    """

    axes: tuple[str, ...] = ()
    time_repeats: int = 1
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    adapt: AdaptSpec | None = None
    step_ranges: tuple[tuple[str, int, int], ...] = ()
    max_steps: int | None = None
    review: ReviewSpec = field(default_factory=ReviewSpec)
    selections: tuple[Selection, ...] = ()
    choices: tuple[StepChoice, ...] = ()
    report: bool = False


def go_on(selection: Selection) -> int:
    """How many drafts go on after the early look: half of them, and never fewer than are kept."""
    half = (len(selection.drafts) + 1) // 2
    return max(selection.keep, selection.reject_keep or half)
