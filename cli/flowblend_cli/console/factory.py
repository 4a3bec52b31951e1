"""make_reporter: chooses how a run is shown on the streams of this process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

from flowblend_cli.console.plain import JsonReporter, Lines, PlainReporter
from flowblend_cli.events import Reporter, chain

if TYPE_CHECKING:
    from flowblend_cli.planning.run_progress import RunProgress

QUIET = -1


def make_reporter(
    progress: RunProgress, *, json: bool, verbosity: int, log: Lines | None = None
) -> Reporter:
    """Choose how to show a run on the streams of this process.

    Args:
        progress: How far the run is; it must be told each event before this reporter.
        json: JSON lines on stdout; people then read stderr.
        verbosity: -1 errors only, 0 usual, 1 and more adds detail.
        log: Where plain lines with detail go besides, however little is said here.

    Returns:
        A reporter with a live display where stderr is a capable terminal, with plain lines
        elsewhere.
    """
    errors = Lines(sys.stderr, "standard error")
    out = Lines(sys.stdout, "standard output", complaints=errors)
    out_is_terminal = is_terminal(sys.stdout)
    live = (
        verbosity > QUIET
        and is_terminal(sys.stderr)
        and os.environ.get("TERM", "") not in ("dumb", "unknown")
        and not (json and out_is_terminal)
    )
    chosen: list[Reporter] = [JsonReporter(out)] if json else []
    if live:
        from flowblend_cli.console.live import LiveReporter  # rich: only where there is a terminal

        if not json and not out_is_terminal:
            chosen.append(PlainReporter(out, Lines(None, ""), verbosity, progress))
        chosen.append(LiveReporter(sys.stderr, verbosity, progress))
    else:
        chosen.append(PlainReporter(errors if json else out, errors, verbosity, progress))
    if log is not None:
        chosen.append(PlainReporter(log, log, 1, progress))
    return chain(chosen)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person may be looking at the stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
