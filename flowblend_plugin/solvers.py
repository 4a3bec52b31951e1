"""What multi-step solvers remember, and how to make them forget it."""

from __future__ import annotations

from typing import Any


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
