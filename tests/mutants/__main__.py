"""Change the spine in one place at a time, and run the tests that reach it: do they notice?

``python -m tests.mutants [--part NAME ...] [--sample 5] [--seed N] [--jobs 2] [--keep FOLDER]``

mutmut makes the changes, but for those that ``drive`` leaves out as no faults by their kind, and
chooses the tests by who calls what. The tests must pass on the unchanged code first. It shows what
no test noticed, and exits with 1 where less than ``--goal`` were noticed. Those in survivors.toml,
which says why they are no faults, don't count; nor do those whose tests took too long, which says
nothing. ``--sample`` tries so many changes of each part by chance, the same ones for the same seed.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")
# Whatever tests read beside the packages themselves.
BESIDE = ("tests", "recipes", "docs", "examples", "scripts", "benchmarks", "training",
          "README.md", "CHANGELOG.md", "ARCHITECTURE.md", "pyproject.toml", "constraints.txt",
          "Makefile")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the spine, and the tests that watch over it.

    Args:
        files: Files that are changed, as patterns below the packages' folder.
        tests: Files and folders of tests.
        but: Those of them that aren't run, by a part of their names: the same with other numbers.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    but: str = ""


_LIBRARY, _COMMAND = "flowblend_plugin", "flowblend_cli"
PARTS = {
    "stages": Part((f"{_LIBRARY}/stages/*.py",), ("tests/plugin/stages",)),
    "schedulers": Part(
        (f"{_LIBRARY}/schedulers/*.py",),
        (
            "tests/plugin/schedulers",
            "tests/plugin/test_switch.py",
            "tests/plugin/checkpoints",
            "tests/plugin/stage_hooks/test_extrapolation.py",
        ),
    ),
    "switch": Part(
        (f"{_LIBRARY}/switch.py", f"{_LIBRARY}/stage_hooks/*.py"),
        (
            "tests/plugin/stage_hooks",
            "tests/plugin/test_switch.py",
            "tests/plugin/test_switch_compiled.py",
            "tests/plugin/test_switch_restores.py",
            "tests/plugin/checkpoints",
            "tests/plugin/denoisers/test_calls.py",
        ),
    ),
    "criteria": Part(
        (f"{_LIBRARY}/calibration/criteria.py",), ("tests/plugin/calibration/test_criteria.py",)
    ),
    "identity": Part(
        (f"{_COMMAND}/models/identity.py",),
        ("tests/cli/models/test_identity.py", "tests/cli/models/test_completeness.py"),
    ),
    "artifacts": Part((f"{_COMMAND}/artifacts/*.py",), ("tests/cli/artifacts",)),
    "engine": Part(
        (f"{_COMMAND}/engine/batch_run.py", f"{_COMMAND}/engine/limits.py"),
        (
            "tests/cli/engine/test_batch_run.py",
            "tests/cli/engine/test_batch_run_tells.py",
            "tests/cli/engine/test_histories.py",
            "tests/cli/engine/test_limits.py",
            "tests/cli/engine/test_output_folder.py",
            "tests/cli/engine/test_publisher.py",
            "tests/cli/engine/test_shards.py",
        ),
    ),
    "recipe": Part(
        (f"{_COMMAND}/recipe/expand/*.py", f"{_COMMAND}/recipe/sweep/*.py"),
        ("tests/cli/recipe/expand", "tests/cli/recipe/sweep"),
    ),
}

# Files whose tests are skipped where a package isn't installed.
OPTIONAL = {f"src/{_LIBRARY}/stage_hooks/cache_dit.py": "cache_dit"}

# pytest's exit codes: a test failed, or pytest did; none failed, or there was none (mutmut: 33).
NOTICED, UNNOTICED = {1, 3}, {0, 5, 33}


@dataclass(frozen=True)
class Outcome:
    """What became of the changes of a part.

    Args:
        noticed: How many a test noticed.
        unnoticed: By the place of each that none did, what was changed.
        unclear: Places of those whose tests took too long or died, which says nothing.
    """

    noticed: int
    unnoticed: dict[str, str]
    unclear: list[str]


def main() -> int:
    """Try the parts, print what wasn't noticed, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sample", type=int, default=0, help="changes of each part, by chance")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--goal", type=float, default=0.9, help="share that has to be noticed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which the changed files stay")
    options = parser.parse_args()
    known = tomllib.loads(SURVIVORS.read_text("utf-8"))
    at_once = min(options.jobs, len(options.part))
    tried = noticed = 0
    unlisted = []
    with tempfile.TemporaryDirectory(prefix="flowblend-mutants-") as folder:

        def outcome_of(name: str) -> Outcome:
            place = (options.keep or Path(folder)).resolve() / name
            jobs = options.jobs // at_once
            return try_part(PARTS[name], place, options.sample, options.seed, jobs)

        with ThreadPoolExecutor(at_once) as pool:
            outcomes = dict(zip(options.part, pool.map(outcome_of, options.part), strict=True))
    for name, outcome in outcomes.items():
        listed = {
            place
            for place, change in outcome.unnoticed.items()
            if change in known.get(place.rsplit("__mutmut_", 1)[0], {})
        }
        count = outcome.noticed + len(outcome.unnoticed)
        print(f"{name}: {outcome.noticed} of {count} noticed, {len(listed)} listed as no fault")
        for place in outcome.unclear:
            print(f"  not counted, its tests took too long or died: {place}")
        tried += count - len(listed)
        noticed += outcome.noticed
        unlisted += [one for one in outcome.unnoticed.items() if one[0] not in listed]
    for place, change in unlisted:
        print(f"\n{place}\n{change}")
    print(f"\n{noticed} of {tried} changes noticed ({noticed / max(tried, 1):.0%})")
    return int(noticed < options.goal * tried)


