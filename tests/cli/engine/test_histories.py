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
from simulated_workers import DEEDS, SHAPE, Deed, DriverKilledError, SimulatedCluster
from thorough import examples, thorough

from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.events import CapturedEvents, JobDone, JobFailed
from flowblend_cli.jobs import Batch

JOBS = 4


@pytest.fixture
def batch(batch_of: Callable[..., Batch], minimal: str) -> Batch:
    seeds = f"scene.square.seeds={list(range(1, JOBS + 1))}"
    return batch_of(minimal, seeds, "metrics.names=[]", "output.container=png",
                    "defaults.num_frames=1")  # fmt: skip


@thorough
@examples(15)
@given(
    deeds=st.lists(st.sampled_from(DEEDS), max_size=12),
    deaths=st.lists(st.integers(0, 15), max_size=2),
    workers=st.integers(1, 3),
)
def test_every_job_is_published_once_with_its_own_pixels(
    batch: Batch, tmp_path: Path, deeds: list[Deed], deaths: list[int], workers: int
) -> None:
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    batch = replace(batch, output_dir=folder)
    planned = iter(deeds)
    done: list[JobDone] = []
    for polls in (*deaths, None, None):  # the driver is killed, and begun again
        left = iter(range(polls)) if polls is not None else None
        told = CapturedEvents()
        cluster = SimulatedCluster(
            workers,
            lambda: next(planned, "answer"),
            lambda left=left: left is not None and next(left, None) is None,
        )
        with contextlib.suppress(DriverKilledError):
            BatchRun(batch, told, executor=cluster).run()
        done += told.of(JobDone)
        assert polls is not None or not told.of(JobFailed) or "fail" in deeds or "die" in deeds
    by_job = Counter(event.job for event in done)
    assert set(by_job) == {job.id for job in batch.jobs}
    assert set(by_job.values()) == {1}
    for event in done:
        assert event.pixels_sha256 == render_of(event.seed, SHAPE).pixels_sha256
        assert Path(event.path).is_file()
