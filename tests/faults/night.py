"""One bad night with the real command: cron, two at once, kills, a full disk, then a clean run.

``python -m tests.faults.night [--kills 20] [--seed 1] [--command FLOWBLEND]``, from the root of the
checkout. Renders a small recipe on the bundled pair as cron would (``env -i``, no terminal, no
HOME, in ``/``), ends it in every rude way, and looks at the folder after each. At the end every
clip is there, with the pixels of a night in which nothing happened, none was written twice, and
nothing else is left. Prints one JSON object; exits 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.survey import Night, pixels

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 5
RECIPE = f"""\
[recipe]
name = "night"
output_dir = "clips"

[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = 16
num_frames = {FRAMES}
height = 64
width = 64

[[scene]]
name = "night"
prompt = [
    "a red circle moving left on a navy background",
    "a blue star spinning on a black background",
]
seeds = {list(range(1, 21))}
"""
CLIPS = 40
# So many clips are left for what comes after the kills.
LEFT = 12
BUSY, INTERRUPTED_DISK, TERMINATED = 75, 4, 143
PATIENCE_S = 600
# By which a command of the night, and what it starts, is known among others of this machine.
_NIGHT = "FLOWBLEND_NIGHT"


class Cron:
    """Starts the command as cron would.

    Args:
        folder: Where the recipe is.
        command: The command, as a list of words.
    """

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.recipe = folder / "night.toml"
        self.recipe.write_text(RECIPE)
        self._command = command
        paths = [str(ROOT), str(ROOT / "cli")] if "-m" in command else []
        self._environment = {
            _NIGHT: str(folder),
            # On the full disk, Python would cut its own caches of this checkout short.
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": "/usr/bin:/bin",
            "LANG": "C",
            **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
        }

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Begin a render; its events come on stdout."""
        return subprocess.Popen(
            [*self._command, "render", str(self.recipe), "--json", *options],
            cwd="/",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *options: str) -> tuple[int, list[dict[str, Any]], str]:
        """Render to the end: exit code, events, what was said on stderr."""
        process = self.start(*options)
        said, errors = process.communicate(timeout=PATIENCE_S)
        return process.returncode, [json.loads(line) for line in said.splitlines()], errors


def wait_for(process: subprocess.Popen[str], event: str) -> bool:
    """Read events until one of this kind; False if the command ended before."""
    assert process.stdout is not None
    return any(json.loads(line)["event"] == event for line in process.stdout)


def kill_one(cron: Cron, moment: random.Random, longest_s: float, *options: str) -> None:
    """Start a render and kill it: mostly while it renders, at times while it starts."""
    process = cron.start(*options)
    if moment.random() < 0.8:
        wait_for(process, "job_started")
        time.sleep(moment.uniform(0, longest_s))
    else:
        time.sleep(moment.uniform(0, 3))
    process.kill()
    process.communicate()


def full_disk(cron: Cron, night: Night, wrong: list[str]) -> None:
    """Render with a disk that takes no more: a limit on files' sizes, as ``ulimit -f`` sets it."""
    limited = Cron(cron.folder, ["/bin/bash", "-c", 'ulimit -f 4; exec "$0" "$@"', *cron._command])
    limited._environment = cron._environment
    code, _, errors = limited.finish()
    if code != INTERRUPTED_DISK or "Traceback" in errors:
        wrong.append(f"a full disk ended with {code}: {errors[-500:]}")
    night.look()


def two_at_once(cron: Cron, night: Night, wrong: list[str]) -> float:
    """Two crons on one folder: the second leaves at once; a polite end of the first is 143."""
    first = cron.start()
    wait_for(first, "job_started")
    began = time.monotonic()
    code, events, errors = cron.finish()
    took = time.monotonic() - began
    if code != BUSY or events or "another run" not in errors:
        wrong.append(f"the second of two ended with {code}: {events} {errors[-500:]}")
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=PATIENCE_S)
    if first.returncode != TERMINATED or "Traceback" in errors:
        wrong.append(f"SIGTERM ended it with {first.returncode}: {errors[-500:]}")
    night.look()
    return took


def workers(folder: Path) -> list[int]:
    """Worker processes of flowblend, begun by commands in a folder, that run now."""
    found, mark = [], f"{_NIGHT}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                around = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in around and any(word.startswith(b"flowblend_cli.") for word in words):
                found.append(int(entry.name))
    return found


def main() -> int:
    """Run the night and judge it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--command", type=os.path.abspath, help="the installed command; else this checkout's module"
    )
    options = parser.parse_args()
    command = [options.command] if options.command else [sys.executable, "-m", "flowblend_cli"]
    moment = random.Random(options.seed)
    wrong: list[str] = []
    scratch = Path(tempfile.mkdtemp(prefix="night-"))
    began = time.monotonic()
    try:
        quiet, cron = Cron(_made(scratch / "quiet"), command), Cron(_made(scratch / "bad"), command)
        night = Night(cron.folder / "clips", FRAMES)
        for number in range(options.kills):
            if number == options.kills // 3:
                refused_s = two_at_once(cron, night, wrong)
            if number == 2 * options.kills // 3:
                full_disk(cron, night, wrong)
            stored = ("--checkpoint-every", "2") if number % 2 else ()
            kill_one(cron, moment, 4 if CLIPS - len(night.published) > LEFT else 0.2, *stored)
            night.look()
        after_kills = len(night.published)
        morning = time.monotonic()
        code, events, errors = cron.finish()
        healed_s = time.monotonic() - morning
        if code or "Traceback" in errors:
            wrong.append(f"the clean run ended with {code}: {errors[-500:]}")
        if night.look() != CLIPS:
            wrong.append(f"{len(night.published)} of {CLIPS} clips are there")
        if events and events[-1].get("rendered") != CLIPS - after_kills:
            wrong.append(f"{after_kills} clips were there, and the last run says {events[-1]}")
        code, events, _ = cron.finish()
        if code or events[-1].get("skipped") != CLIPS:
            wrong.append(f"a finished batch ended with {code}: {events[-1]}")
        quiet.finish()
        if pixels(quiet.folder / "clips") != pixels(cron.folder / "clips"):
            wrong.append("the pixels differ from those of a quiet night")
        time.sleep(1)
        orphans = workers(cron.folder) + workers(quiet.folder)
        wrong += [f"{kind}: {names}" for kind, names in night.faults().items() if names]
        wrong += [f"processes that outlived their command: {sorted(orphans)}"] if orphans else []
        told = {
            "kills": options.kills, "clips": CLIPS, "published before the clean run": after_kills,
            "finals lost": len(night.lost), "doubles": len(night.doubled),
            "bad finals": len(night.bad), "second run refused after s": round(refused_s, 2),
            "clean run s": round(healed_s, 1), "whole night s": round(time.monotonic() - began, 1),
            "wrong": wrong,
        }  # fmt: skip
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 1 if wrong else 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
