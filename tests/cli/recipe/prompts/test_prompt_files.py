"""Prompts from files: wildcards, prompts_file and flowblend import."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from thorough import examples, thorough

from flowblend_cli import main
from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.loader import load_batch, load_recipe
from flowblend_cli.recipe.prompts.prompt_files import FLAGS, LineProblem, read_prompts

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]
Write = Callable[[str, str], None]
HEAD = '[model]\npipeline = "sprites"\n'
FILE = '[[scene]]\nname = "a"\nprompts_file = "prompts.txt"\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a text beside the recipe."""

    def beside(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    return beside


def test_a_wildcard_is_rendered_line_by_line(batch_of: Load, write: Write) -> None:
    write("wildcards/colour.txt", "red\n# no colour\nblue\n")
    text = HEAD + '[[scene]]\nname = "a"\nprompt = "a __colour__ ball ____x____"\n'

    jobs = batch_of(text).jobs

    assert [job.prompt for job in jobs] == ["a red ball __x__", "a blue ball __x__"]
    assert {job.prompt_template for job in jobs} == {"a __colour__ ball ____x____"}
    assert jobs[0].id.startswith("a-s42-n50-red-")


def test_errors_of_wildcards_have_the_recipes_place_and_the_files_line(
    problems_of: Problems, write: Write
) -> None:
    write("lists/bad.txt", "fine\n{open\n")
    text = (
        '[recipe]\nwildcards = "lists"\n'
        + HEAD
        + '[[scene]]\nname = "a"\nprompt = ["__bad__",\n  "__bda__"]\n'
    )

    one, two = problems_of(text)

    assert one.startswith("recipe.toml:7:11: scene[0].prompt[0]: lists/bad.txt:2:1: has a { that")
    assert two.startswith("recipe.toml:8:3: scene[0].prompt[1]: there is no file 'lists/bda.txt'")
    assert "did you mean __bad__?" in two


def test_a_scenes_sample_wins_over_the_recipes_which_is_the_most_that_any_has(
    batch_of: Load, problems_of: Problems
) -> None:
    head = f"[recipe]\nsample = 2\n{HEAD}"
    scenes = '[[scene]]\nname = "{}"\nprompt = "{{a|b|c}} {{d|e}}"\n'
    text = head + scenes.format("one") + scenes.format("two") + "sample = 3\nsample_seed = 5\n"
    text += '[[scene]]\nname = "three"\nprompt = "only one"\n'

    batch = batch_of(text)

    assert [job.scene for job in batch.jobs] == ["one"] * 2 + ["two"] * 3 + ["three"]
    assert len({job.prompt for job in batch.jobs}) <= len(batch.jobs)
    (line,) = problems_of(text, "scene.two.sample=7")
    assert "sample = 7 is more than the 6 different prompts there are" in line
    (line,) = problems_of(HEAD + scenes.format("one") + "sample_seed = 5\n")
    assert "scene[0].sample_seed: draws nothing: set sample as well" in line


def test_a_sample_does_not_depend_on_the_noise_seeds(batch_of: Load) -> None:
    text = HEAD + '[[scene]]\nname = "one"\nprompt = "{a|b|c|d|e|f} {g|h|i}"\nsample = 4\n'

    def drawn(extra: str) -> set[str]:
        return {job.prompt for job in batch_of(text + extra).jobs}

    assert drawn("") == drawn("seeds = [9]\n") == drawn("seeds = [1, 2]\nheight = 32\n")
    assert drawn("") != drawn("sample_seed = 1\n")


def test_the_flags_of_a_line_stand_between_its_scene_and_the_sweep(
    batch_of: Load, write: Write
) -> None:
    write(
        "prompts.txt",
        "# comment\n\na ball --w 32 --h 48 --f 9 --d 7 --s 5 --l 2.5 --fs 4 --n ugly {x}\nplain\n",
    )
    text = (
        HEAD
        + "[defaults]\nnum_inference_steps = 30\nheight = 16\n"
        + "[presets.own]\nnum_inference_steps = 20\n"
        + FILE
        + 'preset = "own"\nwidth = 80\nseeds = [3]\n'
    )

    one, two = batch_of(text).jobs

    assert (one.prompt, one.prompt_template, one.seed) == ("a ball", "a ball", 7)
    assert one.negative_prompt == "ugly {x}"
    assert one.sampling.flow_shift == 4
    arguments = {"guidance_scale": 2.5, "height": 48, "num_frames": 9, "width": 32}
    assert dict(one.arguments) == {**arguments, "num_inference_steps": 5}
    assert (two.prompt, two.seed, two.num_inference_steps) == ("plain", 3, 20)
    assert (two.argument("width"), two.argument("height")) == (80, 16)
    swept = '[sweep]\nnum_inference_steps = [2]\nseed = [11]\n"sampling.flow_shift" = [2.0]\n'
    first = batch_of(text + swept).jobs[0]
    assert (first.num_inference_steps, first.seed, first.sampling.flow_shift) == (2, 11, 2)
    reasons = [choice.reason for choice in batch_of(text).study.choices]
    assert reasons == ["from prompts.txt line 3", "from preset 'own'"]


def test_a_line_may_be_a_template(batch_of: Load, write: Write) -> None:
    write("prompts.txt", "a {red|blue} __thing__, {pace} --s 4\n")
    write("wildcards/thing.txt", "ball\n")

    batch = batch_of(HEAD + FILE + '[matrix]\npace = ["slow"]\n')

    assert [job.prompt for job in batch.jobs] == ["a red ball, slow", "a blue ball, slow"]


def test_a_line_may_have_a_picture_of_its_own(
    batch_of: Load, problems_of: Problems, write: Write, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "first.png")
    write("prompts.txt", "a ball --i first.png\n")
    text = '[model]\npipeline = "wan2.2-i2v"\n' + FILE

    (job,) = batch_of(text).jobs

    assert job.image is not None
    assert job.image.path == "first.png"
    write("prompts.txt", "a ball\nb --i none.png\n")
    lines = problems_of(text)
    assert any("is missing, and" in line for line in lines)
    assert any("prompts.txt:2: the image 'none.png'" in line for line in lines)
    (line,) = problems_of(HEAD + FILE.replace("prompts.txt", "other.txt"))
    assert "'other.txt' doesn't exist" in line


def test_every_problem_of_a_file_names_its_line(problems_of: Problems, write: Write) -> None:
    write(
        "prompts.txt",
        "ok\na --x 3\nb --height 3\nc --w 0\nd --s many\ne --d\n--w 3\nf --h 2 --h 4\ng {h\n",
    )

    lines = problems_of(HEAD + FILE)

    assert {line.partition(".txt:")[0] for line in lines} == {
        "recipe.toml:5:16: scene[0].prompts_file: prompts"
    }
    told = [line.partition(".txt:")[2] for line in lines]
    assert told[0].startswith("2:3: unknown flag --x; known are: --w width")
    assert told[1:4] == [
        "3:3: unknown flag --height; did you mean --h?; write a space after -- that is text",
        "4:3: --w (width) must be at least 1, got 0",
        "5:3: --s (num_inference_steps) needs a number, got 'many'",
    ]
    assert told[4:] == [
        "6:3: --d (seed) needs a value",
        "7:1: has flags and no prompt: the prompt comes first",
        "8:9: --h is there twice: keep one of them",
        "9:3: has a { that is never closed: write {{ for a literal brace",
    ]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("a --h 65", (), "prompts.txt:1: 65 is no multiple of 16"),
        ("a --s 9", ("recipe.max_steps=8",), "prompts.txt:1: 9 steps are more than max_steps = 8"),
        ("a --fs 400", (), "prompts.txt:1:3: --fs (flow_shift) must be at most 100"),
        ("a --d 1", ('scene.a.seeds="explore 4"',), "prompts.txt:1: --d sets a seed"),
        ("a --f 9", ('model.pipeline="qwen-image"',), "takes no num_frames: remove --f"),
        ("x" * 10_001, (), "prompts.txt:1: makes a prompt longer than the limit of 10,000"),
        ("# nothing", (), "prompts.txt has no prompt: write one a line"),
        ("a", ('scene.a.prompt="b"',), "stands beside prompt: keep one of them"),
        ("a", ('scene.a.prompts_file="../prompts.txt"',), "isn't inside the recipe's folder"),
    ],
)
def test_what_a_line_can_not_have_is_refused(
    problems_of: Problems, write: Write, line: str, options: tuple[str, ...], message: str
) -> None:
    write("prompts.txt", line)

    assert any(message in told for told in problems_of(HEAD + FILE, *options))


