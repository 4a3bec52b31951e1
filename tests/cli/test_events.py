"""The event stream: one line each, versioned, with the documented keys."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from flowblend_cli.events import (
    Event,
    JobDone,
    JobDropped,
    JobFailed,
    JobMeasured,
    JobSkipped,
    JobStarted,
    ModelLoaded,
    Summary,
)

DONE = JobDone(
    job="square-s1-n10",
    scene="square",
    seed=1,
    num_inference_steps=10,
    path="/out/square-s1-n10.mp4",
    elapsed_s=1.5,
    denoisers="LLLLSSSSLL",
    peak_rss_bytes=1_000,
    peak_vram_bytes=None,
    pixels_sha256="ab" * 32,
)
EVENTS = {
    "model_loaded": (ModelLoaded("sprites", 2.0), ["pipeline", "elapsed_s"]),
    "job_started": (
        JobStarted("a", "s", 1, 2, "LS", "a\n😀\x1b[31m"),
        ["job", "scene", "seed", "num_inference_steps", "denoisers", "prompt", "resumed_at"],
    ),
    "job_done": (
        DONE,
        [
            "job",
            "scene",
            "seed",
            "num_inference_steps",
            "path",
            "elapsed_s",
            "denoisers",
            "peak_rss_bytes",
            "peak_vram_bytes",
            "pixels_sha256",
        ],
    ),
    "job_skipped": (JobSkipped("a", "s", 1, "/out/a.mp4"), ["job", "scene", "seed", "path"]),
    "job_measured": (
        JobMeasured("a", "s", {"sharpness": 2.0}, 0.5),
        ["job", "scene", "metrics", "score"],
    ),
    "job_dropped": (
        JobDropped("a", "s", 1, "why", 0.5),
        ["job", "scene", "seed", "reason", "score"],
    ),
    "job_failed": (JobFailed("a", "s", 1, "why"), ["job", "scene", "seed", "error"]),
    "summary": (Summary(1, 2, 3, 4.0), ["rendered", "skipped", "failed", "elapsed_s", "remaining"]),
}


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_one_line_with_its_documented_keys_in_order(name: str) -> None:
    event, keys = EVENTS[name]

    line = event.to_json()

    assert "\n" not in line
    assert line.isascii()
    assert line.isprintable()
    assert list(json.loads(line)) == ["v", "event", *keys]
    assert json.loads(line)["v"] == 1
    assert json.loads(line)["event"] == name


def test_every_event_is_listed_here() -> None:
    assert {type(event) for event, _ in EVENTS.values()} == set(typing.get_args(Event))


def test_memory_of_no_accelerator_is_null() -> None:
    assert json.loads(DONE.to_json())["peak_vram_bytes"] is None


def test_events_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DONE.seed = 2  # type: ignore[misc]
