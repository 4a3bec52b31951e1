"""What is legal, but probably not meant: warnings, and the one limit that blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowblend_cli.jobs import Batch

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]


@pytest.fixture
def prompted(minimal: str) -> Callable[[str], str]:
    def with_prompt(prompt: str) -> str:
        return minimal.replace("a red square moving left on a navy background", prompt)

    return with_prompt


# Words of chance


def test_words_of_chance_are_named_under_ode_with_anchors_to_use_instead(
    batch_of: Load, prompted: Callable[[str], str]
) -> None:
    (warning,) = batch_of(prompted("a Dramatic sky, random sparks")).warnings

    assert warning.startswith("square: 'Dramatic' and 'random' ask for randomness")
    for anchor in ("constant speed", "straight line", "fixed path", "regular", "synchronous"):
        assert anchor in warning


def test_chinese_words_get_chinese_anchors(batch_of: Load, prompted: Callable[[str], str]) -> None:
    (warning,) = batch_of(prompted("镜头随机抖动")).warnings

    assert "'随机' and '抖动' ask for randomness" in warning
    assert "匀速, 直线" in warning


def test_words_of_all_prompts_of_a_scene_make_one_warning(
    batch_of: Load, prompted: Callable[[str], str]
) -> None:
    (warning,) = batch_of(prompted("a {shaky|chaotic|calm} camera")).warnings

    assert "'shaky' and 'chaotic' ask" in warning


@pytest.mark.parametrize("more", ["lint = false\n", '[sampling]\nmode = "sde"\n'])
def test_words_of_chance_are_fine_where_noise_is_added_or_the_scene_says_so(
    batch_of: Load, prompted: Callable[[str], str], more: str
) -> None:
    assert batch_of(prompted("a chaotic sky") + more).warnings == ()


def test_words_of_chance_are_told_where_one_of_two_modes_adds_no_noise(
    batch_of: Load, prompted: Callable[[str], str]
) -> None:
    text = prompted("a chaotic sky") + '[sweep]\n"sampling.mode" = ["sde", "ode"]\n'

    assert len(batch_of(text).warnings) == 1


@pytest.mark.parametrize("prompt", ["a randomizer", "wilderness", "a regular, calm sea"])
def test_other_words_are_left_alone(
    batch_of: Load, prompted: Callable[[str], str], prompt: str
) -> None:
    assert batch_of(prompted(prompt)).warnings == ()


# Steps and memory


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (49, ("square: 1 job with fewer steps than suit preset walking (50-60)",)),
        (50, ()),
        (60, ()),
        (61, ("square: 1 job with more steps than suit preset walking (50-60)",)),
    ],
)
def test_steps_outside_of_the_presets_range_are_told(
    batch_of: Load, minimal: str, steps: int, says: tuple[str, ...]
) -> None:
    text = minimal + f'preset = "walking"\nnum_inference_steps = {steps}\n'

    assert batch_of(text).warnings == says


@pytest.mark.parametrize(
    ("height", "width", "steps", "warned"),
    [(768, 768, 100, True), (768, 1280, 100, True), (752, 1280, 100, False), (768, 768, 99, False)],
)
def test_large_clips_with_many_steps_may_run_out_of_memory(
    batch_of: Load, minimal: str, height: int, width: int, steps: int, warned: bool
) -> None:
    text = minimal + f"height = {height}\nwidth = {width}\nnum_inference_steps = {steps}\n"

    told = [warning for warning in batch_of(text, "output.scale=2").warnings if "memory" in warning]

    assert bool(told) == warned
    if told:
        order = ["smaller denoiser", "lower resolution", "fewer steps", "ode"]
        assert [told[0].index(word) for word in order] == sorted(map(told[0].index, order))


def test_drafts_that_save_no_step_are_told(batch_of: Load, minimal: str) -> None:
    text = minimal.replace("[model]", 'passes = ["draft", "final"]\n[model]', 1)

    (warning,) = batch_of(text).warnings

    assert warning == (
        "1 final with no more steps than the draft before it: set fewer steps in [draft]"
    )
    assert batch_of(text, "draft.steps=4").warnings == ()


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ("num_inference_steps = 41\n", "recipe.toml:19:23: scene[0].num_inference_steps: 41 steps"),
        ('preset = "walking"\n', "recipe.toml:19:10: scene[0].preset: 50 steps are more than max_"),
        ('[sweep]\nnum_inference_steps = "39-41"\n',
         "recipe.toml:20:23: sweep.num_inference_steps[2]: 41 steps are more than max_steps = 40"),
        ('preset = "mine"\n[presets.mine]\nnum_inference_steps = "45-50"\n',
         "recipe.toml:21:23: presets.mine.num_inference_steps: 45 steps are more than max_steps"),
    ],
)  # fmt: skip
def test_max_steps_blocks_at_the_key_that_sets_the_steps(
    problems_of: Problems, minimal: str, more: str, where: str
) -> None:
    (line,) = problems_of(minimal.replace("[model]", "max_steps = 40\n[model]", 1) + more)

    assert line.startswith(where)


def test_max_steps_blocks_drafts_too_and_nothing_below_it(
    problems_of: Problems, batch_of: Load, minimal: str
) -> None:
    text = minimal.replace("[model]", 'max_steps = 20\npasses = ["draft"]\n[model]', 1)

    (line,) = problems_of(text)

    assert "draft.steps: 30 steps are more than max_steps = 20 in [recipe] allows" in line
    assert len(batch_of(text, "draft.steps=20").jobs) == 1
