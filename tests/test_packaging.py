"""The wheel: what it installs, and that it works without the checkout."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def run(command: list[str], cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run([*build, str(ROOT)], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel; its dependencies are borrowed from here."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (purelib,) = home.glob("lib/python*/site-packages")
    (purelib / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    run([*pip, "--no-index", "--ignore-installed", str(wheel)], home)
    return home / "bin"


def test_the_wheel_installs_the_two_packages_and_nothing_else(contents: set[str]) -> None:
    tops = {name.split("/")[0] for name in contents}

    assert tops == {
        "flowblend_plugin",
        "flowblend_cli",
        f"flowblend-{PROJECT['version']}.dist-info",
    }


def test_the_wheel_holds_every_module_data_file_and_recipe(contents: set[str]) -> None:
    tracked = run(["git", "ls-files", "flowblend_plugin", "cli/flowblend_cli", "recipes"], ROOT)
    expected = {
        name.removeprefix("cli/") if not name.startswith("recipes/") else f"flowblend_cli/{name}"
        for name in tracked.splitlines()
        if (ROOT / name).exists()
    }

    assert expected <= contents
    assert "flowblend_cli/recipes/presets.toml" in contents
    assert "flowblend_cli/py.typed" in contents
    assert not [name for name in contents if "__pycache__" in name or name.endswith(".tmp")]


def test_the_wheel_carries_its_licence(contents: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in contents)


def test_the_installed_command_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = "import flowblend_cli, flowblend_plugin as p; print(flowblend_cli.__file__, p.__file__)"

    shown = run([str(installed / "python"), "-c", where], tmp_path)

    assert shown.count(str(installed.parent)) == 2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipes", "ls"], ["check", "quickstart"], ["plan", "quickstart"]],
    ids=" ".join,
)  # fmt: skip
def test_the_installed_command_works_far_from_the_checkout(
    installed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    assert run([str(installed / "flowblend"), *arguments], tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_version_is_said_once(installed: Path, tmp_path: Path) -> None:
    shown = run([str(installed / "flowblend"), "--version"], tmp_path)

    assert PROJECT["version"] in shown


def test_nothing_but_lower_bounds_is_required() -> None:
    extras = itertools.chain.from_iterable(PROJECT["optional-dependencies"].values())
    requirements = [*PROJECT["dependencies"], *extras]

    assert all(">=" in line and "<" not in line and "==" not in line for line in requirements)


def test_every_direct_dependency_has_a_tested_release() -> None:
    constraints = (ROOT / "constraints.txt").read_text("utf-8").lower().replace("_", "-")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = [re.split(r"[>\[]", line)[0].lower().replace("_", "-") for line in wanted]

    missing = [name for name in names if f"\n{name}==" not in constraints]
    assert not missing
