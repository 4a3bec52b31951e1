from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblend_cli.errors import RecipeError
from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.source.includes import find_beside
from flowblend_cli.recipe.source.limits import MAX_INCLUDE_DEPTH, MAX_INCLUDED, MAX_RECIPE_BYTES

BASE = """\
[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = 10
guidance_scale = 5.0

[[scene]]
name = "square"
prompt = "a red square moving left on a navy background"
seeds = [1]
"""
INCLUDE = 'include = ["base.toml"]\n'

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the files of a recipe by their names; the recipe itself is ``recipe.toml``."""

    def write(recipe: str, **files: str) -> Path:
        for name, text in {"recipe": recipe, "base": BASE, **files}.items():
            path = tmp_path / f"{name.replace('__', '/')}.toml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "recipe.toml"

    return write


def load(path: Path, *overrides: str) -> Batch:
    return load_batch(path, overrides)


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(path, *overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def test_a_recipe_of_an_include_alone_is_the_included_one(write: Write) -> None:
    (job,) = load(write(INCLUDE)).jobs

    assert (job.recipe, job.scene, job.num_inference_steps) == ("recipe", "square", 10)


def test_the_including_file_wins_key_by_key(write: Write) -> None:
    (job,) = load(write(INCLUDE + "[defaults]\nnum_inference_steps = 7\n")).jobs

    assert (job.num_inference_steps, job.argument("guidance_scale")) == (7, 5.0)


def test_of_two_included_files_the_later_one_wins(write: Write) -> None:
    a, b = (f"[defaults]\nnum_inference_steps = {steps}\n" for steps in (3, 4))

    (job,) = load(write('include = ["base.toml", "b.toml", "a.toml"]', a=a, b=b)).jobs

    assert job.num_inference_steps == 3


def test_included_scenes_come_first_and_then_the_own_ones(write: Write) -> None:
    own = '[[scene]]\nname = "star"\nprompt = "a white star on a black background"\n'

    batch = load(write(INCLUDE + own))

    assert [job.scene for job in batch.jobs] == ["square", "star"]


def test_a_scene_of_an_included_name_changes_that_scene_key_by_key(write: Write) -> None:
    (job,) = load(write(INCLUDE + '[[scene]]\nname = "square"\nseeds = [7]\n')).jobs

    assert (job.prompt, job.seed) == ("a red square moving left on a navy background", 7)


def test_two_included_files_do_not_change_the_scenes_of_each_other(write: Write) -> None:
    other = '\n[[scene]]\nname = "square"\nprompt = "a blue square on a white background"\n'

    (line,) = problems(write('include = ["base.toml", "other.toml"]', other=other))

    assert line.startswith("other.toml:3:8: scene[1].name: 'square' is the name of scene[0] in ")
    assert "base.toml:13 already" in line


def test_a_list_is_replaced_as_a_whole_stages_in_the_long_form_too(write: Write) -> None:
    stages = (
        '[[blend.stage]]\ndenoiser = "large"\nuntil = 0.5\n[[blend.stage]]\ndenoiser = "small"\n'
    )
    base = BASE.replace('stages = "LSL"\nboundaries = [0.4, 0.8]\n', "") + stages
    own = '[[blend.stage]]\ndenoiser = "small"\n'

    (job,) = load(write(INCLUDE + own, base=base)).jobs

    assert job.stage_string == "S"


def test_the_two_ways_to_write_an_axis_are_one_key_across_files(write: Write) -> None:
    base = BASE + '[sweep]\n"blend.stages" = ["LSL", "LLL"]\n'
    own = INCLUDE + '[sweep.blend]\nstages = ["SSS"]\n'

    (job,) = load(write(own, base=base)).jobs

    assert job.stage_string == "SSS"


def test_a_file_that_is_included_twice_is_read_once(write: Write) -> None:
    both = 'include = ["base.toml"]\n[defaults]\n'
    files = {"a": both + "num_inference_steps = 3", "b": both + "guidance_scale = 2.0"}

    (job,) = load(write('include = ["a.toml", "b.toml", "base.toml"]', **files)).jobs

    assert (job.num_inference_steps, job.argument("guidance_scale")) == (3, 2.0)


def test_includes_of_a_file_in_a_subfolder_are_relative_to_the_recipes_folder(write: Write) -> None:
    (job,) = load(write('include = ["parts/a.toml"]', parts__a=INCLUDE)).jobs

    assert job.scene == "square"


def test_a_circle_is_refused_and_its_chain_is_named(write: Write) -> None:
    (line,) = problems(write(INCLUDE, base='include = ["a.toml"]', a='\ninclude = ["base.toml"]'))

    assert line == (
        "a.toml:2:12: include[0]: includes itself: recipe.toml -> base.toml -> a.toml -> "
        "base.toml; leave one of them out"
    )


def test_files_that_include_each_other_in_a_long_row_are_refused(write: Write) -> None:
    row = {f"f{n}": f'include = ["f{n + 1}.toml"]' for n in range(MAX_INCLUDE_DEPTH + 1)}

    (line,) = problems(write('include = ["f0.toml"]', **row, **{f"f{len(row)}": BASE}))

    assert f"more than the limit of {MAX_INCLUDE_DEPTH} files deep: recipe.toml -> f0.toml" in line


def test_more_files_than_the_limit_are_refused(write: Write) -> None:
    names = [f"f{n}" for n in range(MAX_INCLUDED + 1)]
    listed = ", ".join(f'"{name}.toml"' for name in names)
    nested = {"a": f"include = [{listed.partition(', ')[2]}]", **dict.fromkeys(names, "# nothing")}

    assert problems(write(f"include = [{listed}]"))[0].endswith("more than the limit of 32")
    (line,) = problems(write('include = ["a.toml"]', **nested))
    assert line.startswith("a.toml:1:")
    assert "more than the limit of 32 included files" in line


def test_all_files_together_keep_to_the_limit_of_a_recipes_size(write: Write) -> None:
    half = "# " + "x" * (MAX_RECIPE_BYTES // 2)

    (line,) = problems(write('include = ["a.toml", "b.toml"]', a=half, b=half))

    assert (
        line == "b.toml:1:1: larger than the limit of 4 MiB for a recipe with all that it includes"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bas.toml", "'bas.toml' doesn't exist in "),
        ("bas.toml", "; did you mean 'base.toml'?"),
        ("../base.toml", "isn't inside the recipe's folder"),
        ("parts/../base.toml", "isn't inside the recipe's folder"),
        ("/etc/passwd", "isn't inside the recipe's folder"),
        ("parts\\\\base.toml", "isn't inside the recipe's folder"),
        ("link.toml", "isn't inside the recipe's folder"),
        ("loop.toml", "can't be looked up"),
        ("http://127.0.0.1:1/base.toml", "is an address, and nothing is ever fetched"),
        ("file:///etc/passwd", "is an address"),
        ("a\\u001b[31m.toml", "without control characters, got 'a\\x1b[31m.toml'"),
        ("a\\u0000.toml", "without control characters"),
        ("", "must be a file's name"),
        (".", "is no file"),
        ("fifo", "is no file"),
        ("x" * 300, "can't be looked up: File name too long"),
    ],
)
def test_an_include_leads_to_a_file_in_the_recipes_folder_and_nowhere_else(
    write: Write, tmp_path: Path, name: str, message: str
) -> None:
    path = write(f'include = [\n  "{name}"]')
    (tmp_path / "link.toml").symlink_to("/etc/passwd")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    os.mkfifo(tmp_path / "fifo")

    (line,) = problems(path)

    assert line.startswith("recipe.toml:2:3: include[0]: ")
    assert message in line


def test_a_link_inside_of_the_folder_is_followed(write: Write, tmp_path: Path) -> None:
    path = write('include = ["link.toml"]')
    (tmp_path / "link.toml").symlink_to("base.toml")

    assert len(load(path).jobs) == 1
    assert find_beside("link.toml", tmp_path) == (tmp_path / "base.toml").resolve()


@pytest.mark.parametrize("value", ['"base.toml"', "[1]", "{}", "true"])
def test_include_is_a_list_of_names(write: Write, value: str) -> None:
    (line,) = problems(write(f"include = {value}"))

    assert line.startswith(
        "recipe.toml:1:11: include: must be a list of files, such as include = ["
    )


def test_every_problem_of_every_included_file_is_told_at_once(write: Write) -> None:
    found = problems(
        write('include = ["a.toml", "b.toml", "none.toml"]', a="a = [\n", b="\nname = \n")
    )

    assert [line.split(": ")[0] for line in found] == [
        "a.toml:2:1",
        "b.toml:2:8",
        "recipe.toml:1:32",
    ]


def test_problems_of_keys_stand_in_the_file_that_wrote_them(write: Write) -> None:
    base = BASE.replace("= 10", '= "ten"').replace("seeds = [1]", "seeds = [1, -1]\nsed = 3")
    own = INCLUDE + '\n[blend]\nboundaries = [0.8, 0.4]\n[[scene]]\nname = "square"\nheigth = 8\n'

    assert problems(write(own, base=base)) == [
        "base.toml:9:23: defaults.num_inference_steps: must be a whole number, got 'ten'",
        (
            "base.toml:15:13: scene[0].seeds[1]: must be at least 0, got -1: 0 draws one, and "
            "records it"
        ),
        "base.toml:16:1: scene[0].sed: unknown key in [[scene]]; did you mean 'seeds'?",
        (
            "recipe.toml:4:14: blend.boundaries: boundaries must be ascending, got [0.8, 0.4]; "
            "did you mean [0.4, 0.8]?"
        ),
        "recipe.toml:7:1: scene[0].heigth: unknown key in [[scene]]; did you mean 'height'?",
    ]


def test_two_jobs_of_one_name_are_refused_with_both_files_and_lines(write: Write) -> None:
    own = '[recipe]\nfilename = "clip-{seed}"\n[[scene]]\nname = "star"\nprompt = "b"\nseeds = [1]'

    (line,) = problems(write(INCLUDE + own))

    assert line.startswith("recipe.toml:4:1: scene[1]: two jobs would share the file 'clip-1.mp4'")
    assert "base.toml:12)" in line
    assert "(line 4)" in line


def test_a_name_that_differs_by_case_alone_is_refused_with_both_files(write: Write) -> None:
    (line,) = problems(write(INCLUDE + '[[scene]]\nname = "Square"\nprompt = "a star"\n'))

    assert line.startswith("recipe.toml:3:8: scene[1].name: 'Square' is the name of scene[0] in ")
    assert "base.toml:13 already" in line


def test_a_range_in_an_included_sweep_is_blamed_there(write: Write) -> None:
    base = BASE + '[sweep]\nnum_inference_steps = [5, "30-20"]\n'

    (line,) = problems(write(INCLUDE, base=base))

    assert line.startswith("base.toml:17:27: sweep.num_inference_steps[1]: must rise")


def test_a_table_scene_with_one_bracket_is_blamed_in_its_file(write: Write) -> None:
    (line,) = problems(write(INCLUDE + '[scene]\nname = "x"\n'))

    assert line == "recipe.toml:2:1: scene: must be written with two brackets: [[scene]]"


def test_an_include_inside_of_a_table_is_told_where_it_belongs(write: Write) -> None:
    (line,) = problems(write(BASE + '[recipe]\ninclude = ["base.toml"]\n'))

    assert line.endswith(
        'unknown key in [recipe]; use include = ["base.toml"] before the first table'
    )


def test_options_change_included_keys_and_their_errors_name_option_and_file(write: Write) -> None:
    path = write(INCLUDE)

    (job,) = load(path, "defaults.num_inference_steps=4", "scene.square.seeds=[9]").jobs
    assert (job.num_inference_steps, job.seed) == (4, 9)
    assert problems(path, "defaults.num_inference_steps=0") == [
        (
            "base.toml:9:23: --set defaults.num_inference_steps=0: defaults.num_inference_steps: "
            "must be at least 1, got 0"
        )
    ]
    (line,) = problems(path, "include=['other.toml']")
    assert line.endswith("files are included before --set changes anything: edit the recipe")


def test_paths_in_included_files_are_relative_to_the_recipes_folder(
    write: Write, tmp_path: Path
) -> None:
    part = '[recipe]\noutput_dir = "clips"\n[model]\nsmall = "./tiny"\n'

    path = write('include = ["base.toml", "parts/a.toml"]', parts__a=part)

    assert problems(path)[0].startswith("parts/a.toml:4:9: model.small: the folder './tiny' doesn")
    assert load(path, "model.small=sprites").output_dir == tmp_path / "clips"


def test_the_batch_keeps_the_texts_of_all_files(write: Write) -> None:
    own = INCLUDE + "[defaults]\nnum_inference_steps = 7\n"

    assert load(write(own)).text == f"{own}\n# included: base.toml\n\n{BASE}"
