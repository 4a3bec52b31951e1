"""Every job is published exactly once, with its own pixels, whatever workers and driver do."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise_executor import render_of
from simulated_workers import DEEDS, SHAPE, Deed, DriverKilledError, End, SimulatedCluster
from thorough import examples, thorough

from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.events import CapturedEvents, JobDone, JobFailed
from flowblend_cli.jobs import Batch
from flowblend_cli.utils.folders import FOLDER

ENDS: tuple[End, ...] = ("kill", "stop")


@pytest.fixture
def batch(batch_of: Callable[..., Batch], minimal: str) -> Batch:
    return batch_of(minimal, "scene.square.seeds=[0, 1, 2, 3]", "metrics.names=[]",
                    "output.container=png", "defaults.num_frames=1")  # fmt: skip


@thorough
@examples(15)
@given(
    deeds=st.lists(st.sampled_from(DEEDS), max_size=12),
    ends=st.lists(st.tuples(st.integers(0, 15), st.sampled_from(ENDS)), max_size=2),
    workers=st.integers(1, 3),
    encode=st.sampled_from(["driver", "worker"]),
)
def test_every_job_is_published_once_with_its_own_pixels(
    batch: Batch,
    tmp_path: Path,
    deeds: list[Deed],
    ends: list[tuple[int, End]],
    workers: int,
    encode: str,
) -> None:
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    batch = replace(batch, output_dir=folder)
    options = RunOptions(encode=encode, checkpoint_every=1)
    planned = iter(deeds)
    done: list[JobDone] = []
    code: int | None = None
    for end in (*ends, *[None] * (1 + len(deeds))):  # the driver is ended, and begun again
        left = iter([None] * end[0] + [end[1]]) if end else iter(())
        told = CapturedEvents()
        cluster = SimulatedCluster(
            workers, lambda: next(planned, "answer"), lambda left=left: next(left, None)
        )
        code = None
        with contextlib.suppress(DriverKilledError):
            code = BatchRun(batch, told, executor=cluster, options=options).run()
        done += told.of(JobDone)
        failed = told.of(JobFailed)
        assert not failed or {"fail", "die", "store", "damage"} & {*deeds}
        if code == 0:  # a run that failed at a job has used up some deeds
            break
        assert end is not None or failed
    assert code == 0
    by_job = Counter(event.job for event in done)
    assert set(by_job) == {job.id for job in batch.jobs}
    assert set(by_job.values()) == {1}
    for event in done:
        assert event.pixels_sha256 == render_of(event.seed, SHAPE).pixels_sha256
        assert Path(event.path).is_file()
    states = folder / FOLDER / "checkpoints"
    assert not states.exists() or not list(states.iterdir())
