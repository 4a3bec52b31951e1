"""A job that was interrupted goes on at the stored step, and ends in the same pixels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.engine.executors.base import (
    Answer,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import JobStarted, StepStarted, captured_events
from flowblend_cli.jobs import Job, SamplingSpec
from flowblend_cli.main import main
from flowblend_cli.models.identity import resolve_models

ROOT = Path(__file__).resolve().parents[4]
STEPS = 5
RECIPE = """\
[recipe]
name = "night"

[model]
pipeline = "sprites"

[metrics]
names = []

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = {steps}
num_frames = {frames}
max_sequence_length = 32

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = [{seed}]
"""


def job(mode: Any = "sde") -> Job:
    found = sprites_job()
    arguments = dict(found.arguments)
    arguments |= {"num_inference_steps": STEPS, "num_frames": 1, "max_sequence_length": 32}
    return replace(
        found, arguments=tuple(sorted(arguments.items())), sampling=SamplingSpec(mode=mode)
    )


class Renders:
    """One set of models, and a runner of its own for every render."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.models = resolve_models(job().model, Path.cwd())
        self.runtime = JobRunner(captured_events())._load(self.models)
        self.kept = CheckpointFile(
            folder / ".flowblend" / "checkpoints" / "job.safetensors", "ab" * 32, 2
        )
        self.told = captured_events()

    def answer(self, kept: CheckpointFile | None, *, stop_after: int = -1, seed: int = 3) -> Answer:
        self.told = captured_events()
        runner = JobRunner(self.told)
        runner._runtime, runner._models = self.runtime, self.models
        checks: list[int] = []

        def check() -> None:
            checks.append(len(checks))
            if len(checks) == stop_after:
                raise StopRequested

        request = RenderRequest(1, job(), seed, self.models, planned="LLSSL", checkpoint=kept)
        return runner.run(request, check)

    def render(self, kept: CheckpointFile | None) -> RenderResult:
        result = self.answer(kept)
        assert isinstance(result, RenderResult)
        return result

    def interrupted(self, after: int = 3) -> None:
        answer = self.answer(self.kept, stop_after=after)
        assert isinstance(answer, RenderFailure)
        assert answer.kind == "stopped"

    @property
    def steps(self) -> list[int]:
        return [step.step for step in self.told.of(StepStarted)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Renders:
    return Renders(tmp_path_factory.mktemp("renders"))


@pytest.fixture
def renders(shared: Renders, tmp_path: Path) -> Renders:
    path = tmp_path / ".flowblend" / "checkpoints" / "job.safetensors"
    shared.kept = CheckpointFile(path, "ab" * 32, 2)
    return shared


@pytest.fixture(scope="module")
def expected(shared: Renders) -> Any:
    return shared.render(None)


def test_a_stopped_job_goes_on_at_the_step_after_the_stop(renders: Renders, expected: Any) -> None:
    renders.interrupted(after=3)
    assert renders.kept.seed() == 3

    again = renders.render(replace(renders.kept, every=0))

    assert again.pixels_sha256 == expected.pixels_sha256
    assert again.denoisers == expected.denoisers
    assert len(again.step_s) == STEPS
    assert renders.steps == [3, 4]
    assert f"continues at step 3 of {STEPS}" in renders.told.messages[0]
    (started,) = renders.told.of(JobStarted)
    assert started.resumed_at == 3


def test_the_seconds_of_the_interrupted_part_count(renders: Renders) -> None:
    renders.interrupted(after=4)
    found = renders.kept.read()
    assert found is not None
    header, _ = found
    assert (header.step, len(header.step_s)) == (4, 4)

    again = renders.render(renders.kept)

    assert again.elapsed_s > header.elapsed_s >= sum(header.step_s) > 0
    assert again.step_s[:4] == header.step_s


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damage, "is damaged"),
        (truncate, "is damaged"),
        (lambda path: path.write_bytes(b"no such thing"), "is damaged"),
        (None, "of another job"),
    ],
)
def test_a_state_that_doesnt_fit_is_removed_and_the_job_begins_anew(
    renders: Renders, expected: Any, spoil: Callable[[Path], Any] | None, told: str
) -> None:
    renders.interrupted()
    kept = replace(renders.kept, every=0)
    if spoil is None:
        kept = replace(kept, job_key="cd" * 32)
        assert kept.seed() is None
    else:
        spoil(kept.path)

    again = renders.render(kept)

    assert again.pixels_sha256 == expected.pixels_sha256
    assert told in renders.told.messages[0]
    assert "begins anew" in renders.told.messages[0]
    assert renders.steps == [*range(STEPS)]
    assert not kept.path.exists()


def test_a_state_of_other_versions_is_not_gone_on_from(
    renders: Renders, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    renders.interrupted()
    present = renders.runtime.surroundings
    monkeypatch.setattr(renders.runtime, "surroundings", {**present, "torch": "9.9"})

    again = renders.render(replace(renders.kept, every=0))

    assert again.pixels_sha256 == expected.pixels_sha256
    assert f"torch {torch.__version__} (now 9.9)" in renders.told.messages[0]


def test_a_folder_that_cant_be_written_costs_the_states_and_not_the_render(
    renders: Renders, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / ".flowblend").mkdir()
    (tmp_path / ".flowblend" / "checkpoints").write_text("in the way")

    again = renders.render(renders.kept)

    assert again.pixels_sha256 == expected.pixels_sha256
    assert len([text for text in renders.told.messages if "can't be stored" in text]) == 1


def invoke(*arguments: str) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, ["render", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def one(events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [event for event in events if event["event"] == name]
    return found


def test_a_killed_render_goes_on_with_its_drawn_seed_and_the_same_pixels(
    recipe_file: Callable[[str], Path], tmp_path: Path
) -> None:
    text = RECIPE.format(steps=30, frames=5, seed=0)
    recipe, out = recipe_file(text), tmp_path / "out"
    command = [sys.executable, "-m", "flowblend_cli", "render", str(recipe), "--out", str(out)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--checkpoint-every", "2"], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = out / ".flowblend" / "checkpoints"
    while not list(folder.glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(out.glob("*.mp4"))

    events = invoke(str(recipe), "--out", str(out))

    done, started = one(events, "job_done"), one(events, "job_started")
    assert started["resumed_at"] >= 2
    assert not list(folder.iterdir())
    seeded = recipe_file(text.replace("seeds = [0]", f"seeds = [{done['seed']}]"))
    plain = one(invoke(str(seeded), "--out", str(tmp_path / "plain")), "job_done")
    assert done["pixels_sha256"] == plain["pixels_sha256"]
    assert done["denoisers"] == plain["denoisers"]
