"""make_scheduler: makes a pipeline's solver by name, with the shift that the pipeline needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from flowblend_plugin.errors import SchedulerConfigError
from flowblend_plugin.schedulers.flow_solvers import FlowDEISScheduler, FlowSASolverScheduler

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def _dpmpp(shift: float, stochastic: bool) -> Any:
    algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    return DPMSolverMultistepScheduler(flow_shift=shift, algorithm_type=algorithm, **_FLOW)


# Each makes a solver from the shift, and whether its stochastic form is wanted.
_SOLVERS: dict[str, Callable[[float, bool], Any]] = {
    "flow_match_euler": lambda shift, stochastic: FlowMatchEulerDiscreteScheduler(
        shift=shift, stochastic_sampling=stochastic
    ),
    "heun": lambda shift, _: FlowMatchHeunDiscreteScheduler(shift=shift),
    "unipc": lambda shift, _: UniPCMultistepScheduler(flow_shift=shift, **_FLOW),
    "dpmpp_2m": _dpmpp,
    "dpmpp_2m_sde": lambda shift, _: _dpmpp(shift, stochastic=True),
    "deis": lambda shift, _: FlowDEISScheduler(flow_shift=shift),
    "sa_solver": lambda shift, stochastic: FlowSASolverScheduler(
        flow_shift=shift, stochastic=stochastic
    ),
    "lcm": lambda shift, _: FlowMatchLCMScheduler(shift=shift),
}
FLOW_NAMES = tuple(_SOLVERS)
# Of pipelines that predict noise: made from the pipeline's own betas and prediction type.
_CLASSIC: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "dpmpp_2m_karras": lambda config: DPMSolverMultistepScheduler.from_config(
        config, use_karras_sigmas=True, algorithm_type="dpmsolver++", solver_order=2
    ),
    "euler_a": EulerAncestralDiscreteScheduler.from_config,
}
NAMES = (*FLOW_NAMES, *_CLASSIC)
# Solvers with a stochastic form for mode "sde"; the last three add noise in any mode.
STOCHASTIC = ("flow_match_euler", "dpmpp_2m", "sa_solver", "dpmpp_2m_sde", "lcm", "euler_a")
_NAME_OF = {
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
    "FlowBlendScheduler": "flow_match_euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DEISMultistepScheduler": "deis",
    "FlowDEISScheduler": "deis",
    "SASolverScheduler": "sa_solver",
    "FlowSASolverScheduler": "sa_solver",
    "FlowMatchLCMScheduler": "lcm",
}

# What a scheduler made anew has no word for, with the values that lose nothing.
_LOST: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (1000,),
    "invert_sigmas": (None, False),
    "use_karras_sigmas": (None, False),
    "use_exponential_sigmas": (None, False),
    "use_beta_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "thresholding": (None, False),
    "scale_factors": (None,),
}
_LOST_CLASSIC: dict[str, tuple[Any, ...]] = {
    "clip_sample": (None, False),
    "snr_shift_scale": (None,),
    "thresholding": (None, False),
    "use_exponential_sigmas": (None, False),
    "use_beta_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
}


def make_scheduler(
    own: Any, name: str | None = None, flow_shift: float | None = None, mode: str = "ode"
) -> Any:
    """Make the scheduler of one job from the pipeline's own.

    Args:
        own: The pipeline's scheduler; it isn't touched.
        name: One of ``NAMES``; None keeps the pipeline's solver. A named solver is made with its
            defaults and takes over nothing but the shift; those of noise prediction
            (``"dpmpp_2m_karras"``, ``"euler_a"``) take over the betas and what is predicted.
        flow_shift: Shift of the noise levels; None keeps the pipeline's.
        mode: ``"ode"``, or ``"sde"`` for the solver's stochastic form. ``"dpmpp_2m_sde"``,
            ``"lcm"`` and ``"euler_a"`` have no other form.

    Returns:
        ``own`` itself where nothing is to change, otherwise a new scheduler.

    Raises:
        SchedulerConfigError: The name is unknown, the solver has no stochastic form, or the new
            scheduler would lose something that the pipeline's own does.
    """
    if name is None and flow_shift is None and mode == "ode":
        return own
    chosen = name or _NAME_OF.get(type(own).__name__)
    if chosen not in NAMES:
        found = name or type(own).__name__
        raise SchedulerConfigError(
            f"scheduler {found!r} can't be configured here: choose one of {', '.join(NAMES)}"
        )
    if mode == "sde" and chosen not in STOCHASTIC:
        raise SchedulerConfigError(
            f"scheduler {chosen!r} has no stochastic form for mode 'sde': use one of "
            f"{', '.join(STOCHASTIC)}"
        )
    config = own.config
    if chosen in _CLASSIC:
        _check_classic(own, chosen, flow_shift)
        return _CLASSIC[chosen](config)
    _check_flow(own)
    if name is None and mode == "ode":
        word = "flow_shift" if "flow_shift" in config else "shift"
        return type(own).from_config(config, **{word: flow_shift})
    _check_lost(own)
    shift = flow_shift or config.get("flow_shift") or config.get("shift") or 1.0
    return _SOLVERS[chosen](float(shift), mode == "sde")


def _check_classic(own: Any, chosen: str, flow_shift: float | None) -> None:
    """Raise unless a scheduler predicts noise, and another of its kind would lose nothing."""
    kind, config = type(own).__name__, own.config
    if "beta_start" not in config or config.get("use_flow_sigmas"):
        raise SchedulerConfigError(
            f"{chosen!r} is for pipelines that predict noise, and this one's {kind} is of flow "
            f"matching: choose one of {', '.join(FLOW_NAMES)}"
        )
    if flow_shift is not None:
        raise SchedulerConfigError(f"{chosen!r} has no flow_shift: leave it out")
    lost = lost_settings(config, _LOST_CLASSIC)
    if lost:
        raise SchedulerConfigError(
            f"this pipeline's {kind} has {', '.join(lost)}, which {chosen!r} would lose: leave "
            "scheduler out, and keep the pipeline's own"
        )


def solver_name(scheduler: Any) -> str | None:
    """Name a scheduler's solver, by its class; None where it has no name here."""
    return _NAME_OF.get(type(scheduler).__name__)


