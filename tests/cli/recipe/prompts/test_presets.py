"""``preset = "auto"``: which words choose which preset, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from flowblend_cli import main
from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.prompts.keywords import find_words, forms
from flowblend_cli.recipe.prompts.presets import shipped_presets
from flowblend_cli.recipe.schema.ranges import StepRange
from flowblend_cli.study import StepChoice

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]


@pytest.fixture
def choose(batch_of: Load, minimal: str) -> Callable[..., StepChoice]:
    def chosen(prompt: str, more: str = "", *overrides: str) -> StepChoice:
        text = minimal.replace("[defaults]\nnum_inference_steps = 10", "").replace(
            "a red square moving left on a navy background", prompt
        )
        batch = batch_of(text + 'preset = "auto"\n' + more, *overrides)
        (choice,) = batch.study.choices
        assert choice.steps in (None, batch.jobs[0].num_inference_steps)
        return choice

    return chosen


# Words


@pytest.mark.parametrize(
    ("prompt", "words", "found"),
    [
        ("A man WALKING home", ("walking",), ["WALKING"]),
        ("he walks", ("walk",), ["walks"]),
        ("the walker", ("walk",), []),
        ("sidewalk", ("walk",), []),
        ("a hand that is waving", ("wave",), []),
        ("waves, a beach", ("wave", "beach"), ["waves", "beach"]),
        ("two beaches", ("beach",), ["beaches"]),
        ("grey skies", ("sky",), ["skies"]),
        ("the river's bank", ("river",), ["river's"]),
        ("in Slow Motion", ("slow motion",), ["Slow Motion"]),
        ("slow-motion", ("slow motion",), ["slow-motion"]),
        ("slow, calm motion", ("slow motion",), []),
        ("leave the room", ("leaves", "leaf"), []),
        ("风景中的海浪", ("海浪", "风景"), ["风景", "海浪"]),
        ("一个man在跑步", ("man", "跑步"), ["man", "跑步"]),
        ("", ("a",), []),
    ],
)
def test_words_are_found_whole_with_plain_endings(
    prompt: str, words: tuple[str, ...], found: list[str]
) -> None:
    assert [each.written for each in find_words(prompt, words)] == found


@given(st.text(), st.lists(st.text(min_size=1), max_size=5))
def test_what_is_found_stands_in_the_prompt_in_its_order(prompt: str, words: list[str]) -> None:
    found = find_words(prompt, tuple(words))

    places = [each.place for each in found]
    assert places == sorted(places)
    for each in found:
        assert prompt[each.place :].startswith(each.written)
        assert each.word in words


@pytest.mark.parametrize("word", ["walk", "sky", "beach", "leaf"])
def test_a_word_is_among_its_forms(word: str) -> None:
    assert {word, word + "s"} <= forms(word)


@pytest.mark.parametrize("name", shipped_presets())
def test_every_shipped_preset_has_english_and_chinese_words(name: str) -> None:
    words = shipped_presets()[name].keywords or []

    assert any(word.isascii() for word in words)
    assert any("\u3400" < word[0] < "\u9fff" for word in words)


# Choices


@pytest.mark.parametrize(
    ("prompt", "preset", "steps"),
    [
        ("a person walking forward naturally", "walking", 50),
        ("一个人在街上散步", "walking", 50),
        ("clouds over a mountain", "landscape", 40),
        ("a horse galloping", "fast-animal", 60),
        ("leaves in a breeze", "static", 30),
        ("a crowd of shapes", "multi-subject", 50),
        ("a red square", "", 50),
    ],
)
def test_the_words_of_a_prompt_choose_its_preset(
    choose: Callable[..., StepChoice], prompt: str, preset: str, steps: int
) -> None:
    choice = choose(prompt)

    assert (choice.preset, choice.steps, choice.is_auto) == (preset, steps, True)


def test_the_explanation_names_the_words_and_the_range(choose: Callable[..., StepChoice]) -> None:
    choice = choose("a man Walking home")

    assert choice.reason == "preset walking (50-60 steps) by 'Walking'; starts at 50"
    assert choice.words == ("Walking",)


def test_more_words_win_and_of_equally_many_the_first(choose: Callable[..., StepChoice]) -> None:
    assert choose("a dog running by the sea, waves and clouds").preset == "landscape"
    tied = choose("a dog running by the sea")
    assert tied.preset == "fast-animal"
    assert "by 'running', which stands before landscape by 'sea'" in tied.reason
    assert choose("the sea, and a dog running").preset == "landscape"


def test_slow_motion_adds_ten_steps_to_whatever_was_chosen(
    choose: Callable[..., StepChoice],
) -> None:
    walking = choose("a man walking in slow motion")
    plain = choose("a red square in slow-motion")
    chinese = choose("慢动作的红色方块")

    assert walking.steps == 60
    assert walking.reason.endswith("'slow motion' adds 10; starts at 60")
    assert (plain.steps, chinese.steps) == (60, 60)
    assert "so 50 steps from flowblend's default" in plain.reason


def test_several_subjects_cap_the_steps_at_50(
    choose: Callable[..., StepChoice], batch_of: Load, minimal: str
) -> None:
    choice = choose("two dogs running")

    assert (choice.preset, choice.steps) == ("fast-animal", 50)
    assert choice.reason.endswith("'two' (multi-subject) caps at 50; starts at 50")
    assert choice.words == ("running", "two")
    assert choose("two men walking in slow motion").steps == 50
    assert choose("two leaves in a breeze").steps == 30


def test_no_word_falls_back_to_what_the_recipe_says(choose: Callable[..., StepChoice]) -> None:
    choice = choose("a red square", "[defaults]\nnum_inference_steps = 24\n")

    assert choice.steps == 24
    assert choice.reason == "no word of a preset in the prompt, so 24 steps from [defaults]"


def test_the_scene_and_the_sweep_still_win(choose: Callable[..., StepChoice]) -> None:
    scene = choose("a man walking", "num_inference_steps = 12\n")
    sweep = choose("a man walking", "[sweep]\nnum_inference_steps = [4, 8]\n")

    assert scene.steps == 12
    assert scene.reason.endswith("starts at 50, but the scene sets its own steps")
    assert sweep.steps is None
    assert sweep.reason.endswith("but [sweep] sets its own steps")


def test_prompts_of_one_scene_choose_for_themselves(batch_of: Load, minimal: str) -> None:
    text = minimal.replace("a red square moving left", "a man {walking|running}")

    batch = batch_of(text + 'preset = "auto"\n')

    assert [job.num_inference_steps for job in batch.jobs] == [50, 60]
    assert batch.study.step_ranges == (("square", 50, 70),)


def test_pictures_and_clips_have_presets_of_their_own(choose: Callable[..., StepChoice]) -> None:
    assert choose("a sketch of a man walking").preset == "walking"
    picture = choose("a sketch of a man walking", "num_frames = 1\n")
    assert (picture.preset, picture.steps) == ("image-explore", 20)


def test_a_recipes_own_preset_is_chosen_with_its_other_arguments(
    batch_of: Load, minimal: str
) -> None:
    text = minimal + 'preset = "auto"\n[presets.shapes]\nkeywords = ["square", "navy"]\n'

    batch = batch_of(text + 'guidance_scale = 3.5\n[presets.walking]\nkeywords = ["red"]\n')

    (choice,) = batch.study.choices
    assert (choice.preset, choice.steps) == ("shapes", 10)
    assert "preset shapes, which leaves 10 from [defaults] by 'square' and 'navy'" in choice.reason
    assert batch.jobs[0].argument("guidance_scale") == 3.5


def test_ranges_of_presets_that_scenes_name_are_part_of_the_study(
    batch_of: Load, minimal: str
) -> None:
    text = minimal + 'preset = "multi-subject"\n'

    assert batch_of(text).study.step_ranges == (("square", 1, 50),)
    assert batch_of(minimal).study.step_ranges == ()


def test_auto_is_no_name_for_a_preset(problems_of: Problems, minimal: str) -> None:
    (line,) = problems_of(minimal + "[presets.auto]\nnum_inference_steps = 4\n")

    assert line.startswith("recipe.toml:18:1: presets.auto: 'auto' chooses among the presets")


def test_a_preset_that_words_may_choose_can_be_set(batch_of: Load, minimal: str) -> None:
    text = minimal.replace("moving", "walking") + 'preset = "auto"\n'

    (job,) = batch_of(text, "presets.walking.num_inference_steps=33").jobs

    assert job.num_inference_steps == 33


def test_check_and_plan_explain_every_choice(
    recipe_file: Callable[[str], Path], minimal: str
) -> None:
    path = recipe_file(minimal.replace("moving", "walking") + 'preset = "auto"\n')
    explained = "square: preset walking (50-60 steps) by 'walking'; starts at 50"

    shown = CliRunner().invoke(main, ["check", str(path)]).stdout
    planned = CliRunner().invoke(main, ["plan", str(path)]).stdout
    document = json.loads(CliRunner().invoke(main, ["check", str(path), "--json"]).stdout)

    assert shown.splitlines() == [f"OK {path}: 1 job", f"  {explained}"]
    assert explained in planned.splitlines()
    assert document["recipes"][0]["steps"] == [
        {
            "scene": "square",
            "prompt": "a red square walking left on a navy background",
            "steps": 50,
            "reason": "preset walking (50-60 steps) by 'walking'; starts at 50",
            "preset": "walking",
            "words": ["walking"],
            "is_auto": True,
        }
    ]


@pytest.mark.parametrize("text", ["50-60", "up to 50", "40"])
def test_a_range_of_steps_is_written_as_it_is_read(text: str) -> None:
    value = int(text) if text.isdigit() else text

    assert str(StepRange.parse(value)) == text
