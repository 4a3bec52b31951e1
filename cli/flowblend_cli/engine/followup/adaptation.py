"""Clips that are rendered once more with other settings: each one's rounds, and which is kept."""

from __future__ import annotations

from collections.abc import Mapping

from flowblend_cli.followups import MOST_STEPS, Limits, Measured, accepted, next_round
from flowblend_cli.jobs import Job
from flowblend_cli.study import AdaptSpec, Study
from flowblend_plugin import metrics


class Families:
    """Every adapted job with its further rounds.

    Args:
        study: When and how clips are adapted.
        complaints: What people found wrong, by job; these are adapted whatever was measured.
    """

    def __init__(self, study: Study, complaints: Mapping[str, str]) -> None:
        self._spec = study.adapt
        self._ranges = {scene: (low, high) for scene, low, high in study.step_ranges}
        self._max_steps = MOST_STEPS if study.max_steps is None else study.max_steps
        self._complaints = complaints
        self._families: dict[str, list[Measured]] = {}

    def add(self, measured: Measured) -> Job | None:
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

    def _limits(self, job: Job, spec: AdaptSpec) -> Limits:
        weak = metrics.WEAK_MOTION if spec.weak_motion is None else spec.weak_motion
        if not metrics.motion_floor(job.prompt):  # it asks for stillness
            weak = 0.0
        jitter = metrics.JITTER if spec.jitter is None else spec.jitter
        lowest, highest = self._ranges.get(job.scene, (1, MOST_STEPS))
        return Limits(weak, jitter, (lowest, min(highest, self._max_steps)))


def root_of(job: Job) -> str:
    """Id of the recipe's own job that an adapted one goes back to."""
    return job.origin.of if job.origin is not None and job.origin.kind == "adapted" else job.id
