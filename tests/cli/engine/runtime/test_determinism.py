"""One seed, the same pixels: in one process, in ten, alone, in a batch, in any order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.jobs import Job, SamplingSpec
from flowblend_cli.main import main
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.utils.frames import Frames, pixels_sha256

ROOT = Path(__file__).resolve().parents[4]
Mode = Literal["ode", "sde"]
MODES: tuple[Mode, ...] = ("ode", "sde")
JOB = sprites_job()

# Forked before torch has computed anything, so that what takes long (the imports, the lazy ones
# first) is done once. The interpreter is another one than that of the tests.
PROCESSES = """
import os
from dataclasses import replace
from pathlib import Path
from diffusers import AutoencoderKLWan, WanPipeline
from transformers import AutoTokenizer, UMT5EncoderModel
from flowblend_cli.utils.frames import pixels_sha256
from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.jobs import SamplingSpec
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.models.identity import resolve_models

for _ in range(10):
    child = os.fork()
    if child == 0:
        job = sprites_job()
        runtime = PipelineRuntime(resolve_models(job.model, Path.cwd()))
        for mode in ("ode", "sde"):
            job = replace(job, sampling=SamplingSpec(mode=mode))
            frames = runtime.sample(job, 1, lambda *_: None).frames
            print(os.getpid(), mode, pixels_sha256(frames), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""

RECIPE = """\
[recipe]
name = "test"

[model]
pipeline = "sprites"

[metrics]
names = []

[defaults]
num_inference_steps = 3
max_sequence_length = 64

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = {seeds}

[sweep]
"sampling.mode" = {modes}
"""


@pytest.fixture(scope="module")
def runtime() -> PipelineRuntime:
    torch.set_num_threads(1)
    return PipelineRuntime(resolve_models(JOB.model, Path.cwd()))


def in_mode(mode: Mode) -> Job:
    return replace(JOB, sampling=SamplingSpec(mode=mode))


def render(runtime: PipelineRuntime, mode: Mode, seed: int) -> Frames:
    return runtime.sample(in_mode(mode), seed, lambda *_: None).frames


@pytest.fixture(scope="module")
def expected(runtime: PipelineRuntime) -> dict[Mode, Frames]:
    """Seed 1, rendered before anything else."""
    return {mode: render(runtime, mode, 1) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_ten_renders_of_a_seed_are_equal_in_every_pixel(
    runtime: PipelineRuntime, expected: dict[Mode, Frames], mode: Mode
) -> None:
    assert expected[mode].std() > 1  # a clip, and no flat colour that anything would equal
    for _ in range(10):
        assert np.array_equal(render(runtime, mode, 1), expected[mode])


def test_a_render_doesnt_depend_on_those_before_it(
    runtime: PipelineRuntime, expected: dict[Mode, Frames]
) -> None:
    other_seeds = iter((2, 3, 2, 4))
    found: dict[tuple[Mode, int], set[str]] = {}
    for mode in ("ode", "sde", "sde", "ode"):
        for seed in (next(other_seeds), 1):
            frames = render(runtime, mode, seed)
            found.setdefault((mode, seed), set()).add(pixels_sha256(frames))
            if seed == 1:
                assert np.array_equal(frames, expected[mode])

    assert all(len(hashes) == 1 for hashes in found.values())
    assert len(set.union(*found.values())) == len(found)  # each seed and mode has pixels of its own


@pytest.mark.parametrize("mode", MODES)
def test_torchs_own_generator_is_neither_read_nor_moved(
    runtime: PipelineRuntime, expected: dict[Mode, Frames], mode: Mode
) -> None:
    torch.manual_seed(12345)
    before = torch.get_rng_state()

    frames = render(runtime, mode, 1)

    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(frames, expected[mode])


def test_the_noise_of_an_sde_differs_by_seed_from_the_first_step_on(
    runtime: PipelineRuntime, expected: dict[Mode, Frames]
) -> None:
    assert not np.array_equal(expected["sde"], expected["ode"])
    assert not np.array_equal(render(runtime, "sde", 2), expected["sde"])


@pytest.mark.night
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, to spare imports")
def test_ten_processes_render_a_seed_equally(expected: dict[Mode, Frames]) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", PROCESSES],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip

    told = [line.split() for line in done.stdout.splitlines()]
    assert len({process for process, _, _ in told}) == 10
    for mode in MODES:
        hashes = [pixels for _, found, pixels in told if found == mode]
        assert hashes == [pixels_sha256(expected[mode])] * 10


def test_the_command_renders_a_job_equally_alone_and_in_a_batch_of_any_order(
    recipe_file: Callable[[str], Path], tmp_path: Path
) -> None:
    found: dict[str, set[str]] = {}
    for number, (seeds, modes) in enumerate(
        [("[1, 2]", '["ode", "sde"]'), ("[2, 1]", '["sde", "ode"]'), ("[2]", '["ode", "sde"]')]
    ):
        path = recipe_file(RECIPE.format(seeds=seeds, modes=modes))
        result = CliRunner().invoke(
            main, ["render", str(path), "--out", str(tmp_path / str(number)), "--json"]
        )
        assert result.exit_code == 0, result.output
        events: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
        for event in events:
            if event["event"] == "job_done":
                found.setdefault(event["job"], set()).add(event["pixels_sha256"])

    assert sorted(found) == [f"circle-s{seed}-n3-mode{mode}" for seed in (1, 2) for mode in MODES]
    assert all(len(hashes) == 1 for hashes in found.values())
    assert len(set.union(*found.values())) == 4
