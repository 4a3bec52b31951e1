"""Predictions: what a solver's model output says of the clean latents, in every convention.

A pipeline hands its scheduler what that scheduler takes for a model output: noise, a velocity, the
clean latents, or a mixture of them. Clean latents follow from it in a straight line,
``a x + b output`` with the latents x, and only the scheduler knows a and b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from flowblend_plugin.schedulers.solver_state import class_names, predicts_flow

Weight = float | torch.Tensor

# Latents are the clean ones and sigma times the noise.
_ADDED_NOISE = {
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
}
# Their noise level is looked up by the timestep.
_BY_TIMESTEP = {
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "TCDScheduler",
}
_BY_SIGMA = {
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}
_PRECONDITIONED = {
    "CosineDPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
}
# Each adds new noise at its steps, whatever its config says.
_NOISY = {
    "CMStochasticIterativeScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SCMScheduler",
}


def adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler, or the solver of one of its stages, adds new noise at its steps.

    Args:
        scheduler: A scheduler whose timesteps are set. What its pipeline handed the present step
            (``eta``, ``s_churn``) counts where it has stages.
    """
    if any(adds_noise(solver) for solver in getattr(scheduler, "stage_solvers", ())):
        return True
    config, names = scheduler.config, class_names(scheduler)
    handed: Mapping[str, Any] = getattr(scheduler, "step_arguments", {})
    tau = getattr(scheduler, "tau_func", None)
    return bool(
        names & _NOISY
        or config.get("stochastic_sampling")
        or "sde" in str(config.get("algorithm_type"))
        or (tau is not None and any(map(tau, scheduler.timesteps.tolist())))
        or ("LTXEulerAncestralRFScheduler" in names and config.eta > 0 and config.s_noise > 0)
        or (handed.get("eta") or 0) > 0
        or (handed.get("s_churn") or 0) > 0
    )


def token_levels(scheduler: Any) -> torch.Tensor | None:
    """Noise level of every token at the present step, (B, N, 1); None where all have the step's.

    Some pipelines hand their scheduler a timestep for each token; see ``StageMixin``.
    """
    timesteps = getattr(scheduler, "step_arguments", {}).get("per_token_timesteps")
    if timesteps is None:
        return None
    levels: torch.Tensor = (timesteps / scheduler.config.num_train_timesteps)[..., None]
    return levels


def clean_weights(scheduler: Any, index: int) -> tuple[Weight, Weight] | None:
    """Give the weights (a, b) with which ``a x + b output`` are the clean latents.

    Args:
        scheduler: A diffusers scheduler whose timesteps are set.
        index: Index of the step in its timesteps, at which x are the latents and ``output`` is
            what the solver takes. Where every token has a noise level of its own, those of the
            present step count instead, and the weights are tensors.

    Returns:
        The weights; None where the scheduler's outputs aren't known to say it.
    """
    found = _weights(scheduler, index)
    if found is None or isinstance(found[1], torch.Tensor):
        return found
    return found if all(map(math.isfinite, found)) else None


def _weights(scheduler: Any, index: int) -> tuple[Weight, Weight] | None:
    config, names = scheduler.config, class_names(scheduler)
    if str(config.get("variance_type")).startswith("learned"):
        return None  # its outputs hold more than a prediction
    if predicts_flow(scheduler):
        return _flow(scheduler, index)
    if "MiniMaxH3Scheduler" in names:  # its velocity points to the clean latents
        return 1.0, float(scheduler.sigmas[index])
    if "SCMScheduler" in names:
        angle = float(scheduler.timesteps[index])
        return math.cos(angle), -math.sin(angle)
    prediction = config.get("prediction_type")
    if names & _PRECONDITIONED:
        sigma, one, zero = scheduler.sigmas[index], torch.ones(()), torch.zeros(())
        terms = (
            scheduler.precondition_outputs(one, zero, sigma),
            scheduler.precondition_outputs(zero, one, sigma),
        )
        return float(terms[0]), float(terms[1])
    if names & _ADDED_NOISE:
        sigma = float(scheduler.sigmas[index])
        if prediction == "epsilon":
            return 1.0, -sigma
        alpha = 1 / math.hypot(1, sigma)
        a, b = _variance_preserving(prediction, alpha, sigma * alpha) or (math.nan, math.nan)
        return a * alpha, b
    if names & _BY_TIMESTEP:
        signal = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
        return _variance_preserving(prediction, signal**0.5, (1 - signal) ** 0.5)
    if names & _BY_SIGMA:
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
        return _variance_preserving(prediction, float(alpha), float(sigma))
    return None


def _variance_preserving(
    prediction: str | None, alpha: float, sigma: float
) -> tuple[float, float] | None:
    """Weights where the latents are alpha times the clean ones and sigma times the noise."""
    if prediction == "epsilon":
        return (1 / alpha, -sigma / alpha) if alpha else None
    if prediction == "v_prediction":
        return alpha, -sigma
    return (0.0, 1.0) if prediction in ("sample", "original_sample") else None


def _flow(scheduler: Any, index: int) -> tuple[Weight, Weight] | None:
    """Weights where outputs are velocities: latents move by them as the sigmas change."""
    levels = token_levels(scheduler)
    if levels is not None:
        return 1.0, -levels
    inverted = bool(scheduler.config.get("invert_sigmas"))
    if inverted and adds_noise(scheduler):
        return None  # diffusers' stochastic form counts these sigmas as if they weren't inverted
    # Clean latents are at the end of the sigmas: 0, or 1 where they count signal.
    return 1.0, float(inverted) - float(scheduler.sigmas[index])
