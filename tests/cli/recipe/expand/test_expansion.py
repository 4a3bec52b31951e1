from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.jobs import Batch, Job
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.schema.names import fill, safe_value

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]


def ids(batch: Batch) -> list[str]:
    return [job.id for job in batch.jobs]


def test_a_recipe_with_only_a_pair_and_a_scene_gets_every_default(batch_of: Load) -> None:
    batch = batch_of('[model]\npipeline = "sprites"\n[[scene]]\nname = "a"\nprompt = "b"\n')

    (job,) = batch.jobs
    assert job.id == "a-s42-n50"
    assert job.filename == "a-s42-n50.mp4"
    assert job.stage_string == "LSL"
    assert [stage.until for stage in job.stages] == [0.4, 0.8, None]
    assert job.model.small == "sprites"
    assert (job.output.fps, job.output.scale, job.output.crf) == (8, 1, 10)
    assert dict(job.arguments) == {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "num_inference_steps": 50,
    }
    assert batch.recipe_name == "recipe"


def test_later_layers_win(batch_of: Load, minimal: str) -> None:
    def steps(text: str) -> int:
        return batch_of(text).jobs[0].num_inference_steps

    scene = minimal
    preset = scene + 'preset = "walking"\n'
    own = preset + "num_inference_steps = 7\n"
    assert steps(scene.replace("[defaults]\nnum_inference_steps = 10", "")) == 50
    assert steps(scene) == 10
    assert steps(preset) == 50
    assert steps(own) == 7
    assert steps(own + "[sweep]\nnum_inference_steps = [3]\n") == 3


@pytest.mark.parametrize(
    ("preset", "steps"),
    [
        ("walking", 50),
        ("landscape", 40),
        ("fast-animal", 60),
        ("static", 30),
        ("multi-subject", 50),
        ("image-explore", 20),
        ("image-produce", 40),
        ("image-final", 60),
    ],
)
def test_shipped_presets_start_at_the_low_end_of_their_range(
    batch_of: Load, minimal: str, preset: str, steps: int
) -> None:
    batch = batch_of(minimal + f'preset = "{preset}"\n')

    assert batch.jobs[0].num_inference_steps == steps


def test_a_recipes_own_preset_overrides_the_shipped_one_key_by_key(
    batch_of: Load, minimal: str
) -> None:
    text = minimal + 'preset = "walking"\n[presets.walking]\nguidance_scale = 6\n'

    (job,) = batch_of(text).jobs

    assert job.num_inference_steps == 50
    assert job.argument("guidance_scale") == 6.0


def test_alternatives_and_lists_of_prompts_are_axes(batch_of: Load, minimal: str) -> None:
    text = minimal.replace(
        '"a red square moving left on a navy background"', '["a {red|blue} ball", "{{x}}"]'
    )

    batch = batch_of(text)

    assert [(job.id, job.prompt) for job in batch.jobs] == [
        ("square-s1-n10-red-9bc68b5842", "a red ball"),
        ("square-s1-n10-blue-3c2f8937ca", "a blue ball"),
        ("square-s1-n10-x-d3ebeaf967", "{x}"),
    ]
    assert batch.jobs[1].prompt_template == "a {red|blue} ball"


def test_repeats_count_up_from_each_seed_and_equal_jobs_merge(batch_of: Load, minimal: str) -> None:
    text = minimal.replace("seeds = [1]", "seeds = [1, 2]\nrepeats = 2")

    assert [job.seed for job in batch_of(text).jobs] == [1, 2, 3]


def test_a_product_combines_all_axes_and_the_first_changes_slowest(
    batch_of: Load, minimal: str
) -> None:
    sweep = '[sweep]\nnum_inference_steps = [2, 4]\n"blend.stages" = ["LSL", "SSS"]\n'

    assert ids(batch_of(minimal + sweep)) == [
        "square-s1-n2-stagesLSL",
        "square-s1-n2-stagesSSS",
        "square-s1-n4-stagesLSL",
        "square-s1-n4-stagesSSS",
    ]


def test_a_zip_takes_the_axes_together(batch_of: Load, minimal: str) -> None:
    sweep = (
        '[sweep]\nmode = "zip"\nblend.stages = ["LSL", "SL"]\nblend.boundaries = [[0, 1], [0.5]]\n'
    )

    assert ids(batch_of(minimal + sweep)) == [
        "square-s1-n10-stagesLSL-boundaries0.0_1.0",
        "square-s1-n10-stagesSL-boundaries0.5",
    ]


def test_a_zip_of_unequal_lists_is_refused(problems_of: Problems, minimal: str) -> None:
    sweep = '[sweep]\nmode = "zip"\nheight = [2, 4]\nwidth = [2]\n'

    (line,) = problems_of(minimal + sweep)

    assert line.startswith("recipe.toml:19:8: sweep.mode: 'zip' needs lists of one length; height")


def test_one_repeated_letter_ignores_boundaries(batch_of: Load, minimal: str) -> None:
    (job,) = batch_of(minimal.replace('"LSL"', '"LLL"')).jobs

    assert job.stage_string == "LLL"
    assert job.schedule.denoisers(4) == ("large",) * 4


