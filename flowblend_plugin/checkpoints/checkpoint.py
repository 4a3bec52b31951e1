"""Checkpoints: store a trajectory's state after a step, and go on from it with the same bits.

A pipeline loops over all timesteps, whatever happened before. So a call that goes on does the same,
but up to the stored step nothing is computed: each call of a denoiser is answered with zeros, the
scheduler counts its step and hands back what the stored step gave, and stages come and go as ever.
At the stored step solver, generators and what stages remember are set to what they were. Prompts
are encoded anew, and the initial latents drawn anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from flowblend_plugin.checkpoints.serialization import blank, outline, pack, unpack
from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.errors import CheckpointError
from flowblend_plugin.switch import DenoiserSwitch


@dataclass(frozen=True)
class Checkpoint:
    """The state of a trajectory after a step: all that its further steps depend on.

    Args:
        step: Index of the step that comes next; the number of steps after the last one.
        total: Number of steps.
        values: The state, see ``flowblend_plugin.checkpoints.serialization``.
    """

    step: int
    total: int
    values: Mapping[str, Any]

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """Write it as a safetensors file.

        Args:
            metadata: What else is to stand in the file's header.

        Raises:
            CheckpointError: The state holds something that no such file can.
        """
        return pack({"step": self.step, "total": self.total, **self.values}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device) -> Checkpoint:
        """Read what ``to_bytes`` wrote.

        Args:
            data: The file.
            device: The pipeline's device.

        Raises:
            CheckpointError: It isn't a checkpoint.
        """
        values = unpack(data, device)
        try:
            return cls(values.pop("step"), values.pop("total"), values)
        except KeyError as error:
            raise CheckpointError(f"the file is no checkpoint: it lacks {error}") from error


class Checkpoints:
    """Stores the state of a call's trajectory every so many steps, or goes on from a stored one.

    Of a pipeline that runs several trajectories in a call, the first one counts. Nothing is stored
    within a stage that has a cache, whose contents stay where they are.

    Args:
        every: Store after every so many steps; 0 never does.
        store: Called with each state, right after its step.
        resumed: The state to go on from; None begins at the beginning.
        tell: Called once with the reason, where the state can't be stored.
    """

    def __init__(
        self,
        every: int,
        store: Callable[[Checkpoint], None],
        resumed: Checkpoint | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._every = every
        self._store = store
        self._resumed = resumed
        self._tell = tell or (lambda text: None)
        self._error: BaseException | None = None
        self._is_in_step = False

    @property
    def step(self) -> int:
        """The first step that is computed."""
        return 0 if self._resumed is None else self._resumed.step

    def stop_after_step(self, error: BaseException) -> bool:
        """End the call with an error once the present step's state is stored.

        Args:
            error: What to raise then.

        Returns:
            Whether it will be raised; where nothing would be stored, that is left to the caller.
        """
        if not self._is_in_step:
            return False
        self._error = error
        return True

    @contextmanager
    def keep(
        self, switch: DenoiserSwitch, generators: Iterable[torch.Generator] = ()
    ) -> Iterator[None]:
        """Store states during one call of the switch's pipe, or go on from the stored one.

        Args:
            switch: The switch, attached.
            generators: Those that the call is handed.

        Raises:
            CheckpointError: The stored state is of another trajectory.
        """
        call = _CheckpointedCall(self, switch, list(generators))
        switch.scheduler.wrap_steps(call)
        switch.calls.listeners.insert(0, call)
        try:
            yield
        finally:
            switch.scheduler.wrap_steps(None)
            with suppress(ValueError):  # the switch was detached meanwhile
                switch.calls.listeners.remove(call)


class _CheckpointedCall:
    """Wraps the scheduler's steps during one call: stores after them, or skips them."""

    def __init__(
        self, owner: Checkpoints, switch: DenoiserSwitch, generators: list[torch.Generator]
    ) -> None:
        self._owner = owner
        self._switch = switch
        self._scheduler = switch.scheduler
        self._generators = generators
        self._torch = _global_state()
        self._resumed = owner._resumed
        self._has_begun = self._is_over = False
        self._answers: list[list[Any]] = [[]]  # of each step so far, those of the present one last
        self._next_answer = 0
        self._problem = _problem(switch) if owner._every else ""
        if self._resumed is not None:
            self._answers = [list(step) for step in self._resumed.values["answers"]]
        if self._problem:
            owner._tell(self._problem)

    # Called by the scheduler.

    def started(self) -> None:
        """Note that a trajectory begins; of several in a call only the first is stored."""
        self._is_over = self._is_over or self._has_begun

    def step(self, take: Callable[[], Any], timestep: Any) -> Any:
        """Take the step, or skip it."""
        if self._is_over:
            return take()
        if self._resumed is not None:
            return self._skip(self._resumed, timestep)
        self._has_begun = True
        self._owner._is_in_step = self._owner._every > 0 and not self._problem
        try:
            result = take()
        finally:
            self._owner._is_in_step = False
        step = self._scheduler.whole_steps
        if step is None:
            return result
        self._answers.append([])
        error, self._owner._error = self._owner._error, None
        if self._owner._every and (error is not None or step % self._owner._every == 0):
            self._save(step, result)
        if error is not None:
            raise error
        return result

    # Storing.

    def denoiser_ran(self, call: Call, output: Any) -> None:
        """Note the structure of an output."""
        if self._problem or self._is_over or not self._owner._every:
            return
        try:
            self._answers[-1].append(outline(output))
        except CheckpointError as error:
            self._give_up(str(error))

    def _give_up(self, problem: str) -> None:
        self._problem = f"the state of this trajectory can't be stored: {problem}"
        self._owner._tell(self._problem)

    def _save(self, step: int, result: Any) -> None:
        scheduler, switch_state = self._scheduler, self._switch.state_dict()
        if self._problem or switch_state is None or not _is_finite(result):
            return
        if scheduler.was_copied:
            self._give_up("the pipeline steps private copies of its scheduler")
            return
        if not any(self._answers):
            self._give_up("what its denoiser gives isn't known")
            return
        present = _global_state()
        moved = {k: v for k, v in present.items() if not torch.equal(v, self._torch[k])}
        values = {
            "scheduler": scheduler.state_dict(),
            "switch": switch_state,
            "generators": [generator.get_state() for generator in self._generators],
            "torch": moved,
            "result": result,
            "answers": self._answers,
        }
        try:
            self._owner._store(Checkpoint(step, len(self._switch.denoisers), values))
        except CheckpointError as error:
            self._give_up(str(error))

    # Skipping.

    def _skip(self, resumed: Checkpoint, timestep: Any) -> Any:
        scheduler, values = self._scheduler, resumed.values
        if not self._has_begun:
            self._has_begun = True
            self._check(resumed)
            ran = [step for step in self._answers if step]
            answer = blank(ran[-1][-1], self._device) if ran else None
            self._switch.prepare_skip(values["switch"], answer)
        scheduler.skip_step(timestep)
        self._next_answer = 0
        if scheduler.calls >= values["scheduler"]["calls"]:
            scheduler.load_state_dict(values["scheduler"])
            self._switch.load_state_dict(values["switch"])
            for generator, state in zip(self._generators, values["generators"], strict=True):
                generator.set_state(state)
            _set_global_state(values["torch"])
            self._resumed = None
        return copy.deepcopy(values["result"])  # the pipeline may write into its tensors

    def _check(self, resumed: Checkpoint) -> None:
        known, present = resumed.values["scheduler"]["solver"], self._scheduler.timesteps
        timesteps = known.get("timesteps")
        same = isinstance(timesteps, torch.Tensor) and torch.equal(timesteps.cpu(), present.cpu())
        if not same or len(resumed.values["generators"]) != len(self._generators):
            raise CheckpointError(
                "the stored state is of another trajectory: begin this one at its first step"
            )

    def denoiser_answer(self, call: Call) -> Any:
        """Answer with zeros in skipped steps, in the structure of the stored run's outputs."""
        if self._is_over or self._resumed is None:
            return None
        step = self._scheduler.calls // self._scheduler.order
        known = [answers for answers in self._answers[: step + 1] if answers] or self._answers
        answers = known[-1]
        number, self._next_answer = self._next_answer, self._next_answer + 1
        return blank(answers[min(number, len(answers) - 1)], self._device)

    @property
    def _device(self) -> torch.device:
        return torch.device(self._switch.pipe._execution_device)


def _problem(switch: DenoiserSwitch) -> str:
    """Say why a pipe's trajectory can't be stored; empty if it can."""
    modules = [module for slots in switch.slots.values() for module in slots.values()]
    if any(getattr(module, "is_cache_enabled", False) for module in modules):
        return "nothing is stored of this trajectory: a denoiser has a cache that no stage gave it"
    guider = getattr(switch.pipe, "guider", None)
    if guider is not None and type(guider).__name__ != "ClassifierFreeGuidance":
        kind = type(guider).__name__
        return f"nothing is stored of this trajectory: {kind} may remember its former steps"
    return ""


def _global_state() -> dict[str, torch.Tensor]:
    """Give the states of torch's own generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_global_state(states: Mapping[str, torch.Tensor]) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, (list, tuple)) else True
