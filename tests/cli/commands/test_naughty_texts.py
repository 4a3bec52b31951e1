"""Naughty texts as prompts and names: taken, or refused in clean lines; never obeyed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from naughty import NAUGHTY, SURROGATES

from flowblend_cli import main
from flowblend_cli.errors import RecipeError
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.prompts.syntax import escape
from flowblend_cli.recipe.source.limits import MAX_PROMPT
from flowblend_cli.text import is_unsafe

# A pair whose weights aren't here: its plan needs no FLOPs, and so no torch.
RECIPE = """\
[recipe]
name = {name}
output_dir = "out"

[model]
pipeline = "wan2.1-t2v"

[[scene]]
name = {scene}
prompt = {prompt}
"""
PLAIN = {"name": "harbour", "scene": "square", "prompt": "a ball"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recipe.toml"


def quoted(text: str) -> str:
    """A TOML string: JSON's, but for DEL and characters beyond its four digits."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def is_clean(result: Result) -> None:
    """Taken, or refused in lines that each say their place; no control character is printed."""
    assert result.exit_code in (0, 2), result.output
    for line in result.output.splitlines(keepends=True):
        assert not any(is_unsafe(character) for character in line.removesuffix("\n")), line
    if result.exit_code == 2:
        lines = result.stderr.splitlines()
        assert lines
        assert all(line.startswith("recipe.toml:") for line in lines), lines


@pytest.mark.parametrize("text", NAUGHTY.values(), ids=list(NAUGHTY))
@pytest.mark.parametrize("key", list(PLAIN))
def test_a_naughty_text_is_taken_or_refused_in_clean_lines(
    recipe: Path, key: str, text: str
) -> None:
    values = {name: quoted(value) for name, value in {**PLAIN, key: text}.items()}
    recipe.write_bytes(RECIPE.format(**values).encode())

    checked, planned = run("check", "recipe.toml"), run("plan", "recipe.toml")

    is_clean(checked)
    is_clean(planned)
    assert checked.exit_code == planned.exit_code
    if checked.exit_code == 0:
        batch = load_batch(recipe)
        for job in batch.jobs:
            path = batch.path_of(job)
            assert path.parent == recipe.parent / "out"
            assert path.resolve().is_relative_to(recipe.parent / "out")
            assert len(path.name.encode()) <= 255
    assert {path.name for path in recipe.parent.iterdir()} <= {"recipe.toml", "hub"}


@pytest.mark.parametrize("text", NAUGHTY.values(), ids=list(NAUGHTY))
def test_an_escaped_prompt_is_kept_to_the_letter(recipe: Path, text: str) -> None:
    literal = escape(text)
    values = {name: quoted(value) for name, value in {**PLAIN, "prompt": literal}.items()}
    recipe.write_bytes(RECIPE.format(**values).encode())

    if not text.strip() or len(text) > MAX_PROMPT:
        with pytest.raises(RecipeError):
            load_batch(recipe)
    else:
        (job,) = load_batch(recipe).jobs
        assert job.prompt == text


@pytest.mark.parametrize("text", SURROGATES.values(), ids=list(SURROGATES))
@pytest.mark.parametrize("key", ["recipe.name", "scene.square.name", "scene.square.prompt"])
def test_bytes_of_a_command_line_that_are_no_text_are_refused(
    recipe: Path, key: str, text: str
) -> None:
    recipe.write_text(RECIPE.format(**{name: quoted(value) for name, value in PLAIN.items()}))

    result = run("check", "recipe.toml", "--set", f"{key}={text}")

    is_clean(result)
    assert result.exit_code == 2


@pytest.mark.parametrize("key", ["recipe", "model", "pipeline", "scene", "name", "prompt",
                                 "presets", "matrix", "sweep", "defaults"])  # fmt: skip
def test_a_mistyped_key_is_one_error_whatever_depends_on_it(recipe: Path, key: str) -> None:
    text = """
    [recipe]
    [model]
    pipeline = "sprites"
    [presets.mine]
    num_inference_steps = 4
    [[scene]]
    name = "a"
    prompt = "a {colour} square"
    preset = "mine"
    [matrix]
    colour = ["red", "blue"]
    [sweep]
    guidance_scale = [1, 5]
    [defaults]
    num_frames = 1
    """
    swapped = key[0] + key[2] + key[1] + key[3:]
    recipe.write_text(re.sub(rf"\b{key}\b", swapped, text, count=1))

    (line,) = run("check", "recipe.toml").stderr.splitlines()

    assert f"did you mean {key!r}?" in line


def test_three_mistyped_keys_are_three_errors_with_places_and_suggestions(recipe: Path) -> None:
    text = RECIPE.format(**{name: quoted(value) for name, value in PLAIN.items()})
    mistyped = text.replace("output_dir", "ouput_dir").replace("pipeline", "pipline")
    recipe.write_text(mistyped + "\n[defaults]\nnum_inference_step = 20\n")

    result = run("check", "recipe.toml")

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "recipe.toml:3:1: recipe.ouput_dir: unknown key in [recipe]; did you mean 'output_dir'?",
        "recipe.toml:6:1: model.pipline: unknown key in [model]; did you mean 'pipeline'?",
        (
            "recipe.toml:13:1: defaults.num_inference_step: unknown key in [defaults]; did you "
            "mean 'num_inference_steps'?"
        ),
    ]
