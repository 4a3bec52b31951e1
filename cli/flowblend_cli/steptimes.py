"""How long each step of a job took, and which of them took strangely long. Pure Python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

SLOW_FACTOR = 3.0
# Below this much more than usual, a step is slow by chance: models as small as sprites have such.
NOTICEABLE_S = 0.1
_FEWEST_STEPS = 3


@dataclass
class StepTimes:
    """Notes when steps end.

    Args:
        seconds: Of each step so far; the first one begins with this object, and so holds what a
            pipeline does before its first step.
        roles: The denoiser that ran each step.
    """

    seconds: list[float] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def go_on(self) -> None:
        """Let the next step begin now: what was before belongs to none."""
        self._last = time.perf_counter()

    def note(self, role: str) -> None:
        """Note that a step of a denoiser is over."""
        now = time.perf_counter()
        self.seconds.append(round(now - self._last, 4))
        self.roles.append(role)
        self._last = now


def slow_steps(seconds: Sequence[float], roles: Sequence[str]) -> str:
    """Say which steps took more than three times the median step of their own denoiser.

    The first step isn't judged: it holds what happens once.

    Args:
        seconds: Of each step.
        roles: The denoiser that ran it.

    Returns:
        A sentence; empty where no step did, or fewer than three tell what is usual.
    """
    told = []
    for role in dict.fromkeys(roles):
        own = [index for index, name in enumerate(roles) if name == role and index]
        if len(own) < _FEWEST_STEPS:
            continue
        usual = median(seconds[index] for index in own)
        limit = max(SLOW_FACTOR * usual, usual + NOTICEABLE_S)
        slow = [index for index in own if seconds[index] > limit]
        if slow:
            named = ", ".join(f"{index} ({seconds[index]:.2f} s)" for index in slow[:5])
            more = f" and {len(slow) - 5} more" if len(slow) > 5 else ""
            told.append(
                f"step {named}{more} took more than {SLOW_FACTOR:g} times the median step of "
                f"{role!r}, {usual:.2f} s"
            )
    return "; ".join(told)
