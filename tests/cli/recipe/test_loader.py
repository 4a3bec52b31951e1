from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.jobs import Batch
from flowblend_cli.models.registry import known_pairs
from flowblend_cli.recipe.loader import load_batch

Problems = Callable[..., list[str]]

BROKEN = """\
[recipe]
nam = "x"

[model]
pipeline = "sprite"
dtype = "fp16"

[blend]
stages = "LSL"
boundaries = [0.8, 0.4]

[sampling]
mode = "sde"
scheduler = "unipc"

[defaults]
num_inference_stepz = 5
scale = 2
height = 1.5

[presets.mine]
num_inference_steps = "60-50"

[[scene]]
name = "a"
prompt = "a {red ball"
preset = "walkin"

[[scene]]
name = "a"
prompt = "b"
num_inference_steps = 0
seeds = [1, -1]
sed = 3

[sweep]
guidance_scale = []

[output]
crf = 99
"""

GOLDEN = """\
recipe.toml:2:1: recipe.nam: unknown key in [recipe]; did you mean 'name'?
recipe.toml:5:12: model.pipeline: 'sprite' is no model: use a bundled or known pair \
(i2vgen-xl, ltx-video, qwen-image, sprites, wan2.1-t2v, wan2.2-i2v, wan2.2-t2v), ./folder, an \
absolute folder, or a Hub id owner/name or owner/name@COMMIT (40 hexadecimal digits); did you \
mean 'sprites'?
recipe.toml:6:9: model.dtype: must be one of 'auto', 'float32', 'bfloat16' or 'float16', got \
'fp16'
recipe.toml:10:14: blend.boundaries: boundaries must be ascending, got [0.8, 0.4]; did you \
mean [0.4, 0.8]?
recipe.toml:13:8: sampling.mode: 'sde' isn't possible: unipc has no stochastic form; set \
scheduler to 'flow_match_euler' or 'dpmpp_2m'
recipe.toml:17:1: defaults.num_inference_stepz: unknown key in [defaults]; did you mean \
'num_inference_steps'?
recipe.toml:18:1: defaults.scale: unknown key in [defaults]; scale belongs in [output]
recipe.toml:19:10: defaults.height: must be a whole number, got 1.5
recipe.toml:22:23: presets.mine.num_inference_steps: must rise from low to high, got \
'60-50'; did you mean '50-60'?
recipe.toml:26:13: scene[0].prompt: has a { that is never closed: write {{ for a literal \
brace
recipe.toml:27:10: scene[0].preset: there is no preset 'walkin'; did you mean 'walking'?
recipe.toml:30:8: scene[1].name: 'a' is the name of scene[0] in line 25 already, which its \
files would share: rename one
recipe.toml:32:23: scene[1].num_inference_steps: must be at least 1, got 0
recipe.toml:33:13: scene[1].seeds[1]: must be at least 0, got -1: 0 draws one, and records it
recipe.toml:34:1: scene[1].sed: unknown key in [[scene]]; did you mean 'seeds'?
recipe.toml:37:18: sweep.guidance_scale: must not be empty
recipe.toml:40:7: output.crf: must be at most 51, got 99"""


def test_every_problem_is_reported_at_once_in_the_order_of_the_file(problems_of: Problems) -> None:
    golden = GOLDEN.replace("PAIRS", ", ".join(sorted(known_pairs())))

    assert problems_of(BROKEN) == golden.splitlines()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[0.4, 0.8]", "[0.8, 0.4]", "recipe.toml:9:14: blend.boundaries: boundaries must be asc"),
        ("[0.4, 0.8]", "[0.4]", "recipe.toml:8:10: blend.stages: stages 'LSL' needs 2 boundaries"),
        ("[0.4, 0.8]", "[0.4, 1.5]", "recipe.toml:9:20: blend.boundaries[1]: must be at most 1"),
        ('"LSL"', '"LXL"', "recipe.toml:8:10: blend.stages: stages 'LXL' has unknown letter 'X'"),
        ('"LSL"', '"guess"', "recipe.toml:8:10: blend.stages: stages 'guess' has unknown letter"),
        ('"sprites"', '"sprites.bin"', "recipe.toml:5:12: model.pipeline: 'sprites.bin' is a pick"),
        ('"sprites"', '"./none"', "recipe.toml:5:12: model.pipeline: the folder './none' doesn't"),
        ('"sprites"', '"a/b"', "recipe.toml:4:1: model.small: is missing, and stages 'LSL' use"),
        (
            "seeds = [1]",
            "seed = 1",
            "recipe.toml:17:1: scene[0].seed: unknown key in [[scene]]; di",
        ),
        ("seeds = [1]", "fps = 8", "recipe.toml:17:1: scene[0].fps: WanPipeline takes no fps; the"),
        ("seeds = [1]", "seeds = 1", "recipe.toml:17:9: scene[0].seeds: must be a list, or 'exp"),
        ("= 10", '= "10"', "recipe.toml:12:23: defaults.num_inference_steps: must be a whole num"),
        ("= 10", "= true", "recipe.toml:12:23: defaults.num_inference_steps: must be a whole num"),
        ("= 10", "= 10\nguidance_scale = inf", "recipe.toml:13:18: defaults.guidance_scale: must "),
        ('"square"', '"a/../b"', "recipe.toml:15:8: scene[0].name: must not hold /"),
        ('"square"', '"C:x"', "recipe.toml:15:8: scene[0].name: must not hold :"),
        ('"square"', '"a\\u0000"', "recipe.toml:15:8: scene[0].name: must not hold control char"),
        ('"square"', '"..x"', "recipe.toml:15:8: scene[0].name: must not start with a dot"),
        ("[[scene]]", "[scene]", "recipe.toml:14:1: scene: must be written with two brackets"),
    ],
)
def test_a_problem_names_its_line_its_column_and_its_key(
    problems_of: Problems, minimal: str, old: str, new: str, line: str
) -> None:
    found = problems_of(minimal.replace(old, new))

    assert found[0].startswith(line)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a = [1,\n", "recipe.toml:2:1: not valid TOML"),
        ("\n\nname = \n", "recipe.toml:3:8: not valid TOML: Invalid value"),
        ("a = 1\na = 2\n", "recipe.toml:2:6: not valid TOML: Cannot overwrite a value"),
        ("", "recipe.toml:1:1: the recipe is empty"),
        (" \n\t\n", "recipe.toml:1:1: the recipe is empty"),
        ("# nothing", "recipe.toml:1:1: model: is missing"),
        ("a = " + "[" * 5000 + "]" * 5000, "recipe.toml:1:37: nested deeper than the limit of 32"),
        (".".join("a" * 5000) + " = 1", "recipe.toml:1:66: nested deeper than the limit of 32"),
    ],
)
def test_text_that_is_no_recipe_is_refused_at_its_place(
    problems_of: Problems, text: str, start: str
) -> None:
    assert problems_of(text)[0].startswith(start)