def check_replaceable(scheduler: Any) -> None:
    """Check that a flow-matching solver with a fixed shift could stand in for a scheduler.

    Raises:
        SchedulerConfigError: Something would be lost, which the error names.
    """
    _check_flow(scheduler)
    _check_lost(scheduler)


def _check_flow(own: Any) -> None:
    """Raise unless a fixed shift is all there is to the scheduler's noise levels."""
    kind, config = type(own).__name__, own.config
    if "beta_start" in config and not config.get("use_flow_sigmas"):
        raise SchedulerConfigError(
            f"this pipeline's {kind} isn't a flow-matching scheduler: leave flow_shift and mode "
            f"out, and keep its own or choose {' or '.join(_CLASSIC)}"
        )
    if config.get("use_dynamic_shifting") or config.get("shift_terminal"):
        raise SchedulerConfigError(
            f"this pipeline's {kind} shifts its noise levels by the size of the picture, which "
            "another solver or a fixed flow_shift would lose: leave them out"
        )


def _check_lost(own: Any) -> None:
    lost = lost_settings(own.config, _LOST)
    if lost:
        raise SchedulerConfigError(
            f"this pipeline's {type(own).__name__} has {', '.join(lost)}, which another solver "
            "would lose: leave scheduler and mode out, and keep the pipeline's own"
        )


def lost_settings(config: Mapping[str, Any], harmless: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """List what a config has and a scheduler made anew would lose, each as ``key = value``."""
    return [
        f"{key} = {config[key]!r}"
        for key, allowed in harmless.items()
        if key in config and config[key] not in allowed
    ]
