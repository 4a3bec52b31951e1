"""Whatever is wrong with a recipe is told at once: no problem hides another one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.main import main

# Each line has its place, so that a problem is planted by replacing or adding a line.
SOUND = """\
[recipe]
name = "planted"
max_steps = 60
[model]
pipeline = "sprites"
dtype = "float32"
[model.adapters]
monochrome = "sprites"
[blend]
[[blend.stage]]
denoiser = "large"
until = 0.4
[[blend.stage]]
denoiser = "small"
until = 0.8
[[blend.stage]]
denoiser = "large"
adapters = [{ name = "monochrome", weight = 0.5 }]
[sampling]
mode = "ode"
[defaults]
num_inference_steps = 10
num_frames = 17
height = 64
width = 64
[output]
crf = 10
[draft]
steps = 5
[[scene]]
name = "one"
prompt = "a red square"
seeds = [1]
[[scene]]
name = "two"
prompt = "a blue circle"
seeds = [2]
repeats = 2
[[scene]]
name = "three"
prompt = "a green star"
preset = "walking"
num_inference_steps = 12
[sweep]
guidance_scale = [3.0, 5.0]
"""

# What is planted: a line of the recipe, and what stands there instead.
PLANTED = {
    "unknown key": ('name = "planted"', 'name = "planted"\nnam = "x"'),
    "unknown table": ("[draft]", "[drafts]\n[draft]"),
    "bad range": ("crf = 10", "crf = 99"),
    "wrong type": ('name = "one"', 'name = "one"\nmax_sequence_length = "many"'),
    "missing model": ('pipeline = "sprites"', 'pipeline = "./nowhere"'),
    "missing small": ('dtype = "float32"', 'small = "./nowhere"'),
    "bad dtype": ('dtype = "float32"', 'dtype = "float"'),
    "bad size": ("height = 64", "height = 60"),
    "bad frames": ("num_frames = 17", "num_frames = 18"),
    "bad syntax": ('prompt = "a red square"', 'prompt = "a {red square"'),
    "foreign syntax": ('prompt = "a blue circle"', 'prompt = "a (blue:1.3) circle"'),
    "bad seed": ("seeds = [1]", "seeds = [-1]"),
    "seeds too high": ("seeds = [2]", "seeds = [9223372036854775807]"),
    "unknown preset": ('preset = "walking"', 'preset = "walkin"'),
    "too many steps": ("num_inference_steps = 12", "num_inference_steps = 61"),
    "no LoRA": ('monochrome = "sprites"', 'monochrome = "./no.safetensors"'),
    "overlap": ("until = 0.8", "until = 0.3"),
    "unknown key of a stage": ("until = 0.4", "until = 0.4\nuntill = 0.4"),
    "unknown axis": ("guidance_scale = [3.0, 5.0]", "guidance_scale = [3.0, 5.0]\nguidance = [1]"),
    "bad axis": ("guidance_scale = [3.0, 5.0]", 'guidance_scale = [3.0, "x"]'),
    "no stochastic form": ('mode = "ode"', 'mode = "sde"\nscheduler = "unipc"'),
    "bad mode": ('mode = "ode"', 'mode = "odd"'),
    "clash": ('name = "two"', 'name = "one"'),
    "bad draft": ("steps = 5", "steps = 5\nreject_after = 7"),
}
# Where the problem is told, if not in the last line of what is planted.
FIRST = {"unknown table", "no stochastic form"}
# A size needs the pipeline, and stages are told together.
NEEDS = {
    "bad size": {"missing model"},
    "bad frames": {"missing model"},
    "overlap": {"unknown key of a stage"},
    "no stochastic form": {"bad mode"},
}


def planted(kinds: tuple[str, ...]) -> tuple[str, set[int]]:
    """The recipe with these problems, and the lines that are to blame."""
    text = SOUND
    for kind in kinds:
        old, new = PLANTED[kind]
        parts = new.split("\n")
        parts[0 if kind in FIRST else -1] += f"  # {kind}"
        assert f"\n{old}\n" in text
        text = text.replace(f"\n{old}\n", "\n".join(["", *parts, ""]), 1)
    numbered = list(enumerate(text.splitlines(), 1))
    # Stages that overlap are told of all of them, at the first one.
    marks = ["[[blend.stage]]" if kind == "overlap" else f"# {kind}" for kind in kinds]
    return text, {next(n for n, line in numbered if line.endswith(mark)) for mark in marks}


def check(path: Path, text: str, *options: str) -> tuple[int, list[str]]:
    path.write_text(text, "utf-8")
    result = CliRunner().invoke(main, ["check", str(path), *options], standalone_mode=False)
    code = result.return_value if result.exception is None else 99
    return code, result.stderr.splitlines()


def lines_of(told: list[str]) -> set[int]:
    return {int(found[1]) for one in told if (found := re.search(r"recipe\.toml:(\d+):\d+: ", one))}


def test_the_recipe_without_problems_is_sound(tmp_path: Path) -> None:
    assert check(tmp_path / "recipe.toml", SOUND)[0] == 0


def together(kinds: set[str]) -> bool:
    olds = [PLANTED[kind][0] for kind in kinds]
    return len(set(olds)) == len(olds) and not any(NEEDS.get(kind, set()) & kinds for kind in kinds)


def assert_all_told(folder: Path, kinds: tuple[str, ...]) -> None:
    text, blamed = planted(kinds)
    code, told = check(folder / "recipe.toml", text)
    assert code == 2, told
    found = lines_of([one for one in told if not one.startswith("warning")])
    assert found == blamed, (kinds, told)


@pytest.mark.parametrize("kind", PLANTED)
def test_each_problem_is_told_once_and_nothing_beside_it(tmp_path: Path, kind: str) -> None:
    assert_all_told(tmp_path, (kind,))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(sorted(PLANTED)), min_size=2, max_size=4).filter(together))
def test_no_problem_hides_another_one(
    tmp_path_factory: pytest.TempPathFactory, kinds: set[str]
) -> None:
    assert_all_told(tmp_path_factory.getbasetemp(), tuple(sorted(kinds)))


def test_what_needs_no_model_is_told_without_one(tmp_path: Path) -> None:
    text = """\
