"""Solvers: reads a pipeline's solver and shift from its configs, without torch.

The sigmas (noise levels) of a job's steps follow from them, so an answer is exact or is refused:
each key of a scheduler's config changes no sigma, has a checked value, or is a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowblend_cli.errors import ModelNameError, UsageError
from flowblend_cli.jobs import SamplingSpec
from flowblend_cli.models.contents import read_json
from flowblend_cli.models.registry import find_pair, resolve_model
from flowblend_plugin.schedulers.sigmas import PLAIN_PIPELINES, start_level


@dataclass(frozen=True)
class Solver:
    """What ``flowblend_plugin.schedulers.sigmas`` computes sigmas from.

    Args:
        name: Solver as recipes name it.
        flow_shift: Shift of the sigmas.
        start: Sigma of the first step; None for the solver's own.
    """

    name: str
    flow_shift: float
    start: float | None = None


@dataclass(frozen=True)
class Rule:
    """How to read the config of one scheduler class.

    Args:
        name: Solver as recipes name it.
        shift: Key of its shift.
        needs: Values at which the sigmas are known; a key that is left out has this value, too.
        flow: Keys that must be true for the scheduler to be a flow-matching one.
        free: Keys that change no sigma.
    """

    name: str
    shift: str
    needs: Mapping[str, Any]
    flow: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()

    @property
    def known(self) -> frozenset[str]:
        """Every key of the config that has a meaning."""
        return self.free | self.flow | {self.shift, *self.needs}


_FIXED_SHIFT = {"num_train_timesteps": 1000, "use_dynamic_shifting": False}
_PLAIN_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_EULER_NEEDS = {
    **_FIXED_SHIFT,
    **_PLAIN_SIGMAS,
    "invert_sigmas": False,
    "shift_terminal": None,
}
_EULER_FREE = frozenset(
    {"base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift", "time_shift_type"}
)
_MULTISTEP_NEEDS = {**_FIXED_SHIFT, **_PLAIN_SIGMAS, "thresholding": False}
_FLOW = frozenset({"use_flow_sigmas"})
_OF_NOISE = frozenset(
    {
        "beta_end", "beta_schedule", "beta_start", "dynamic_thresholding_ratio",
        "lower_order_final", "prediction_type", "sample_max_value", "steps_offset",
        "timestep_spacing", "trained_betas",
    }
)  # fmt: skip
_MULTISTEP_FREE = _OF_NOISE | {"solver_order", "solver_type", "time_shift_type"}
_FINAL = {"final_sigmas_type", "rescale_betas_zero_snr"}
RULES = {
    "FlowMatchEulerDiscreteScheduler": Rule(
        "flow_match_euler", "shift", _EULER_NEEDS, free=_EULER_FREE | {"stochastic_sampling"}
    ),
    "FlowMatchLCMScheduler": Rule(
        "lcm",
        "shift",
        {**_EULER_NEEDS, "scale_factors": None},
        free=_EULER_FREE | {"upscale_mode"},
    ),
    "FlowMatchHeunDiscreteScheduler": Rule("heun", "shift", {"num_train_timesteps": 1000}),
    "UniPCMultistepScheduler": Rule(
        "unipc",
        "flow_shift",
        {**_MULTISTEP_NEEDS, "solver_p": None, "shift_terminal": None},
        flow=_FLOW,
        free=_MULTISTEP_FREE
        | _FINAL
        | {"disable_corrector", "predict_x0", "sigma_max", "sigma_min"},
    ),
    "DPMSolverMultistepScheduler": Rule(
        "dpmpp_2m",
        "flow_shift",
        {**_MULTISTEP_NEEDS, "use_lu_lambdas": False},
        flow=_FLOW,
        free=_MULTISTEP_FREE
        | _FINAL
        | {"algorithm_type", "euler_at_final", "lambda_min_clipped", "variance_type"},
    ),
    "DEISMultistepScheduler": Rule(
        "deis",
        "flow_shift",
        _MULTISTEP_NEEDS,
        flow=_FLOW,
        free=_MULTISTEP_FREE | {"algorithm_type"},
    ),
    "SASolverScheduler": Rule(
        "sa_solver",
        "flow_shift",
        {"num_train_timesteps": 1000, **_PLAIN_SIGMAS, "thresholding": False},
        flow=_FLOW,
        free=_OF_NOISE
        | {"algorithm_type", "corrector_order", "lambda_min_clipped", "predictor_order",
           "tau_func", "variance_type"},
    ),
}  # fmt: skip
# Solvers of pipelines that predict noise, as recipes name them.
CLASSIC_SOLVERS = ("dpmpp_2m_karras", "euler_a")
NoiseKind = Literal["flow", "classic"]
# Schedulers for noise prediction only, beside those of the rules above.
_CLASSIC = frozenset(
    {
        "DDIMScheduler", "DDPMScheduler", "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
        "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    }
)  # fmt: skip
_FRACTIONS = "give boundaries as fractions of the steps"


def find_solver(pipeline: str, sampling: SamplingSpec, recipe_dir: Path) -> Solver:
    """Tell which solver and shift a job will run with.

    Args:
        pipeline: The pipeline as the recipe names it.
        sampling: The job's sampling.
        recipe_dir: Folder that relative folders start from.

    Raises:
        UsageError: It isn't known exactly unless the pipeline is loaded; the message has the reason
            and what to do instead.
    """
    start = start_level(sampling.sigma_max) if sampling.sigma_max is not None else None
    if sampling.scheduler in CLASSIC_SOLVERS:
        reason = f"{sampling.scheduler} isn't a solver of flow matching"
        raise _unknown(pipeline, reason, _FRACTIONS)
    pair = find_pair(pipeline)
    if pair is not None:
        if pair.flow_shift is None or pair.pipeline_class not in PLAIN_PIPELINES:
            raise _unknown(pipeline, f"{pair.pipeline_class} sets them by itself", _FRACTIONS)
        shift = sampling.flow_shift or pair.flow_shift
        return Solver(sampling.scheduler or pair.scheduler, shift, start)
    source = resolve_model(pipeline, recipe_dir)
    if source.path is not None:
        return _solver_of_folder(pipeline, source.path, sampling, start)
    if sampling.scheduler is None or sampling.flow_shift is None:
        left_out = [key for key in ("scheduler", "flow_shift") if getattr(sampling, key) is None]
        instead = f"set {' and '.join(left_out)} in [sampling], or {_FRACTIONS}"
        raise _unknown(pipeline, "it is no known pair and no folder", instead)
    return Solver(sampling.scheduler, sampling.flow_shift, start)


def own_solver(pipeline: str, recipe_dir: Path) -> tuple[str | None, NoiseKind | None]:
    """Tell which solver a pipeline brings, and what kind of sigmas it has.

    Args:
        pipeline: The pipeline as the recipe names it.
        recipe_dir: Folder that relative folders start from.

    Returns:
        The solver as recipes name it; and ``"flow"``, or ``"classic"`` for one that predicts
        noise. Each is None where only the loaded pipeline would show it.
    """
    pair = find_pair(pipeline)
    if pair is not None:
        is_flow = pair.scheduler in {rule.name for rule in RULES.values()}
        return pair.scheduler, "flow" if is_flow else "classic"
    try:
        path = resolve_model(pipeline, recipe_dir).path
    except ModelNameError:
        return None, None
    name = (_scheduler_class(read_json(path / "model_index.json")) or "") if path else ""
    solver = RULES[name].name if name in RULES else None
    if name.startswith("FlowMatch"):
        return solver, "flow"
    if path is None or name not in RULES:
        return solver, "classic" if name in _CLASSIC else None
    config = read_json(path / "scheduler" / "scheduler_config.json")
    if not config:
        return solver, None
    is_flow = all(config.get(key) is True for key in RULES[name].flow)
    return solver, "flow" if is_flow else "classic"


def _scheduler_class(index: Mapping[str, Any]) -> str | None:
    """The scheduler that a pipeline's index names, if it is one of diffusers'."""
    entry = index.get("scheduler")
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    return name if library == "diffusers" and isinstance(name, str) else None


def _solver_of_folder(
    pipeline: str, folder: Path, sampling: SamplingSpec, start: float | None
) -> Solver:
    """What the folder's own scheduler, or the one made from it, works with."""
    index = read_json(folder / "model_index.json")
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    rule, problem = _rule_of(index, config)
    if rule is not None:
        problem = _problem_of(rule, config)
    if rule is None or problem is not None:
        raise _unknown(pipeline, problem, _FRACTIONS)
    shift = sampling.flow_shift or config.get(rule.shift, 1.0)
    return Solver(sampling.scheduler or rule.name, float(shift), start)


