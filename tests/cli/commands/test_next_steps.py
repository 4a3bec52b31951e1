"""What commands say to type next runs, exactly as it is printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowblend_cli.commands.recipes import _headline
from flowblend_cli.main import main
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.models.registry import known_pairs

SMALL = [
    "--set", "defaults.num_inference_steps=2", "--set", "defaults.num_frames=5",
    "--set", "output.scale=1", "--set", "scene[0].seeds=[1]",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a space in its name, an empty Hub cache, and one process."""
    folder = tmp_path / "my recipes"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FLOWBLEND_ISOLATE", "0")
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def next_lines(output: str) -> list[str]:
    """The commands after ``next:``."""
    lines = output.partition("next: ")[2].splitlines()
    return [line.strip() for line in lines if line.strip().startswith("flowblend ")]


def typed(line: str) -> list[str]:
    """The words that a shell hands on."""
    shown = subprocess.run(
        ["bash", "-c", f'flowblend() {{ printf "%s\\0" "$@"; }}; {line}'],
        capture_output=True, check=True,
    )  # fmt: skip
    return os.fsdecode(shown.stdout).split("\0")[:-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", "--pipeline", "sprites"],
        ["init", "--pipeline", "sprites", "-o", "first one.toml"],
        ["init", "--pipeline", "sprites", "-o", "it's $HOME & (mine).toml"],
        ["init", "--pipeline", "sprites", "-o=-x.toml"],
        ["init", "--pipeline", "sprites", "-o", "quickstart"],
        ["init", "--pipeline", "sprites", "-o", "tab\there.toml"],
        ["import", "night lines.txt"],
        ["import", "night lines.txt", "-o", "my night.toml"],
        ["recipes", "cp", "quickstart", "a copy.toml"],
        ["recipes", "cp", "wildcards", "."],
    ],
)
def test_the_next_steps_of_a_new_recipe_run_as_they_are_printed(
    here: Path, arguments: list[str]
) -> None:
    (here / "night lines.txt").write_text("a red star --s 2 --f 5\n")

    result = run(*arguments)

    assert result.exit_code == 0, result.output
    lines = next_lines(result.output)
    assert [line.split()[1] for line in lines] == ["plan", "render"]
    for line in lines:
        words = typed(line)
        done = run(*words, *(["--dry-run"] if words[0] == "render" else []))
        assert done.exit_code == 0, (line, done.output)
        assert Path(words[1]).is_file()


@pytest.mark.parametrize("name", ["wan2.1-t2v", "wan2.2-i2v", "qwen-image", "quickstart"])
def test_a_recipe_whose_weights_are_elsewhere_begins_with_fetching_them(
    here: Path, name: str
) -> None:
    lines = next_lines(run("recipes", "cp", name, "my copy.toml").output)

    fetch = ["flowblend models fetch 'my copy.toml'"] if name != "quickstart" else []
    assert lines == [
        *fetch, "flowblend plan 'my copy.toml'", "flowblend render 'my copy.toml'",
    ]  # fmt: skip
    fetched = run(*typed(lines[0]))  # offline, it says which repository it asks for
    assert "no such" not in fetched.output
    assert "Usage" not in fetched.output


@pytest.mark.night
def test_a_gallery_of_a_bundled_recipe_leads_to_ones_own_and_that_to_its_report(
    here: Path,
) -> None:
    (here / "my.toml").write_text("somebody's")
    first = run("render", "quickstart", "--gallery", *SMALL, "--set", "scene[1].seeds=[1]")
    assert first.exit_code == 0, first.output
    copy, render = next_lines(first.output)
    assert (copy, render) == (
        "flowblend recipes cp quickstart my-2.toml", "flowblend render my-2.toml",
    )  # fmt: skip
    assert run(*typed(copy)).exit_code == 0

    own = run(*typed(render), "--gallery", *SMALL)
    assert own.exit_code == 0, own.output
    (report,) = next_lines(own.output)
    assert report.startswith("flowblend report ")
    assert "quickstart my" not in own.output
    assert run(*typed(report)).exit_code == 0
    assert (Path(typed(report)[1]) / "report.html").is_file()


def test_recipes_ls_says_whole_sentences_and_breaks_them_in_a_narrow_terminal(
    here: Path,
) -> None:
    wide = run("recipes", "ls").output.splitlines()
    assert len(wide) == len(bundled_recipes())
    two_lines = bundled_recipes()["step-study"]
    assert _headline(two_lines).endswith("flowblend render step-study")

    code = (
        "import os, pty, sys; os.environ['COLUMNS'] = '44'; "
        "pty.spawn([sys.executable, '-m', 'flowblend_cli', 'recipes', 'ls'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    narrow = shown.stdout.decode().replace("\r", "").splitlines()
    assert all(len(line) < 44 or " " not in line.strip() for line in narrow)
    words = " ".join(narrow).split()
    assert words == " ".join(wide).split()


def test_recipes_ls_says_what_has_to_be_fetched_first(here: Path) -> None:
    lines = {line.split()[0]: line for line in run("recipes", "ls").output.splitlines()}

    wan = lines["wan2.1-t2v"]
    pair = known_pairs()["wan2.1-t2v"]
    assert f"models to fetch first ({pair.pipeline}, {pair.small}): " in wan
    assert wan.endswith("flowblend models fetch wan2.1-t2v, then flowblend render wan2.1-t2v")
    assert lines["quickstart"].endswith(": flowblend render quickstart")
    assert "fetch" not in lines["quickstart"]


def test_words_are_quoted_as_python_s_own_shell_quoting_does(here: Path) -> None:
    result = run("init", "--pipeline", "sprites", "-o", "a b'c.toml")

    assert shlex.split(next_lines(result.output)[0]) == ["flowblend", "plan", "a b'c.toml"]
