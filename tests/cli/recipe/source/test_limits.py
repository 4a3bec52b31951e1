"""Recipes made to exhaust memory or patience: refused at once, and the limit is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flowblend_cli.errors import RecipeError
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.source.limits import MAX_PROBLEMS, MAX_RECIPE_BYTES, MAX_VALUES

MODEL = '[model]\npipeline = "sprites"\n'
SCENE = '[[scene]]\nname = "a"\nprompt = "b"\n'
SWEEP = '[sweep]\nnum_inference_steps = "1-1000"\nguidance_scale = "1-1000"\nseed = "1-1000"\n'


def refusal(path: Path) -> str:
    """The first problem; it comes in less than a second of the processor's time."""
    load_batch("quickstart")  # what is read once, such as the schema, isn't counted
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_batch(path)
    assert time.process_time() - began < 1
    return str(caught.value.problems[0]).removeprefix(f"{path}:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL + SCENE + SWEEP, "6:1: sweep: the recipe makes 1,000,000,000 jobs, more than"),
        (
            MODEL + SCENE.replace('"b"', f'"{"{a|b}" * 30}"'),
            "3:1: scene[0]: the recipe makes 1,073,741,824 jobs, more than the limit of 100,000",
        ),
        (
            MODEL + SCENE + "repeats = 1_000_000_000",
            "3:1: scene[0]: the recipe makes 1,000,000,000 jobs, more than the limit of 100,000",
        ),
        (
            MODEL + SCENE + f'negative_prompt = "{"b" * 10_001}"',
            "6:19: scene[0].negative_prompt: has 10,001 characters, more than the limit of 10,000",
        ),
        ("a = " + "[" * 5000 + "]" * 5000, "1:37: nested deeper than the limit of 32 levels"),
        ("a = " + "{a=" * 5000 + "1" + "}" * 5000, "1:101: nested deeper than the limit of 32"),
        ("a." * 5000 + "a = 1", "1:66: nested deeper than the limit of 32 levels"),
        ("[" + "a." * 5000 + "a]", "1:67: nested deeper than the limit of 32 levels"),
        ("[[" + "a." * 5000 + "a]]", "1:68: nested deeper than the limit of 32 levels"),
        (
            "[" + "a." * 20 + "a]\n" + "b." * 20 + "c = 1",
            "2:23: nested deeper than the limit of 32 levels",
        ),
    ],
)  # fmt: skip
def test_what_is_too_much_is_refused_at_once_and_the_limit_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")

    assert refusal(path).startswith(message)


def test_a_prompt_that_is_too_long_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(MODEL + SCENE.replace('"b"', f'"{"b" * 10**6}"'), "utf-8")

    found = refusal(path)

    assert found.startswith("5:10: scene[0].prompt: ")
    assert "the limit of 10,000" in found


def test_of_a_file_of_100_mb_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with path.open("wb") as file:
        file.truncate(100 * 10**6)

    assert refusal(path) == "1:1: larger than the limit of 4 MiB for a recipe"
    path.write_text("#" * MAX_RECIPE_BYTES)
    assert "model: is missing" in refusal(path)


def test_more_values_than_the_limit_are_refused_before_they_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(MODEL + SCENE.replace('"b"', "[" + '"b",' * MAX_VALUES + "]"), "utf-8")

    with pytest.raises(RecipeError, match="has 300,006 keys and entries of lists, more than the"):
        load_batch(path)


def test_of_very_many_problems_the_first_are_told(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    unknown = "".join(f"key{number} = 1\n" for number in range(5000))
    path.write_text(f"{MODEL}{SCENE}[output]\n{unknown}")

    with pytest.raises(RecipeError) as caught:
        load_batch(path)

    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert str(caught.value.problems[0]).endswith(
        "has more than 100 problems, of which these are some"
    )
