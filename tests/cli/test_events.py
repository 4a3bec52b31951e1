"""Events: the lines of the JSON stream with their documented keys, and reporters of all events."""

from __future__ import annotations

import dataclasses
import io
import json
import typing

import pytest

from flowblend_cli.console.plain import JsonReporter, Lines
from flowblend_cli.events import (
    Event,
    JobAssigned,
    JobDone,
    JobDropped,
    JobFailed,
    JobMeasured,
    JobSkipped,
    JobStarted,
    JsonEvent,
    Message,
    ModelLoaded,
    Reporter,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    captured_events,
    chain,
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
        [
            "job",
            "scene",
            "seed",
            "num_inference_steps",
            "denoisers",
            "prompt",
            "resumed_at",
            "worker",
        ],
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
            "worker",
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
    "job_failed": (JobFailed("a", "s", 1, "why"), ["job", "scene", "seed", "error", "worker"]),
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


def test_every_event_of_the_stream_is_listed_here() -> None:
    assert {type(event) for event, _ in EVENTS.values()} == set(typing.get_args(JsonEvent))


def test_every_event_has_a_name_of_its_own() -> None:
    kinds = typing.get_args(Event)

    assert len({kind.name for kind in kinds}) == len(kinds)
    assert set(typing.get_args(JsonEvent)) < set(kinds)


def test_the_stream_has_no_events_that_are_for_displays_and_counts() -> None:
    out = io.StringIO()
    tell = JsonReporter(Lines(out, "out"))
    for event in (
        RunStarted(1, ("a",)),
        JobAssigned("a"),
        StepStarted("a", 0, 2, "large"),
        Message("said to people", is_error=True),
        DONE,
        RunEnded(),
    ):
        tell(event)

    assert out.getvalue() == DONE.to_json() + "\n"


def test_a_chain_tells_its_reporters_in_their_order() -> None:
    told: list[tuple[str, Event]] = []
    first = chain([lambda event: told.append(("first", event)), captured_events()])
    second = captured_events()
    reporters: list[Reporter] = [first, lambda event: told.append(("second", event)), second]
    tell = chain(iter(reporters))
    tell(DONE)
    tell(RunEnded())

    assert told == [
        ("first", DONE),
        ("second", DONE),
        ("first", RunEnded()),
        ("second", RunEnded()),
    ]
    assert second == [DONE, RunEnded()]


def test_captured_events_are_found_by_their_kind() -> None:
    told = captured_events()
    for event in (RunStarted(1), Message("one"), DONE, Message("two")):
        told(event)

    assert told.of(JobDone) == [DONE]
    assert told.of(JobFailed) == []
    assert told.messages == ["one", "two"]


def test_memory_of_no_accelerator_is_null() -> None:
    assert json.loads(DONE.to_json())["peak_vram_bytes"] is None


def test_events_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DONE.seed = 2  # type: ignore[misc]
