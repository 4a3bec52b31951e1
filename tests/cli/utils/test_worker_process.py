"""WorkerProcess and Channel: documents and frames both ways, and what a process ends of."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_cli.errors import WorkerDiedError
from flowblend_cli.utils.worker_process import (
    WorkerProcess,
    read_document,
    run_worker,
    write_document,
)

PLENTY_S = 60.0
ECHO = """
from flowblend_cli.utils.worker_process import Channel
channel = Channel()
print("a library's word on standard output")
while (document := channel.receive()) is not None:
    frames = document.pop("frames", None)
    channel.send({"heard": document, "shape": None if frames is None else frames.shape}, frames)
"""
Module = Callable[[str, str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Write a module that a worker process can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        return name

    return write


def receive(worker: WorkerProcess) -> dict[str, Any]:
    document = worker.receive(PLENTY_S)
    assert document is not None
    return document


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(min_size=1), values, max_size=4),
    st.integers(0, 2),
    st.none() | st.binary(),
)
def test_documents_frames_and_bytes_come_back_equal(
    document: dict[str, Any], number: int, data: bytes | None
) -> None:
    for name in ("has_frames", "frames", "data_bytes"):
        document.pop(name, None)
    if data is not None:
        document["data"] = data
    frames = np.arange(number * 12, dtype=np.uint8).reshape(number, 2, 2, 3) if number else None
    stream = io.BytesIO()
    write_document(stream, document, frames)
    write_document(stream, {"next": 1})
    stream.seek(0)

    read = read_document(stream)

    assert read is not None
    back = read.pop("frames", None)
    assert read == document
    assert (back is None) == (frames is None)
    assert frames is None or np.array_equal(back, frames)
    assert read_document(stream) == {"next": 1}
    assert read_document(stream) is None


def test_a_process_is_handed_documents_and_answers_and_libraries_words_are_none(
    module: Module,
) -> None:
    worker = WorkerProcess(module("echo", ECHO), "echo")
    frames = np.arange(3 * 64 * 64 * 3, dtype=np.uint8).reshape(3, 64, 64, 3)
    worker.send({"n": 1})
    worker.send({"n": 2}, frames)
    assert receive(worker) == {"heard": {"n": 1}, "shape": None}
    second = receive(worker)
    assert np.array_equal(second.pop("frames"), frames)
    assert second == {"heard": {"n": 2}, "shape": [3, 64, 64, 3]}
    assert worker.receive(0.05) is None
    assert os.getsid(worker.pid) == worker.pid

    worker.close_input()

    with pytest.raises(WorkerDiedError, match="the echo process ended with code 0"):
        worker.receive(PLENTY_S)
    with pytest.raises(WorkerDiedError, match="ended with code 0"):
        worker.receive(0.0)


def test_what_a_process_dies_of_is_said(module: Module) -> None:
    name = module("dies", "import os, sys\nprint('out of paint', file=sys.stderr)\nos._exit(3)\n")
    worker = WorkerProcess(name, "render")
    with pytest.raises(WorkerDiedError, match=r"ended with code 3 \(out of paint\)"):
        worker.receive(PLENTY_S)
    assert not worker.is_alive

    worker = WorkerProcess(module("waits", "import time\ntime.sleep(60)\n"), "render")
    os.kill(worker.pid, signal.SIGSEGV)
    with pytest.raises(WorkerDiedError, match="the render process died of SIGSEGV"):
        worker.receive(PLENTY_S)


def test_an_ended_process_leaves_no_thread_and_no_pipe(module: Module) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    worker = WorkerProcess(module("echo", ECHO), "echo")
    for _ in range(50):
        worker.send({}, np.zeros((8, 64, 64, 3), np.uint8))
    began = time.monotonic()
    assert worker.end() < 0
    assert time.monotonic() - began < 10
    assert not any(thread.is_alive() for thread in worker._threads)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_one_request_is_answered_or_what_went_wrong_is_told(module: Module) -> None:
    answers, _ = run_worker(module("echo", ECHO), {"a": 1}, name="counting", patience_s=PLENTY_S)
    assert answers == [{"heard": {"a": 1}, "shape": None}]

    answers, problem = run_worker("no_such_module", {}, name="counting", patience_s=PLENTY_S)
    assert answers == []
    assert "the counting process ended with code 1" in problem
    assert "No module named" in problem

    slow = module("slow", "import time\ntime.sleep(60)\n")
    answers, problem = run_worker(slow, {}, name="counting", patience_s=0.5)
    assert (answers, problem) == ([], "the counting process took longer than 0.5 s")
