"""StageMixin: lets any diffusers scheduler announce its stages to ``DenoiserSwitch``.

The scheduler knows stages, never models. ``set_timesteps`` begins a trajectory, every ``step``
ends one step of it; at both the mixin tells a weakly held listener which role runs next.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import secrets
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch

from flowblend_plugin.errors import SwitchError
from flowblend_plugin.schedulers.noise import Seed, noise_generators
from flowblend_plugin.schedulers.solver_state import solver_state_dict, step_calls, step_sigmas
from flowblend_plugin.schedulers.stage_solvers import StageSolvers, advance, set_grid
from flowblend_plugin.schedulers.support import (
    bind_step,
    check_supported,
    step_defaults,
    step_signature,
)
from flowblend_plugin.stages import StageSchedule

logger = logging.getLogger(__name__)

# Called after a step: the output that the solver took, its sample, and the index in ``timesteps``.
Watcher = Callable[[torch.Tensor, torch.Tensor, int], None]


class StageListener(Protocol):
    """Hears when steps begin and end; ``DenoiserSwitch`` is one."""

    denoisers_run: list[str]  # the roles of the present trajectory's steps so far

    @property
    def pipe(self) -> Any:
        """The pipeline whose stages they are."""

    @property
    def is_at_rest(self) -> bool:
        """Whether the pipeline is as it was before: no trajectory is under way."""

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        """Hear that a trajectory begins at ``first_step``; each step has its stage's index."""

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Give what the solver is to take for an output that the pipeline hands it."""

    def step_finished(self, step_index: int) -> None:
        """Hear that whole step ``step_index`` (0-based, absolute) is done."""

    def trajectory_finished(self) -> None:
        """Hear that the last step of the trajectory is done."""

    def call_finished(self) -> None:
        """Hear that the pipeline's call ends, maybe before the last step of a trajectory."""

    def is_called_by_own_pipe(self) -> bool:
        """Whether no other pipe than this listener's makes the present call."""

    def copy_stepped(self, copied: StageMixin, calls: int) -> None:
        """Hear that a private copy of the scheduler did its step number ``calls``, from 1."""


class StepWrapper(Protocol):
    """Wraps every step of a scheduler: ``Checkpoints`` stores states and skips steps so."""

    def started(self) -> None:
        """Hear that a trajectory begins, maybe late; its first denoiser is in the pipe."""

    def step(self, take: Callable[[], Any], timestep: Any) -> Any:
        """Give the result of one call of ``step``, which ``take`` computes."""


