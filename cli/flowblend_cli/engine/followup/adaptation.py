"""Adaptations: clips that are rendered again with other settings, their rounds, and the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowblend_cli.engine.followup.pruning import best
from flowblend_cli.jobs import Job, Origin
from flowblend_cli.study import AdaptSpec, Study
from flowblend_plugin import metrics

# Motion that is too weak asks for more steps, up to so many, and jitter for fewer, down to so many.
MORE_STEPS, MOST_STEPS = 20, 70
FEWER_STEPS, FEWEST_STEPS = 10, 40
_GUIDANCE = ("true_cfg_scale", "guidance_scale")
_STEPS = "num_inference_steps"


class Adaptations:
    """Every adapted job with its further rounds, for the study of a run.

    Args:
        study: When and how clips are adapted.
        complaints: What people found wrong, by job; these are adapted whatever was measured.
    """

    def __init__(self, study: Study, complaints: Mapping[str, str]) -> None:
        self._spec = study.adapt
        self._ranges = {scene: (low, high) for scene, low, high in study.step_ranges}
        self._max_steps = MOST_STEPS if study.max_steps is None else study.max_steps
        self._complaints = complaints
        self._families: dict[str, list[MeasuredClip]] = {}

    def add(self, measured: MeasuredClip) -> Job | None:
        """Note a measured job.

        Returns:
            The job that it is rendered as once more; None where it stays as it is.
        """
        job = measured.job
        kind = job.origin.kind if job.origin is not None else ""
        root = root_of(job)
        if kind == "draft" or (self._spec is None and root not in self._complaints):
            return None
        family = self._families.setdefault(root, [])
        family.append(measured)
        spec = self._spec or AdaptSpec(rounds=1)  # people asked for another one, not for a search
        return next_round(family, spec, self._limits(job, spec), self._complaints.get(root, ""))

    def verdicts(self, job: Job) -> dict[str, bool]:
        """Of a job and its rounds so far, which one is kept; empty where there is no round."""
        root = root_of(job)
        family = self._families.get(root, [])
        if len(family) < 2:
            return {}
        kept = accepted(family, self._complaints.get(root, ""))
        return {one.job.id: index == kept for index, one in enumerate(family)}

    def _limits(self, job: Job, spec: AdaptSpec) -> AdaptLimits:
        weak = metrics.WEAK_MOTION if spec.weak_motion is None else spec.weak_motion
        if not metrics.motion_floor(job.prompt):  # it asks for stillness
            weak = 0.0
        jitter = metrics.JITTER if spec.jitter is None else spec.jitter
        lowest, highest = self._ranges.get(job.scene, (1, MOST_STEPS))
        return AdaptLimits(weak, jitter, (lowest, min(highest, self._max_steps)))


def root_of(job: Job) -> str:
    """Id of the recipe's own job that an adapted one goes back to."""
    return job.origin.of if job.origin is not None and job.origin.kind == "adapted" else job.id


@dataclass(frozen=True)
class MeasuredClip:
    """A job and what was measured of it.

    Args:
        job: The job.
        metrics: Values by name; empty where nothing could be measured.
        score: Its score, 0 to 1; None likewise.
    """

    job: Job
    metrics: Mapping[str, float]
    score: float | None


@dataclass(frozen=True)
class AdaptLimits:
    """What adapting one scene goes by.

    Args:
        weak_motion: ``flow_mean`` below which motion is too weak; 0 where stillness is asked for.
        jitter: ``unsteadiness`` above which motion jitters.
        steps: Fewest and most steps that suit the scene.
    """

    weak_motion: float
    jitter: float
    steps: tuple[int, int] = (1, MOST_STEPS)


def flaw_of(metrics: Mapping[str, float], limits: AdaptLimits) -> str:
    """What is wrong with a clip's motion, in words that begin with its name; empty if nothing."""
    mean, unsteadiness = metrics.get("flow_mean"), metrics.get("unsteadiness")
    if mean is not None and mean < limits.weak_motion:
        return f"weak motion: flow_mean {mean:.3g} is below {limits.weak_motion:.3g}"
    if unsteadiness is not None and unsteadiness > limits.jitter:
        return f"jitter: unsteadiness {unsteadiness:.3g} is above {limits.jitter:.3g}"
    return ""


def next_round(
    family: Sequence[MeasuredClip], spec: AdaptSpec, limits: AdaptLimits, complaint: str = ""
) -> Job | None:
    """The job that a flawed clip is rendered as once more.

    The first round raises guidance, where the job names one above 1; what comes after it, or
    instead, changes the steps: 20 more, up to 70, where motion is weak; 10 fewer, down to 40,
    where it jitters. Never beyond the scene's range of steps.

    Args:
        family: The recipe's job, and its further rounds so far, all measured.
        spec: How to adapt.
        limits: What counts as a flaw, and the range of steps.
        complaint: What people found wrong with the recipe's own job; empty if nothing.

    Returns:
        The job; None where nothing is wrong, nothing would change, or the rounds are used up.
    """
    last, number = family[-1], len(family)
    measured = flaw_of(last.metrics, limits)
    told = complaint if number == 1 else ""
    flaw = "; ".join(filter(None, (told, measured)))
    if not flaw or number > spec.rounds:
        return None
    settings: dict[str, Any] = dict(last.job.arguments)
    change = ""
    if number == 1 and _heeds_guidance(last.job):
        change = _raise_guidance(settings, spec)
    if not change:
        change = _change_steps(settings, last.job, measured.startswith("jitter"), limits)
    if not change and told:  # fewer steps aren't to be had, and people want another clip
        change = _change_steps(settings, last.job, False, limits)
    if not change:
        return None
    first = family[0].job
    return replace(
        last.job,
        id=f"{first.id}-adapt{number}",
        arguments=tuple(sorted(settings.items())),
        origin=Origin("adapted", first.id, f"{flaw}; {change}", number),
    )


def _heeds_guidance(job: Job) -> bool:
    """Whether some stage runs with the job's guidance, instead of one of its own."""
    return any(s.guidance_scale is None and not s.is_extrapolated for s in job.stages)


def _raise_guidance(settings: dict[str, Any], spec: AdaptSpec) -> str:
    for name in _GUIDANCE:
        before = settings.get(name)
        if isinstance(before, (int, float)) and before > 1:
            after = round(min(before + spec.guidance_step, spec.max_guidance), 3)
            if after <= before:
                return ""
            settings[name] = after
            return f"{name} {before:g} -> {after:g}"
    return ""


def _change_steps(settings: dict[str, Any], job: Job, is_jitter: bool, limits: AdaptLimits) -> str:
    """Set other steps; stages that count their own steps leave nothing to change."""
    if any(getattr(stage, "steps", None) is not None for stage in job.stages):
        return ""
    before = job.num_inference_steps
    lowest, highest = limits.steps
    if is_jitter:
        after = min(before, max(FEWEST_STEPS, lowest, before - FEWER_STEPS))
    else:
        after = max(before, min(MOST_STEPS, highest, before + MORE_STEPS))
    if after == before:
        return ""
    settings[_STEPS] = after
    return f"{_STEPS} {before} -> {after}"


def accepted(family: Sequence[MeasuredClip], complaint: str = "") -> int:
    """Which of a job and its further rounds is kept: the best score, ties by order.

    Without scores it is the last one, which no flaw was found in, or which nothing helped any
    more. What people complained of isn't kept.
    """
    first = 1 if complaint and len(family) > 1 else 0
    chosen = best([None if n < first else one.score for n, one in enumerate(family)], 1)
    return chosen[0] if chosen else len(family) - 1
