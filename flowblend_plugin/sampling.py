"""Choose a pipeline's solver by name, keeping the shift of the noise levels that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from flowblend_plugin.errors import SchedulerConfigError

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def _euler(shift: float, stochastic: bool) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic)


def _heun(shift: float, stochastic: bool) -> Any:
    return FlowMatchHeunDiscreteScheduler(shift=shift)


def _unipc(shift: float, stochastic: bool) -> Any:
    return UniPCMultistepScheduler(flow_shift=shift, **_FLOW)


def _dpmpp(shift: float, stochastic: bool) -> Any:
    algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    return DPMSolverMultistepScheduler(flow_shift=shift, algorithm_type=algorithm, **_FLOW)


_SOLVERS: dict[str, Callable[[float, bool], Any]] = {
    "flow_match_euler": _euler,
    "heun": _heun,
    "unipc": _unipc,
    "dpmpp_2m": _dpmpp,
}
STOCHASTIC = ("flow_match_euler", "dpmpp_2m")
_NAME_OF = {
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
    "FlowBlendScheduler": "flow_match_euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}


def make_scheduler(
    own: Any, name: str | None = None, flow_shift: float | None = None, mode: str = "ode"
) -> Any:
    """Make the scheduler of one job from the pipeline's own.

    Args:
        own: The pipeline's scheduler; it isn't touched.
        name: ``"flow_match_euler"``, ``"heun"``, ``"unipc"`` or ``"dpmpp_2m"``; None keeps the
            pipeline's solver.
        flow_shift: Shift of the noise levels; None keeps the pipeline's.
        mode: ``"ode"``, or ``"sde"`` for the solver's stochastic form.

    Returns:
        ``own`` itself where nothing is to change, otherwise a new scheduler.

    Raises:
        SchedulerConfigError: The name is unknown, or the solver has no stochastic form.
    """
    if name is None and flow_shift is None and mode == "ode":
        return own
    chosen = name or _NAME_OF.get(type(own).__name__)
    if chosen not in _SOLVERS:
        found = name or type(own).__name__
        raise SchedulerConfigError(
            f"scheduler {found!r} can't be configured here: choose one of {', '.join(_SOLVERS)}"
        )
    if mode == "sde" and chosen not in STOCHASTIC:
        raise SchedulerConfigError(
            f"scheduler {chosen!r} has no stochastic form for mode 'sde': use one of "
            f"{', '.join(STOCHASTIC)}"
        )
    config = own.config
    if "beta_start" in config and not config.get("use_flow_sigmas", False):
        raise SchedulerConfigError(
            f"this pipeline's {type(own).__name__} isn't a flow-matching scheduler: leave "
            "scheduler, flow_shift and mode out, and keep the pipeline's own"
        )
    if config.get("use_dynamic_shifting") or config.get("shift_terminal"):
        raise SchedulerConfigError(
            f"this pipeline's {type(own).__name__} shifts its noise levels by the size of the "
            "picture, which another solver or a fixed flow_shift would lose: leave them out"
        )
    if name is None and mode == "ode":
        word = "flow_shift" if "flow_shift" in config else "shift"
        return type(own).from_config(config, **{word: flow_shift})
    shift = flow_shift or config.get("flow_shift") or config.get("shift") or 1.0
    return _SOLVERS[chosen](float(shift), mode == "sde")
