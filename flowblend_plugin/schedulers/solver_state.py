"""Solver state: what a multi-step solver remembers, to be reset, stored or loaded."""

from __future__ import annotations

import math
from collections.abc import Collection
from types import FunctionType, MethodType
from typing import Any

from flowblend_plugin.errors import SwitchError

ROUNDING = 1e-4  # by which a shifted noise level may exceed 1
# Solvers that can't begin anew, and why.
_COUNTED = {
    "PNDMScheduler": "which runs its first step twice, at the beginning of its timesteps only",
    "LMSDiscreteScheduler": "whose order follows from the number of the step",
}
# Their timesteps are angles, from noise at a right angle to 0, and so long is a unit of them.
_TURNS = {"IPNDMScheduler": math.pi / 2, "SCMScheduler": 1.0}
# Their timesteps aren't shares of the training's: sigma is the noise beside the signal.
_BY_RATIO = {
    "CMStochasticIterativeScheduler",
    "CosineDPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
}


def class_names(scheduler: Any) -> frozenset[str]:
    """Names of a scheduler's class and its bases: wrapped ones carry their base's name."""
    return frozenset(kind.__name__ for kind in type(scheduler).__mro__)


def check_resettable(scheduler: Any) -> None:
    """Check that ``reset_history`` leaves a scheduler as if it began at the step that follows.

    Raises:
        SwitchError: Its solver counts its steps from the first one of the trajectory.
    """
    found = class_names(scheduler) & _COUNTED.keys()
    for name in found:
        raise SwitchError(
            f"solver_history = 'reset' isn't possible with {name}, {_COUNTED[name]}: leave "
            "solver_history at 'keep', or choose another scheduler"
        )


def reset_history(scheduler: Any) -> None:
    """Drop what a multi-step solver kept of earlier steps, so that the next one starts afresh.

    Solvers such as UniPC, DPM++ and DEIS extrapolate from earlier outputs; after a switch those
    are another denoiser's. Solvers without memory are left as they are.

    Args:
        scheduler: A diffusers scheduler in mid-trajectory; with it, the solvers of its stages.

    Raises:
        SwitchError: See ``check_resettable``.
    """
    check_resettable(scheduler)
    for solver in getattr(scheduler, "stage_solvers", ()):
        reset_history(solver)
    if hasattr(scheduler, "lower_order_nums"):
        scheduler.lower_order_nums = 0
    for name in ("model_outputs", "timestep_list"):
        if isinstance(getattr(scheduler, name, None), list):
            setattr(scheduler, name, [None] * len(getattr(scheduler, name)))
    if isinstance(getattr(scheduler, "ets", None), list):
        scheduler.ets = []
    for name in ("last_sample", "sample"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, None)
    if hasattr(scheduler, "begins_anew"):
        scheduler.begins_anew = True


def solver_state_dict(scheduler: Any, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Give all attributes of a scheduler but its config, which nothing changes in mid-trajectory.

    Args:
        scheduler: A diffusers scheduler.
        left_out: Attributes that aren't the solver's.

    Returns:
        Its attributes by name: the very objects, not copies of them. They are set as they are on a
        scheduler of the same config.
    """
    return {
        name: value
        for name, value in vars(scheduler).items()
        if name not in left_out
        and name != "_internal_dict"
        and not isinstance(value, (FunctionType, MethodType))  # such as SA-Solver's tau
    }


def step_calls(scheduler: Any) -> int:
    """Count the calls of ``step`` of a whole trajectory, whose timesteps are set."""
    # SCM's last timestep is where the trajectory ends, and no step.
    return len(scheduler.timesteps) - ("SCMScheduler" in class_names(scheduler))


def step_sigmas(scheduler: Any) -> list[float]:
    """Give the noise level of every whole step of a scheduler whose timesteps are set.

    Args:
        scheduler: A diffusers scheduler after ``set_timesteps``.

    Returns:
        Numbers from 1 (noise) to 0: ``timesteps / num_train_timesteps``, as most pipelines count;
        one less that where the scheduler counts signal instead of noise (``invert_sigmas``, as
        Mochi's does); and the share of the noise, ``sigma / (1 + sigma)`` or the like, where
        timesteps or sigmas exceed 1 (Cosmos-Predict2) or are no such numbers (EDM, SCM).
    """
    calls, order, names = step_calls(scheduler), scheduler.order, class_names(scheduler)
    turn = next((_TURNS[name] for name in names if name in _TURNS), None)
    if turn is not None:
        angles = [turn * t for t in scheduler.timesteps[:calls].tolist()]
        return [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]
    if names & _BY_RATIO:
        return [s / (1 + s) for s in scheduler.sigmas[:calls:order].tolist()]
    total = scheduler.config.get("num_train_timesteps")
    if total is None:
        return [float(s) for s in scheduler.sigmas[:calls:order]]
    levels = [t / total for t in scheduler.timesteps[:calls:order].tolist()]
    if scheduler.config.get("invert_sigmas"):
        return [1 - level for level in levels]
    if max(levels) > 1 + ROUNDING:
        return [level / (1 + level) for level in levels]
    return [min(1.0, level) for level in levels]


def predicts_flow(scheduler: Any) -> bool:
    """Whether a scheduler's model output is the velocity of one flow between noise and clean.

    It is noise minus clean, or the reverse where sigmas count signal (``invert_sigmas``).
    """
    names, config = class_names(scheduler), scheduler.config
    if any(name.startswith("Helios") for name in names) and config.get("stages", 1) != 1:
        return False  # one flow after another, each in a size of its own
    is_flow = any(name.startswith("FlowMatch") for name in names)
    is_flow = is_flow or "LTXEulerAncestralRFScheduler" in names
    return is_flow or config.get("prediction_type") == "flow_prediction"
