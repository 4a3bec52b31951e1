"""What measurements lead to, decided without a model: finals, further rounds, references, steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_cli.artifacts.records import Look, read_looks, write_looks
from flowblend_cli.engine.followup.adaptation import (
    Adaptations,
    AdaptLimits,
    MeasuredClip,
    accepted,
    flaw_of,
    next_round,
)
from flowblend_cli.engine.followup.pruning import best, dropped, verdict
from flowblend_cli.engine.runtime.resume import slow_steps
from flowblend_cli.jobs import Batch, Job, axis_value, references
from flowblend_cli.planning.metrics import metrics_of
from flowblend_cli.planning.ordering import ordered
from flowblend_cli.planning.plan import announced
from flowblend_cli.study import AdaptSpec, MeasureSpec, Selection, Study

LIMITS = AdaptLimits(weak_motion=1.0, jitter=3.0)
STILL, JUMPY, FINE = (
    {"flow_mean": 0.5, "unsteadiness": 1.0},
    {"flow_mean": 5.0, "unsteadiness": 4.0},
    {"flow_mean": 5.0, "unsteadiness": 1.0},
)


@pytest.fixture
def job(batch_of: Any) -> Job:
    return with_settings(batch_of().jobs[0], num_inference_steps=50, guidance_scale=5.0)


def with_settings(job: Job, **settings: Any) -> Job:
    return replace(job, arguments=tuple(sorted({**dict(job.arguments), **settings}.items())))


def rounds(job: Job, metrics: Any, spec: AdaptSpec, limits: AdaptLimits = LIMITS) -> list[Job]:
    """All rounds of a job whose every render measures the same."""
    family = [MeasuredClip(job, metrics, None)]
    while (further := next_round(family, spec, limits)) is not None:
        family.append(MeasuredClip(further, metrics, None))
    return [one.job for one in family[1:]]


def settings(jobs: list[Job]) -> list[tuple[float, int]]:
    return [(job.argument("guidance_scale"), job.num_inference_steps) for job in jobs]


def test_weak_motion_raises_guidance_first_and_then_the_steps(job: Job) -> None:
    found = rounds(job, STILL, AdaptSpec(rounds=4))
    assert settings(found) == [(6.0, 50), (6.0, 70)]
    assert [one.id for one in found] == [f"{job.id}-adapt1", f"{job.id}-adapt2"]
    first = found[0].origin
    assert first is not None
    assert (first.kind, first.of, first.round) == ("adapted", job.id, 1)
    assert "weak motion: flow_mean 0.5 is below 1" in first.reason
    assert "guidance_scale 5 -> 6" in first.reason


def test_jitter_takes_steps_away_down_to_forty(job: Job) -> None:
    spec = AdaptSpec(rounds=5, guidance_step=0.0)
    assert settings(rounds(with_settings(job, num_inference_steps=55), JUMPY, spec)) == [
        (5.0, 45),
        (5.0, 40),
    ]
    assert rounds(with_settings(job, num_inference_steps=30), JUMPY, spec) == []


def test_steps_stay_within_the_range_of_the_scene(job: Job) -> None:
    spec = AdaptSpec(rounds=5, guidance_step=0.0)
    assert settings(rounds(job, STILL, spec, replace(LIMITS, steps=(50, 60)))) == [(5.0, 60)]
    assert rounds(job, JUMPY, spec, replace(LIMITS, steps=(50, 60))) == []


def test_guidance_stops_at_its_highest_and_isnt_switched_on(job: Job) -> None:
    at_most = AdaptSpec(rounds=1, max_guidance=5.5)
    assert settings(rounds(job, STILL, at_most)) == [(5.5, 50)]
    assert settings(rounds(job, STILL, replace(at_most, max_guidance=5.0))) == [(5.0, 70)]
    unguided = with_settings(job, guidance_scale=1.0)
    assert settings(rounds(unguided, STILL, AdaptSpec(rounds=1))) == [(1.0, 70)]


def test_guidance_that_no_stage_looks_at_isnt_raised(job: Job) -> None:
    own = replace(job, stages=tuple(replace(s, guidance_scale=3.0) for s in job.stages))
    assert settings(rounds(own, STILL, AdaptSpec(rounds=1))) == [(5.0, 70)]
    some = replace(job, stages=(replace(job.stages[0], guidance_scale=3.0), *job.stages[1:]))
    assert settings(rounds(some, STILL, AdaptSpec(rounds=1))) == [(6.0, 50)]


def test_no_round_has_more_steps_than_the_recipe_allows(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    more = "\n[adapt]\nguidance_step = 0.0\n"
    text = minimal.replace("[recipe]", "[recipe]\nmax_steps = 55", 1) + more
    batch = batch_of(text, "defaults.num_inference_steps=50")
    further = Adaptations(batch.study, {}).add(MeasuredClip(batch.jobs[0], STILL, 0.5))
    assert further is not None
    assert further.num_inference_steps == 55


def test_a_clip_without_a_flaw_stays_unless_people_complain(job: Job) -> None:
    family = [MeasuredClip(job, FINE, 0.9)]
    assert next_round(family, AdaptSpec(), LIMITS) is None
    further = next_round(family, AdaptSpec(), LIMITS, "naturalness 3.5 of 10")
    assert further is not None
    assert "naturalness" in (further.origin.reason if further.origin else "")
    assert next_round([*family, MeasuredClip(further, FINE, 0.1)], AdaptSpec(), LIMITS, "x") is None
    assert accepted([*family, MeasuredClip(further, FINE, 0.1)], "naturalness 3.5 of 10") == 1


def test_what_cant_be_measured_has_no_flaw() -> None:
    assert flaw_of({}, LIMITS) == ""
    assert flaw_of({"flow_mean": 0.0}, replace(LIMITS, weak_motion=0.0)) == ""


def test_the_best_score_of_a_family_is_kept_and_without_scores_the_last_one(job: Job) -> None:
    scores = [0.4, 0.6, 0.6]
    assert accepted([MeasuredClip(job, FINE, score) for score in scores]) == 1
    assert accepted([MeasuredClip(job, FINE, None) for _ in scores]) == 2


@given(st.lists(st.none() | st.floats(0, 1), max_size=12), st.integers(1, 12))
def test_the_best_are_no_worse_than_the_rest_and_never_unscored(
    scores: list[float | None], keep: int
) -> None:
    chosen = best(scores, keep)
    known = [score for score in scores if score is not None]
    assert len(chosen) == min(keep, len(known))
    assert list(chosen) == sorted(set(chosen))
    rest = [s for i, s in enumerate(scores) if s is not None and i not in chosen]
    picked = [scores[i] for i in chosen]
    assert None not in picked
    assert not rest or not picked or max(rest) <= min(p for p in picked if p is not None)


def test_ties_go_to_the_first() -> None:
    assert best([0.5, 0.7, 0.5, 0.7], 3) == (0, 1, 3)


def seeds_of(job: Job, number: int) -> list[Job]:
    return [replace(job, id=f"d{seed}", seed=seed) for seed in range(1, number + 1)]


def test_a_choice_is_told_by_its_seeds(job: Job) -> None:
    jobs = seeds_of(job, 8)
    assert verdict(jobs, (2, 6), "score") == "seeds 3 and 7 of 8 by score"
    assert verdict(jobs, (0,), "score") == "seed 1 of 8 by score"
    assert verdict(jobs, (0, 1, 2), "score") == "seeds 1, 2 and 3 of 8 by score"


def test_after_an_early_look_the_worst_drafts_are_dropped_and_unseen_ones_go_on(job: Job) -> None:
    jobs = seeds_of(job, 4)
    selection = Selection("s", ("d1", "d2", "d3", "d4"), (), 1, reject_after=2, reject_keep=2)
    reasons = dropped(selection, jobs, {"d1": 0.1, "d2": 0.9, "d3": None, "d4": 0.5})
    assert set(reasons) == {"d1"}
    assert "after 2 steps" in reasons["d1"]
    assert set(dropped(replace(selection, reject_keep=1), jobs, {"d1": 0.2, "d2": 0.3})) == {"d1"}


SWEEP = """
[sweep]
num_inference_steps = [10, 20, 30]
"blend.stages" = ["LSL", "LLL"]

