"""Several devices: the same files and bits as one process makes, whoever renders what."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowblend_cli.engine.executors.devices import choose_devices
from flowblend_cli.main import main

ROOT = Path(__file__).resolve().parents[4]
STAND_IN = Path(__file__).parent / "stand_in"
RECIPE = """
[recipe]
name = "several"
[model]
pipeline = "sprites"
device = "{device}"
[defaults]
num_inference_steps = 3
num_frames = 5
height = 32
width = 32
[[scene]]
name = "clip"
prompt = "a {{red circle|blue ring|green star}} moving right"
seeds = [1, 2]
[[scene]]
name = "long"
num_inference_steps = 6
prompt = "a red circle moving right"
seeds = [1]
{more}
"""


def render(folder: Path, *options: str, device: str = "auto", more: str = "", **env: str) -> Result:
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(device=device, more=more), "utf-8")
    around = {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FLOWBLEND_ISOLATE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cli"))), **env,
    }  # fmt: skip
    return CliRunner().invoke(main, ["render", str(recipe), "--json", *options], env=around)


def events(result: Result, kind: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in result.stdout.splitlines()]
    return [event for event in told if event["event"] == kind]


def test_two_workers_make_the_files_and_bits_of_one_process(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    alone = render(one)
    both = render(two, "--devices", "cpu*2", OMP_NUM_THREADS="2")
    assert (alone.exit_code, both.exit_code) == (0, 0), alone.output + both.output

    pixels = [
        {event["job"]: event["pixels_sha256"] for event in events(result, "job_done")}
        for result in (alone, both)
    ]
    assert pixels[0] == pixels[1]
    assert len(pixels[0]) == 7
    assert {event["worker"] for event in events(alone, "job_done")} == {""}
    assert {event["worker"] for event in events(both, "job_done")} == {"cpu/1", "cpu/2"}
    assert "long" in [event["scene"] for event in events(both, "job_started")[:2]]
    assert "2 workers with 1 thread each" in both.stderr
    assert "OMP_NUM_THREADS=1" in both.stderr

    again = render(two)
    assert events(again, "summary")[0]["skipped"] == 7


def test_a_recipe_may_say_where_it_is_rendered(tmp_path: Path) -> None:
    result = render(tmp_path, "--max-jobs", "2", more='[run]\ndevices = "cpu*2"')
    assert result.exit_code == 0, result.output
    assert {event["worker"] for event in events(result, "job_done")} <= {"cpu/1", "cpu/2"}

    wrong = render(tmp_path, more='[run]\ndevices = "gpu:0"')
    assert wrong.exit_code == 2
    assert "recipe.toml:22:11" in wrong.output
    assert "'gpu:0' is no device: write all, cuda:0,cuda:1, or cpu*2" in wrong.output


@pytest.mark.parametrize(
    ("device", "asked", "words"),
    [
        ("auto", "cuda:0,cuda:99", "cuda:99 isn't there: torch sees"),
        ("cuda:1", "cpu*2", "model.device = 'cuda:1' and devices 'cpu*2' both say where to render"),
        ("auto", "cpu,cuda:0", "are of several kinds, which don't make the same bits"),
        ("auto", "tpu", "'tpu' is no device: write all"),
    ],
)
def test_what_is_not_there_or_contradicts_itself_is_refused(
    device: str, asked: str, words: str, tmp_path: Path
) -> None:
    result = render(tmp_path, "--devices", asked, device=device)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_all_devices_are_the_gpus_and_where_there_is_none_the_cpu() -> None:
    def names(there: dict[str, int]) -> list[str]:
        return [device.name for device in choose_devices((), there)]

    assert names({"cuda": 2, "cpu": 1}) == ["cuda:0", "cuda:1"]
    assert names({"mps": 1, "cpu": 1}) == ["mps"]
    assert names({"cpu": 1}) == ["cpu"]


def test_devices_and_a_thread_of_the_command_contradict_each_other(tmp_path: Path) -> None:
    result = render(tmp_path, "--devices", "cpu*2", "--executor", "in-process")
    assert result.exit_code == 2
    assert "are for processes of their own" in result.output


def test_a_job_at_which_a_device_fails_is_rendered_by_another_one(tmp_path: Path) -> None:
    faults = {"long-s1-n6": ["device", "device", ""]}
    result = render(
        tmp_path, "--devices", "cpu*2",
        PYTHONPATH=os.pathsep.join(map(str, (STAND_IN, ROOT, ROOT / "cli"))),
        FAULTS=json.dumps(faults), TRIES=str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    done = events(result, "job_done")
    assert len(done) == 7
    (moved,) = [event for event in done if event["scene"] == "long"]
    first, *_, last = [event for event in events(result, "job_started") if event["scene"] == "long"]
    assert first["worker"] != last["worker"] == moved["worker"]
    assert f"{first['worker']} is left out from now on" in result.stderr
    assert first["seed"] == last["seed"]