def test_the_long_form_means_the_same_as_the_short_one(batch_of: Load, minimal: str) -> None:
    long_form = """
[[blend.stage]]
denoiser = "large"
until = 0.4
[[blend.stage]]
denoiser = "small"
until = 0.8
[[blend.stage]]
denoiser = "large"
"""
    short = batch_of(minimal).jobs
    text = minimal.replace('stages = "LSL"\nboundaries = [0.4, 0.8]\n', "") + long_form

    assert batch_of(text).jobs == short


def test_a_swept_sigma_boundary_is_checked_with_the_stages(
    problems_of: Problems, minimal: str
) -> None:
    (line,) = problems_of(minimal + '[sweep]\n"blend.boundary_sigmas" = [[0.9, 0.5]]\n')

    assert "keep one of them" in line


def test_jobs_of_one_model_stand_together(batch_of: Load, minimal: str) -> None:
    text = minimal + '[sweep]\nnum_inference_steps = [2, 3]\n"model.dtype" = ["auto", "float32"]\n'

    dtypes = [job.model.dtype for job in batch_of(text).jobs]

    assert dtypes == ["auto", "auto", "float32", "float32"]


def test_one_frame_makes_a_picture(batch_of: Load, minimal: str) -> None:
    (job,) = batch_of(minimal + "num_frames = 1\n").jobs

    assert job.filename == "square-s1-n10.png"


def test_a_clip_can_not_be_a_png(problems_of: Problems, minimal: str) -> None:
    (line,) = problems_of(minimal + '[output]\ncontainer = "png"\n')

    assert "output.container: 'png' holds a single picture" in line


def test_odd_sizes_are_refused_before_anything_is_rendered(
    problems_of: Problems, minimal: str
) -> None:
    unknown = minimal.replace('"sprites"', '"owner/clips"\nsmall = "owner/small"')

    (line,) = problems_of(unknown + "height = 65\n")
    (known,) = problems_of(minimal + "height = 65\n")

    assert "height 65 is odd: set scale = 2" in line
    assert "65 is no multiple of 16, which WanPipeline asks for: use 64 or 80" in known


def test_two_jobs_of_one_file_are_refused_with_both_lines(
    problems_of: Problems, minimal: str
) -> None:
    text = minimal.replace('name = "harbour"', 'filename = "{scene}"').replace("[1]", "[1, 2]")

    (line,) = problems_of(text)

    assert line.startswith("recipe.toml:14:1: scene[0]: two jobs would share the file 'square.mp4'")
    assert "seed 1 (line 14)" in line
    assert "seed 2 (line 14)" in line


@pytest.mark.parametrize(
    ("first", "second"),
    [("square", "SQUARE"), ("square", "\u017fquare"), ("caf\u00e9", "cafe\u0301")],
)
def test_names_that_some_file_system_takes_for_one_are_refused(
    problems_of: Problems, minimal: str, first: str, second: str
) -> None:
    text = minimal.replace('"square"', f'"{first}"')

    (line,) = problems_of(text + f'[[scene]]\nname = "{second}"\nprompt = "x"\n')

    assert line.startswith("recipe.toml:19:8: ")
    assert "line 15 already" in line


@pytest.mark.parametrize(
    "template",
    ["{scene}/../x", "{seed.__class__}", "{seed!r}", "{seed:03d}", "{nope}", "{", "a\\\\b", "C:x"],
)
def test_a_template_that_leaves_the_folder_or_digs_into_values_is_refused(
    problems_of: Problems, minimal: str, template: str
) -> None:
    assert problems_of(minimal.replace('name = "harbour"', f'filename = "{template}"'))


def test_too_long_names_are_refused(problems_of: Problems, minimal: str) -> None:
    (line,) = problems_of(minimal.replace('"square"', f'"{"x" * 196}"'))

    assert "at most 200 bytes" in line


def test_more_than_eighty_steps_and_empty_stages_are_warned_about(
    batch_of: Load, minimal: str
) -> None:
    batch = batch_of(minimal + "[sweep]\nnum_inference_steps = [1, 90]\n")

    assert batch.warnings == (
        "1 job with more than 80 steps: so many may distort motion",
        "stage 1 of LSL (large) gets no step at num_inference_steps = 1 (1 job)",
        "stage 3 of LSL (large) gets no step at num_inference_steps = 1 (1 job)",
    )


def test_the_output_folder_is_relative_to_the_recipe(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe_file()
    monkeypatch.chdir("/")

    assert load_batch(path).output_dir == tmp_path / "out"


def test_a_bundled_recipe_writes_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert load_batch("quickstart").output_dir == tmp_path / "out/quickstart"


def test_a_job_survives_json(batch_of: Load, minimal: str) -> None:
    (job,) = batch_of(minimal.replace("a red", "ä \\u001b {red|red}")).jobs

    assert Job.from_document(json.loads(json.dumps(job.to_document()))) == job


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_no_value_makes_a_name_leave_its_folder(value: str) -> None:
    name = fill("a-{x}", {"x": value})

    assert Path("/root", name).resolve().parent == Path("/root")
    assert safe_value(value) == safe_value(safe_value(value))
