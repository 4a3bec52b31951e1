"""Most main memory that this process held: during one job where the system tells, else so far."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def forget_peak_rss() -> None:
    """Begin anew with the peak; does nothing where the system can't."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # proc(5): resets the high water mark, and nothing else


def peak_rss_bytes() -> int:
    """Most main memory since ``forget_peak_rss``, or since the process began, in bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
