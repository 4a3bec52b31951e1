"""Measuring in a process of our own: what it answers, and what happens when it dies or waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.engine.followup import measure_worker
from flowblend_cli.engine.followup import measurer as measurer_module
from flowblend_cli.engine.followup.measurer import FinishedFile, Measurement, Measurer, Request
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.frames import Frames
from flowblend_plugin import metrics
from flowblend_plugin.metrics import learned

pytest.importorskip("cv2")
pytest.importorskip("skimage")
DOCUMENT = {"flowblend": "test", "job": {}}


def clip(shift: int = 2, frames: int = 5) -> Frames:
    """A textured pattern that moves so many pixels a frame."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(picture, shift * t, axis=1)[:64, :64] for t in range(frames)])


@pytest.fixture
def measurer() -> Iterator[Measurer]:
    made = Measurer()
    yield made
    made.close()


def ask(measurer: Measurer, request: Request, frames: Frames | None) -> Measurement:
    measurer.submit(request, frames, lambda: None)
    answer = measurer.answer(60)
    assert answer is not None
    return answer


def test_the_process_measures_what_the_library_measures(measurer: Measurer) -> None:
    frames = clip()
    answer = ask(measurer, Request("a", ("inter_frame_ssim", "flow_mean"), tracks=True), frames)
    assert answer.error == ""
    assert answer.metrics == metrics.measure(frames, ("inter_frame_ssim", "flow_mean"))
    assert np.allclose(answer.tracks, metrics.tracks(frames), atol=1e-5)
    assert not answer.on_file
    assert measurer.outstanding == 0


def test_a_kept_reference_is_compared_with_and_another_size_isnt(measurer: Measurer) -> None:
    names = ("psnr", "sharpness")
    kept = FinishedFile("reference", "/nowhere", 1)
    ask(measurer, Request("reference", names, is_reference=True), clip())
    same = ask(measurer, Request("a", names, reference=kept), clip(3))
    assert same.metrics == metrics.measure(clip(3), names, reference=clip())
    assert not same.on_file
    other = ask(measurer, Request("b", names, reference=kept), clip()[:, :32])
    assert set(other.metrics) == {"sharpness"}


def test_files_are_decoded_to_native_size(measurer: Measurer, tmp_path: Path) -> None:
    frames, path = clip(), tmp_path / "a.mp4"
    publish_video(frames, path, fps=8, document=DOCUMENT, scale=4, crf=0)
    answer = ask(
        measurer, Request("a", ("inter_frame_ssim",), file=FinishedFile("a", str(path), 4)), None
    )
    assert answer.on_file
    exact = metrics.measure(frames, ("inter_frame_ssim",))["inter_frame_ssim"]
    assert answer.metrics["inter_frame_ssim"] == pytest.approx(exact, abs=0.01)
    reference = FinishedFile("a", str(path), 4)
    compared = ask(measurer, Request("b", ("psnr",), reference=reference), frames)
    assert compared.on_file
    assert compared.metrics["psnr"] > 35