def _rule_of(index: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Rule | None, str | None]:
    """How to read a pipeline folder's scheduler, or why it can't be read."""
    pipeline_class = index.get("_class_name")
    if pipeline_class not in tuple(PLAIN_PIPELINES):
        return None, f"it isn't known how {pipeline_class} spaces its steps"
    name = _scheduler_class(index)
    if name is None or name not in RULES:
        found = name or index.get("scheduler")
        return None, f"its scheduler is {found}, and known ones are {', '.join(RULES)}"
    if config.get("_class_name", name) != name or not config:
        found = f"is one of {config['_class_name']}" if config else "isn't there or isn't readable"
        return None, f"its scheduler is {name}, and scheduler/scheduler_config.json {found}"
    return RULES[name], None


def _problem_of(rule: Rule, config: Mapping[str, Any]) -> str | None:
    """Which key of a scheduler's config stands in the way, or None."""
    for key, value in config.items():
        is_other = key in rule.needs and (value or None) != (rule.needs[key] or None)
        is_unknown = key not in rule.known and not key.startswith("_")
        if is_other or is_unknown:
            return f"its scheduler_config.json has {key} = {value!r}"
    for key in sorted(rule.flow):
        if config.get(key) is not True:
            return f"its scheduler_config.json has no {key} = true, so it isn't flow matching"
    shift = config.get(rule.shift, 1.0)
    if isinstance(shift, bool) or not isinstance(shift, (int, float)) or not shift > 0:
        return f"its scheduler_config.json has {rule.shift} = {shift!r}"
    return None


def _unknown(pipeline: str, reason: str | None, instead: str) -> UsageError:
    return UsageError(
        f"the noise levels of {pipeline!r} can't be told without loading it ({reason}): {instead}"
    )