[metrics]
reference = { num_inference_steps = 30 }
"""


def test_a_reference_differs_in_its_axes_alone_and_comes_first(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    batch = batch_of(minimal.replace("seeds = [1]", "seeds = [1, 2]") + SWEEP)
    found = references(batch)
    assert len(batch.jobs) == 12
    assert len(found) == 8
    for job in batch.jobs:
        if job.num_inference_steps == 30:
            assert job.id not in found
            continue
        reference = found[job.id]
        assert reference.num_inference_steps == 30
        assert (reference.seed, reference.stage_string) == (job.seed, job.stage_string)
    in_order = ordered(batch.jobs, {job.id for job in found.values()})
    assert [job.num_inference_steps for job in in_order[:4]] == [30] * 4
    assert sorted(job.id for job in in_order) == sorted(job.id for job in batch.jobs)


def test_a_reference_has_the_same_stages_in_the_long_form_too(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    start, end = minimal.index("[blend]"), minimal.index("[defaults]")
    text = (
        minimal[:start]
        + minimal[end:]
        + """
[sweep]
num_inference_steps = [10, 20]
"blend.stage" = [
    [{denoiser = "large", until = 0.5}, {denoiser = "small"}],
    [{denoiser = "large", until = 0.5, guidance_scale = 3.0}, {denoiser = "small"}],
]

