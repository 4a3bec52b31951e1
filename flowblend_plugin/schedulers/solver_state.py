"""Solver state: what a multi-step solver remembers, to be reset, stored or loaded."""

from __future__ import annotations

from collections.abc import Collection
from types import FunctionType, MethodType
from typing import Any

ROUNDING = 1e-4  # by which a shifted noise level may exceed 1


def reset_history(scheduler: Any) -> None:
    """Drop what a multi-step solver kept of earlier steps, so that the next one starts afresh.

    Solvers such as UniPC, DPM++ and DEIS extrapolate from earlier outputs; after a switch those
    are another denoiser's. Solvers without memory are left as they are.

    Args:
        scheduler: A diffusers scheduler in mid-trajectory; with it, the solvers of its stages.
    """
    for solver in getattr(scheduler, "stage_solvers", ()):
        reset_history(solver)
    if hasattr(scheduler, "lower_order_nums"):
        scheduler.lower_order_nums = 0
    for name in ("model_outputs", "timestep_list"):
        if isinstance(getattr(scheduler, name, None), list):
            setattr(scheduler, name, [None] * len(getattr(scheduler, name)))
    for name in ("ets", "derivatives"):
        if isinstance(getattr(scheduler, name, None), list):
            setattr(scheduler, name, [])
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None


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


def step_sigmas(scheduler: Any) -> list[float]:
    """Give the noise level of every whole step of a scheduler whose timesteps are set.

    Args:
        scheduler: A diffusers scheduler after ``set_timesteps``.

    Returns:
        Numbers from 1 (noise) to 0: ``timesteps / num_train_timesteps``, as most pipelines count;
        one less that where the scheduler counts signal instead of noise (``invert_sigmas``, as
        Mochi's does); and ``sigma / (1 + sigma)`` where its sigmas exceed 1 (Cosmos-Predict2).
    """
    total = scheduler.config.num_train_timesteps
    levels = [t / total for t in scheduler.timesteps[:: scheduler.order].tolist()]
    if scheduler.config.get("invert_sigmas"):
        return [1 - level for level in levels]
    if max(levels) > 1 + ROUNDING:
        return [level / (1 + level) for level in levels]
    return [min(1.0, level) for level in levels]


def predicts_flow(scheduler: Any) -> bool:
    """Whether a scheduler's model output is the velocity of flow matching, noise minus clean."""
    base: type = getattr(type(scheduler), "_flowblend_base", type(scheduler))
    is_flow_class = base.__name__.startswith("FlowMatch")
    return is_flow_class or scheduler.config.get("prediction_type") == "flow_prediction"
