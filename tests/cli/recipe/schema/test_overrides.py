from __future__ import annotations

from collections.abc import Callable

import pytest

from flowblend_cli.jobs import Batch

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("option", "read"),
    [
        ("defaults.num_inference_steps=12", lambda job: job.num_inference_steps == 12),
        ("blend.boundaries=[0.3,0.9]", lambda job: job.stages[0].until == 0.3),
        ("blend.stages=SSS", lambda job: job.stage_string == "SSS"),
        ("output.scale = 4", lambda job: job.output.scale == 4),
        ("scene.square.seeds=[7]", lambda job: job.seed == 7),
        ('scene."square".seeds=[7]', lambda job: job.seed == 7),
        ("scene[0].seeds=[7]", lambda job: job.seed == 7),
        ("scene.square.prompt=a blue ball", lambda job: job.prompt == "a blue ball"),
        ('scene.square.prompt="a = b"', lambda job: job.prompt == "a = b"),
        ("sampling.mode=sde", lambda job: job.sampling.mode == "sde"),
        ("recipe.filename={scene}-{seed}", lambda job: job.id == "square-1"),
        ("recipe.name=001", lambda job: job.recipe == "001"),
        ("recipe.name=12", lambda job: job.recipe == "12"),
        ("recipe.name=1979-05-27", lambda job: job.recipe == "1979-05-27"),
        ("scene.square.prompt=true", lambda job: job.prompt == "true"),
        ("scene.square.negative_prompt=1.50", lambda job: job.negative_prompt == "1.50"),
        ("defaults.guidance_scale=7", lambda job: job.argument("guidance_scale") == 7),
        ("sweep.blend.stages=['SL']", None),
        ("model.small=sprites", lambda job: job.model.small == "sprites"),
    ],
)
def test_an_option_edits_the_document_before_it_is_checked(
    batch_of: Load,
    problems_of: Problems,
    minimal: str,
    option: str,
    read: Callable[[object], bool] | None,
) -> None:
    if read is None:
        (line,) = problems_of(minimal, option)
        assert (
            "--set sweep.blend.stages=['SL']: sweep.\"blend.stages\"[0]: stages 'SL' needs" in line
        )
    else:
        (job,) = batch_of(minimal, option).jobs
        assert read(job)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nonsense", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("a.b=", "expected a value after ="),
        ("a..b=1", "is no dotted key"),
        ("defaults.height=[1", "the value isn't valid TOML"),
        ("scene.circle.seeds=[1]", "no scene is named 'circle'; the scenes are square"),
        ("scene[3].seeds=[1]", "there is no index 3"),
        ("scene.sqare.seeds=[1]", "no scene is named 'sqare'; did you mean 'square'?"),
        ("scene.square.heigth=8", "unknown key in [[scene]]; did you mean 'height'?"),
        ("defualts.height=8", "unknown key; did you mean 'defaults'?"),
        ("fo.bar=2", "unknown key; known keys are recipe, model, blend"),
        ("defaults.height=tall", "must be a whole number, got 'tall'"),
        ("defaults.height=1.5", "must be a whole number, got 1.5"),
        ("defaults.guidance_scale=high", "must be a number, got 'high'"),
        ("recipe.report=yes", "must be true or false, got 'yes'"),
        ("scene.square.seeds=7", "must be a list, or 'explore 8', got 7"),
        ("blend.boundaries=0.4", "must be a list, got 0.4"),
        ("output.fps='16'", "must be a whole number, got '16'"),
        ("model={pipeline=3}", "must be a string, got 3"),
        ("defaults=12", "must be a table, got 12"),
        ("a" + ".a" * 5000 + "=1", "is no dotted key"),
        ("defaults.height=" + "[" * 5000, "nested deeper than the limit of 32 levels"),
        ("recipe.name.x=1", "can't be set inside of a value"),
        ("defaults.num_inference_steps=0", "defaults.num_inference_steps: must be at least 1"),
        ("defaults.num_inference_stepz=1", "did you mean 'num_inference_steps'?"),
        ("defaults={a=", "the value isn't valid TOML"),
        ("fo.bar=1", "fo: unknown key"),
        ("scene.square.repeats=1000000", "the recipe makes 1,000,000 jobs"),
        ("scene.square.height=65", "no multiple of 16"),
        ("num_inference_steps=1", "unknown key; use [defaults]"),
        ("blend.boundaries=[]", "blend.stages: stages 'LSL' needs 2 boundaries"),
        ("blend.stages=LXL", "blend.stages: stages 'LXL' has unknown letter 'X'"),
        ("recipe.name=x\nmodel.pipeline=y", "must not hold control characters"),
    ],
)
def test_a_bad_option_is_named_in_its_message(
    problems_of: Problems, minimal: str, option: str, message: str
) -> None:
    (line,) = problems_of(minimal, option)

    assert line.startswith("recipe.toml:")
    assert f": --set {option}: ".replace("\n", "\\n") in line
    assert message in line


PRESET = 'preset = "walking"\n'
SCENE = "num_inference_steps = 8\n"
SWEEP = '[sweep]\nnum_inference_steps = [3]\n"blend.stages" = ["LLL"]\n'


@pytest.mark.parametrize(
    ("added", "option", "reason"),
    [
        (PRESET, "defaults.num_inference_steps=12", "preset 'walking' overrides it everywhere"),
        (SCENE, "defaults.num_inference_steps=12", "scene 'square' overrides it everywhere"),
        (SWEEP, "defaults.num_inference_steps=12", "[sweep] sets num_inference_steps for every"),
        (SCENE + SWEEP, "scene.square.num_inference_steps=12", "[sweep] sets num_inference_steps"),
        (SWEEP, "blend.stages=SSS", "[sweep] sets blend.stages for every job"),
        (PRESET, "presets.static.num_inference_steps=12", "no scene uses preset 'static'"),
        (PRESET + SCENE, "presets.walking.num_inference_steps=12", "scene 'square' overrides it"),
    ],
)
def test_an_option_that_no_job_reads_is_an_error_that_says_who_overrides_it(
    problems_of: Problems, minimal: str, added: str, option: str, reason: str
) -> None:
    (line,) = problems_of(minimal + added, option)

    assert f"--set {option}" in line
    assert f"no job reads it: {reason}" in line


@pytest.mark.parametrize(
    ("added", "option"),
    [
        (SCENE, "defaults.num_inference_steps=10"),  # the value that is there already
        (SCENE, "defaults.num_inference_steps=8"),  # the value that every job has anyway
        (PRESET, "presets.walking.num_inference_steps=12"),
        (PRESET + '[[scene]]\nname = "b"\nprompt = "c"\n', "defaults.num_inference_steps=12"),
    ],
)
def test_an_option_that_is_there_already_or_reaches_one_job_is_fine(
    batch_of: Load, minimal: str, added: str, option: str
) -> None:
    assert batch_of(minimal + added, option).jobs