[metrics]
reference = { num_inference_steps = 20 }
"""
    )
    batch = batch_of(text)
    found = references(batch)
    assert len(found) == 2
    assert all(found[j.id].stages == j.stages for j in batch.jobs if j.id in found)


def test_a_drawn_seed_has_no_reference(batch_of: Callable[..., Batch], minimal: str) -> None:
    assert not references(batch_of(minimal.replace("seeds = [1]", "seeds = [0]") + SWEEP))


def test_axes_are_read_from_jobs(job: Job) -> None:
    job = replace(job, sampling=replace(job.sampling, mode="sde"))
    assert axis_value(job, "num_inference_steps") == 50
    assert axis_value(job, "sampling.mode") == "sde"
    assert axis_value(job, "blend.stages") == "LSL"
    assert axis_value(job, "blend.boundaries") == (0.4, 0.8)
    assert axis_value(job, "seed") == 1
    assert axis_value(job, "output.crf") == 10
    assert axis_value(job, "nothing") is None


def test_plans_say_what_may_follow(batch_of: Callable[..., Batch]) -> None:
    selection = Selection("fox", tuple("abcdefgh"), tuple("ABCDEFGH"), 2, 6, 4)
    study = Study(selections=(selection,), adapt=AdaptSpec(), measure=MeasureSpec())
    assert announced(replace(batch_of(), study=study)) == [
        "scene fox: after 6 steps a look at each of 8 drafts; 4 of them go on",
        "up to 2 further renders of each clip whose motion is too weak or jitters will follow",
    ]
    assert announced(batch_of()) == []


def test_a_step_is_slow_by_the_median_of_its_own_denoiser() -> None:
    roles = ["large"] * 6 + ["small"] * 5
    even = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert slow_steps(even, roles) == ""  # the first step holds what happens once
    assert "step 8 (1.20 s)" in slow_steps([*even[:8], 1.2, 0.3, 0.3], roles)
    assert "'small', 0.30 s" in slow_steps([*even[:8], 1.2, 0.3, 0.3], roles)
    assert slow_steps([*even[:8], 0.8, 0.3, 0.3], roles) == ""  # below three times


def test_tiny_or_few_steps_are_never_slow() -> None:
    assert slow_steps([0.01, 0.01, 0.01, 0.06, 0.01], ["large"] * 5) == ""
    assert slow_steps([1.0, 1.0, 9.0], ["large"] * 3) == ""


def test_what_is_weighted_is_measured() -> None:
    study = Study(measure=MeasureSpec(weights=(("lpips", 1.0),)))

    assert "lpips" in metrics_of(study)
    assert "lpips" not in metrics_of(Study())


def test_an_interrupted_early_look_keeps_the_looks_that_were_taken_and_no_others(
    tmp_path: Path,
) -> None:
    selection = Selection("s", ("d1", "d2", "d3"), (), 1, reject_after=2)
    keys = {"d1": "a" * 64, "d2": "b" * 64, "d3": "c" * 64}
    seen = {"d1": Look(0.5, 1.0), "another": Look(0.7, 1.0)}
    write_looks(tmp_path, selection, "q", keys, seen)
    assert read_looks(tmp_path, selection, "q", keys) == {"d1": Look(0.5, 1.0)}
