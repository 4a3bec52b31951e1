"""Standard streams: opens those that the caller closed; opens pipes without waiting."""

from __future__ import annotations

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_missing_streams() -> None:
    """Open /dev/null in place of each standard stream that was closed before this process began.

    Otherwise the next file to be opened takes a missing stream's number, and what a library writes
    to that stream ends up in the file.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if not _is_open(number):
            # The lowest free number is given out first, and all below this one are taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", errors="replace"))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def without_waiting(path: str, flags: int) -> int:
    """An opener for ``open``: of a pipe, nobody may ever come to the other end."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
