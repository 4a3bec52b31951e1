"""StageSolvers: runs stages that have their own number of steps and solver, for ``StageMixin``.

The pipeline's scheduler keeps its class and config, and gets the joined grid; a stage that names
another solver is stepped by one of that name, on the same grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from flowblend_plugin.errors import SchedulerConfigError, SwitchError
from flowblend_plugin.schedulers.factory import (
    STOCHASTIC,
    check_replaceable,
    lost_settings,
    make_scheduler,
    solver_name,
)
from flowblend_plugin.schedulers.sigmas import SigmaGrid, SigmaSegment, join_segments, segments_of
from flowblend_plugin.schedulers.solver_state import reset_history, solver_state_dict
from flowblend_plugin.stages import SOLVERS, StageSchedule

_OTHER_GRIDS = ("sigmas", "timesteps", "mu")


class StageSolvers:
    """The solvers of a trajectory, one a stage; stages that name the same one share it.

    Args:
        own: The pipeline's scheduler.
        stages: The stages, which have steps of their own.
        count: Number of steps of the trajectory.

    Raises:
        StageError: The number of steps isn't that of the stages.
    """

    def __init__(self, own: Any, stages: StageSchedule, count: int) -> None:
        self._stage_indices = stages.stage_indices(count)
        made: dict[str | None, Any] = {None: None}
        for stage in stages.stages:
            name = stage.scheduler
            if name not in made:
                is_sde = is_stochastic(own) and name in STOCHASTIC
                made[name] = make_scheduler(own, name, mode="sde" if is_sde else "ode")
                made[name].set_timesteps(count, device=own.timesteps.device)
        # None stands for the pipeline's own, which the copies of a scheduler can't share.
        self.solvers = [made[stage.scheduler] for stage in stages.stages]
        self._last: Any = None
        self._has_begun = False

    def solver(self, own: Any, timestep: Any) -> Any:
        """Choose the scheduler that does the next step, and set it to that step.

        A solver with a memory that follows upon another begins anew; stages in a row with one
        solver keep its memory.

        Args:
            own: The pipeline's scheduler.
            timestep: What the pipeline says of the step.
        """
        if own.step_index is None:
            own._init_step_index(timestep)
        found = self.solvers[self._stage_indices[own.step_index]]
        solver = own if found is None else found
        if self._has_begun and found is not self._last:
            reset_history(solver)
        self._last, self._has_begun = found, True
        solver._step_index = own.step_index
        return solver

    @property
    def further(self) -> list[Any]:
        """The distinct solvers besides the pipeline's own."""
        return [solver for solver in dict.fromkeys(self.solvers) if solver is not None]

    def state_dict(self) -> dict[str, Any]:
        """Give the state of all solvers but the pipeline's own, as plain values and tensors."""
        solvers = [solver_state_dict(solver) for solver in self.further]
        last = None if self._last is None else self.further.index(self._last)
        return {"solvers": solvers, "last": last, "has_begun": self._has_begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as those whose ``state_dict()`` this is."""
        for solver, known in zip(self.further, state["solvers"], strict=True):
            vars(solver).update(known)
        self._last = None if state["last"] is None else self.further[state["last"]]
        self._has_begun = state["has_begun"]


def check_grid(scheduler: Any) -> str:
    """Check that a scheduler's grid can be joined with others, or begun elsewhere.

    Returns:
        The name of its solver.

    Raises:
        SchedulerConfigError: It isn't a flow-matching scheduler with a fixed shift; or its solver
            isn't one that this holds for.
    """
    check_replaceable(scheduler)
    name, config = solver_name(scheduler), scheduler.config
    repeats = type(scheduler).__name__ in ("DEISMultistepScheduler", "SASolverScheduler")
    if name not in SOLVERS or repeats:
        raise SchedulerConfigError(
            f"{type(scheduler).__name__} has a grid that can't be divided among stages or begun "
            f"at a sigma_max: choose a scheduler of {', '.join(SOLVERS)}"
        )
    lost = lost_settings(config, {"final_sigmas_type": ("zero",), "solver_p": (None,)})
    if getattr(scheduler, "shift", config.get("shift")) != config.get("shift"):
        lost.append("another shift than its config")
    if lost:
        raise SchedulerConfigError(
            f"{type(scheduler).__name__} has {', '.join(lost)}, which stages with steps of their "
            "own and sigma_max would lose: leave them out"
        )
    assert name is not None
    return name


def set_grid(
    scheduler: Any,
    stages: StageSchedule | None,
    start: float | None,
    given: inspect.BoundArguments,
) -> StageSolvers | None:
    """Give a scheduler, whose timesteps were just set, the grid that its stages ask for.

    Args:
        scheduler: The pipeline's scheduler.
        stages: Its stages.
        start: Noise level to begin at; None for the scheduler's own.
        given: What its ``set_timesteps`` was called with.

    Returns:
        The solvers of its stages; None where the scheduler itself does every step.

    Raises:
        SchedulerConfigError: See ``check_grid``; or the pipeline brings a grid of its own.
        StageError: The number of steps isn't that of the stages, or the levels don't descend.
    """
    has_steps = stages is not None and stages.num_inference_steps is not None
    if not has_steps and start is None:
        return None
    name = check_grid(scheduler)
    handed = [key for key in _OTHER_GRIDS if given.arguments.get(key) is not None]
    if handed:
        raise SchedulerConfigError(
            f"this pipeline hands its scheduler {', '.join(handed)}, so stages can't have steps of "
            "their own, nor can it begin at a sigma_max: leave them out"
        )
    count = len(scheduler.timesteps)
    if stages is None or not has_steps:
        _assign(scheduler, join_segments([SigmaSegment(name, count)], _shift(scheduler), start))
        return None
    found = StageSolvers(scheduler, stages, count)
    first, is_plain = found.solvers[0], len(stages.stages) == 1 and start is None
    if is_plain and first is not None:
        scheduler.sigmas, scheduler.timesteps = first.sigmas, first.timesteps
    elif not is_plain:
        grid = join_segments(segments_of(stages.stages, name), _shift(scheduler), start)
        for each in (scheduler, *found.further):
            _assign(each, grid)
    return found


def _shift(scheduler: Any) -> float:
    config = scheduler.config
    return float(config.get("flow_shift") or config.get("shift") or 1.0)


def is_stochastic(scheduler: Any) -> bool:
    """Whether a flow-matching scheduler was asked for its solver's stochastic form."""
    config = scheduler.config
    if config.get("stochastic_sampling") or config.get("stochastic"):
        return True
    return config.get("mode") == "sde" or str(config.get("algorithm_type")).startswith("sde-")


def _assign(scheduler: Any, grid: SigmaGrid) -> None:
    where = scheduler.timesteps.device
    sigmas = torch.tensor([*grid.sigmas, 0.0], dtype=torch.float32)
    scheduler.sigmas = sigmas.to(scheduler.sigmas.device)
    kind = torch.int64 if grid.is_whole else torch.float32
    scheduler.timesteps = torch.tensor(grid.timesteps, dtype=torch.float64).to(where, kind)


def advance(own: Any, solver: Any, step: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    """Do one step with the solver of its stage, and count it.

    Args:
        own: The pipeline's scheduler.
        solver: What ``StageSolvers.solver`` said.
        step: The own scheduler's step.
        given: What the step is called with, its scheduler first.

    Raises:
        SwitchError: The pipeline hands its solver more than others take.
    """
    if solver is own:
        return step(*given.args, **given.kwargs)
    known = inspect.signature(type(solver).step).parameters
    handed = dict(list(given.arguments.items())[1:])
    more = [key for key in handed if key not in known and key != "generator"]
    if more:
        raise SwitchError(
            f"this pipeline hands its solver {', '.join(more)}, which "
            f"{type(solver).__name__} doesn't take: leave scheduler out of the stages"
        )
    result = solver.step(**{key: handed[key] for key in handed if key in known})
    own._step_index = solver.step_index
    return result


def spread_stages(scheduler: Any, stages: StageSchedule, iterations: int) -> tuple[int, ...]:
    """Spread stages over the iterations of a call whose frames begin one after another.

    Every iteration runs one denoiser on all frames, each of which is at a step of its own.

    Args:
        scheduler: The pipeline's scheduler, whose timesteps are those of one frame.
        stages: The stages; the first iteration ran in the stage of a frame's first step.
        iterations: Number of iterations, more than a frame has steps.

    Returns:
        The index of every iteration's stage.

    Raises:
        SwitchError: The stages ask for a step that all frames share, or the first iteration ran
            in another stage than it should have.
    """
    steps = len(scheduler.timesteps)
    if scheduler.order > 1:
        problem = f"{type(scheduler).__name__} takes two iterations a step: choose another solver"
    elif stages.needs_noise_levels:
        problem = "boundary_sigmas ask for one: give boundaries, as fractions of the iterations"
    elif any(stage.cache for stage in stages.stages):
        problem = "a stage's cache counts them: leave it out"
    else:
        spread = stages.stage_indices(iterations)
        if spread[0] == stages.stage_indices(steps)[0]:
            return spread
        problem = (
            f"stage {spread[0]} gets none of {steps} steps, but the first of {iterations} "
            "iterations: let it end later, or leave it out"
        )
    raise SwitchError(
        f"frames that begin one after another (ar_step) are at steps of their own, and {problem}"
    )
