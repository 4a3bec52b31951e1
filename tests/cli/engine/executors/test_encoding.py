"""Files that workers make of frames: the driver's bytes, checked before they get a name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from noise_executor import render_of

from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.artifacts.records import read_record
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors.base import (
    EncodedFile,
    FilePlan,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.encoding import encode, with_file
from flowblend_cli.engine.publisher import Pending, Publication, Publisher
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import RemoteError
from flowblend_cli.events import CapturedEvents, JobDone, JobFailed
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.main import main
from flowblend_cli.models.identity import ResolvedModels, job_key, resolve_models
from flowblend_cli.recipe.loader import load_batch

PLENTY_S = 60.0
Edit = Callable[[EncodedFile], EncodedFile]


@pytest.fixture(params=["mp4", "png"])
def batch(request: pytest.FixtureRequest, batch_of: Callable[..., Batch], minimal: str) -> Batch:
    frames = 5 if request.param == "mp4" else 1
    loaded = batch_of(minimal, "scene.square.seeds=[1,2]", f"output.container={request.param}",
                      f"defaults.num_frames={frames}", "output.scale=2")  # fmt: skip
    loaded.output_dir.mkdir(parents=True)
    return loaded


def pending_of(batch: Batch, job: Job) -> Pending:
    identity = models_of(batch, job).identity
    return Pending(job, batch.path_of(job), job_key(job, identity), identity)


def models_of(batch: Batch, job: Job) -> ResolvedModels:
    return resolve_models(job.model, batch.source.parent, job.adapters)


def rendered(job: Job) -> RenderResult:
    shape = (int(job.argument("num_frames")), 32, 48, 3)
    return replace(render_of(job.seed, shape), memory=("VAE tiled",), caches=({"kind": "mag"},))


def made_by_worker(batch: Batch, job: Job, *, keeps_frames: bool = False) -> RenderResult:
    """A render as it comes back from a worker: request and result were JSON on their way."""
    pending = pending_of(batch, job)
    plan = FilePlan(pending.path.name, pending.key, str(batch.source.parent), keeps_frames)
    request = RenderRequest(1, job, job.seed, models_of(batch, job), file=plan)
    read = RenderRequest.from_document(json.loads(json.dumps(request.to_document())))
    assert read.file is not None
    result = with_file(rendered(job), read, read.file)
    assert result.file is not None
    told = json.loads(json.dumps(result.to_document()))
    back = RenderResult.from_document(told, result.frames, result.file.data)
    assert back.file == result.file
    return back


def published(batch: Batch, job: Job, render: RenderResult) -> Publication:
    publisher = Publisher(batch.source.parent)
    publisher.submit(pending_of(batch, job), render, lambda _: None)
    done = publisher.published(PLENTY_S)
    publisher.close()
    assert done is not None
    return done


def test_a_worker_makes_the_drivers_bytes(batch: Batch) -> None:
    job = batch.jobs[0]
    ours = published(batch, job, rendered(job))
    assert ours.error is None
    expected = batch.path_of(job).read_bytes()
    batch.path_of(job).unlink()

    theirs = published(batch, job, made_by_worker(batch, job))
    assert theirs.error is None
    assert batch.path_of(job).read_bytes() == expected
    assert inspect_final(batch.path_of(job)).state is FileState.INTACT
    measured = ("elapsed_s",)  # and nothing else of the record
    records = [asdict(one.record) for one in (ours, theirs)]
    assert len({str({k: v for k, v in one.items() if k not in measured}) for one in records}) == 1


def test_seconds_of_encoding_count_wherever_they_passed(batch: Batch) -> None:
    job = batch.jobs[0]
    render = made_by_worker(batch, job)
    assert render.file is not None
    done = published(batch, job, replace(render, file=replace(render.file, elapsed_s=100.0)))
    assert 102.0 <= done.record.elapsed_s[0] < 102.0 + PLENTY_S
    assert done.elapsed_s >= 100.0  # counted in each repeat, too


@pytest.mark.parametrize("keeps_frames", [False, True])
def test_frames_come_back_where_they_are_wanted(batch: Batch, keeps_frames: bool) -> None:
    render = made_by_worker(batch, batch.jobs[0], keeps_frames=keeps_frames)
    assert (render.frames is not None) is keeps_frames
    assert render.file is not None
    size = rendered(batch.jobs[0]).nbytes if keeps_frames else 0
    assert render.nbytes == len(render.file.data) + size


def flipped(at: float) -> Edit:
    def edit(file: EncodedFile) -> EncodedFile:
        data = bytearray(file.data)
        data[int(at * (len(data) - 1))] ^= 0x10
        return replace(file, data=bytes(data))

    return edit


EDITS: dict[str, Edit] = {
    "nothing": lambda file: replace(file, data=b""),
    "half": lambda file: replace(file, data=file.data[: len(file.data) // 2]),
    "one byte more": lambda file: replace(file, data=file.data + b"\0"),
    "other frames": lambda file: replace(file, shape=(file.shape[0] + 1, *file.shape[1:])),
    "other size": lambda file: replace(file, shape=(file.shape[0], 34, 48, 3)),
    **{f"a bit at {at}": flipped(at) for at in (0.0, 0.2, 0.5, 0.8, 1.0)},
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_arrives_otherwise_than_it_was_made_gets_no_name(batch: Batch, edit: str) -> None:
    job = batch.jobs[0]
    render = made_by_worker(batch, job)
    assert render.file is not None
    if edit.startswith("other") and batch.path_of(job).suffix == ".png":
        pytest.skip("a picture's pixels are hashed whole")
    done = published(batch, job, replace(render, file=EDITS[edit](render.file)))
    assert isinstance(done.error, RemoteError), done.error
    assert not list(batch.output_dir.iterdir())


def test_the_file_of_another_render_gets_no_name(batch: Batch) -> None:
    first, second = batch.jobs
    other = made_by_worker(batch, second)
    for render in (other, replace(made_by_worker(batch, first), file=other.file)):
        done = published(batch, first, render)
        assert isinstance(done.error, RemoteError)
        assert "of another render" in str(done.error)
    assert not list(batch.output_dir.iterdir())


RECIPE = """
[recipe]
name = "encoded"
[model]
pipeline = "sprites"
[defaults]
num_inference_steps = 2
num_frames = 9
height = 32
width = 32
[[scene]]
name = "clip"
prompt = "a red circle moving right on a navy background"
seeds = [1]
"""


def render(folder: Path, *options: str) -> None:
    recipe = folder / "encoded.toml"
    recipe.write_text(RECIPE, "utf-8")
    arguments = ["render", str(recipe), "--out", str(folder / "out"), "--no-report", *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output


def untimed(document: Any) -> dict[str, Any]:
    resolved = {k: v for k, v in document["resolved"].items() if k not in ("sampling_s", "source")}
    return {**document, "resolved": resolved}


@pytest.mark.parametrize(
    "where",
    [
        ("--executor", "child"),
        pytest.param(("--devices", "cpu*2"), marks=pytest.mark.night),
        pytest.param(("--executor", "ray", "--workers", "2"), marks=pytest.mark.night),
        pytest.param(("--executor", "in-process"), marks=pytest.mark.night),
    ],
    ids=" ".join,
)
def test_every_executor_makes_the_files_and_the_metrics_of_the_driver(
    where: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("FLOWBLEND_ISOLATE", raising=False)
    for encode_where in ("driver", "worker"):
        (tmp_path / encode_where).mkdir()
        render(tmp_path / encode_where, *where, "--encode", encode_where)

    driver, worker = (tmp_path / name / "out" for name in ("driver", "worker"))
    batch = load_batch(str(tmp_path / "worker" / "encoded.toml"), output_dir=worker)
    frames: dict[str, Any] = {}
    for job in batch.jobs:
        name = batch.path_of(job).name
        document = read_document(worker / name)
        assert untimed(document) == untimed(read_document(driver / name))
        one, other = (read_record(folder, job.id) for folder in (driver, worker))
        assert one is not None
        assert other is not None
        assert one.metrics
        assert one.metrics == other.metrics
        assert one.measured_on == other.measured_on == "frames"
        assert one.tracks == other.tracks
        frames[job.id] = document
    _compare_bytes(batch, frames)


def _compare_bytes(batch: Batch, documents: dict[str, Any]) -> None:
    """What the driver makes of the same frames and documents, seconds and all, is each file."""
    kept: dict[int, Any] = {}
    told = CapturedEvents()

    class Frames(Publisher):
        def submit(self, pending: Pending, render: RenderResult, take: Any) -> None:
            kept[render.seed] = render.frames
            super().submit(pending, render, take)

    again = replace(batch, output_dir=batch.output_dir.parent / "again")
    assert BatchRun(again, told, publisher=Frames(batch.source.parent)).run() == 0
    for job in batch.jobs:
        data, _ = encode(kept[job.seed], batch.path_of(job).name, job, documents[job.id])
        assert batch.path_of(job).read_bytes() == data


def test_a_file_that_cant_be_made_fails_its_job_as_the_driver_would(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    batch = batch_of(minimal, "defaults.num_inference_steps=1", "metrics.names=[]",
                     "defaults.num_frames=5")  # fmt: skip
    failed = []
    for where in ("driver", "worker"):
        told = CapturedEvents()
        run = BatchRun(batch, told, options=RunOptions(encode=where), executor=OddFrames())
        assert run.run() == 1
        assert not told.of(JobDone)
        failed += [event.error for event in told.of(JobFailed)]
    assert failed[0].startswith("FramesError: ")
    assert failed[0] == failed[1]


class OddFrames:
    """Renders frames of an odd height, and makes files of them where it is asked to."""

    slots = 1

    def __init__(self) -> None:
        self.request: RenderRequest | None = None

    def submit(self, request: RenderRequest) -> None:
        self.request = request

    def poll(self, timeout_s: float) -> Any:
        from flowblend_cli.engine.executors.base import RenderFailure

        request, self.request = self.request, None
        assert request is not None
        render = render_of(request.seed, (5, 33, 32, 3), request.number)
        try:
            return render if request.file is None else with_file(render, request, request.file)
        except Exception as error:  # noqa: BLE001 - as a job runner does
            return RenderFailure(request.number, error)

    def expect(self, jobs: int) -> None:
        pass

    def models_in_memory(self) -> tuple[()]:
        return ()

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass
