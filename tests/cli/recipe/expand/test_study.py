"""What recipes say of studies: ranges, seeds as an axis, what is measured, drafts and finals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowblend_cli import main
from flowblend_cli.jobs import Batch, Job, Origin
from flowblend_cli.recipe.schema.ranges import Exploration, parse_range
from flowblend_cli.study import AdaptSpec, MeasureSpec, Selection, Study
from flowblend_plugin.metrics import METRICS

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]


def ids(batch: Batch) -> list[str]:
    return [job.id for job in batch.jobs]


def steps(batch: Batch) -> list[int]:
    return [job.num_inference_steps for job in batch.jobs]


def guidance(batch: Batch) -> list[float]:
    return [job.argument("guidance_scale") for job in batch.jobs]


# Ranges


@given(st.integers(0, 10**6), st.integers(0, 200), st.integers(1, 1000))
def test_a_range_of_whole_numbers_is_pythons_with_both_ends(
    low: int, number: int, step: int
) -> None:
    high = low + number * step

    assert parse_range(f"{low}-{high} (+{step})") == list(range(low, high + 1, step))


@given(st.integers(0, 10**4), st.integers(0, 100), st.integers(1, 100), st.integers(1, 4))
def test_a_range_of_fractions_has_the_floats_that_a_person_would_write(
    low: int, number: int, step: int, digits: int
) -> None:
    def written(value: int) -> str:
        text = str(value).zfill(digits + 1)
        return f"{text[:-digits]}.{text[-digits:]}"

    values = parse_range(f"{written(low)}-{written(low + number * step)} (+{written(step)})")

    assert values == [float(written(low + index * step)) for index in range(number + 1)]


@pytest.mark.parametrize("axis", ['"30-100 (+10)"', '["30-50 (+10)", 60, "70 - 100 (+ 10)"]'])
def test_a_numeric_axis_may_be_a_range_or_mix_numbers_and_ranges(
    batch_of: Load, minimal: str, axis: str
) -> None:
    batch = batch_of(minimal + f"[sweep]\nnum_inference_steps = {axis}\n")

    assert steps(batch) == [30, 40, 50, 60, 70, 80, 90, 100]


def test_a_range_without_a_step_has_the_step_1(batch_of: Load, minimal: str) -> None:
    assert steps(batch_of(minimal + '[sweep]\nnum_inference_steps = "1-4"\n')) == [1, 2, 3, 4]


def test_ranges_of_dotted_axes_and_of_fractions(batch_of: Load, minimal: str) -> None:
    sweep = '[sweep]\nguidance_scale = "1.0-2.2 (+0.3)"\n[sweep.sampling]\nflow_shift = "3-5"\n'

    batch = batch_of(minimal + sweep)

    assert guidance(batch)[::3] == [1.0, 1.3, 1.6, 1.9, 2.2]
    assert [job.sampling.flow_shift for job in batch.jobs[:3]] == [3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ('"30"', "23: sweep.num_inference_steps: must be a number, or a range such as '30-100 (+1"),
        ('"50-30"', "23: sweep.num_inference_steps: must rise from low to high, got '50-30'"),
        ('"1-9 (+0)"', "23: sweep.num_inference_steps: must have a step above 0"),
        ('"30-95 (+10)"', "23: sweep.num_inference_steps: must end where a step of 10 leads"),
        ('"1-9999999999"', "23: sweep.num_inference_steps: makes 9,999,999,999 values, more tha"),
        ('"1.5-1.5"', "23: sweep.num_inference_steps[0]: must be a whole number, got 1.5"),
        ('[5, "10-x"]', "27: sweep.num_inference_steps[1]: must be a number, or a range such as"),
        ('[5, "1-2", "0-1"]', "34: sweep.num_inference_steps[3]: must be at least 1, got 0"),
        ('[5, "999-1001"]', "27: sweep.num_inference_steps[3]: must be at most 1000, got 1001"),
        ("5", "23: sweep.num_inference_steps: must be a list, got 5"),
    ],
)
def test_a_wrong_range_is_told_at_its_place(
    problems_of: Problems, minimal: str, axis: str, says: str
) -> None:
    (line,) = problems_of(minimal + f"[sweep]\nnum_inference_steps = {axis}\n")

    assert line.startswith(f"recipe.toml:19:{says}")


def test_texts_of_other_axes_are_no_ranges(batch_of: Load, minimal: str) -> None:
    batch = batch_of(minimal + '[sweep]\nnegative_prompt = ["1-2"]\n')

    assert [job.negative_prompt for job in batch.jobs] == ["1-2"]


def test_the_limit_on_jobs_is_named(problems_of: Problems, minimal: str) -> None:
    sweep = '[sweep]\nnum_inference_steps = "1-1000"\nseed = "1-1000"\n'

    (line,) = problems_of(minimal + sweep)

    assert "makes 1,000,000 jobs, more than the limit of 100,000" in line


def test_the_first_axis_of_the_recipe_changes_slowest(batch_of: Load, minimal: str) -> None:
    one = minimal + '[sweep]\n"blend.stages" = ["LSL", "SSS"]\nnum_inference_steps = [2, 4]\n'
    other = minimal + '[sweep]\nnum_inference_steps = [2, 4]\n"blend.stages" = ["LSL", "SSS"]\n'

    assert steps(batch_of(one)) == [2, 4, 2, 4]
    assert batch_of(one).study.axes == ("blend.stages", "num_inference_steps")
    assert steps(batch_of(other)) == [2, 2, 4, 4]


# Seeds


def test_a_sweep_of_seeds_wins_over_the_scenes(batch_of: Load, minimal: str) -> None:
    batch = batch_of(minimal + '[sweep]\nseed = [42, "1337-1338", 0]\n')

    assert ids(batch) == [f"square-s{seed}-n10" for seed in (42, 1337, 1338, 0)]
    assert batch.study.axes == ("seed",)
    assert "seed" not in dict(batch.jobs[0].arguments)


def test_seeds_go_together_with_other_axes_in_a_zip(batch_of: Load, minimal: str) -> None:
    batch = batch_of(
        minimal + '[sweep]\nmode = "zip"\nseed = "7-9"\nnum_inference_steps = [2, 3, 4]\n'
    )

    assert [(job.seed, job.num_inference_steps) for job in batch.jobs] == [(7, 2), (8, 3), (9, 4)]


def test_setting_a_scenes_seeds_beside_a_sweep_of_seeds_says_that_nobody_reads_them(
    problems_of: Problems, minimal: str
) -> None:
    (line,) = problems_of(minimal + "[sweep]\nseed = [3]\n", "scene.square.seeds=[5]")

    assert line.endswith("no job reads it: [sweep] sets seed for every job")


def test_repeats_are_new_noises_and_time_repeats_are_none(batch_of: Load, minimal: str) -> None:
    batch = batch_of(minimal + "[sweep]\nrepeats = 3\ntime_repeats = 5\n")

    assert [job.seed for job in batch.jobs] == [1, 2, 3]
    assert batch.study.time_repeats == 5
    assert batch.study.axes == ()


# Sampling


@pytest.mark.parametrize("solver", ["dpmpp_2m_karras", "euler_a"])
def test_classic_solvers_are_refused_for_flow_matching_and_flow_solvers_for_classic_pipelines(
    problems_of: Problems, minimal: str, tmp_path: Path, solver: str
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "first.png")
    classic = '[model]\npipeline = "i2vgen-xl"\n[[scene]]\nname = "a"\nprompt = "b"\n'
    classic += 'image = "first.png"\n[sampling]\n'

    (line,) = problems_of(minimal + f'[sampling]\nscheduler = "{solver}"\n')
    (other,) = problems_of(classic + 'scheduler = "unipc"\n')

    assert f"scheduler: '{solver}' is for classic pipelines, which predict noise" in line
    assert "scheduler: 'unipc' is for flow matching, and 'i2vgen-xl' is a classic" in other


@pytest.mark.parametrize("key", ["flow_shift", "sigma_max"])
def test_what_shifts_flow_matchings_noise_is_refused_for_classic_pipelines(
    problems_of: Problems, minimal: str, tmp_path: Path, key: str
) -> None:
    folder = tmp_path / "model"
    (folder / "scheduler").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    text = minimal.replace('"sprites"', '"./model"').replace('stages = "LSL"', 'stages = "L"')

    lines = problems_of(text + f"[sampling]\n{key} = 100\n")

    assert [line for line in lines if f"sampling.{key}: is of flow matching, and './mod" in line]


def test_a_pair_that_keeps_its_own_scheduler_refuses_sigma_max(problems_of: Problems) -> None:
    text = '[model]\npipeline = "qwen-image"\n[[scene]]\nname = "a"\nprompt = "b"\n'

    (line,) = problems_of(text + "[sampling]\nsigma_max = 180\n")

    assert "qwen-image keeps its own scheduler" in line
    assert line.endswith("leave sigma_max out")


def test_sigma_max_is_part_of_the_sampling_and_can_be_swept(batch_of: Load, minimal: str) -> None:
    batch = batch_of(minimal + '[sweep]\n"sampling.sigma_max" = [200, 180.0]\n')

    assert [job.sampling.sigma_max for job in batch.jobs] == [200.0, 180.0]
    assert ids(batch)[1] == "square-s1-n10-sigma_max180.0"


@pytest.mark.parametrize(
    ("sampling", "says"),
    [("sigma_max = 200", "it is no known pair and no folder"),
     ('scheduler = "euler_a"\nflow_shift = 3', "euler_a isn't a solver of flow matching")],
)  # fmt: skip
def test_stages_that_end_at_noise_levels_need_levels_that_are_known(
    problems_of: Problems, minimal: str, sampling: str, says: str
) -> None:
    sigmas = minimal.replace("boundaries = [0.4, 0.8]", "boundary_sigmas = [0.9, 0.4]")
    text = sigmas.replace('"sprites"', '"a/b"\nsmall = "c/d"')

    (line,) = problems_of(text + f"[sampling]\n{sampling}\n")

    assert "blend.boundary_sigmas: the noise levels of 'a/b' can't be told" in line
    assert says in line


def test_a_noise_seed_needs_noise(problems_of: Problems, batch_of: Load, minimal: str) -> None:
    written = minimal + "[sampling]\nnoise_seed = 3\n"

    (line,) = problems_of(written)
    both = batch_of(written + '[sweep]\n"sampling.mode" = ["ode", "sde"]\n')
    sde = batch_of(written + 'mode = "sde"\n')

    assert line.endswith("is of the noise that 'sde' adds, and mode is 'ode': leave it out")
    assert [job.sampling.noise_seed for job in (*both.jobs, *sde.jobs)] == [3, 3, 3]


def test_ten_noises_of_one_seed_are_ten_jobs_under_both_modes(batch_of: Load, minimal: str) -> None:
    sweep = '[sweep]\n"sampling.mode" = ["ode", "sde"]\n"sampling.noise_seed" = "1-10"\n'

    batch = batch_of(minimal + sweep)

    assert len(batch.jobs) == 20
    assert {job.seed for job in batch.jobs} == {1}


@pytest.mark.parametrize("key", ["sla_topk", "attention_top_k"])
def test_sparse_attention_is_named_where_it_is_asked_for(
    problems_of: Problems, minimal: str, key: str
) -> None:
    (line,) = problems_of(minimal + f"[sampling]\n{key} = 0.1\n")

    assert "no pipeline of diffusers 0.42.1 has sparse attention with a top-k" in line


# What is measured


def test_a_recipe_that_says_nothing_of_studies_has_the_plain_one(
    batch_of: Load, minimal: str
) -> None:
    study = batch_of(minimal).study

    assert study.measure == MeasureSpec()
    assert study.adapt is None
    assert (study.axes, study.selections, study.time_repeats) == ((), (), 1)
    assert {job.origin for job in batch_of(minimal).jobs} == {None}


def test_the_tables_of_a_study_become_plain_data(batch_of: Load, minimal: str) -> None:
    text = minimal + (
        '[metrics]\nnames = ["flow_std", "psnr"]\n'
        'reference = { num_inference_steps = 20, "blend.boundaries" = [0.2, 0.8] }\n'
        "[score]\nflow_std = 2\npsnr = 0.5\nelapsed_s = 1\n"
        "[adapt]\nrounds = 1\njitter = 2.5\n"
        '[review]\ncriteria = ["naturalness", "sharpness"]\n'
        '[sweep]\nnum_inference_steps = "10-20 (+10)"\n'
        '"blend.boundaries" = [[0.2, 0.8], [0.4, 0.8]]\n'
    )

    study = batch_of(text).study

    assert study.measure == MeasureSpec(
        ("flow_std", "psnr"),
        (("num_inference_steps", 20), ("blend.boundaries", (0.2, 0.8))),
        (("flow_std", 2.0), ("psnr", 0.5), ("elapsed_s", 1.0)),
    )
    assert study.adapt == AdaptSpec(rounds=1, jitter=2.5)
    assert study.review.criteria == ("naturalness", "sharpness")


def test_the_highest_value_of_an_axis_is_the_reference_whatever_the_axis_is_set_to(
    batch_of: Load, minimal: str
) -> None:
    text = minimal + (
        '[metrics]\nreference = { num_inference_steps = "highest" }\n'
        "[sweep]\nnum_inference_steps = [4, 20, 8]\n"
    )

    assert batch_of(text).study.measure.reference == (("num_inference_steps", 20),)
    few = batch_of(text, "sweep.num_inference_steps=[2, 4]")
    assert few.study.measure.reference == (("num_inference_steps", 4),)


def test_an_empty_list_of_names_measures_nothing(batch_of: Load, minimal: str) -> None:
    assert batch_of(minimal + "[metrics]\nnames = []\n").study.measure.names == ()


def test_no_rounds_adapt_nothing(batch_of: Load, minimal: str) -> None:
    assert batch_of(minimal + "[adapt]\n").study.adapt == AdaptSpec()
    assert batch_of(minimal + "[adapt]\n", "adapt.rounds=0").study.adapt is None


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_weighted(batch_of: Load, minimal: str, name: str) -> None:
    against = '[metrics]\nreference = { num_inference_steps = "highest" }\n'
    text = f"{minimal}{against}[sweep]\nnum_inference_steps = [4, 8]\n[score]\n{name} = 0.5\n"

    assert batch_of(text).study.measure.weights == ((name, 0.5),)


def test_a_reference_isnt_found_by_what_jobs_dont_say(problems_of: Problems, minimal: str) -> None:
    swept = (
        '[metrics]\nreference = { "blend.budget" = 1.0 }\n[sweep]\n"blend.budget" = [0.5, 1.0]\n'
    )
    text = minimal.replace('stages = "LSL"\nboundaries = [0.4, 0.8]', 'stages = "auto"')

    (problem,) = problems_of(text + swept)

    assert "metrics.reference: can't be blend.budget: a job doesn't say it" in problem


def test_a_weight_of_likeness_needs_a_reference(problems_of: Problems, minimal: str) -> None:
    (problem,) = problems_of(minimal + "[score]\npsnr = 1\n")

    assert "score.psnr: compares with a reference, and [metrics] names none" in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[metrics]\nnames = ["ssimm"]', "19:10: metrics.names[0]: there is no metric 'ssimm'; di"),
        ('[metrics]\nnames = ["step_s"]', "19:10: metrics.names[0]: 'step_s' is told anyway: lea"),
        ('[metrics]\nnames = ["psnr"]', "19:10: metrics.names[0]: 'psnr' compares with a referen"),
        ("[metrics]\nreference = { fps = 8 }", "19:13: metrics.reference: 'fps' is no axis of ["),
        ("[metrics]\nreference = { num_inference_steps = 5 }\n[sweep]\nnum_inference_steps = [4]",
         "19:13: metrics.reference: num_inference_steps = 5 is none of the sweep's values: 4; t"),
        ('[metrics]\nreference = { "blend.stages" = "highest" }\n[sweep]\n"blend.stages" = ["L"]',
         "19:13: metrics.reference: blend.stages = 'highest' is none of the sweep's values: L; ta"),
        ("[metrics]\nreference = { seed = 4 }\n[sweep]\nseed = [4]",
         "19:13: metrics.reference: can't be seed"),
        ("[score]\nflickr = 1", "19:1: score.flickr: unknown key in [score]; did you mean 'flick"),
        ("[score]\nflicker = -1", "19:11: score.flicker: must be at least 0, got -1"),
        ("[score]\nflicker = 0", "18:1: score: gives no metric a weight above 0"),
        ('[score]\nflicker = 1\n[metrics]\nnames = ["flow_std"]',
         "19:1: score.flicker: is weighted and not measured"),
        ("[adapt]\nrounds = 99", "19:10: adapt.rounds: must be at most 10, got 99"),
        ("[adapt]\nround = 1", "19:1: adapt.round: unknown key in [adapt]; did you mean 'rounds'?"),
        ('[review]\ncriteria = ["a", "a"]', "19:12: review.criteria: 'a' stands twice: keep one"),
        ("[draft]\nkeep = 0", "19:8: draft.keep: must be at least 1, got 0"),
        ('[draft]\nstages = "LS"', "19:10: draft.stages: must be one letter, such as 'S', or thr"),
        ("[draft]\nsteps = 8\nreject_after = 8", "20:16: draft.reject_after: must be below the 8"),
        ("[draft]\nreject_keep = 2", "19:1: draft.reject_keep: needs reject_after"),
        ("[draft]\nkeep = 3\nreject_after = 2\nreject_keep = 2",
         "21:15: draft.reject_keep: must be at least keep (3), got 2"),
        ("[sweep]\ntime_repeats = 101", "19:16: sweep.time_repeats: must be at most 100, got 101"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_study_is_told_at_its_place(
    problems_of: Problems, minimal: str, text: str, says: str
) -> None:
    (line,) = problems_of(minimal + text + "\n")

    assert line.startswith(f"recipe.toml:{says}")


# Drafts and finals

EXPLORE = "[draft]\nsteps = 4\nkeep = 2\n"


def drafted(minimal: str, seeds: str = '"explore 3"') -> str:
    return minimal.replace("seeds = [1]", f"seeds = {seeds}") + EXPLORE


@pytest.mark.parametrize(
    ("written", "seeds"), [("explore 3", (1, 2, 3)), (" explore  42 - 44 ", (42, 43, 44))]
)
def test_seeds_to_explore_are_a_number_or_a_range(written: str, seeds: tuple[int, ...]) -> None:
    assert Exploration.parse_or_keep(written).seeds == seeds


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('"explore"', "must be a list of seeds, or 'explore 8', or 'explore 42-49', got 'explore'"),
        ('"explore 0"', "must rise from low to high, got 'explore 0'"),
        ('"explore 0-4"', "explores known seeds, and 0 draws one: begin at 1"),
        ('"explore 4-2"', "must rise from low to high, got 'explore 4-2'"),
        ('"explore 9999999"', "explores 9,999,999 seeds, more than the limit of 100,000"),
    ],
)
def test_what_can_t_be_explored_is_told(
    problems_of: Problems, minimal: str, written: str, says: str
) -> None:
    (line,) = problems_of(drafted(minimal, written))

    assert line.startswith("recipe.toml:17:9: scene[0].seeds: ")
    assert says in line


def test_explored_seeds_are_drafts_whose_finals_wait(batch_of: Load, minimal: str) -> None:
    batch = batch_of(drafted(minimal))

    drafts = tuple(f"square-s{seed}-n4-draft" for seed in (1, 2, 3))
    finals = tuple(f"square-s{seed}-n10" for seed in (1, 2, 3))
    assert tuple(ids(batch)) == drafts
    assert tuple(job.id for job in batch.reserve) == finals
    assert batch.study.selections == (Selection("square", drafts, finals, keep=2),)
    for draft, final in zip(batch.jobs, batch.reserve, strict=True):
        assert draft.seed == final.seed
        assert (draft.stage_string, draft.num_inference_steps) == ("S", 4)
        assert (final.stage_string, final.num_inference_steps) == ("LSL", 10)
        assert draft.origin is not None
        assert draft.origin.kind == "draft"
        assert final.origin == Origin("final", draft.id, f"finishes {draft.id} in 10 steps")
        assert Job.from_document(final.to_document()) == final


def test_a_draft_is_rendered_once_for_all_that_finish_it(batch_of: Load, minimal: str) -> None:
    batch = batch_of(drafted(minimal) + "[sweep]\nnum_inference_steps = [8, 10]\n")

    assert len(batch.jobs) == 3
    assert [selection.drafts for selection in batch.study.selections] == [tuple(ids(batch))] * 2
    assert [len(selection.finals) for selection in batch.study.selections] == [3, 3]
    assert {f for s in batch.study.selections for f in s.finals} == {j.id for j in batch.reserve}


def test_each_prompt_is_explored_by_itself(batch_of: Load, minimal: str) -> None:
    batch = batch_of(drafted(minimal).replace("a red square", "a {red|blue} square"))

    assert len(batch.jobs) == 6
    assert [len(selection.drafts) for selection in batch.study.selections] == [3, 3]


def test_half_of_the_drafts_go_on_after_an_early_look(batch_of: Load, minimal: str) -> None:
    text = drafted(minimal, '"explore 8"') + "reject_after = 2\n"

    (selection,) = batch_of(text).study.selections
    (other,) = batch_of(text, "draft.reject_keep=3").study.selections

    assert (selection.reject_after, selection.reject_keep) == (2, 4)
    assert other.reject_keep == 3


def test_no_more_than_the_explored_seeds_can_be_kept(problems_of: Problems, minimal: str) -> None:
    (line,) = problems_of(drafted(minimal), "draft.keep=4")

    assert line.endswith("4 is more than the 3 seeds that scene 'square' has")


def test_passes_put_a_draft_before_every_job(batch_of: Load, minimal: str) -> None:
    passes = minimal.replace("[model]", 'passes = ["draft", "final"]\n[model]', 1) + EXPLORE

    both = batch_of(passes)
    drafts = batch_of(passes, 'recipe.passes=["draft"]')
    finals = batch_of(passes, 'recipe.passes=["final"]')

    assert ids(both) == ["square-s1-n4-draft", "square-s1-n10"]
    assert both.jobs[1].origin is not None
    assert both.jobs[1].origin.of == "square-s1-n4-draft"
    assert both.reserve == ()
    assert ids(drafts) == ["square-s1-n4-draft"]
    assert ids(finals) == ["square-s1-n10"]
    assert finals.jobs[0].origin is None


def test_passes_and_explored_seeds_share_their_drafts(batch_of: Load, minimal: str) -> None:
    text = drafted(minimal).replace("[model]", 'passes = ["draft", "final"]\n[model]', 1)
    text += '[[scene]]\nname = "star"\nprompt = "a white star"\nseeds = [5]\n'

    batch = batch_of(text)

    assert ids(batch) == [
        *(f"square-s{seed}-n4-draft" for seed in (1, 2, 3)), "star-s5-n4-draft", "star-s5-n10"
    ]  # fmt: skip
    assert len(batch.reserve) == 3


@pytest.mark.parametrize("passes", ['["final", "draft"]', "[]", '["draft", "draft"]'])
def test_other_passes_are_refused(problems_of: Problems, minimal: str, passes: str) -> None:
    (line,) = problems_of(minimal, f"recipe.passes={passes}")

    assert "must be one of ['draft'], ['final'], ['draft', 'final'], got" in line


def test_a_draft_takes_the_large_denoiser_where_there_is_no_small_one(batch_of: Load) -> None:
    text = '[recipe]\npasses = ["draft"]\n[model]\npipeline = "qwen-image"\n'
    text += '[[scene]]\nname = "a"\nprompt = "b"\n'

    (job,) = batch_of(text).jobs

    assert (job.stage_string, job.num_inference_steps) == ("L", 30)


def test_a_draft_may_have_stages_of_its_own(
    batch_of: Load, problems_of: Problems, minimal: str
) -> None:
    (draft, *_) = batch_of(drafted(minimal), "draft.stages=LSL").jobs
    (line,) = problems_of(drafted(minimal), "draft.stages=Q")

    assert [stage.until for stage in draft.stages] == [0.4, 0.8, None]
    assert "draft.stages: stages 'Q' has unknown letter 'Q'" in line


def test_a_sweep_of_seeds_and_an_exploration_exclude_each_other(
    problems_of: Problems, minimal: str
) -> None:
    (line,) = problems_of(drafted(minimal) + "[sweep]\nseed = [1]\n")

    assert line.endswith("explores seeds, and [sweep] sets seed for every job: keep one of them")


def test_plan_and_check_say_how_many_finals_follow(
    recipe_file: Callable[[str], Path], minimal: str
) -> None:
    path = str(recipe_file(drafted(minimal)))

    for command in ("check", "plan"):
        result = CliRunner().invoke(main, [command, path])
        assert "2 of 3 finals will follow: those of the best drafts" in result.stdout


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ("sweep.repeats=1", lambda batch: len(batch.jobs) == 2),
        ("sweep.time_repeats=2", lambda batch: batch.study.time_repeats == 2),
        ("sweep.num_inference_steps=[4, 8]", lambda batch: {4, 8} <= set(steps(batch))),
        ("sweep.num_inference_steps=4-6 (+2)", lambda batch: {4, 6} <= set(steps(batch))),
        ("sweep.seed=5-6", lambda batch: {job.seed for job in batch.jobs} == {5, 6, 7, 8}),
        ("draft.steps=3", lambda batch: batch.jobs[0].num_inference_steps == 3),
        ("adapt.rounds=0", lambda batch: batch.study.adapt is None),
        ("metrics.names=[]", lambda batch: batch.study.measure.names == ()),
        ("score.flicker=1", lambda batch: batch.study.measure.weights == (("flicker", 1.0),)),
        ('review.criteria=["a"]', lambda batch: batch.study.review.criteria == ("a",)),
    ],
)
def test_every_key_of_a_study_can_be_set(
    batch_of: Load, minimal: str, option: str, seen: Callable[[Batch], bool]
) -> None:
    text = minimal.replace("[model]", 'passes = ["draft", "final"]\n[model]', 1)

    batch = batch_of(text + EXPLORE + "[sweep]\nrepeats = 3\n[adapt]\n", option)

    assert seen(batch)
    assert not seen(batch_of(text + EXPLORE + "[sweep]\nrepeats = 3\n[adapt]\n"))


def test_a_study_is_plain_json(batch_of: Load, minimal: str) -> None:
    from dataclasses import asdict

    study = batch_of(drafted(minimal) + '[metrics]\nnames = ["flicker"]\n[adapt]\n').study

    assert isinstance(study, Study)
    assert json.loads(json.dumps(asdict(study)))["selections"][0]["keep"] == 2


# The shape of a picture


@pytest.mark.parametrize(
    ("size", "sides"),
    [((1280, 720), (720, 1280)), ((640, 640), (960, 960)), ((300, 900), (1648, 544))],
)
def test_pixel_area_keeps_the_pictures_shape(
    batch_of: Load, tmp_path: Path, size: tuple[int, int], sides: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "first.png")
    text = '[model]\npipeline = "wan2.2-i2v"\n[defaults]\npixel_area = 921600\n'
    text += '[[scene]]\nname = "a"\nprompt = "b"\nimage = "first.png"\n'

    (job,) = batch_of(text).jobs

    assert (job.argument("height"), job.argument("width")) == sides
    assert job.argument("pixel_area") is None
    assert sides[0] * sides[1] <= 921600


@pytest.mark.parametrize(
    ("size", "area", "nearest"),
    [((2000, 20), 1536, 25_600), ((20, 2000), 25_599, 25_600), ((2000, 20), 2**28, 2_684_354)],
)
def test_an_area_that_the_picture_s_shape_cannot_have_is_refused_with_the_nearest(
    problems_of: Problems, batch_of: Load, tmp_path: Path,
    size: tuple[int, int], area: int, nearest: int,
) -> None:  # fmt: skip
    Image.new("RGB", size).save(tmp_path / "first.png")
    text = '[model]\npipeline = "wan2.2-i2v"\n[defaults]\npixel_area = {}\n'
    text += '[[scene]]\nname = "a"\nprompt = "b"\nimage = "first.png"\n'

    (line,) = problems_of(text.format(area))
    assert f"can't be {area:,} in the shape of first.png, {size[0]}x{size[1]}" in line
    assert f"the nearest is {nearest}, or" in line

    (job,) = batch_of(text.format(nearest)).jobs
    assert job.argument("height") * job.argument("width") <= nearest


def test_pixel_area_needs_a_picture_and_no_other_size(problems_of: Problems, minimal: str) -> None:
    lines = problems_of(minimal + "pixel_area = 4096\nheight = 64\n")

    assert {line.partition("pixel_area: ")[2] for line in lines} == {
        "takes its shape from the scene's image, and there is none: set height and width",
        "sets height and width, and so does height: keep one of them",
    }
