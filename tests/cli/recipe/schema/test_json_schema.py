"""The schema that editors read: a TOML language server's own validator judges recipes by it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowblend_cli import main
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.recipe.schema.json_schema import kinds_at, schema_text

TAPLO = shutil.which("taplo") or shutil.which("taplo", path=str(Path(sys.executable).parent))
needs_taplo = pytest.mark.skipif(TAPLO is None, reason="taplo isn't installed: pip install taplo")

FEATURES = """\
[recipe]
passes = ["draft", "final"]
filename = "{scene}-s{seed}"

[model]
pipeline = "sprites"
adapters = { monochrome = "sprites" }
denoisers = { D = "./distilled" }

[[blend.stage]]
denoiser = "large"
until = 0.4
adapters = [{ name = "monochrome", weight = 0.8 }]

[[blend.stage]]
denoiser = "small"
cache = { kind = "first_block", threshold = 0.2 }

[draft]
steps = 8
keep = 2

[defaults]
num_inference_steps = 12
guidance_scale = 5

[presets.quick]
num_inference_steps = "10-20"
keywords = ["quick"]

[[scene]]
name = "square"
prompt = ["a {red|blue} square", "a star"]
seeds = "explore 8"
preset = "auto"

[[scene]]
name = "star"
prompt = "a star"
seeds = [1, 2]

[sweep]
num_inference_steps = ["30-100 (+10)"]
guidance_scale = "1-5"

"output.crf" = [10, 20]
defaults.height = [32, 64]

[sweep.blend]
stages = ["LSL"]
"""
BROKEN = """\
[recipe]
nam = "x"

[model]
pipeline = "sprites"

[defaults]
num_inference_steps = "fifty"

[[scene]]
name = "a"
prompt = 3

[output]
crf = 99
"""


def lint(folder: Path, *texts: str) -> subprocess.CompletedProcess[str]:
    """What taplo says of recipes that name the schema beside them; no network, no home."""
    assert TAPLO is not None
    (folder / "flowblend.schema.json").write_text(schema_text(), "utf-8")
    for number, text in enumerate(texts):
        header = "#:schema ./flowblend.schema.json\n"
        (folder / f"{number}.toml").write_text(header + text, "utf-8")
    return subprocess.run(
        [TAPLO, "lint", "--colors", "never", *(f"{n}.toml" for n in range(len(texts)))],
        cwd=folder, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@needs_taplo
def test_a_language_server_accepts_every_shipped_recipe(tmp_path: Path) -> None:
    texts = [path.read_text("utf-8") for path in bundled_recipes().values()]

    result = lint(tmp_path, *texts)

    assert len(texts) > 10
    assert result.returncode == 0, result.stderr


@needs_taplo
def test_a_language_server_accepts_every_form_of_a_key_and_what_is_included(tmp_path: Path) -> None:
    included = 'include = ["0.toml"]\n\n[[scene]]\nname = "square"\nheight = 64\n'

    result = lint(tmp_path, FEATURES, included)

    assert result.returncode == 0, result.stderr


@needs_taplo
def test_a_language_server_finds_what_is_mistyped(tmp_path: Path) -> None:
    result = lint(tmp_path, BROKEN)

    assert result.returncode == 1
    for line in (3, 9, 13, 16):
        assert f"0.toml:{line}:" in result.stderr


@needs_taplo
def test_a_language_server_reads_the_schema_of_a_copied_recipe(tmp_path: Path) -> None:
    assert TAPLO is not None
    target = tmp_path / "mine.toml"
    assert CliRunner().invoke(main, ["recipes", "cp", "quickstart", str(target)]).exit_code == 0
    target.write_text(target.read_text("utf-8").replace("[model]", "[modell]"), "utf-8")

    result = subprocess.run(
        [TAPLO, "lint", "mine.toml"], cwd=tmp_path, env={}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert result.returncode == 1
    assert "modell" in result.stderr


def test_a_copied_recipe_names_the_schema_beside_it_and_leaves_one_of_ours(tmp_path: Path) -> None:
    def copy(name: str) -> str:
        result = CliRunner().invoke(main, ["recipes", "cp", "quickstart", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        return (tmp_path / name).read_text("utf-8")

    assert copy("a.toml").startswith("#:schema ./flowblend.schema.json\n# ")
    schema = tmp_path / "flowblend.schema.json"
    assert schema.read_text("utf-8") == schema_text()
    schema.write_text('{"title": "flowblend recipe"}', "utf-8")
    assert copy("b.toml").startswith("#:schema ")
    assert json.loads(schema.read_text("utf-8")) == {"title": "flowblend recipe"}


@pytest.mark.parametrize("content", ["mine", "[]", '{"title": "something"}', "\0"])
def test_a_strangers_file_of_that_name_is_left_alone(tmp_path: Path, content: str) -> None:
    schema = tmp_path / "flowblend.schema.json"
    schema.write_text(content, "utf-8")

    result = CliRunner().invoke(main, ["recipes", "cp", "quickstart", str(tmp_path)])

    assert result.exit_code == 0
    assert "is another file, so editors get no schema" in result.stderr
    assert schema.read_text("utf-8") == content
    assert "#:schema" not in (tmp_path / "quickstart.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        (("defaults", "height"), {"integer"}),
        (("recipe", "name"), {"string"}),
        (("scene", 0, "prompt"), {"string", "array"}),
        (("scene", 0, "seeds"), {"array"}),
        (("presets", "mine", "num_inference_steps"), {"integer", "string"}),
        (("blend", "stage", 1, "until"), {"number"}),
        (("sweep", "blend.stages", 0), {"string"}),
        (("model", "denoisers", "D"), {"string"}),
        (("scene", "prompt"), set()),
        (("nothing", "here"), set()),
    ],
)
def test_the_schema_tells_what_a_place_may_hold(
    path: tuple[str | int, ...], kinds: set[str]
) -> None:
    assert kinds_at(path) == kinds