blend = 5
[defaults]
heigth = 60
num_frames = 0
[matrix]
color = ["red", {}]
[[scene]]
name = "a"
prompt = "a {color} ball {oops"
seeds = [1, "x"]
[[scene]]
prompt = "b (x:1.2) {color}"
preset = "nope"
"""
    code, told = check(tmp_path / "recipe.toml", text, "--set", "scene.nobody.seeds=[1]")

    assert code == 2
    assert lines_of(told) == {1, 3, 4, 6, 9, 10, 11, 12, 13}
    assert any("no scene is named 'nobody'" in one for one in told)


def test_too_many_jobs_hide_no_other_problem(tmp_path: Path) -> None:
    many = f"[sweep]\nnum_inference_steps = {list(range(1, 61))}\nseed = '1-5000'\n"
    text = SOUND.replace("[sweep]\n", many).replace("num_frames = 17", "num_frames = 18")

    code, told = check(tmp_path / "recipe.toml", text)

    assert code == 2
    assert any("more than the limit" in one for one in told)
    assert 23 in lines_of(told)


def test_warnings_stand_beside_errors_each_once_with_its_place(tmp_path: Path) -> None:
    text = SOUND.replace("a red square", "{one|two|three} " + "red ball " * 400)
    text = text.replace("num_frames = 17", "num_frames = 18")

    code, told = check(tmp_path / "recipe.toml", text)

    assert code == 2
    long = [one for one in told if "is longer than the" in one]
    assert len(long) == 1
    assert long[0].startswith(f"warning: {tmp_path / 'recipe.toml'}:32:10: scene[0].prompt: ")
    assert any(":23:14: defaults.num_frames: " in one for one in told)
    code, told = check(tmp_path / "recipe.toml", text, "--json")
    assert sum("is longer than the" in one for one in told) == 1
