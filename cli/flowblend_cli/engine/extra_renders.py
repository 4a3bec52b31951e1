"""A job that has its file is rendered again for its seconds and its bits alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.engine.executors.base import Renders
from flowblend_cli.engine.followup.study_run import Studying
from flowblend_cli.errors import ENDS_THE_BATCH
from flowblend_cli.events import Reporter
from flowblend_cli.jobs import Job
from flowblend_cli.study import Selection


def time_again(
    record: JobRecord,
    job: Job,
    publishing_s: float,
    *,
    renderer: Renders,
    study: Studying,
    reporter: Reporter,
    check: Callable[[], None],
) -> JobRecord:
    """Render a job as often as is asked, with those renders that its record has already.

    Args:
        record: Its record.
        job: The job, with the seed of its file.
        publishing_s: Seconds of publishing, timed once and counted in each render.
        renderer: Who renders.
        study: Who knows how often, and keeps the record.
        reporter: Who is told what happens.
        check: Called between steps; may raise ``StopRequested``.

    Returns:
        The record, with the seconds and pixels of the new renders.

    Raises:
        OutputError: The record can't be written.
    """
    repeats = study.time_repeats
    while len(record.elapsed_s) < repeats:
        check()
        try:
            render = renderer.render(job, job.seed, check)
        except ENDS_THE_BATCH:
            raise
        except Exception as error:  # noqa: BLE001 - its file is there, only times are missing
            number = len(record.elapsed_s) + 1
            told = f"{job.id}: render {number} of {repeats} for its seconds failed: {error}"
            reporter.message(told, error=True)
            return record
        record = replace(
            record,
            elapsed_s=(*record.elapsed_s, round(render.elapsed_s + publishing_s, 3)),
            pixels=(*record.pixels, render.pixels_sha256),
        )
        study.keep(record)
    if repeats > 1:
        same, renders = record.pixels.count(record.pixels_sha256), len(record.pixels)
        told = f"{job.id}: {same} of {renders} renders have the same pixels"
        reporter.message(told, error=same < renders)
    return record


def look_at(
    selection: Selection,
    drafts: Sequence[Job],
    keys: Mapping[str, str],
    *,
    renderer: Renders,
    study: Studying,
    reporter: Reporter,
    check: Callable[[], None],
) -> None:
    """Have the first steps of all drafts of a selection measured that weren't looked at before.

    Args:
        selection: The selection.
        drafts: Its drafts.
        keys: Job key of each draft.
        renderer: Who takes the steps.
        study: Who measures where they lead.
        reporter: Who is told what happens.
        check: Called again and again; may raise ``StopRequested``.
    """
    steps = selection.reject_after or 1
    known = study.known_looks(selection, keys)
    for draft in drafts:
        if draft.id in known:
            continue
        check()
        renderer.load(draft.model, check)
        began = time.monotonic()
        try:
            frames = renderer.preview(draft, steps, check)
        except ENDS_THE_BATCH:
            raise
        except Exception as error:  # noqa: BLE001 - what can't be judged early is rendered
            told = f"{draft.id} can't be looked at after {steps} steps and goes on: {error}"
            reporter.message(told, error=True)
            continue
        study.look(draft, frames, time.monotonic() - began, check)