def test_a_scene_without_any_prompt_is_told_both_ways(problems_of: Problems) -> None:
    (line,) = problems_of(HEAD + '[[scene]]\nname = "a"\n')

    assert "scene[0].prompt: is missing: say what to show, or name a prompts_file" in line


# Lines of musubi-tuner's own documentation, and what word processors and habits make of them.
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a cat walks. --w=64 --h = 48", {"width": 64, "height": 48}),
        ("a cat walks. \u2013w 64 \u2014h 48", {"width": 64, "height": 48}),
        ("a cat walks. \u2014\u2014s=4 \u2013l 2.5", {"steps": 4, "guidance": 2.5}),
        ("a cat walks. --W 64 --S 4", {"width": 64, "steps": 4}),
        ("a cat walks. --n=bad, --d 7", {"negative": "bad,", "seed": 7}),
        ("a cat walks. \u2014n ugly -- very", {"negative": "ugly -- very"}),
        ("a cat \u2014 walks \u2014slowly \u2014 home", {}),
        ("a cat \u2014w, a dog -- i see --  s", {}),
        ("a well-lit cat - 4 of them -x -walks", {}),
    ],
)
def test_a_flag_is_read_however_it_is_typed(
    tmp_path: Path, write: Write, line: str, expected: dict[str, object]
) -> None:
    write("prompts.txt", line)
    problems: list[LineProblem] = []

    (found,) = read_prompts("prompts.txt", tmp_path, problems)

    names = {"width": "width", "height": "height", "num_inference_steps": "steps",
             "guidance_scale": "guidance", "negative_prompt": "negative"}  # fmt: skip
    read = {names[key]: value for key, value in found.settings.items()}
    assert {**read, **({"seed": found.seed} if found.seed is not None else {})} == expected
    assert found.text == (line if not expected else "a cat walks.")
    assert not problems


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("a cat walks--s 4", 12, "write a space before --s"),
        ("a cat walks\u2014s 4", 12, "write a space before --s"),
        ("a cat -s 4", 7, "flags have two: write --s"),
        ("a cat -w=64", 7, "flags have two: write --w"),
        ("a cat -n ugly", 7, "flags have two: write --n"),
        ("a cat --s4", 7, "write a space after --s"),
        ("  a cat -- s 4", 9, "has a space in it: write --s"),
        ("a cat --g 6", 7, "write --l"),
        ("a cat --cn x.mp4 --ci y.png", 7, "aren't supported"),
        ("a cat --of target_index=1", 7, "one-frame"),
        ("a cat --ei end.png", 7, "end picture"),
        ("a cat --steps 4", 7, "unknown flag --steps; did you mean --s?"),
        ("a cat --d -1", 7, "0 draws one"),
        ("a {b --s 4", 3, "never closed"),
        ("a cat <lora:x:1> --s 4", 7, "[model.adapters]"),
        ("a cat --s 4 --n (ugly:1.4)", 0, "would weight words"),
    ],
)
def test_what_can_not_be_read_is_told_with_line_and_column(
    problems_of: Problems, write: Write, line: str, column: int, message: str
) -> None:
    write("prompts.txt", f"# first\n{line}\n")

    told = problems_of(HEAD + FILE)

    place = f"prompts.txt:2:{column}: " if column else "prompts.txt:2:"
    assert any(place in one and message in one for one in told), told


