"""The examination of ``flowblend doctor``: machine, torch's settings, renders that must agree."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowblend_cli.diagnostics.doctor import checks
from flowblend_cli.diagnostics.doctor.checks import Finding
from flowblend_cli.diagnostics.doctor.environment import (
    installed_versions,
    look_at_disk,
    look_at_hub,
    tested_versions,
    try_encoder,
)
from flowblend_cli.utils.worker_process import run_worker

_PATIENCE_S = 600
_ADVICE = "nothing can be rendered here: mend what it says, then run flowblend doctor again"


def examine(folder: Path, *, quick: bool, on_render: Callable[[], None]) -> Iterator[Finding]:
    """Check everything that could break a render, or change its bits.

    Args:
        folder: Where files would go.
        quick: Leave the renders out.
        on_render: Called before the renders, which take a while.

    Yields:
        One finding a topic; whatever goes wrong is a finding too.
    """
    table = tested_versions()
    found = installed_versions(table["packages"])
    yield from checks.about_versions(found, platform.python_version(), table)
    yield checks.about_disk(str(folder.absolute()), *look_at_disk(folder))
    yield checks.about_encoder(try_encoder())
    cache, is_there, is_writable = look_at_hub()
    yield checks.about_hub(cache, is_there=is_there, is_writable=is_writable)
    yield checks.about_offline(os.environ)
    if not quick:
        on_render()
    yield from _torch(renders=0 if quick else 2)


def _torch(renders: int) -> Iterator[Finding]:
    """Findings about torch's settings, and about the renders of two processes."""
    here = _ask(renders, other_threads=True)
    if "settings" in here:
        yield from checks.about_settings(here["settings"], os.environ)
    if "error" in here:
        name = "self-test" if "settings" in here else "models"
        yield Finding(name, "problem", here["error"], _ADVICE)
        return
    if not renders:
        yield Finding("self-test", "note", "left out (--quick)", "run flowblend doctor without it")
        return
    elsewhere = _ask(1, other_threads=False)
    if "error" in elsewhere:
        yield Finding("self-test", "problem", elsewhere["error"], _ADVICE)
        return
    yield from checks.about_self_test(
        here["renders"], elsewhere["renders"], here["other"], here["device"], here["steps"]
    )


def _ask(renders: int, *, other_threads: bool) -> dict[str, Any]:
    """The answer of a process of its own; its ``error`` says what went wrong."""
    answers, problem = run_worker(
        "flowblend_cli.diagnostics.doctor.self_test_worker",
        {"renders": renders, "other_threads": other_threads},
        name="self-test",
        patience_s=_PATIENCE_S,
    )
    return answers[0] if answers else {"error": problem}
