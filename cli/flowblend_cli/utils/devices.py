"""Device: what ``--devices`` names, and how a process is held to one."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

ALL = "all"
# What holds a process to some of a machine's devices, which it then counts from 0.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
_ENTRY = re.compile(r"(?P<kind>[a-z]+)(?::(?P<index>\d{1,4}))?(?:\s*\*\s*(?P<times>\d{1,3}))?")


@dataclass(frozen=True)
class Device:
    """A device, or a share of one, for one worker.

    Args:
        name: What the worker is called: ``"cuda:1"``, or ``"cpu/2"`` for the second of several
            that share a device.
        kind: ``"cuda"``, ``"cpu"``, ``"xpu"`` or ``"mps"``.
        index: Its number among those of its kind that this process may use.
        share: How many workers share it.
    """

    name: str
    kind: str
    index: int = 0
    share: int = 1

    def environment(self, around: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Variables by which a process uses this device, and its share of the CPU's threads.

        Args:
            around: The variables of this process, which may be held to some devices itself.
        """
        if self.kind == "cpu":
            hidden = dict.fromkeys(_VISIBLE.values(), "")
            return hidden | {"OMP_NUM_THREADS": str(self.threads(around))}
        if self.kind not in _VISIBLE:
            return {}
        variable = _VISIBLE[self.kind]
        allowed = [one.strip() for one in around.get(variable, "").split(",") if one.strip()]
        return {variable: allowed[self.index] if allowed else str(self.index)}

    def threads(self, around: Mapping[str, str] = os.environ) -> int:
        """Threads of a worker on the CPU: its share of those that one process would use."""
        given = around.get("OMP_NUM_THREADS", "")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        whole = int(given) if given.isdecimal() and int(given) else cores or os.cpu_count() or 1
        return max(1, whole // self.share)


def parse_devices(text: str) -> tuple[Device, ...]:
    """Read a list of devices, such as ``"all"``, ``"cuda:0,cuda:2"``, or ``"cpu*2"``.

    Args:
        text: The list. ``"cuda:0*2"`` lets two workers share a device.

    Returns:
        One device for each worker; empty for ``"all"``, which only a look at the machine can tell.

    Raises:
        ValueError: It isn't such a list.
    """
    if text.strip() == ALL:
        return ()
    found: list[tuple[str, int, int]] = []
    problems = []
    for entry in text.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        kind = match["kind"] if match else ""
        if match is None or kind not in ("cpu", "mps", *_VISIBLE):
            problems.append(f"{entry.strip()!r} is no device: write all, cuda:0,cuda:1, or cpu*2")
        elif kind in ("cpu", "mps") and match["index"]:
            problems.append(f"there is one {kind} alone: write {kind} or {kind}*2")
        elif int(match["times"] or 1) < 1:
            problems.append(f"{entry.strip()!r} is no worker at all: write *1 or more")
        else:
            found.append((kind, int(match["index"] or 0), int(match["times"] or 1)))
    twice = [key for key, times in Counter(entry[:2] for entry in found).items() if times > 1]
    for kind, index in twice:
        name = device_name(kind, index)
        problems.append(f"{name} stands there twice: write {name}*2 to share it")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(
        Device(device_name(kind, index) + (f"/{n}" if times > 1 else ""), kind, index, times)
        for kind, index, times in found
        for n in range(1, times + 1)
    )


def check_devices(text: str) -> str:
    """Give a list of devices back as it is.

    Raises:
        ValueError: It isn't one, see ``parse_devices``.
    """
    parse_devices(text)
    return text


def device_name(kind: str, index: int) -> str:
    """What a device is called: ``"cuda:1"``, or ``"cpu"``, of which there is one."""
    return kind if kind in ("cpu", "mps") else f"{kind}:{index}"