@pytest.mark.parametrize("name", ["p.json", "p.TOML", "p.yaml", "p.csv", "p.jsonl"])
def test_other_formats_of_prompts_are_refused_by_name(
    problems_of: Problems, write: Write, name: str
) -> None:
    write(name, "a cat\n")

    (line,) = problems_of(HEAD + FILE.replace("prompts.txt", name))

    assert f"{name} is {name[2:].upper()}: a prompts file is text with one prompt a line" in line


def test_ten_thousand_lines_are_read_in_no_time(tmp_path: Path, write: Write) -> None:
    write(
        "prompts.txt", "".join(f"a ball number {number} -- rolling\n" for number in range(10_000))
    )
    began = time.process_time()

    lines = read_prompts("prompts.txt", tmp_path, [])

    assert len(lines) == 10_000
    assert lines[-1].text == "a ball number 9999 -- rolling"
    assert time.process_time() - began < 2


LINE = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=60)
FLAGGED = st.lists(st.sampled_from(["a", "--", "1", "0.5", "x", *(f"--{flag}" for flag in FLAGS)]))


@thorough
@examples(60)
@given(line=st.one_of(LINE, FLAGGED.map(" ".join)))
def test_any_line_is_read_or_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "prompts.txt").write_text(line, "utf-8", newline="")

    problems: list[tuple[int | None, str]] = []
    lines = read_prompts("prompts.txt", tmp_path, problems)  # type: ignore[arg-type]

    assert bool(lines) != bool(problems)
    assert all(each.text.strip() for each in lines)


