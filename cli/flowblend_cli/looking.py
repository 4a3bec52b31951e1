"""Looking early at drafts: only those whose first steps look promising are rendered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flowblend_cli.engine.executors.in_process import Renders
from flowblend_cli.engine.followup.study_run import Studying
from flowblend_cli.errors import ENDS_THE_BATCH
from flowblend_cli.jobs import Job
from flowblend_cli.progress import Reporter
from flowblend_cli.study import Selection


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
