"""Run diffusers' tests plain and with our schedulers and switches, and compare.

``python -m tests.peers CHECKOUT [--only EXPRESSION] [--folders pipelines schedulers ...]``

CHECKOUT is a clone of huggingface/diffusers whose version fits the installed one; its tests are
copied elsewhere and nothing in it is changed. What passes plain has to pass switched, with the same
bits, but for the tests in exceptions.toml, each with its reason. Exits with 1 where one doesn't, or
where an exception is none any more.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.peers.stand_ins import lay_out

ROOT = Path(__file__).resolve().parents[2]
EXCEPTIONS = Path(__file__).with_name("exceptions.toml")
FOLDERS = ("schedulers", "pipelines", "modular_pipelines", "lora", "hooks")

Notes = dict[str, dict[str, Any]]


def main() -> int:
    """Run both, print what differs, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--folders", nargs="+", default=FOLDERS, metavar="FOLDER")
    parser.add_argument("--only", default="", help="as pytest's -k")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--keep", type=Path, help="folder for the notes of both runs")
    parser.add_argument("--plain", type=Path, help="notes of a former plain run, not to repeat it")
    options = parser.parse_args()
    if not (options.checkout / "tests" / "pipelines").is_dir():
        print(f"{options.checkout} is no checkout of diffusers: peers' tests are skipped")
        return 0
    with tempfile.TemporaryDirectory(prefix="flowblend-peers-") as name:
        place = Path(name)
        shutil.copytree(options.checkout / "tests", place / "tests")
        lay_out(place / "hub")
        folders = [f"tests/{folder}" for folder in options.folders]
        plain = read(options.plain) if options.plain else run(place, "plain", folders, options)
        (place / "passed.txt").write_text("\n".join(passed(plain)), "utf-8")
        switched = run(place, "switched", ["@passed.txt"], options)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for path in place.glob("*.jsonl"):
                shutil.copy(path, options.keep)
    return judge(plain, switched, tomllib.loads(EXCEPTIONS.read_text("utf-8")))


def passed(notes: Notes) -> Notes:
    """Those that passed."""
    return {test: note for test, note in notes.items() if note["outcome"] == "passed"}


def read(notes: Path) -> Notes:
    """Read the notes of a run, one line a test."""
    lines = [json.loads(line) for line in notes.read_text("utf-8").splitlines()]
    return {line["test"]: line for line in lines}


def run(place: Path, kind: str, tests: Sequence[str], options: argparse.Namespace) -> Notes:
    """Run tests one way, and read the notes of each."""
    notes = place / f"{kind}.jsonl"
    notes.touch()
    environ = {
        **os.environ,
        "FLOWBLEND_PEERS": kind,
        "FLOWBLEND_PEERS_NOTES": str(notes),
        "HF_HUB_CACHE": str(place / "hub"),
        "HF_HUB_OFFLINE": "1",
        "MKL_CBWR": os.environ.get("MKL_CBWR") or "AUTO",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
    }
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "tests_peers_plugin", "-p", "no:cacheprovider",
        "-n", options.jobs, "--dist", "loadfile", "--continue-on-collection-errors", "--tb=line",
        *(["-k", options.only] if options.only else []),
        *tests,
    ]  # fmt: skip
    # diffusers' tests are a package named tests, as ours are.
    shutil.copy(Path(__file__).with_name("plugin.py"), place / "tests_peers_plugin.py")
    with (place / f"{kind}.log").open("w") as log:
        subprocess.run(command, cwd=place, env=environ, stdout=log, stderr=log, check=False)
    print(f"{kind}: {(place / f'{kind}.log').read_text().splitlines()[-1].strip('= ')}", flush=True)
    return read(notes)


def judge(plain: Notes, switched: Notes, exceptions: Mapping[str, Any]) -> int:
    """Print what differs; 1 where it isn't listed, or where what is listed doesn't differ."""
    sound = passed(plain)
    found = {test: problem for test, note in sound.items()
             if (problem := _difference(note, switched.get(test)))}  # fmt: skip
    calls = sum(len(sound[test]["calls"]) for test in sound.keys() - found.keys())
    print(f"{len(sound)} pass plain; {len(sound) - len(found)} of them pass switched, with "
          f"{calls} outputs of pipelines equal in every bit; {len(found)} differ")  # fmt: skip
    reasons = {pattern: reason for reason, listed in exceptions.items() for pattern in listed}
    used: Counter[str] = Counter()
    unlisted = {}
    for test, problem in sorted(found.items()):
        pattern = next((p for p in reasons if fnmatch.fnmatchcase(test, p)), None)
        if pattern is None:
            unlisted[test] = problem
        else:
            used[pattern] += 1
    for reason, listed in exceptions.items():
        print(f"  listed, {sum(used[p] for p in listed)}: {reason}")
    for test, problem in unlisted.items():
        print(f"NOT LISTED {test}\n    {problem}")
    return int(bool(unlisted))


def _difference(plain: Mapping[str, Any], switched: Mapping[str, Any] | None) -> str:
    if switched is None:
        return "didn't run"
    if switched["outcome"] != "passed":
        return f"{switched['outcome']}: {switched['error'].splitlines()[:1]}"
    return "" if switched["calls"] == plain["calls"] else "other bits"


if __name__ == "__main__":
    sys.exit(main())
