"""ResumableJob: a job in mid-render, what is stored of it, and how long its steps took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile, CheckpointHeader
from flowblend_cli.errors import OutputError, StopRequested
from flowblend_cli.events import Message, Reporter
from flowblend_cli.jobs import Job
from flowblend_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
    from flowblend_plugin.checkpoints.checkpoint import Checkpoint, Checkpoints

SLOW_FACTOR = 3.0
# Below this much more than usual, a step is slow by chance: models as small as sprites have such.
NOTICEABLE_S = 0.1
_FEWEST_STEPS = 3


class ResumableJob:
    """One job's steps, from the first or from the state that an interrupted run stored.

    A stored state that doesn't fit, or is damaged, is told of and removed. Where one can't be
    written, the render goes on without.

    Args:
        job: The job.
        seed: Its seed.
        kept: Where its state is kept; None keeps none.
        runtime: The models, in memory.
        tell: Who is told.
    """

    def __init__(
        self,
        job: Job,
        seed: int,
        kept: CheckpointFile | None,
        runtime: PipelineRuntime,
        tell: Reporter,
    ) -> None:
        self._job, self._seed = job, seed
        self._kept = kept
        self._tell = tell
        self._began, self._before_s = time.monotonic(), 0.0
        self._runtime, self._late_s = runtime, runtime.late_s
        self.times = StepTimes()
        self.checkpoints: Checkpoints | None = None
        if kept is not None:
            self._surroundings = runtime.surroundings
            self._prepare(kept, runtime)

    @property
    def first_step(self) -> int:
        """The step that it begins with."""
        return 0 if self.checkpoints is None else self.checkpoints.step

    @property
    def elapsed_s(self) -> float:
        """Seconds so far, with those of the run that stored the state, up to there.

        Text encoders that are read meanwhile count as models do that are loaded.
        """
        return self._before_s + time.monotonic() - self._began - self._loading_s

    def step_done(self, index: int, role: str, check: Callable[[], None]) -> None:
        """Note that a step is over, and whether it was to be the last one.

        Args:
            index: The step.
            role: The denoiser that ran it.
            check: Raises if so.

        Raises:
            StopRequested: It was; if states are stored, once this step's is.
        """
        self.times.leave_out(self._loading_s)
        if index < self.first_step:  # nothing was computed
            self.times.go_on()
            check()
            return
        self.times.note(role)
        try:
            check()
        except StopRequested as request:
            if self.checkpoints is None or not self.checkpoints.stop_after_step(request):
                raise

    @property
    def _loading_s(self) -> float:
        return self._runtime.late_s - self._late_s

    def forget(self, reason: str) -> None:
        """Remove the stored state."""
        if self._kept is not None:
            self._kept.forget()
        self._say(f"{reason}, so it begins anew")

    def _prepare(self, kept: CheckpointFile, runtime: PipelineRuntime) -> None:
        resumed = None
        try:
            found = kept.read()
            if found is not None:
                resumed = self._resumed(*found, runtime)
        except CheckpointError as error:
            self.forget(f"its stored state {error}")
        if resumed is not None or kept.every:
            from flowblend_plugin.checkpoints.checkpoint import Checkpoints

            self.checkpoints = Checkpoints(kept.every, self._store, resumed, self._say)

    def _resumed(
        self, header: CheckpointHeader, data: bytes, runtime: PipelineRuntime
    ) -> Checkpoint:
        from flowblend_plugin.checkpoints.checkpoint import Checkpoint

        assert self._kept is not None
        if header.job_key != self._kept.job_key or header.seed != self._seed:
            raise CheckpointError("is of another job, or of other models")
        theirs, ours = header.surroundings, self._surroundings
        changed = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
        if changed:
            told = ", ".join(f"{k} {theirs.get(k)} (now {ours.get(k)})" for k in changed)
            raise CheckpointError(f"was made with {told}")
        checkpoint = Checkpoint.from_bytes(data, runtime.device)
        self._before_s = header.elapsed_s
        self.times = StepTimes(list(header.step_s), list(header.roles))
        self._say(f"continues at step {header.step} of {header.total}", is_error=False)
        return checkpoint

    def _store(self, checkpoint: Checkpoint) -> None:
        assert self._kept is not None
        header = CheckpointHeader(
            job_key=self._kept.job_key,
            seed=self._seed,
            step=checkpoint.step,
            total=checkpoint.total,
            surroundings=self._surroundings,
            elapsed_s=round(self.elapsed_s, 3),
            step_s=tuple(self.times.seconds),
            roles=tuple(self.times.roles),
        )
        try:
            self._kept.write(checkpoint.to_bytes(header.to_metadata()))
        except OutputError as error:
            raise CheckpointError(str(error)) from error
        self.times.go_on()

    def _say(self, text: str, *, is_error: bool = True) -> None:
        self._tell(Message(f"{self._job.id}: {text}", is_error=is_error, job=self._job.id))


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
    _left_out_s: float = 0.0

    def go_on(self) -> None:
        """Let the next step begin now: what was before belongs to none."""
        self._last = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Leave out what is no step's: so many seconds of all since the first step began."""
        self._last += seconds - self._left_out_s
        self._left_out_s = seconds

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