class StageMixin:
    """Stages, and a seeded generator, for the diffusers scheduler that it is mixed into."""

    order: int
    timesteps: torch.Tensor
    _stages: StageSchedule | None = None
    _seed: Seed | None = None
    _draws_seed: bool = False  # anew for every trajectory, where there is none
    _seed_used: Seed | None = None
    own_noise: bool = False  # whether a given seed counts where a pipeline hands over a generator
    _listener: weakref.ref[StageListener] | None = None
    _copy_of: weakref.ref[StageListener] | None = None
    _stage_indices: tuple[int, ...] = ()
    _generators: list[torch.Generator] | None = None
    _watcher: Watcher | None = None
    _wrapper: StepWrapper | None = None
    _copies: int = 0  # made in the present trajectory
    _copy_number: int = 0  # counted from 1; the scheduler itself is 0
    was_copied: bool = False  # a pipeline may be stepping private copies beside this one
    _start_level: float | None = None
    _stage_solvers: StageSolvers | None = None
    _calls: int = 0
    _first: int = 0
    # Of what the present step is handed, what says how to read its output.
    step_arguments: Mapping[str, Any] = MappingProxyType({})
    begins_anew: bool = False  # the next step is to forget what its pipeline kept of the former

    @property
    def stages(self) -> StageSchedule | None:
        """The stages that this scheduler announces; None announces nothing."""
        return self._stages

    @property
    def calls(self) -> int:
        """How often this scheduler itself, and no copy of it, stepped the present trajectory."""
        return self._calls

    @property
    def stage_solvers(self) -> tuple[Any, ...]:
        """The further solvers of stages that name one."""
        return tuple(self._stage_solvers.further) if self._stage_solvers is not None else ()

    @property
    def seed_used(self) -> Seed | None:
        """Seed of what noise the solver added in the present, or last, trajectory.

        Given as the seed, it makes the same noise again. None where it isn't this scheduler that
        decides on the noise.
        """
        return self._seed_used

    def attach_listener(self, listener: StageListener) -> None:
        """Announce stages to ``listener``, which is held weakly.

        Raises:
            SwitchError: Another living listener has this scheduler.
        """
        if self._current_listener() not in (None, listener):
            raise SwitchError(
                "this scheduler drives another pipe's DenoiserSwitch: give each pipe its own "
                "scheduler"
            )
        self._listener, self._copy_of = weakref.ref(listener), None

    def detach_listener(self) -> None:
        """Announce stages to nobody; the next ``set_timesteps`` raises if there are stages."""
        self._listener = None

    def watch(self, watcher: Watcher | None) -> None:
        """Call a watcher after every step, where this scheduler counts its steps; None for none."""
        self._watcher = watcher

    def wrap_steps(self, wrapper: StepWrapper | None) -> None:
        """Let a wrapper take every step from now on; None for none."""
        self._wrapper = wrapper

    @property
    def whole_steps(self) -> int | None:
        """Index of the step that comes next, the number of steps at the end; None within one."""
        index = getattr(self, "step_index", None)
        done = self._first + self._calls if index is None else int(index)
        if done >= step_calls(self):
            return len(self._stage_indices)
        return None if done % self.order else done // self.order

    def state_dict(self) -> dict[str, Any]:
        """Give all that the trajectory's further steps depend on, as plain values and tensors."""
        generators, solvers = self._generators, self._stage_solvers
        return {
            "calls": self._calls,
            "solver": solver_state_dict(self, _OWN_ATTRIBUTES),
            "phases": None if solvers is None else solvers.state_dict(),
            "noise": None if generators is None else [one.get_state() for one in generators],
            # Only of a seed that was drawn: a given one is given again.
            **({"seed": self._seed_used} if self._seed is None and generators is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the scheduler whose ``state_dict()`` this is would have."""
        self._calls = state["calls"]
        vars(self).update(state["solver"])
        if self._stage_solvers is not None:
            self._stage_solvers.load_state_dict(state["phases"])
        if state["noise"] is not None:
            self._generators = [torch.Generator().set_state(one) for one in state["noise"]]
            self._seed_used = state.get("seed", self._seed)

    def skip_step(self, timestep: Any) -> None:
        """Count a call of ``step`` that nothing is computed for, and announce what follows."""
        solver: Any = self
        self.begin_late(timestep)
        self.begins_anew = False
        if hasattr(solver, "_init_step_index"):
            if solver.step_index is None:
                solver._init_step_index(timestep)
            solver._step_index += 1
        self._finish_step()

    def _reset_stateful_cache(self) -> None:
        # Pipelines ask it of each component at the end of a call (maybe_free_model_hooks), before
        # they build their chain of offloaded models anew. It tells of calls that end early, too.
        listener = self._current_listener()
        if listener is not None:
            listener.call_finished()

    def __getstate__(self) -> dict[str, Any]:
        # Some pipelines deep-copy their scheduler in mid-call (a second modality, one copy a
        # frame). A copy must not reach the denoisers through the listener; and a copy of a
        # scheduler at work isn't the one that announces, so it announces nothing.
        left_out = (
            "_listener", "_copy_of", "_generators", "_watcher", "_wrapper", "step_arguments",
        )  # fmt: skip
        state = {k: v for k, v in self.__dict__.items() if k not in left_out}
        if self._current_listener() is not None:
            state["_stages"] = None
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        # This very class may exist only at run time, under the name of its base.
        base = type(self).__dict__.get("_flowblend_base", type(self))
        return _rebuild, (base, self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        listener = self._current_listener()
        if listener is not None and id(listener.pipe) in memo:
            return self._copy_with_pipe(listener, memo)
        self.was_copied = True
        base, state = self.__reduce__()[1]
        again = _rebuild(base, copy.deepcopy(state, memo))
        again._copy_of = self._listener or self._copy_of
        if self._current_listener() is not None:
            self._copies += 1
            again._copy_number = self._copies
        return again

    def _copy_with_pipe(self, listener: StageListener, memo: dict[int, Any]) -> Any:
        # The whole pipe is copied: nobody listens to the copy, so it has the scheduler of before.
        if not listener.is_at_rest:
            raise SwitchError(
                "this pipe can't be copied within a call: its DenoiserSwitch has put a stage's "
                "settings into it; copy it before the call, or after it"
            )
        original = getattr(self, "_flowblend_original", None)
        if original is not None:
            return copy.deepcopy(original, memo)
        base, state = self.__reduce__()[1]
        return _rebuild(base, copy.deepcopy({**state, "_stages": self._stages}, memo))

    def _current_listener(self) -> StageListener | None:
        return self._listener() if self._listener is not None else None

    def _start_trajectory(self) -> None:
        self._calls = self._first = self._copies = 0
        self._generators = self._seed_used = None
        self.step_arguments, self.begins_anew = {}, False
        if self._stages is None:
            self._start_copy()
            return
        listener = self._current_listener()
        if listener is None:
            raise SwitchError(
                f"this scheduler has stages ({self._stages.letters}) but no living DenoiserSwitch: "
                "keep the switch in a variable while the pipe runs; or, where this pipe is a copy "
                "of one that has a switch, give it a switch or a scheduler of its own"
            )
        levels = step_sigmas(self)
        self._stage_indices = self._stages.stage_indices(len(levels), levels)
        for index in self._stages.empty_stages(len(levels), levels):
            logger.warning(
                "stage %d (%s) gets no step at %d steps",
                index,
                self._stages.stages[index].denoiser,
                len(levels),
            )
        listener.trajectory_started(self._stage_indices, 0)

    def _start_late(self, begin_index: int) -> None:
        # image-to-image starts in the middle: the stage of that step comes first.
        listener = self._current_listener()
        if self._stages is None or listener is None or not self._stage_indices or self._calls:
            return
        self._first = begin_index
        step = min(begin_index // self.order, len(self._stage_indices) - 1)
        listener.trajectory_started(self._stage_indices, step)
        if self._wrapper is not None:
            self._wrapper.started()

    def begin_late(self, timestep: Any) -> None:
        """Begin the trajectory at a timestep, where it begins late and nothing has said so yet.

        Args:
            timestep: That of the first step: pipelines that start late noise their input up to it,
                scale it for the denoiser, or tell it when they step. Others are ignored.
        """
        if timestep is None or self._calls or getattr(self, "begin_index", None) is not None:
            return
        first = torch.as_tensor(timestep).flatten()[:1].to(self.timesteps)
        found = (self.timesteps == first).nonzero().flatten().tolist() if len(first) else []
        if found and 0 not in found:
            # Of equal timesteps, solvers that look theirs up begin with the second. PNDM doesn't.
            looks_up = hasattr(self, "index_for_timestep")
            index = found[min(1, len(found) - 1)] if looks_up else found[0]
            if index != self._first:
                self._start_late(index)

    def _start_copy(self) -> None:
        # Long videos run several trajectories on private copies, after one set_timesteps.
        listener, steps = self._origin(), self._stage_indices
        if listener is not None and 0 < len(steps) <= len(listener.denoisers_run):
            listener.trajectory_started(steps, 0)

    def _origin(self) -> StageListener | None:
        """The listener of what this is a private copy of; a copy in another pipe is its own."""
        listener = self._copy_of() if self._copy_of is not None else None
        if listener is not None and not listener.is_called_by_own_pipe():
            self._copy_of = listener = None
        return listener

    def _model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        listener = self._current_listener()
        if self._stages is None or listener is None:
            return output
        return listener.model_output(output, sample)

    def _finish_step(self) -> None:
        self._calls += 1
        origin = self._origin()
        if origin is not None:
            origin.copy_stepped(self, self._calls)
        listener = self._current_listener()
        if self._stages is None or listener is None:
            return
        done = self.whole_steps
        if done is not None:
            listener.step_finished(done - 1)
        if done == len(self._stage_indices):
            listener.trajectory_finished()

    def _solver(self, timestep: Any) -> Any:
        """Choose the scheduler that does the step: this one, or that of the present stage."""
        if self._stage_solvers is None:
            return self
        if self._copy_of is not None:
            raise SwitchError(
                "this pipeline steps private copies of its scheduler, which stages with steps of "
                "their own can't follow: leave steps out, and give boundaries"
            )
        return self._stage_solvers.solver(self, timestep)

    def _step(self, step: Callable[..., Any], given: inspect.BoundArguments) -> Any:
        handed = given.arguments
        output, timestep, sample = (handed[name] for name in ("model_output", "timestep", "sample"))
        self.begin_late(timestep)
        solver = self._solver(timestep)
        if self.begins_anew and "old_pred_original_sample" in handed:
            handed["old_pred_original_sample"] = None
        self.begins_anew = False
        kind: Any = type(self)
        known = step_defaults(kind) | handed
        self.step_arguments = {name: known[name] for name in _TOLD if name in known}
        self._check_tokens()
        if handed.get("generator") is None or (self.own_noise and self._seed is not None):
            self._give_noise(solver, handed, sample)
        # A scheduler that is handed a timestep for each token takes clean minus noise.
        negated = handed.get("per_token_timesteps") is not None
        taken = self._model_output(-output if negated else output, sample)
        handed["model_output"] = -taken if negated else taken
        result = advance(self, solver, step, given)
        if self._watcher is not None:
            self._watcher(taken, sample, self._index_done(timestep))
        self._finish_step()
        return result

    def _check_tokens(self) -> None:
        by_token = self.step_arguments.get("per_token_timesteps") is not None
        if by_token and self.config.get("stochastic_sampling"):  # type: ignore[attr-defined]
            raise SwitchError(
                f"this pipeline hands {type(self).__name__} a timestep for each token "
                "(per_token_timesteps), and with them its stochastic form makes noise of the "
                "latents: choose mode = 'ode' (stochastic_sampling=False)"
            )

    def _index_done(self, timestep: Any) -> int:
        """Index of the step that was just done in the timesteps."""
        index = getattr(self, "step_index", None)
        if index is not None:
            return int(index) - 1
        found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
        return int(found[0]) if len(found) else self._first + self._calls

    def _give_noise(self, solver: Any, handed: dict[str, Any], sample: torch.Tensor) -> None:
        """Let the seed decide on the noise of a solver that may add some."""
        tree = getattr(solver, "noise_sampler", None)
        kind: Any = type(solver)
        if "generator" in step_signature(kind).parameters:
            generators = self._generators_for(sample)
            if generators is not None:
                handed["generator"] = generators
        elif hasattr(solver, "noise_sampler_seed") and tree is None:
            generators = self._generators_for(sample)
            if generators is not None:
                solver.noise_sampler_seed = [one.initial_seed() for one in generators]

    def _generators_for(self, sample: torch.Tensor) -> list[torch.Generator] | None:
        """Give one generator per sample, begun anew in every trajectory."""
        if self._generators is None:
            seed = self._seed
            if seed is None and self._draws_seed:
                seed = secrets.randbits(32)
                logger.info("the sampler's noise has no seed, and is drawn with %d", seed)
            if seed is None:
                return None
            self._seed_used = seed
            self._generators = noise_generators(seed, len(sample), self._copy_number)
        return self._generators


# What a step is handed that says how to read its output.
_TOLD = ("eta", "s_churn", "per_token_timesteps")
_OWN_ATTRIBUTES = {*StageMixin.__annotations__, "_flowblend_original"} - {"timesteps"}


@functools.cache
def with_stages(base: type) -> type:
    """Make the subclass of a scheduler class that announces stages.

    It carries the base's name and module, so that a saved pipeline names the stock class.

    Args:
        base: A diffusers scheduler class.

    Returns:
        The subclass; the same one for the same base.

    Raises:
        SwitchError: It isn't a scheduler of latents.
    """
    if issubclass(base, StageMixin):
        return base
    check_supported(base)
    grid = inspect.signature(base.set_timesteps)  # type: ignore[attr-defined]

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        given = grid.bind(self, *args, **kwargs)
        self._stage_solvers = set_grid(self, self._stages, self._start_level, given)
        self._start_trajectory()
        if self._wrapper is not None:
            self._wrapper.started()
        return result

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        stock = base.step  # type: ignore[attr-defined]
        given = bind_step(base, self, args, kwargs)
        take = functools.partial(self._step, stock, given)
        if self._wrapper is None:
            return take()
        return self._wrapper.step(take, given.arguments["timestep"])

    members: dict[str, Any] = {
        "set_timesteps": set_timesteps,
        "step": step,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_flowblend_base": base,
    }
    # What pipelines call before the first step with the timestep that they start from.
    for name in ("add_noise", "scale_noise", "scale_model_input"):
        if hasattr(base, name):
            members[name] = _beginning(getattr(base, name))
    # Bria asks it of every class but FlowMatchEulerDiscreteScheduler itself, which has none.
    members.setdefault("scale_model_input", _beginning(_as_it_is))
    if hasattr(base, "set_begin_index"):

        @functools.wraps(base.set_begin_index)
        def set_begin_index(self: Any, begin_index: int = 0) -> None:
            base.set_begin_index(self, begin_index)
            self._start_late(begin_index)

        members["set_begin_index"] = set_begin_index
    return type(base.__name__, (StageMixin, base), members)


def _as_it_is(self: Any, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
    """Scale a denoiser's input by a scheduler that scales nothing."""
    return sample


def _beginning(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        timestep = given.get("timesteps", given.get("timestep"))
        self.begin_late(timestep)
        return method(self, *args, **kwargs)

    return begin


def _rebuild(base: type, state: dict[str, Any]) -> Any:
    """Unpickle, or copy, a scheduler whose class exists only at run time."""
    scheduler: Any = object.__new__(with_stages(base))
    scheduler.__dict__.update(state)
    return scheduler