def test_a_kept_reference_that_was_decoded_is_told_of(measurer: Measurer, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    publish_video(clip(), path, fps=8, document=DOCUMENT, scale=1, crf=10)
    file = FinishedFile("a", str(path), 1)
    ask(measurer, Request("a", ("psnr",), is_reference=True, file=file), None)
    assert ask(measurer, Request("b", ("psnr",), reference=file), clip()).on_file


def test_whatever_goes_wrong_there_is_an_answer(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(measurer_module, "WorkerProcess", fail)
    assert "new thread" in ask(measurer, Request("a", ("sharpness",)), clip()).error


def test_a_network_that_isnt_there_costs_its_own_metric_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(learned.DEFAULT_MODELS, "dino_similarity", "nobody/nothing")  # type: ignore[arg-type]
    references = measure_worker.References()
    references.keep("reference", clip(), on_file=False)
    kept = FinishedFile("reference", "/nowhere", 1)
    request = Request("a", ("sharpness", "psnr", "dino_similarity"), reference=kept)
    answer = measure_worker.measure(asdict(request), clip(3), references)
    assert set(answer["metrics"]) == {"sharpness", "psnr"}
    assert "dino_similarity needs a network" in answer["missing"]


def test_a_picture_comes_back_exactly(tmp_path: Path) -> None:
    frame, path = clip()[0], tmp_path / "a.png"
    publish_image(frame, path, document=DOCUMENT, scale=3)
    assert np.array_equal(read_native_frames(path, 3), frame[None])


def test_what_cant_be_decoded_is_said(tmp_path: Path, measurer: Measurer) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no clip")
    with pytest.raises(OutputError, match="can't be decoded"):
        read_native_frames(path)
    answer = ask(measurer, Request("a", ("sharpness",), file=FinishedFile("a", str(path), 1)), None)
    assert "can't be decoded" in answer.error
    assert ask(measurer, Request("b", ("sharpness",)), clip()).metrics  # and the next one is fine


def test_a_picture_has_no_motion_to_measure(measurer: Measurer) -> None:
    answer = ask(measurer, Request("a", ("flow_mean", "sharpness"), tracks=True), clip(frames=1))
    assert set(answer.metrics) == {"sharpness"}
    assert answer.tracks == ()


def pid_of(measurer: Measurer) -> int:
    assert measurer._worker is not None
    return measurer._worker.pid


def test_a_process_that_dies_is_started_once_more_for_its_clip(measurer: Measurer) -> None:
    ask(measurer, Request("a", ("sharpness",)), clip())
    first = pid_of(measurer)
    os.kill(first, signal.SIGKILL)
    assert ask(measurer, Request("b", ("sharpness",)), clip()).metrics
    assert pid_of(measurer) != first


def test_a_process_that_had_nothing_to_do_for_long_is_kept(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(measurer, Request("a", ("sharpness",)), clip())
    first = pid_of(measurer)
    monkeypatch.setattr(measurer_module, "PATIENCE_S", 0.2)
    time.sleep(0.3)
    measurer.submit(Request("b", ("sharpness",)), clip(), lambda: None)
    assert measurer.answer(0.0) is None or measurer.outstanding == 0
    monkeypatch.undo()
    while measurer.outstanding:
        measurer.answer(60)
    assert pid_of(measurer) == first


def test_a_process_that_always_dies_costs_the_metrics_only(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer_module, "MODULE", "flowblend_cli.no_such_module")
    answer = ask(measurer, Request("a", ("sharpness",)), clip())
    assert answer.metrics == {}
    assert "ended with code 1" in answer.error


def test_the_process_is_nice_single_and_out_of_reach_of_ctrl_c(measurer: Measurer) -> None:
    ask(measurer, Request("a", ("sharpness",)), clip())
    pid = pid_of(measurer)
    assert os.getsid(pid) == pid != os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, pid) >= os.getpriority(os.PRIO_PROCESS, 0)
    maps = Path(f"/proc/{pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


PARENT = """
import sys, time, numpy as np
from flowblend_cli.engine.followup.measurer import Measurer, Request
measurer = Measurer()
measurer.submit(Request("a", ("sharpness",)), np.zeros((3, 32, 32, 3), np.uint8), lambda: None)
assert measurer.answer(60)
print(measurer._worker.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_leaves_no_process_behind() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z (" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the measuring process is still there")


def test_frames_wait_within_a_bound_and_a_stop_gets_through(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = clip()
    monkeypatch.setattr(measurer_module, "WAITING_BYTES", frames.nbytes)
    measurer.submit(Request("a", ("sharpness",)), frames, lambda: None)

    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        measurer.submit(Request("b", ("flow_mean",)), frames, stop)
    while measurer.outstanding:
        assert measurer.answer(60) is not None
    measurer.submit(Request("z", ("sharpness",)), frames, lambda: None)


def test_closing_doesnt_wait_for_what_is_still_to_be_measured() -> None:
    measurer = Measurer()
    large = np.zeros((40, 512, 512, 3), np.uint8)
    for name in "abcdef":
        measurer.submit(Request(name, ("flow_mean",)), large, lambda: None)
    worker = measurer._worker
    assert worker is not None
    began = time.monotonic()
    measurer.close()
    assert time.monotonic() - began < 5
    assert not worker.is_alive
