"""The command with a rough link to its cluster: answers are dropped, late, or come twice.

``ROUGH`` is the seed that chooses which. Nothing else differs from ``python -m flowblend_cli``.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque

import flowblend_cli.engine.executors.ray as ours
from flowblend_cli.main import main
from flowblend_cli.utils.worker_process import Document

_ANSWERS = ("result", "preview", "failure")
_LATE_S = 3.0
_CHANCE = random.Random(int(os.environ["ROUGH"]))


class RoughProcess(ours.ActorProcess):
    """An actor whose answers may be lost, late, or come twice; late ones twice, too."""

    _held: deque[tuple[float, Document]]

    def receive(self, timeout_s: float) -> Document | None:
        held = vars(self).setdefault("_held", deque())
        if held and held[0][0] < time.monotonic():
            document: Document = held.popleft()[1]
            return document
        found = super().receive(timeout_s)
        if found is None or found["say"] not in _ANSWERS:
            return found
        deed = _CHANCE.choice(["answer", "answer", "answer", "drop", "late", "twice"])
        if deed == "late":
            held.append((time.monotonic() + _LATE_S, found))
        elif deed == "twice":
            held.append((time.monotonic(), found))
            held.append((time.monotonic() + _LATE_S, found))
        return None if deed in ("drop", "late") else found


if __name__ == "__main__":
    ours.ActorProcess = RoughProcess  # type: ignore[misc]
    main(prog_name="flowblend")
