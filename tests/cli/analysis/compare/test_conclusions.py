"""Conclusions of a report: the winner, paying steps, equal renders, savings by drafts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendered import a_job

from flowblend_cli.analysis.clips.clip import Clip, Section, Spread
from flowblend_cli.analysis.clips.variants import find_axes, find_variants
from flowblend_cli.analysis.compare import determinism, drafts, sentences
from flowblend_cli.analysis.compare.conclusions import MOST_LOST, TOLERANCE, Comparison, compare
from flowblend_cli.analysis.compare.findings import conclude
from flowblend_cli.analysis.report.tables import printed
from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.jobs import Job, Origin
from flowblend_cli.study import Study

SCORES = st.floats(0, 1).map(lambda value: round(value, 4))


def a_clip(job: Job, score: float | None = None, **values: Any) -> Clip:
    told = {"elapsed_s": (job.num_inference_steps / 10,), "pixels": (f"p-{job.id}",), **values}
    record = JobRecord(job.id, job.recipe, told["pixels"][0], **told)
    return Clip(job, job.filename, job.seed, record, score)


def section_of(clips: list[Clip], **values: Any) -> Section:
    return Section("study", tuple(clips), **values)


def steps_study(scores: dict[int, list[float]]) -> Comparison:
    clips = [
        a_clip(a_job(steps=steps, seed=seed), score)
        for steps, some in scores.items()
        for seed, score in enumerate(some, 1)
    ]
    return compare(section_of(clips))


def told(comparison: Comparison) -> str:
    return " ".join(verdict.text for verdict in sentences.compared(comparison))


def test_the_fewest_steps_that_cant_be_told_from_the_best_win() -> None:
    found = steps_study({30: [0.60, 0.62, 0.61], 50: [0.80, 0.82, 0.81], 100: [0.81, 0.82, 0.825]})

    assert found.winner is not None
    assert found.best is not None
    assert (found.winner.steps, found.best.steps) == (50, 100)
    assert "More steps stop paying at 50: score 0.810 ± 0.025 against 0.818" in told(found)
    assert "for 50 % of the time" in told(found)


def test_the_winning_clip_is_the_best_repeat_of_the_winning_variant() -> None:
    found = steps_study({50: [0.80, 0.82, 0.81], 100: [0.81, 0.82, 0.825]})

    (winner,) = found.winners
    assert (winner.job, winner.seed, winner.of) == ("square-s2-n50-ode", 2, 3)


def test_a_clear_loss_is_never_called_as_good_however_few_repeats_there_are() -> None:
    found = steps_study({10: [0.2, 0.7], 50: [0.9, 0.8]})

    low = found.rows[0].to_best
    assert low is not None
    assert low.is_within(TOLERANCE)  # two repeats leave everything open
    assert low.mean < -MOST_LOST
    assert found.winner is not None
    assert found.winner.steps == 50


def test_a_fall_after_the_peak_is_told_where_it_is_and_not_where_it_isnt() -> None:
    falls = {30: [0.6, 0.61, 0.6], 50: [0.85, 0.86, 0.85], 100: [0.7, 0.71, 0.69]}
    stays = {30: [0.6, 0.61, 0.6], 50: [0.85, 0.86, 0.87], 100: [0.84, 0.87, 0.85]}
    rises = {30: [0.6, 0.61, 0.6], 50: [0.7, 0.7, 0.71], 100: [0.84, 0.87, 0.85]}

    assert "More steps are worse after 50: the score falls to 0.700 at 100" in told(
        steps_study(falls)
    )
    assert "No fall after the peak at 50 steps that repeats could confirm" in told(
        steps_study(stays)
    )
    assert "No fall after a peak: the mean score is still highest at 100" in told(
        steps_study(rises)
    )
    assert "More steps paid up to 100" in told(steps_study(rises))


def test_steps_that_chance_could_have_put_apart_arent_said_to_pay() -> None:
    wide = told(steps_study({2: [0.48, 0.50, 0.50], 4: [0.66, 0.54, 0.53]}))
    sure = told(steps_study({30: [0.6, 0.61, 0.6], 50: [0.8, 0.81, 0.8], 80: [0.7, 0.7, 0.71]}))
    single = told(steps_study({2: [0.4], 4: [0.6]}))

    assert "4 steps score best, by means that chance could have put apart: 0.577" in wide
    assert "paid" not in wide
    assert "More steps paid up to 50, and no further: score 0.803" in sure
    assert "4 steps score best: 0.600, against 0.400 at 2." in single


def test_a_winner_is_named_with_its_noise() -> None:
    noises = [
        a_clip(a_job(seed=42, sampling={"mode": "sde", "noise_seed": noise}), noise / 10)
        for noise in (1, 2, 3)
    ]

    said = told(compare(section_of(noises)))

    assert "Winner of square: seed 42, noise 3, the best of 3 repeats" in said


def test_one_render_of_each_setting_is_said_to_know_no_spread() -> None:
    said = told(steps_study({30: [0.6], 50: [0.85], 100: [0.7]}))

    assert "one render of each setting shows no spread" in said
    assert "no spread is known" in said
    assert "±" not in said


def test_ties_are_said() -> None:
    found = steps_study({50: [0.8, 0.8, 0.7]})

    (winner,) = found.winners
    assert winner.ties == ("square-s2-n50-ode",)
    assert "square-s2-n50-ode scores the same" in told(found)


def test_without_scores_nobody_wins_and_the_report_says_what_to_install() -> None:
    clips = [a_clip(a_job(steps=steps)) for steps in (30, 50)]

    found = compare(section_of(clips))

    assert found.winners == ()
    assert found.winner is None
    assert "flowblend[metrics]" in told(found)


@given(
    st.dictionaries(
        st.integers(1, 200), st.lists(SCORES, min_size=1, max_size=4), min_size=2, max_size=5
    )
)
def test_the_winner_is_never_far_below_the_best_and_never_has_more_steps(
    scores: dict[int, list[float]],
) -> None:
    found = steps_study(scores)

    assert found.best is not None
    assert found.winner is not None
    assert found.best.score is not None
    assert found.winner.score is not None
    assert found.best.score.mean == max(r.score.mean for r in found.rows if r.score)
    assert (found.winner.steps or 0) <= (found.best.steps or 0)
    assert found.winner.to_best is not None
    assert found.winner is found.best or found.winner.to_best.mean >= -MOST_LOST - 1e-9
    assert sum(row.is_winner for row in found.rows) == 1
    assert {winner.job for winner in found.winners} <= set(found.winner.jobs)
    assert told(found)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=5), st.permutations([0, 1]))
def test_the_order_of_clips_changes_no_conclusion(
    pairs: list[tuple[float, float]], order: list[int]
) -> None:
    clips = [
        [a_clip(a_job(steps=steps, seed=seed), pair[place]) for seed, pair in enumerate(pairs, 1)]
        for place, steps in enumerate((30, 50))
    ]

    found = compare(section_of([clip for place in order for clip in clips[place]]))

    assert found.rows == compare(section_of([*clips[0], *clips[1]])).rows


def test_each_scene_has_a_winner_of_its_own() -> None:
    clips = [
        a_clip(a_job(steps=steps, seed=seed, scene=scene), score)
        for scene in ("square", "star")
        for steps, score in ((30, 0.5), (50, 0.8))
        for seed in (1, 2)
    ]

    found = compare(section_of(clips))

    assert [winner.scene for winner in found.winners] == ["square", "star"]


def test_seconds_are_shares_of_fifty_steps_or_of_the_longest() -> None:
    assert [r.share for r in steps_study({25: [0.5], 50: [0.6], 100: [0.7]}).rows] == [0.5, 1, 2]
    assert [r.share for r in steps_study({10: [0.5], 40: [0.6]}).rows] == [0.25, 1]


def test_pictures_get_a_decision_table_with_measured_seconds() -> None:
    clips = [
        a_clip(a_job(steps=steps, seed=seed, arguments={"num_frames": 1}), score)
        for steps, score in ((20, 0.5), (40, 0.7), (60, 0.72))
        for seed in (1, 2, 3)
    ]

    found = compare(section_of(clips))

    assert [row.use for row in found.rows] == ["explore", "produce", "final"]
    assert "Explore at 20 steps (2.0 s); produce at 40 steps (4.0 s); final" in told(found)
    assert "score is its sharpness alone" in told(found)
    assert [" ".join(line.split()) for line in printed(found)] == [
        "steps seconds share score for",
        "20 2.0 s 33 % 0.500 ± 0.000 explore",
        "40 4.0 s 67 % 0.700 ± 0.000 produce",
        "60 * 6.0 s 100 % 0.720 ± 0.000 final",
    ]


def test_closeness_to_a_reference_is_told_where_it_was_measured() -> None:
    clips = [
        a_clip(a_job(steps=steps), 0.5 + steps / 1000, metrics={"psnr": psnr})
        for steps, psnr in ((30, 24.0), (50, 31.0), (80, 100.0))
    ]

    assert "from 24.0 dB PSNR at 30 steps to 31.0 dB at 50" in told(compare(section_of(clips)))


def test_what_follows_from_another_axis_is_no_axis() -> None:
    clips = [
        a_clip(a_job(steps=30, stage_string="LS")),
        a_clip(a_job(steps=50, stage_string="LSL")),
        a_clip(a_job(steps=50, stage_string="LSL", sampling={"mode": "sde"})),
    ]

    assert find_axes(clips) == ("num_inference_steps", "sampling.mode")
    assert find_axes(clips, ["sampling.mode", "guidance_scale"]) == (
        "sampling.mode",
        "num_inference_steps",
    )


def test_scenes_with_settings_of_their_own_make_no_axis() -> None:
    clips = [a_clip(a_job(steps=30, scene="a")), a_clip(a_job(steps=50, scene="b"))]

    assert find_axes(clips) == ()
    assert len(find_variants(clips, ())) == 1


def test_seeds_and_noise_seeds_are_repeats_of_one_variant() -> None:
    clips = [
        a_clip(a_job(seed=seed, sampling={"mode": "sde", "noise_seed": noise}))
        for seed in (1, 2)
        for noise in (5, 6)
    ]

    assert find_axes(clips) == ()


def ode_and_sde(broken: bool = False) -> list[Clip]:
    clips = []
    for noise in range(1, 11):
        for mode in ("ode", "sde"):
            job = a_job(seed=42, sampling={"mode": mode, "noise_seed": noise})
            odd = broken and noise == 4
            pixels = f"noise{noise}" if mode == "sde" or odd else "same"
            clips.append(a_clip(job, 0.5, pixels=(pixels,)))
    return clips


def test_ten_renders_of_ode_under_ten_noises_must_be_equal_and_those_of_sde_not() -> None:
    ode, sde = determinism.determinism_by_mode(ode_and_sde())

    assert (ode.mode, ode.equal, ode.renders, ode.holds) == ("ode", 10, 10, True)
    assert (sde.mode, sde.groups, sde.noises, sde.different) == ("sde", (), 10, 10)
    said = " ".join(verdict.text for verdict in sentences.same((ode, sde)))
    assert "ODE: 10 of 10 renders equal in every bit (sha256 same…)" in said
    assert "SDE: 10 added noises gave 10 different clips" in said


def test_equal_renders_count_once_wherever_a_spread_is_told() -> None:
    found = compare(section_of(ode_and_sde()))

    assert [(r.label, len(r.jobs), r.score.n) for r in found.rows if r.score] == [
        ("ODE", 10, 1),
        ("SDE", 10, 10),
    ]
    assert "equal renders count once" in told(found)
    assert "the same" not in told(found)


def test_one_render_that_differs_is_a_warning() -> None:
    ode = determinism.determinism_by_mode(ode_and_sde(broken=True))[0]

    assert (ode.equal, ode.renders, ode.holds) == (9, 10, False)
    (verdict,) = sentences.same([ode])
    assert verdict.tone == "warning"
    assert "only 9 of 10" in verdict.text


@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_every_timing_of_one_job_must_be_equal_in_both_modes(mode: str) -> None:
    clip = a_clip(a_job(sampling={"mode": mode}), pixels=("a", "a", "a"))

    assert determinism.determinism_by_mode([clip])[0].equal == 3
    assert not determinism.determinism_by_mode([a_clip(clip.job, pixels=("a", "b", "a"))])[0].holds


def test_other_settings_needn_be_equal() -> None:
    assert determinism.determinism_by_mode([a_clip(a_job(steps=30)), a_clip(a_job(steps=50))]) == ()


def test_the_spread_of_sde_is_compared_with_that_of_ode() -> None:
    spreads = (
        Spread("square", "ode", "seeds", ("a", "b"), 0.3, 30.0, 1, 0),
        Spread("square", "sde", "seeds", ("c", "d"), 0.6, 24.0, 1, 0),
    )

    said = " ".join(verdict.text for verdict in sentences.spread(spreads))

    assert "Motion under ODE spreads 50 % less than under SDE" in said
    assert "24.0 dB PSNR between any two" in said


def test_equal_renders_have_no_spread_in_words_either() -> None:
    spreads = (Spread("square", "ode", "noise", ("a", "b"), 0.0, None, 1, 1),)

    assert "no pixel differs" in next(iter(sentences.spread(spreads))).text


def drafts_and_finals() -> list[Clip]:
    clips = []
    for seed, score in ((1, 0.5), (2, 0.8), (3, 0.7), (4, 0.2)):
        draft = a_job(f"draft-{seed}", steps=10, seed=seed, origin=Origin("draft"))
        clips.append(a_clip(draft, score))
    for seed, score in ((2, 0.9), (3, 0.85)):
        final = a_job(f"final-{seed}", seed=seed, origin=Origin("final", f"draft-{seed}"))
        clips.append(a_clip(final, score))
    return clips


def test_drafts_save_what_finishing_all_of_them_would_have_cost() -> None:
    (found,) = drafts.draft_costs(section_of(drafts_and_finals()))

    # 4 drafts of 1 s and 2 finals of 5 s, against 4 finals.
    assert (found.draft_s, found.final_s, found.full_s) == (4, 10, 20)
    assert found.saved == pytest.approx(0.3)
    assert found.is_best_kept is True
    said = next(iter(sentences.drafted((found,)))).text
    assert "Drafts saved 30 %: 4 drafts and 2 finals took 14.0 s, against 20.0 s" in said


def test_drafts_that_were_given_up_count_with_their_seconds() -> None:
    section = section_of(drafts_and_finals(), abandoned_s={"square": (0.5, 0.5)})

    (found,) = drafts.draft_costs(section)

    assert (found.drafts, found.abandoned, found.draft_s, found.full_s) == (6, 2, 5, 30)


def test_drafts_that_saved_nothing_are_said_to_cost_more() -> None:
    clips = [
        a_clip(a_job("d", steps=40, seed=1, origin=Origin("draft")), 0.5),
        a_clip(a_job("f", seed=1, origin=Origin("final", "d")), 0.6),
    ]

    said = next(iter(sentences.drafted(drafts.draft_costs(section_of(clips))))).text

    assert "Drafts cost 80 % more" in said


def test_the_best_final_wins() -> None:
    found = compare(section_of(drafts_and_finals()))

    assert [winner.job for winner in found.winners] == ["final-2"]


def test_an_accepted_adapted_clip_takes_the_place_of_the_winner_it_came_from() -> None:
    own = a_clip(a_job(steps=50), 0.6, accepted=False)
    worse = a_clip(a_job(steps=30), 0.3)
    first = a_job("again-1", steps=50, origin=Origin("adapted", own.id, "weak motion", 1))
    second = a_job("again-2", steps=70, origin=Origin("adapted", first.id, "weak motion", 2))
    clips = [own, worse, a_clip(first, 0.5, accepted=False), a_clip(second, 0.7, accepted=True)]

    found = compare(section_of(clips))
    rows = drafts.adapted(section_of(clips))

    assert [winner.job for winner in found.winners] == ["again-2"]
    assert [(row.job, row.round, row.accepted) for row in rows] == [
        (own.id, 0, False),
        ("again-1", 1, False),
        ("again-2", 2, True),
    ]
    assert [row.label for row in found.rows] == ["30 steps", "50 steps"]


def test_origins_that_go_in_circles_end() -> None:
    one = a_job("one", origin=Origin("adapted", "two", "", 1))
    two = a_job("two", origin=Origin("adapted", "one", "", 2))

    assert drafts.adapted(section_of([a_clip(one), a_clip(two)]))


def test_a_step_that_took_far_longer_is_a_warning() -> None:
    clip = a_clip(a_job(), step_s=(1.0, 1.0, 1.0, 9.0, 1.0))

    (verdict,) = sentences.slow_steps([clip])

    assert verdict.tone == "warning"
    assert clip.id in verdict.text
    assert not list(sentences.slow_steps([a_clip(a_job(), step_s=(9.0, 1.0, 1.0, 1.0))]))


def test_clips_with_nothing_to_compare_are_said_to_be_that() -> None:
    from flowblend_cli.analysis.clips.clip import Folder

    clips = [a_clip(a_job(scene=scene), 0.5) for scene in ("a", "b")]
    (part,) = conclude(Folder("out", (section_of(clips),), ())).parts

    assert "2 clips of 2 scenes, one of each: nothing to compare yet" in part.sentences[0].text
    assert part.winners == frozenset()


def test_the_sweeps_own_order_of_axes_is_kept() -> None:
    clips = [
        a_clip(a_job(steps=steps, sampling={"mode": mode}), 0.5)
        for steps in (30, 50)
        for mode in ("sde", "ode")
    ]
    from flowblend_cli.analysis.clips.clip import KeptRecipe

    study = Study(axes=("sampling.mode", "num_inference_steps"))
    recipe = KeptRecipe("", "", (), (), study, ())

    found = compare(section_of(clips, recipe=recipe))

    assert [row.label for row in found.rows] == [
        "SDE, 30 steps", "SDE, 50 steps", "ODE, 30 steps", "ODE, 50 steps",
    ]  # fmt: skip
