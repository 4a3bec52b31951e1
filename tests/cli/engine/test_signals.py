"""Signals during a render: once stops after the step, twice at once, and also under ``&``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from flowblend_cli.engine.signals import StopSignals

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    **os.environ,
    "FLOWBLEND_ISOLATE": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
}
RENDER = ["-m", "flowblend_cli", "render", "quickstart", "--json"]
# The first scene is done in no time, the second one never.
FAST_THEN_LONG = ["--set", "defaults.num_inference_steps=400",
                  "--set", "scene.red-circle.num_inference_steps=1",
                  "--set", "scene.red-circle.num_frames=1"]  # fmt: skip
# Steps of a second or more each, so that a signal falls into one.
SLOW_STEPS = ["--set", "defaults.num_inference_steps=4", "--set", "defaults.num_frames=81",
              "--set", "defaults.height=192", "--set", "defaults.width=192"]  # fmt: skip

STATUS = (
    r"status: 0 done, 0 already there, 0 failed, 8 remaining; red-circle-\S+ at step 1 of 4; "
    r"\d+:\d\d elapsed, time left unknown\n"
)

Event = dict[str, Any]


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *RENDER, "--out", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


def events(stream: IO[str] | None) -> Iterator[Event]:
    assert stream is not None
    for line in stream:
        if line.startswith("{"):
            yield json.loads(line)


def wait_for_job(stream: IO[str] | None, scene: str) -> list[Event]:
    seen: list[Event] = []
    for event in events(stream):
        seen.append(event)
        if (event["event"], event.get("scene")) == ("job_started", scene):
            return seen
    raise AssertionError(f"the render ended before {scene}: {seen}")


def check_end(seen: list[Event], out: Path, rendered: int) -> None:
    """The summary is the last line, finished files are kept, and nothing half done is left."""
    last = seen[-1]
    assert (last["event"], last["rendered"], last["failed"]) == ("summary", rendered, 0)
    done = [Path(event["path"]) for event in seen if event["event"] == "job_done"]
    assert len(done) == rendered
    assert sorted(path for path in out.iterdir() if not path.name.startswith(".")) == sorted(done)


def test_a_second_signal_ends_the_render_at_once_with_its_own_code(tmp_path: Path) -> None:
    process = start(tmp_path, *FAST_THEN_LONG)
    seen = wait_for_job(process.stdout, "yellow-star")
    # Both wait while the process is stopped: SIGINT is handled first, SIGTERM before any more step.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 128 + signal.SIGTERM
    assert stderr.count("stopping after this step") == 1
    assert "Traceback" not in stderr
    check_end([*seen, *map(json.loads, stdout.splitlines())], tmp_path, rendered=1)


def test_a_signal_that_comes_while_the_first_is_told_ends_the_run_after_that_word() -> None:
    said: list[str] = []

    def tell(message: str) -> None:
        signal.raise_signal(signal.SIGTERM)
        said.append(message)

    with pytest.raises(SystemExit) as ended, StopSignals(tell):
        signal.raise_signal(signal.SIGINT)

    assert ended.value.code == 128 + signal.SIGTERM
    (message,) = said
    assert message.startswith("stopping after this step")


def test_a_third_signal_ends_the_run_though_the_first_cant_be_told() -> None:
    def tell(message: str) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    with pytest.raises(SystemExit) as ended, StopSignals(tell):
        signal.raise_signal(signal.SIGINT)

    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_status_is_told_and_the_same_signal_twice_ends_the_render_within_the_step(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = start(tmp_path, *SLOW_STEPS)
    seen = wait_for_job(process.stdout, "red-circle")
    assert process.stderr is not None
    # Asked in the middle of the first step, it answers then, and renders on.
    process.send_signal(signal.SIGUSR1)
    assert re.fullmatch(STATUS, process.stderr.readline())
    process.send_signal(number)
    assert any("stopping after this step" in line for line in process.stderr)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    check_end([*seen, *map(json.loads, stdout.splitlines())], tmp_path, rendered=0)
    assert json.loads(stdout.splitlines()[-1])["remaining"] == 8


def test_a_terminal_that_closes_stops_the_render_after_the_step_however_often_it_tells(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, *FAST_THEN_LONG)
    seen = wait_for_job(process.stdout, "yellow-star")
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert any("stopping after this step" in line for line in process.stderr)
    process.send_signal(signal.SIGHUP)  # by the shell, and by the kernel
    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 128 + signal.SIGHUP
    assert "Traceback" not in stderr
    check_end([*seen, *map(json.loads, stdout.splitlines())], tmp_path, rendered=1)


UNDER_NOHUP = """
import os, signal, sys
from flowblend_cli.engine.signals import StopSignals
from flowblend_cli.main import _signals_that_unwind

with _signals_that_unwind(), StopSignals(print) as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.exit_code is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.exit_code == 143
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
"""


def test_under_nohup_a_terminal_may_close() -> None:
    shell = ["sh", "-c", 'trap \'\' HUP; exec "$0" -c "$1"', sys.executable, UNDER_NOHUP]
    done = subprocess.run(shell, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


IN_THE_BACKGROUND = """
"$0" -c 'import signal; print(signal.getsignal(signal.SIGINT).name)' & wait $!
"$0" "$@" &
echo $!
wait $!
echo "exit $?"
"""


def test_a_render_in_the_background_stops_on_sigint_although_the_shell_ignores_it(
    tmp_path: Path,
) -> None:
    shell = subprocess.Popen(
        ["sh", "-c", IN_THE_BACKGROUND, sys.executable, *RENDER, "--out", str(tmp_path),
         *FAST_THEN_LONG],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert shell.stdout is not None
    assert shell.stdout.readline() == "SIG_IGN\n"  # how a shell starts a job with &
    render = int(shell.stdout.readline())
    seen = wait_for_job(shell.stdout, "yellow-star")
    os.kill(render, signal.SIGINT)
    stdout, stderr = shell.communicate(timeout=120)

    *rest, code = stdout.splitlines()
    assert code == "exit 130"
    assert "stopping after this step" in stderr
    assert "Traceback" not in stderr
    check_end([*seen, *map(json.loads, rest)], tmp_path, rendered=1)
