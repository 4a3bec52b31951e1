"""Processes: tells whether a process still lives, and how much memory this one has used at most."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

# Of the fields of /proc/PID/stat that follow the number and the name, counted from 0.
_BORN = 19

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def process_mark(pid: int) -> dict[str, Any]:
    """What tells a process from all others, later ones with its number too."""
    return {"pid": pid, "host": platform.node(), "boot": _boot(), "born": _born(pid)}


def is_running(mark: dict[str, Any]) -> bool | None:
    """Whether the process of a mark lives; None where that can't be seen from this machine."""
    pid = mark.get("pid")
    if mark.get("host") != platform.node() or type(pid) is not int or not 0 < pid < 2**31:
        return None
    if mark.get("boot") != _boot():
        return False
    if mark.get("born") is not None:
        return bool(mark["born"] == _born(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where it is over, or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    state, born = fields[0], fields[_BORN]
    return None if state in "ZX" else born


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
