"""The option of ``render`` that keeps a log."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flowblend_plugin.errors import FlowBlendError

_OPTION = click.option("--log-file", type=click.Path(path_type=Path), metavar="FILE",
                       help="Add everything that is said, with UTC times, to FILE.")  # fmt: skip


def log_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--log-file``; it gets the open log as ``log``, or None without one.

    The errors that end the command stand in the log, too.
    """

    @functools.wraps(command)
    def logged(*, log_file: Path | None, **given: Any) -> Any:
        if log_file is None:
            return command(log=None, **given)
        from flowblend_cli.console.log_file import LogFile
        from flowblend_cli.progress import Lines

        log = LogFile(log_file, Lines(sys.stderr, "standard error"))
        try:
            return command(log=log, **given)
        except FlowBlendError as error:
            log.write(f"error: {error}")
            raise
        finally:
            log.close()

    return _OPTION(logged)
