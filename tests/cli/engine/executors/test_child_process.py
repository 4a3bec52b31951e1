"""Rendering in a process of its own, which dies, loses its device, or is left alone.

Most tests have a stand-in for the models in the real worker, so that it starts without torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.main import main

STAND_IN = Path(__file__).parent / "stand_in"
ROOT = Path(__file__).resolve().parents[4]
RECIPE = """\
[recipe]
name = "test"
output_dir = "out"
filename = "{{scene}}"

[model]
pipeline = "sprites"

[metrics]
names = []

[defaults]
num_inference_steps = 3
num_frames = 1
max_sequence_length = 64
{scenes}"""
SCENE = """
[[scene]]
name = "{name}"
prompt = "a red circle moving right on a navy background"
seeds = [{seed}]
"""

Event = dict[str, Any]
Render = Callable[..., Result]


def events(output: str, kind: str = "") -> list[Event]:
    found = [json.loads(line) for line in output.splitlines()]
    return [event for event in found if kind in ("", event["event"])]


def jobs(result: Result, kind: str) -> list[str]:
    return [event["job"] for event in events(result.stdout, kind)]


def write_recipe(folder: Path, scenes: dict[str, int]) -> Path:
    path = folder / "recipe.toml"
    text = "".join(SCENE.format(name=name, seed=seed) for name, seed in scenes.items())
    path.write_text(RECIPE.format(scenes=text), "utf-8")
    return path


def environment(folder: Path, faults: dict[str, list[str]]) -> dict[str, str]:
    return {
        "FLOWBLEND_ISOLATE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (STAND_IN, ROOT, ROOT / "cli"))),
        "FAULTS": json.dumps(faults),
        "TRIES": str(folder),
    }


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Render scenes by their names and seeds, with these faults, in a folder of their own."""

    def run(scenes: dict[str, int], faults: dict[str, list[str]], *options: str) -> Result:
        folder = tmp_path_factory.mktemp("isolated")
        arguments = ["render", str(write_recipe(folder, scenes)), "--json", *options]
        return CliRunner().invoke(main, arguments, env=environment(folder, faults))

    return run


