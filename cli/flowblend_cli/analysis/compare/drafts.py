"""Costs of drafts and finals, and renders of adapted jobs, for reports. Pure Python."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flowblend_cli.analysis.clips.clip import Clip, Section, own_job
from flowblend_cli.analysis.clips.variants import group


@dataclass(frozen=True)
class DraftCosts:
    """Costs of the drafts and finals of one scene.

    Args:
        scene: The scene.
        drafts: How many drafts were looked at, abandoned ones included.
        abandoned: How many of them were given up on the way.
        finals: How many were finished.
        draft_s: Seconds of all drafts.
        final_s: Seconds of the finals.
        full_s: Seconds that finishing every draft would have taken: the finals' median for each.
        is_best_kept: Whether the draft with the best score became the best final; None where less
            than two finals have scores.
        best: Id of the final with the best score; empty without scores.
    """

    scene: str
    drafts: int
    abandoned: int
    finals: int
    draft_s: float
    final_s: float
    full_s: float
    is_best_kept: bool | None = None
    best: str = ""

    @property
    def saved(self) -> float:
        """Share of the seconds that was saved; below 0 where drafts cost more than they saved."""
        return 1 - (self.draft_s + self.final_s) / self.full_s if self.full_s else 0.0


@dataclass(frozen=True)
class AdaptedRender:
    """One render of a job that was rendered once more with other settings.

    Args:
        job: Its id.
        of: Id of the recipe's own job.
        round: 0 for the recipe's own, then counted from 1.
        reason: Why it was rendered.
        steps: Its number of steps.
        guidance: Its guidance scale, where it has one.
        score: Its score.
        flow_mean: Its mean motion.
        unsteadiness: How unevenly it moves.
        accepted: Whether it is the one to keep.
    """

    job: str
    of: str
    round: int
    reason: str
    steps: int
    guidance: float | None
    score: float | None
    flow_mean: float | None
    unsteadiness: float | None
    accepted: bool


def draft_costs(section: Section) -> tuple[DraftCosts, ...]:
    """Costs of each scene's drafts; empty where there are none, or none was finished."""
    rows = []
    for scene, clips in group(section.clips, lambda clip: clip.job.scene).items():
        looked_at = [clip for clip in clips if clip.kind == "draft"]
        finals = [clip for clip in clips if clip.kind == "final"]
        abandoned = section.abandoned_s.get(scene, ())
        seconds = [clip.seconds for clip in finals if clip.seconds is not None]
        if not looked_at or not seconds:
            continue
        number = len(looked_at) + len(abandoned)
        looks_s = sum(abandoned) + section.looks_s.get(scene, 0.0)
        rows.append(
            DraftCosts(
                scene,
                number,
                len(abandoned),
                len(finals),
                sum(clip.seconds or 0.0 for clip in looked_at) + looks_s,
                sum(seconds),
                statistics.median(seconds) * number,
                _is_best_kept(looked_at, finals),
                _best(finals),
            )
        )
    return tuple(rows)


def _best(clips: Sequence[Clip]) -> str:
    scored = [clip for clip in clips if clip.score is not None]
    return max(scored, key=lambda clip: clip.score or 0.0).id if scored else ""


def _is_best_kept(looked_at: Sequence[Clip], finals: Sequence[Clip]) -> bool | None:
    if sum(clip.score is not None for clip in finals) < 2 or not _best(looked_at):
        return None
    best = next(clip for clip in finals if clip.id == _best(finals))
    return best.job.origin is not None and best.job.origin.of == _best(looked_at)


def adapted(section: Section) -> tuple[AdaptedRender, ...]:
    """Renders of every job that was rendered once more, in order."""
    clips = {clip.id: clip for clip in section.clips}
    further = [clip.id for clip in section.clips if clip.kind == "adapted"]
    families = group(further, lambda job: own_job(job, section.clips))
    rows = []
    for of, jobs in families.items():
        renders = [_adapted(clips[job], of) for job in [of, *jobs] if job in clips]
        rows += sorted(renders, key=lambda render: render.round)
    return tuple(rows)


def _adapted(clip: Clip, of: str) -> AdaptedRender:
    guidance = clip.job.argument("guidance_scale")
    origin = clip.job.origin
    return AdaptedRender(
        clip.id,
        of,
        origin.round if origin else 0,
        origin.reason if origin and clip.kind == "adapted" else "",
        clip.job.num_inference_steps,
        float(guidance) if isinstance(guidance, (int, float)) else None,
        clip.score,
        clip.record.metrics.get("flow_mean"),
        clip.record.metrics.get("unsteadiness"),
        clip.record.accepted is True,
    )
