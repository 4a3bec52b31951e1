"""[matrix]: variables of prompts and settings that vary with them; and the names of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thorough import examples, thorough

from flowblend_cli.errors import RecipeError
from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.schema.names import check_template, fill, short_value

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]
HEAD = '[model]\npipeline = "sprites"\n'
SCENE = '[[scene]]\nname = "ball"\nprompt = "a {colour} ball, {pace}"\n'
PLAIN = '[[scene]]\nname = "plain"\nprompt = "a square"\n'


def table(batch: Batch) -> list[tuple[str, str, int]]:
    return [(job.id, job.prompt, job.num_inference_steps) for job in batch.jobs]


def test_every_combination_is_the_default(batch_of: Load) -> None:
    matrix = '[matrix]\ncolour = ["red", "blue"]\npace = ["slow", 2, 0.5, true]\n'

    batch = batch_of(HEAD + SCENE + matrix)

    assert len(batch.jobs) == 8
    assert table(batch)[:2] == [
        ("ball-s42-n50-colourred-paceslow", "a red ball, slow", 50),
        ("ball-s42-n50-colourred-pace2", "a red ball, 2", 50),
    ]
    assert {job.prompt_template for job in batch.jobs} == {"a {colour} ball, {pace}"}
    assert batch_of(HEAD + SCENE + matrix + 'mode = "product"\n').jobs == batch.jobs


def test_a_zip_binds_a_word_to_its_steps(batch_of: Load) -> None:
    matrix = (
        '[matrix]\nmode = "zip"\ncolour = ["red", "blue", "red"]\npace = ["slow", "fast", "slow"]\n'
        'num_inference_steps = [20, 30, 20]\nblend.stages = ["S", "L", "S"]\n'
    )

    batch = batch_of(HEAD + SCENE + matrix)

    assert table(batch) == [
        ("ball-s42-n20-stagesS-colourred-paceslow", "a red ball, slow", 20),
        ("ball-s42-n30-stagesL-colourblue-pacefast", "a blue ball, fast", 30),
    ]
    assert [choice.reason for choice in batch.study.choices] == ["from [matrix]"] * 2


def test_a_scene_without_a_variable_takes_no_part(batch_of: Load) -> None:
    matrix = '[matrix]\ncolour = ["red", "blue"]\npace = ["slow"]\nseed = [7]\nheight = [32]\n'
    sweep = "[sweep]\nnum_inference_steps = [5, 6]\n"

    batch = batch_of(HEAD + SCENE + PLAIN + matrix + sweep)

    assert [job.id for job in batch.jobs] == [
        "ball-s7-n5-colourred-paceslow",
        "ball-s7-n5-colourblue-paceslow",
        "ball-s7-n6-colourred-paceslow",
        "ball-s7-n6-colourblue-paceslow",
        "plain-s42-n5",
        "plain-s42-n6",
    ]
    assert {job.argument("height") for job in batch.jobs if job.scene == "plain"} == {64}


def test_a_matrix_without_variables_is_a_further_sweep(batch_of: Load) -> None:
    text = HEAD + PLAIN + '[matrix]\nmode = "zip"\nheight = [32, 64]\nwidth = ["32-64 (+32)"]\n'

    sizes = [(job.argument("height"), job.argument("width")) for job in batch_of(text).jobs]

    assert sizes == [(32, 32), (64, 64)]


def test_variables_stand_in_negative_prompts_and_all_else_there_is_itself(batch_of: Load) -> None:
    text = (
        HEAD
        + PLAIN
        + 'negative_prompt = "{{colour}} {colour} {x} {a|b} {{"\n'
        + '[matrix]\ncolour = ["red", "blue"]\n'
    )

    jobs = batch_of(text).jobs

    assert [(job.id, job.negative_prompt) for job in jobs] == [
        ("plain-s42-n50-colourred", "{colour} red {x} {a|b} {{"),
        ("plain-s42-n50-colourblue", "{colour} blue {x} {a|b} {{"),
    ]


def test_every_problem_of_a_matrix_is_told_with_its_place(problems_of: Problems) -> None:
    matrix = (
        '[matrix]\ncolour = ["red"]\nseed = [1]\nscene = ["x"]\n"a b" = [1]\n'
        '"blend.boundariez" = ["L"]\n[sweep]\nseed = [2]\n'
    )

    lines = problems_of(HEAD + SCENE + matrix)

    assert [line.partition(": ")[0] for line in lines] == [
        "recipe.toml:5:28",
        "recipe.toml:8:1",
        "recipe.toml:9:1",
        "recipe.toml:10:1",
        "recipe.toml:11:1",
    ]
    assert "has {pace}, which offers no alternatives and is no variable of [matrix]" in lines[0]
    assert "[sweep] varies seed already" in lines[1]
    assert "is a field of file names already" in lines[2]
    assert "did you mean 'blend.boundaries'?" in lines[4]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ('colour = ["red"]\npace = []\n', "matrix.pace: must not be empty"),
        ('colour = ["red"]\npace = "slow"\n', "matrix.pace: must be a list"),
        ('colour = ["red"]\npace = [[1]]\n', "must be a string or true or false or a whole number"),
        ('mode = "zip"\ncolour = ["red"]\npace = [1, 2]\n', "needs lists of one length; colour"),
        ('mode = "zap"\ncolour = ["red"]\npace = [1]\n', "did you mean 'zip'?"),
        ('colour = ["red"]\npace = [1]\nnum_inference_step = [1]\n', "the setting 'num_inference"),
        ('colour = ["red"]\npace = [1]\nstyle = [1]\n', "stands in no prompt: write {style} in"),
        ('colour = ["red"]\npace = [1]\nnum_inference_steps = [0]\n', "must be at least 1, got 0"),
        ('colour = ["red"]\npace = [1]\nblend.stages = ["LQ"]\n', "recipe.toml:9:17: "),
    ],
)
def test_a_matrix_that_can_not_be_is_refused(
    problems_of: Problems, matrix: str, message: str
) -> None:
    (line,) = problems_of(HEAD + SCENE + "[matrix]\n" + matrix)

    assert message in line


def test_a_billion_jobs_are_refused_at_once(problems_of: Problems) -> None:
    names = ("colour", "pace", "x")
    matrix = "[matrix]\n" + "".join(f"{name} = {list(range(1000))}\n" for name in names)

    (line,) = problems_of(HEAD + SCENE.replace("ball,", "{x} ball,") + matrix)

    assert line.startswith("recipe.toml:6:1: matrix: the recipe makes 1,000,000,000 jobs")
    assert "limit of 100,000" in line


def test_a_set_option_edits_a_matrix(batch_of: Load, problems_of: Problems) -> None:
    text = HEAD + SCENE + '[matrix]\ncolour = ["red"]\npace = ["slow"]\nnum_inference_steps = [5]\n'

    assert batch_of(text, 'matrix.colour=["blue"]').jobs[0].prompt == "a blue ball, slow"
    assert batch_of(text, "matrix.num_inference_steps=[6]").jobs[0].num_inference_steps == 6
    (line,) = problems_of(text, "matrix.pace=[]")
    assert "--set matrix.pace=[]: matrix.pace: must not be empty" in line


def test_values_are_text_and_never_read_again(batch_of: Load) -> None:
    values = ["{a|b}", "__class__", "{pace}", "${x}", "{{", "{0.__class__}"]
    text = f'{HEAD}[[scene]]\nname = "a"\nprompt = "[{{v}}]"\n[matrix]\nv = {json.dumps(values)}\n'

    assert [job.prompt for job in batch_of(text).jobs] == [f"[{value}]" for value in values]


NASTY = st.one_of(
    st.text(max_size=300),
    st.sampled_from(
        ["..", "../x", "/etc/passwd", "a\\b", "\0", "C:x", "~", "~root", "x" * 300, ".", "con"]
    ),
)


@thorough
@examples(60)
@given(NASTY, st.sampled_from(["{v}", "x{v}", "{v}/..", "a-{v}.{v}"]))
def test_a_variable_in_a_name_is_one_part_of_it(value: str, template: str) -> None:
    try:
        name = fill(check_template(template), {"v": short_value(value)})
    except ValueError:
        return
    assert Path("/root", name).resolve().parent == Path("/root")
    assert len(name.encode()) <= 200


def toml(text: str) -> str:
    """A basic string of any text that TOML can hold."""
    scalars = (ord(character) for character in text if not 0xD800 <= ord(character) < 0xE000)
    return "".join(f"\\U{number:08x}" for number in scalars)


@thorough
@examples(10)
@given(values=st.lists(NASTY, min_size=1, max_size=3, unique=True), own=NASTY)
def test_no_value_makes_a_file_leave_its_folder(
    tmp_path: Path, values: list[str], own: str
) -> None:
    listed = ", ".join(f'"{toml(value)}"' for value in values)
    scene = '[[scene]]\nname = "a"\nprompt = "x {v}{w}"\n'
    path = tmp_path / "recipe.toml"
    for name in (None, "{v}", f"{toml(own)}{{w}}-{{v}}"):
        head = f'[recipe]\nfilename = "{name}"\n' if name else ""
        path.write_text(f"{head}{HEAD}{scene}[matrix]\nv = [{listed}]\nw = [{listed}]\n", "utf-8")
        try:
            batch = load_batch(path)
        except RecipeError:
            continue
        for job in batch.jobs:
            assert batch.path_of(job).resolve().parent == (tmp_path / "out").resolve()
            assert len(job.filename.encode()) < 255


def test_default_names_follow_from_the_prompt_alone(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    recipe = tmp_path / "recipe.toml"

    def names(entries: list[str], prompts: list[str], words: list[str]) -> dict[str, str]:
        (tmp_path / "wildcards/w.txt").write_text("\n".join(entries), "utf-8")
        (tmp_path / "prompts.txt").write_text("\n".join(prompts), "utf-8")
        recipe.write_text(
            f'{HEAD}[[scene]]\nname = "a"\nprompt = ["__w__ {{x|y}}", "{{v}}"]\nseeds = [1, 2]\n'
            f'[[scene]]\nname = "b"\nprompts_file = "prompts.txt"\n[matrix]\nv = {words}\n',
            "utf-8",
        )
        return {job.id: job.prompt for job in load_batch(recipe).jobs}

    entries, prompts, words = ["one", "two", "three"], ["four", "five --s 7"], ["w1", "w2"]
    before = names(entries, prompts, words)

    assert names(entries[::-1], prompts[::-1], words[::-1]) == before
    assert before.items() < names([*entries, "more"], ["first", *prompts], [*words, "w3"]).items()
    edited = names(["one", "2", "three"], prompts, words)
    assert len(before) == len(edited) == 18
    assert len(before.items() - edited.items()) == 4  # two alternatives, two seeds each
    assert len(before.items() - names(entries[:1], prompts[:1], words[:1]).items()) == 11


def test_names_tell_apart_what_they_can_not_hold(batch_of: Load) -> None:
    text = f'{HEAD}[[scene]]\nname = "a"\nprompt = "{{v}}"\n[matrix]\nv = '
    values = ["wide shot", "wide, shot", "wide: shot", "x" * 70, "x" * 71, "é", "{}"]

    batch = batch_of(text + json.dumps(values, ensure_ascii=False))

    assert batch.jobs[0].id == "a-s42-n50-vwide_shot"
    assert len({job.id for job in batch.jobs}) == len(values)


def test_a_template_may_use_variables_and_what_tells_prompts_apart(batch_of: Load) -> None:
    head = '[recipe]\nfilename = "{scene}-{colour}-{pace}-{prompt_words}-{prompt_id}"\n' + HEAD
    text = head + SCENE + '[matrix]\ncolour = ["red"]\npace = ["slow"]\n'

    (job,) = batch_of(text).jobs

    assert job.id.startswith("ball-red-slow-a-red-ball-slow-")