def tries(folder: Path, name: str) -> list[list[str]]:
    path = folder / name
    return [line.split() for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def night(render: Render) -> Result:
    """A batch in which most goes wrong that may."""
    return render(
        {"fine": 1, "once": 0, "poison": 1, "lost": 1, "unreadable": 1, "crashed": 1, "last": 1},
        {
            "once": ["SIGKILL", ""],
            "poison": ["SIGSEGV"],
            "lost": ["device", ""],
            "unreadable": ["error"],
            "crashed": ["crash"],
        },
    )


def test_a_job_whose_process_died_once_is_rendered_with_the_same_drawn_seed(night: Result) -> None:
    begun = [e["seed"] for e in events(night.stdout, "job_started") if e["job"] == "once"]
    done = {event["job"]: event for event in events(night.stdout, "job_done")}

    assert len(begun) == 2
    assert begun[0] == begun[1] == done["once"]["seed"] != 0
    folder = Path(done["once"]["path"]).parents[1]
    processes = {process for process, _ in tries(folder, "once")}
    assert len(processes) == 2
    assert "the render process died of SIGKILL: once begins again in a new process" in night.stderr


def test_a_job_that_ends_every_process_fails_alone_and_names_the_signal(night: Result) -> None:
    failed = {event["job"]: event["error"] for event in events(night.stdout, "job_failed")}

    assert night.exit_code == 1
    assert jobs(night, "job_done") == ["fine", "once", "lost", "last"]
    assert list(failed) == ["poison", "unreadable", "crashed"]
    assert failed["poison"].startswith("WorkerDiedError: the render process died of SIGSEGV, twice")
    last = events(night.stdout)[-1]
    assert (last["event"], last["rendered"], last["failed"]) == ("summary", 4, 3)


def test_an_error_of_a_job_is_told_as_if_it_were_rendered_here(night: Result) -> None:
    failed = {event["job"]: event["error"] for event in events(night.stdout, "job_failed")}

    assert failed["unreadable"] == "KeyError: 'a prompt that nobody can read'"


def test_a_crash_is_told_with_its_last_words_and_no_control_characters(night: Result) -> None:
    failed = {event["job"]: event["error"] for event in events(night.stdout, "job_failed")}

    assert "ended with code 3" in failed["crashed"]
    assert r"\x1b[31mValueError: a library gave up" in failed["crashed"]
    assert "\x1b" not in night.stderr
    assert "{not json}" not in night.output


def test_a_device_lost_once_costs_a_process_and_no_job(night: Result) -> None:
    assert "lost" in jobs(night, "job_done")
    assert "cuda:0 failed while a test ran: lost begins again in a new process" in night.stderr


def test_a_device_lost_again_ends_the_batch_and_keeps_what_is_done(render: Render) -> None:
    result = render({"fine": 1, "lost": 1, "never": 1}, {"lost": ["device"]})

    assert result.exit_code == 5
    assert jobs(result, "job_done") == ["fine"]
    assert jobs(result, "job_failed") == ["lost"]
    assert read_document(Path(events(result.stdout, "job_done")[0]["path"])) is not None
    assert events(result.stdout)[-1]["event"] == "summary"


def test_a_process_that_never_gets_its_models_loaded_ends_the_batch(render: Render) -> None:
    result = render({"first": 1, "second": 1}, {"load": ["SIGKILL"]})

    assert result.exit_code == 5
    assert not jobs(result, "job_failed")
    assert "model 'sprites' can't be loaded: the render process died of SIGKILL" in result.stderr


def test_a_process_that_hangs_is_given_up_where_a_time_is_set(render: Render) -> None:
    result = render({"stuck": 1, "last": 1}, {"stuck": ["hang", ""]}, "--job-timeout", "1")

    assert result.exit_code == 0, result.output
    assert jobs(result, "job_done") == ["stuck", "last"]
    assert "the render process told nothing for" in result.stderr


@pytest.mark.parametrize(
    ("module", "said"),
    [("torch", "ImportError: libtorch.so is missing"), ("numpy", "libtorch.so is missing")],
)
def test_a_broken_installation_ends_the_batch_with_the_reason(
    tmp_path: Path, module: str, said: str
) -> None:
    recipe = write_recipe(tmp_path, {"one": 1})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{module}.py").write_text('raise ImportError("libtorch.so is missing")')
    paths = os.pathsep.join([str(broken), str(ROOT), str(ROOT / "cli")])
    done = subprocess.run(
        [sys.executable, "-m", "flowblend_cli", "render", str(recipe), "--json"],
        env={**os.environ, "FLOWBLEND_ISOLATE": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 5, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert events(done.stdout)[-1]["event"] == "summary"


def test_a_death_at_the_job_and_one_while_loading_again_cost_no_job(render: Render) -> None:
    result = render(
        {"first": 1, "second": 1},
        {"first": ["SIGKILL", ""], "load": ["", "SIGKILL", ""]},
    )

    assert result.exit_code == 0
    assert jobs(result, "job_done") == ["first", "second"]
    assert "first begins again in a new process" in result.stderr
    assert "loading begins again in a new process" in result.stderr


def wait_for(path: Path) -> int:
    """The process that a job's try ran in, once it has begun."""
    for _ in range(1200):
        if path.is_file() and path.read_text("utf-8").endswith("\n"):
            return int(path.read_text("utf-8").split()[0])
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def until_done(command: subprocess.Popen[str], job: str) -> None:
    assert command.stdout is not None
    for line in command.stdout:
        event = json.loads(line)
        if (event["event"], event.get("job")) == ("job_done", job):
            return
    raise AssertionError(f"{job} was never done")


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_killed_the_command_takes_its_process_along_and_leaves_no_lock(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"fine": 1, "long": 1})
    command = [sys.executable, "-m", "flowblend_cli", "render", str(recipe), "--json"]
    hanging = {**os.environ, **environment(tmp_path, {"long": ["hang", ""]})}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=hanging)
    worker = wait_for(tmp_path / "long")
    until_done(first, "fine")
    before = sorted(tmp_path.rglob("*"))

    second = CliRunner().invoke(main, command[3:], env=environment(tmp_path, {}))
    assert second.exit_code == 75
    assert second.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before

    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    for _ in range(100):
        if not is_running(worker):
            break
        time.sleep(0.05)
    assert not is_running(worker)

    third = CliRunner().invoke(main, command[3:], env=environment(tmp_path, {}))
    assert third.exit_code == 0
    assert jobs(third, "job_skipped") == ["fine"]
    assert jobs(third, "job_done") == ["long"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_signal_to_all_processes_stops_after_the_step_as_one_to_the_command_does(
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path, {"fine": 1, "long": 1})
    command = [sys.executable, "-m", "flowblend_cli", "render", str(recipe), "--json"]
    hanging = {**os.environ, **environment(tmp_path, {"long": ["hang"]})}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=hanging
    )
    worker = wait_for(tmp_path / "long")
    until_done(process, "fine")
    os.kill(worker, signal.SIGTERM)  # as a service manager does, which knows of both
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert any("stopping after this step" in line for line in process.stderr)
    assert is_running(worker)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert process.returncode == 128 + signal.SIGTERM
    assert not is_running(worker)
    last = events(output)[-1]
    assert (last["event"], last["rendered"], last["failed"]) == ("summary", 1, 0)


def test_the_pixels_are_the_same_in_either_process_and_the_command_needs_no_torch(
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path, {"circle": 1})
    code = (
        "import sys; from click.testing import CliRunner; from flowblend_cli.main import main; "
        "r = CliRunner().invoke(main, ['render', sys.argv[1], '--json']); "
        "print(r.stdout, 'torch' in sys.modules, r.exit_code)"
    )
    threads = str(torch.get_num_threads())  # earlier tests may have changed them here
    environment = {**os.environ, "FLOWBLEND_ISOLATE": "1", "OMP_NUM_THREADS": threads}
    isolated = subprocess.run(
        [sys.executable, "-c", code, str(recipe)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    *lines, last = isolated.stdout.splitlines()
    assert last.split() == ["False", "0"]
    here = CliRunner().invoke(
        main, ["render", str(recipe), "--json", "--out", str(tmp_path / "here")]
    )
    done = [events("\n".join(lines), "job_done"), events(here.stdout, "job_done")]

    assert done[0][0]["pixels_sha256"] == done[1][0]["pixels_sha256"]
    paths = [Path(found[0]["path"]) for found in done]
    documents = [read_document(path) or {} for path in paths]
    for document in documents:
        del document["resolved"]["sampling_s"]
    assert documents[0] == documents[1]
    assert documents[0]["versions"]["torch"]
