"""A worker that sees no folder asks its driver for encoded prompts, and gives it what it encodes.

The transport is a pair of queues; both its ends and the models are the real ones.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.engine.executors import worker
from flowblend_cli.engine.executors.base import Answer, RenderFailure, RenderRequest, RenderResult
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.executors.ray import RayExecutor
from flowblend_cli.engine.executors.worker import AskedEmbeddings, RequestReader, serve
from flowblend_cli.engine.runtime import embedding_files
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event, Message
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import ResolvedModels, resolve_models
from flowblend_cli.utils.worker_process import Document

KEY, OTHER = "ab" * 32, "cd" * 32
Change = Callable[[Document], "Document | None"]


class Far:
    """A worker's end of a link."""

    def __init__(self) -> None:
        self.incoming: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self.sent: queue.SimpleQueue[Document] = queue.SimpleQueue()

    def receive(self) -> Document | None:
        return self.incoming.get()

    def send(self, document: Document, frames: Any = None) -> None:
        self.sent.put(document if frames is None else {**document, "frames": frames})


class Process:
    """A worker in a thread, as ``RayExecutor`` has one on another machine."""

    def __init__(self, change: Change = lambda document: document) -> None:
        self.link = Far()
        self.heard: list[Document] = []
        self.is_alive = True
        self._change = change
        threading.Thread(target=serve, args=(self.link,), daemon=True).start()

    def send(self, document: Document) -> None:
        if (changed := self._change(document)) is not None:
            self.link.incoming.put(changed)

    def receive(self, timeout_s: float) -> Document | None:
        try:
            self.heard.append(self.link.sent.get(timeout=timeout_s))
        except queue.Empty:
            return None
        return self.heard[-1]

    def end(self) -> None:
        self.is_alive = False

    def said(self, what: str) -> int:
        return sum(document["say"] == what for document in self.heard)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    torch.set_num_threads(1)
    shutil.copytree(bundled_dir() / "models" / "sprites", tmp_path / "model")
    found = sprites_job()
    few = {"num_inference_steps": 2, "num_frames": 1, "max_sequence_length": 32}
    model = ModelSpec(str(tmp_path / "model"), str(tmp_path / "model"))
    return replace(found, arguments=tuple((dict(found.arguments) | few).items()), model=model)


@pytest.fixture
def models(job: Job) -> ResolvedModels:
    return resolve_models(job.model, Path.cwd())


def executor(process: Process, home: EmbeddingFiles | None) -> RayExecutor:
    return RayExecutor(process, "far", lambda request: {}, home)  # type: ignore[arg-type]


def render(
    executor: RayExecutor, models: ResolvedModels, job: Job, seed: int
) -> tuple[Answer, list[Event]]:
    executor.submit(RenderRequest(seed, job, seed, models, planned="LS"))
    told: list[Event] = []
    while not isinstance(found := executor.poll(5.0), Answer):
        if found is not None:
            told.append(found)
    return found, told


def expected(models: ResolvedModels, job: Job, seed: int) -> str:
    answer = JobRunner(lambda _: None).run(
        RenderRequest(1, job, seed, models, planned="LS"), lambda: None
    )
    assert isinstance(answer, RenderResult)
    return answer.pixels_sha256


def pixels(answer: Answer) -> str:
    assert isinstance(answer, RenderResult), answer
    return answer.pixels_sha256


def test_what_one_worker_encoded_another_one_never_encodes(
    models: ResolvedModels, job: Job, tmp_path: Path
) -> None:
    of_job = [expected(models, job, seed) for seed in (1, 2)]
    home = EmbeddingFiles(tmp_path)
    first, second = Process(), Process()
    assert pixels(render(executor(first, home), models, job, 1)[0]) == of_job[0]
    assert (first.said("embedding?"), first.said("embedding")) == (1, 1)

    shutil.rmtree(tmp_path / "model" / "text_encoder")
    other = executor(second, home)
    assert [pixels(render(other, models, job, seed)[0]) for seed in (1, 2)] == of_job
    assert (second.said("embedding?"), second.said("embedding")) == (1, 0)

    (path,) = (tmp_path / ".flowblend" / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:-1])  # damaged: it has to be encoded, and can't be
    failed = render(executor(Process(), home), models, job, 1)[0]
    assert isinstance(failed, RenderFailure)
    assert failed.kind == "models"


def test_a_driver_that_keeps_none_is_asked_for_none(models: ResolvedModels, job: Job) -> None:
    process = Process()
    assert pixels(render(executor(process, None), models, job, 1)[0]) == expected(models, job, 1)
    assert process.said("embedding?") == process.said("embedding") == 0


def test_a_lost_answer_is_waited_for_a_while_and_the_prompt_encoded(
    models: ResolvedModels, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_S", 0.5)
    process = Process(lambda document: None if document["do"] == "embedding" else document)
    answer, _ = render(executor(process, EmbeddingFiles(tmp_path)), models, job, 1)
    assert pixels(answer) == expected(models, job, 1)
    assert process.said("embedding") == 1


def test_a_stop_ends_the_wait_for_an_answer(
    models: ResolvedModels, job: Job, tmp_path: Path
) -> None:
    asked: list[float] = []

    def lose(document: Document) -> Document | None:
        if document["do"] != "embedding":
            return document
        asked.append(time.monotonic())
        stopped.stop()
        return None

    stopped = executor(Process(lose), EmbeddingFiles(tmp_path))
    answer, _ = render(stopped, models, job, 1)
    assert isinstance(answer, RenderFailure)
    assert answer.kind == "stopped"
    assert time.monotonic() - asked[0] < worker.ANSWER_S / 4


def test_an_answer_that_comes_too_late_is_no_answer_to_the_next_question(
    models: ResolvedModels, job: Job
) -> None:
    link = Far()
    reader = RequestReader(link)
    link.incoming.put({"do": "run", "request": RenderRequest(4, job, 1, models).to_document()})
    assert reader.next_request().models == models
    home = AskedEmbeddings(link, reader)
    for key, data in ((OTHER, b"other"), (KEY, b"right"), (KEY, b"twice")):
        link.incoming.put({"do": "embedding", "key": key, "data": data})
    assert home.read(KEY) == b"right"
    link.incoming.put({"do": "embedding", "key": OTHER, "data": None})
    assert home.read(OTHER) is None
    assert [link.sent.get()["key"] for _ in range(2)] == [KEY, OTHER]

    link.incoming.put({"do": "stop", "number": 4})
    with pytest.raises(StopRequested):
        home.read(KEY)


def test_a_full_folder_is_told_of_once_by_the_driver(
    models: ResolvedModels, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "MOST_BYTES", 100)
    home, told = EmbeddingFiles(tmp_path), []
    far = executor(Process(), home)
    for number, prompt in enumerate(("a red ring", "a blue ring")):
        answer, events = render(far, models, replace(job, prompt=prompt), number + 1)
        assert isinstance(answer, RenderResult)
        told += [event.text for event in events if isinstance(event, Message)]
    assert [text.split(":")[0] for text in told] == ["encoded prompts aren't stored any more"]
    assert not (tmp_path / ".flowblend").exists()
