"""Change the spine in one place at a time, and run the tests that reach it: do they notice?

``python -m tests.mutants [--part NAME ...] [--share 0.02] [--seed N] [--jobs 2] [--keep FOLDER]``

mutmut makes the changes and chooses the tests by who calls what. A change that no test noticed has
to be in survivors.toml, with the reason why it is no fault; another one, or less than 90 % noticed,
exits with 1. ``--share`` tries some of the changes, by chance; the same ones for the same seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")
GOAL = 0.9
# Whatever tests read beside the packages themselves.
BESIDE = ("tests", "recipes", "docs", "examples", "scripts", "benchmarks", "training", "cli",
          "README.md", "CHANGELOG.md", "ARCHITECTURE.md", "pyproject.toml", "constraints.txt",
          "Makefile")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the spine, and the tests that watch over it.

    Args:
        files: Files that are changed, as patterns below the packages' folder.
        tests: Files and folders of tests.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]


_LIBRARY, _COMMAND = "flowblend_plugin", "flowblend_cli"
PARTS = {
    "stages": Part((f"{_LIBRARY}/stages/*.py",), ("tests/plugin/stages",)),
    "schedulers": Part(
        (f"{_LIBRARY}/schedulers/*.py",),
        ("tests/plugin/schedulers", "tests/plugin/test_switch.py"),
    ),
    "switch": Part(
        (f"{_LIBRARY}/switch.py", f"{_LIBRARY}/stage_hooks/*.py"),
        ("tests/plugin/stage_hooks", "tests/plugin/test_switch.py"),
    ),
    "criteria": Part((f"{_LIBRARY}/calibration/criteria.py",), ("tests/plugin/calibration",)),
    "identity": Part((f"{_COMMAND}/models/identity.py",), ("tests/cli/models",)),
    "artifacts": Part((f"{_COMMAND}/artifacts/*.py",), ("tests/cli/artifacts",)),
    "engine": Part(
        (f"{_COMMAND}/engine/batch_run.py", f"{_COMMAND}/engine/limits.py"),
        ("tests/cli/engine/test_batch_run.py", "tests/cli/engine/test_limits.py"),
    ),
    "recipe": Part(
        (f"{_COMMAND}/recipe/expand/*.py", f"{_COMMAND}/recipe/sweep/*.py"), ("tests/cli/recipe",)
    ),
}

# Tries a share of what mutmut would: its own command takes names, which only it knows.
_DRIVER = """
import random, sys
import mutmut.__main__ as mutmut

share, seed, jobs = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
every = mutmut.collect_source_file_mutation_data

def some(*, mutant_names):
    mutants, data = every(mutant_names=mutant_names)
    chosen = [one for one in mutants if random.Random(seed + one[1]).random() < share]
    return chosen, data

if __name__ == "__main__":
    mutmut.collect_source_file_mutation_data = some
    mutmut._run((), jobs)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of the changes of a part: how many were tried, and which nobody noticed."""

    tried: int
    survivors: dict[str, str]  # by the place of each, what was changed


def main() -> int:
    """Try the parts, print what wasn't noticed, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the changes, by chance")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which the changed files stay")
    options = parser.parse_args()
    known = tomllib.loads(SURVIVORS.read_text("utf-8"))
    tried = noticed = 0
    unlisted = []
    for name in options.part:
        with tempfile.TemporaryDirectory(prefix="flowblend-mutants-") as folder:
            place = options.keep / name if options.keep else Path(folder)
            outcome = try_part(PARTS[name], place, options)
        tried += outcome.tried
        noticed += outcome.tried - len(outcome.survivors)
        print(f"{name}: {outcome.tried - len(outcome.survivors)} of {outcome.tried} noticed")
        unlisted += [
            (place, change)
            for place, change in outcome.survivors.items()
            if change not in known.get(place.rsplit("__mutmut_", 1)[0], {})
        ]
    for place, change in unlisted:
        print(f"\n{place}\n{change}")
    print(f"\n{noticed} of {tried} changes noticed ({noticed / max(tried, 1):.0%})")
    return int(bool(unlisted) or noticed < GOAL * tried)


def try_part(part: Part, place: Path, options: argparse.Namespace) -> Outcome:
    """Lay out a copy of the project in which mutmut finds its way, and run it there."""
    lay_out(part, place)
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(str(place / "mutants" / at) for at in ("src", "")),
    }
    (place / "drive.py").write_text(_DRIVER, "utf-8")
    command = [sys.executable, "drive.py", str(options.share), options.seed, str(options.jobs)]
    with (place / "mutmut.log").open("w") as log:
        done = subprocess.run(command, cwd=place, env=environ, stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit(f"mutmut failed:\n{(place / 'mutmut.log').read_text('utf-8')[-3000:]}")
    codes = {}
    for path in (place / "mutants" / "src").rglob("*.meta"):
        codes |= json.loads(path.read_text("utf-8"))["exit_code_by_key"]
    tried = {name: code for name, code in codes.items() if code is not None}
    survivors = [name for name, code in tried.items() if code in (0, 33, 5)]
    return Outcome(len(tried), {name: show(name, place) for name in survivors})


def lay_out(part: Part, place: Path) -> None:
    """Copy the project, its packages side by side in src/, where mutmut looks for them."""
    place.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__", "mutants")
    for package in (ROOT / _LIBRARY, ROOT / "cli" / _COMMAND):
        shutil.copytree(package, place / "src" / package.name, ignore=ignored, dirs_exist_ok=True)
    recipes = place / "src" / _COMMAND / "recipes"
    if not recipes.exists():
        recipes.symlink_to(ROOT / "recipes")
    for name in BESIDE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(source, place / name)
    text = (place / "pyproject.toml").read_text("utf-8")
    (place / "pyproject.toml").write_text(f"{text}\n{configuration(part)}", "utf-8")


def configuration(part: Part) -> str:
    """mutmut's table of pyproject.toml."""

    def listed(values: Iterable[str]) -> str:
        return json.dumps(list(values))

    return f"""[tool.mutmut]
source_paths = ["src"]
only_mutate = {listed(f"src/{pattern}" for pattern in part.files)}
also_copy = {listed(name for name in BESIDE if name != "tests")}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-m", "not night", "-x"]
pytest_add_cli_args_test_selection = {listed(part.tests)}
process_isolation = "forkserver"
"""


def show(name: str, place: Path) -> str:
    """The changed lines, as a diff has them."""
    command = [sys.executable, "-m", "mutmut", "show", name]
    shown = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False).stdout
    return "\n".join(
        line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    )


if __name__ == "__main__":
    sys.exit(main())