def test_a_file_that_is_not_utf8_names_the_bad_byte(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes('a = 1\nb = "é'.encode() + b'\xff"')

    with pytest.raises(RecipeError, match=r"recipe\.toml:2:7: not UTF-8"):
        load_batch(path)


def test_a_recipe_above_four_mebibytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"#" * (4 * 1024 * 1024 + 1))

    with pytest.raises(RecipeError, match="limit of 4 MiB"):
        load_batch(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder"):
        load_batch(tmp_path)


def test_a_billion_jobs_are_refused_without_building_one(
    problems_of: Problems, minimal: str
) -> None:
    numbers = ", ".join(str(n) for n in range(1, 1001))
    sweep = f"[sweep]\nnum_inference_steps = [{numbers}]\nmax_sequence_length = [{numbers}]\n"

    found = problems_of(f"{minimal}{sweep}height = [{numbers}]\n")

    assert len(found) == 1
    assert "sweep: the recipe makes 1,000,000,000 jobs, more than the limit of 100,000" in found[0]


def test_a_billion_alternatives_are_refused(problems_of: Problems, minimal: str) -> None:
    found = problems_of(minimal.replace("a red square", "{a|b}" * 30))

    assert "scene[0]: the recipe makes 1,073,741,824 jobs" in found[0]


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path, minimal: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + minimal.replace("\n", "\r\n").encode())

    assert len(load_batch(path).jobs) == 1


def test_control_characters_of_a_recipe_never_reach_a_message(
    problems_of: Problems, minimal: str
) -> None:
    found = problems_of(minimal.replace('"square"', '"a\\u001b[31m/"'))

    assert "\x1b" not in found[0]


scalars = st.one_of(
    st.none().map(lambda _: "true"),
    st.integers(-3, 10**20).map(str),
    st.floats().map(lambda x: repr(x).replace("nan", "nan")),
    st.sampled_from(['"LSL"', '"../x"', '"{a|b}"', '"{"', "[]", "[1, 2]", "{}", "[[0.4]]", "''"]),
)
keys = st.sampled_from(
    [
        "recipe.name",
        "recipe.filename",
        "model.pipeline",
        "model.small",
        "blend.stages",
        "blend.boundaries",
        "blend.boundary_sigmas",
        "sampling.mode",
        "defaults.num_inference_steps",
        "defaults.height",
        "scene.x",
        "presets.walking",
        "presets.x.num_inference_steps",
        "sweep.mode",
        "sweep.num_inference_steps",
        "sweep.blend.stages",
        "output.scale",
        "output.container",
        "defaults",
        "blend",
        "scene",
        "sweep",
    ]
)


def loaded(path: Path, overrides: list[str]) -> tuple[Batch | None, tuple[Problem, ...]]:
    """A recipe's batch, or its problems; any other error fails the test."""
    try:
        return load_batch(path, overrides), ()
    except RecipeError as error:
        return None, error.problems


@settings(max_examples=60)
@given(st.dictionaries(keys, scalars, max_size=4))
def test_no_values_make_the_loader_raise_anything_but_its_own_error(
    tmp_path_factory: pytest.TempPathFactory, edits: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_text(
        '[model]\npipeline = "sprites"\n[[scene]]\nname = "x"\nprompt = "y"\n', encoding="utf-8"
    )
    batch, problems = loaded(path, [f"{key}={value}" for key, value in edits.items()])

    lines = path.read_text("utf-8").count("\n")
    for problem in problems:
        assert problem.message
        assert str(problem).startswith(f"{path}:{problem.line}:{problem.column}: ")
        assert 1 <= (problem.line or 0) <= lines
    names = [batch.path_of(job) for job in batch.jobs] if batch else []
    assert bool(names) != bool(problems)
    assert len(set(names)) == len(names)
    assert all(batch and name.parent == batch.output_dir for name in names)


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=80), st.text("[]{}=.\"'\n #ab1,\\-", max_size=80)))
def test_no_text_makes_the_loader_raise_anything_but_its_own_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError):
        load_batch(path)