def test_what_a_recipe_reads_beside_itself_is_known(write: Write, tmp_path: Path) -> None:
    write("wildcards/w.txt", "x\n")
    write("prompts.txt", "a __w__\n")
    write("recipe.toml", HEAD + FILE)

    assert load_recipe(tmp_path / "recipe.toml").prompts.files == ("prompts.txt", "wildcards/w.txt")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_import_makes_a_recipe_that_passes_check_and_says_what_comes_next(
    write: Write, tmp_path: Path
) -> None:
    write(
        "night.txt",
        '# by the sea\n#  two\na ball, moving left --w 32 --h 32 --d 7 --n bad "one" \\\n\n'
        "a ball moving left --s 4 --l 3\ncon --fs 3\n\u732b {a|b}\n".replace(" --fs 3", ""),
    )

    result = run("import", tmp_path / "night.txt")

    recipe = tmp_path / "night.toml"
    assert result.exit_code == 0, result.output
    assert f"wrote {recipe}: 4 scenes, 5 jobs\nnext: flowblend plan {recipe}" in result.output
    text = recipe.read_text("utf-8")
    assert "# by the sea\n# two\n[[scene]]" in text
    document = tomllib.loads(text)
    assert document["recipe"]["name"] == "night"
    assert [scene["name"] for scene in document["scene"]] == [
        "a-ball-moving-left",
        "a-ball-moving-left-2",
        "scene-con",
        "\u732b-a-b",
    ]
    assert document["scene"][0] == {
        "name": "a-ball-moving-left",
        "prompt": "a ball, moving left",
        "width": 32,
        "height": 32,
        "negative_prompt": 'bad "one" \\',
        "seeds": [7],
    }
    assert run("check", recipe).exit_code == 0
    again = run("import", tmp_path / "night.txt")
    assert again.exit_code == 2
    assert recipe.read_text("utf-8") == text


def test_an_imported_recipe_makes_the_jobs_of_its_file(write: Write, tmp_path: Path) -> None:
    write("night.txt", "a ball --s 4 --fs 3\na square --fs 3 --d 9\n")
    write("recipe.toml", HEAD + FILE.replace("prompts.txt", "night.txt"))
    run("import", tmp_path / "night.txt", "-o", tmp_path / "made.toml")

    def jobs(name: str) -> list[tuple[object, ...]]:
        found = load_batch(tmp_path / name).jobs
        return [(j.prompt, j.seed, j.arguments, j.sampling, j.stages) for j in found]

    assert jobs("made.toml") == jobs("recipe.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a --q 3\nb {c\n", "night.txt:2:3: has a { that is never closed"),
        ("a --fs 3\nb\n", "night.txt:2:1: has another --fs than line 1"),
        ("# nothing\n", "night.txt has no prompt"),
        ("a\n\n{|b}\n", "night.txt:3:1: prompt: makes a blank prompt"),
        ("a\nb __none__\n", "night.txt:2:1: prompt: there is no file 'wildcards/none.txt'"),
        ("a --w 63\n", "night.txt:1:1: width: 63 is no multiple of 16"),
    ],
)
def test_a_file_that_can_not_be_imported_leaves_nothing(
    write: Write, tmp_path: Path, text: str, message: str
) -> None:
    write("night.txt", text)

    result = run("import", tmp_path / "night.txt")

    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "night.toml").exists()


def test_import_takes_a_pipeline_without_a_small_denoiser(write: Write, tmp_path: Path) -> None:
    write("night.txt", "a harbour\n")

    result = run("import", tmp_path / "night.txt", "--pipeline", "qwen-image")

    assert result.exit_code == 0, result.output
    assert load_batch(tmp_path / "night.toml").jobs[0].stage_string == "L"