def try_part(part: Part, place: Path, sample: int, seed: str, jobs: int) -> Outcome:
    """Lay out a copy of the project in which mutmut finds its way, and run it there."""
    lay_out(part, place)
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(str(place / "mutants" / at) for at in ("src", "")),
    }
    shutil.copy(Path(__file__).with_name("drive.py"), place)
    command = [sys.executable, "drive.py", str(sample), seed, str(jobs)]
    log = place / "mutmut.log"
    with log.open("w") as out:
        done = subprocess.run(command, cwd=place, env=environ, stdout=out, stderr=out, check=False)
    if done.returncode:
        said = [line for line in log.read_text("utf-8").splitlines() if "Generating" not in line]
        told = "\n".join(said[-40:])
        raise SystemExit(f"{told}\n\nno change was tried: the unchanged code fails, as told above")
    codes: dict[str, int | None] = {}
    for path in (place / "mutants" / "src").rglob("*.meta"):
        codes |= json.loads(path.read_text("utf-8"))["exit_code_by_key"]
    known = NOTICED | UNNOTICED
    return Outcome(
        sum(code in NOTICED for code in codes.values()),
        {name: show(name, place) for name, code in codes.items() if code in UNNOTICED},
        [name for name, code in codes.items() if code is not None and code not in known],
    )


def lay_out(part: Part, place: Path) -> None:
    """Copy the project, its packages side by side in src/, where mutmut looks for them."""
    # There before Python starts, which looks at each folder of its path once. Processes that tests
    # start look for the packages where the project has them.
    changed = place / "mutants"
    for folder in ("src", "cli"):
        (changed / folder).mkdir(parents=True, exist_ok=True)
    for link, target in ((_LIBRARY, f"src/{_LIBRARY}"), (f"cli/{_COMMAND}", f"../src/{_COMMAND}")):
        if not (changed / link).is_symlink():
            (changed / link).symlink_to(target)
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

    arguments = ["-p", "no:cacheprovider", "-m", "not night", "-x"]
    if part.but:
        arguments += ["-k", f"not ({part.but})"]

    return f"""[tool.mutmut]
source_paths = ["src"]
only_mutate = {listed(f"src/{pattern}" for pattern in part.files)}
do_not_mutate = {listed(file for file, needed in OPTIONAL.items() if not find_spec(needed))}
also_copy = {listed(name for name in BESIDE if name != "tests")}
pytest_add_cli_args = {listed(arguments)}
pytest_add_cli_args_test_selection = {listed(part.tests)}
process_isolation = "forkserver"
debug = true
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
