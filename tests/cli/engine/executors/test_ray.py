"""Workers of a cluster: real Ray, three nodes on this machine, and what becomes of lost ones."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.events import CapturedEvents, Event, JobDone, JobStarted, StepStarted
from flowblend_cli.recipe.loader import load_batch

ray = pytest.importorskip("ray")

RECIPE = """
[recipe]
name = "cluster"
[model]
pipeline = "sprites"
[defaults]
num_inference_steps = 4
num_frames = 5
height = 32
width = 32
[[scene]]
name = "clip"
prompt = "a {{red circle|blue ring|green star}} moving right"
seeds = [1, 2]
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


def actor_pids() -> list[int]:
    """The processes of this machine that are workers of a cluster."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if b"RayWorker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def batch_in(folder: Path) -> Any:
    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    return load_batch(str(folder / "recipe.toml"))


def render(folder: Path, told: CapturedEvents, act: Any = None, **options: Any) -> int:
    def tell(event: Event) -> None:
        told(event)
        if act is not None:
            act(event)

    return BatchRun(batch_in(folder), tell, options=RunOptions(**options)).run()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pixels of one process."""
    told = CapturedEvents()
    assert render(tmp_path_factory.mktemp("alone"), told, executor="child") == 0
    return {event.job: event.pixels_sha256 for event in told.of(JobDone)}


def pixels(told: CapturedEvents) -> dict[str, str]:
    done = told.of(JobDone)
    assert len({event.job for event in done}) == len(done)  # none twice
    return {event.job: event.pixels_sha256 for event in done}


def test_two_workers_make_the_bits_of_one_process(tmp_path: Path, alone: dict[str, str]) -> None:
    told = CapturedEvents()
    assert render(tmp_path, told, executor="ray", workers=2) == 0, told.messages
    assert pixels(told) == alone
    assert len({event.worker for event in told.of(JobDone)}) == 2
    # Whoever encoded a prompt, the driver keeps it for all workers.
    prompts = {job.prompt for job in batch_in(tmp_path).jobs}
    assert len(list((tmp_path / "out/.flowblend/embeddings").iterdir())) == len(prompts)


def test_a_worker_that_is_killed_loses_no_job(tmp_path: Path, alone: dict[str, str]) -> None:
    told, killed = CapturedEvents(), []

    def kill(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == 2 and not killed:
            worker = next(e.worker for e in told.of(JobStarted) if e.job == event.job)
            killed.append(worker)
            os.kill(actor_pids()[0], signal.SIGKILL)

    assert render(tmp_path, told, kill, executor="ray", workers=2) == 0, told.messages
    assert killed
    assert pixels(told) == alone
    assert any("is lost" in text for text in told.messages)
    assert {event.resumed_at for event in told.of(JobStarted)} == {0}


def test_a_job_of_a_lost_worker_goes_on_at_its_step_elsewhere(
    tmp_path: Path, alone: dict[str, str]
) -> None:
    told, killed = CapturedEvents(), []

    def kill(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == 3 and not killed:
            killed.append(event.job)
            for pid in actor_pids():
                os.kill(pid, signal.SIGKILL)

    options = {"executor": "ray", "workers": 1, "checkpoint_every": 1}
    assert render(tmp_path, told, kill, **options) == 0, told.messages
    first, again = [event for event in told.of(JobStarted) if event.job == killed[0]]
    assert first.resumed_at == 0
    assert again.resumed_at >= 2
    assert pixels(told) == alone
    assert not list((tmp_path / "out").rglob("*.safetensors"))
