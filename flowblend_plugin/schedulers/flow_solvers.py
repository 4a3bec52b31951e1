"""DEIS and SA-Solver for flow matching, with a last step that ends at noise level 0.

diffusers' own two repeat their last noise level where ``use_flow_sigmas`` is on, so their last
step takes no noise away and that level stays in the result: 0.14 at 20 steps and a shift of 3.
Here that step goes to 0, where both solvers' first-order rule becomes the denoised sample itself.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DEISMultistepScheduler, SASolverScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

# Their classes hide behind an import that type checkers don't follow.
_DEIS: Any = DEISMultistepScheduler
_SASolver: Any = SASolverScheduler


class _EndsAtZero:
    """Ends the trajectory of the solver that it is mixed into at noise level 0."""

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set the timesteps of a trajectory, whose last noise level is 0."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        self.sigmas[-1] = 0  # type: ignore[attr-defined]

    def _denoised(self: Any, velocity: Any, timestep: Any, sample: Any) -> torch.Tensor | None:
        """Take the last step, to the sample that the velocity points to; None for the others."""
        if self.step_index is None:
            self._init_step_index(timestep)
        if self.step_index < len(self.timesteps) - 1:
            return None
        sigma = self.sigmas[self.step_index]
        self._step_index += 1
        denoised: torch.Tensor = (sample - sigma * velocity).to(sample.dtype)
        return denoised


class FlowDEISScheduler(_EndsAtZero, _DEIS):  # type: ignore[misc]
    """DEIS, multistep in the logarithm of the noise ratio, down to noise level 0.

    Args:
        num_train_timesteps: Number of training timesteps; timestep = sigma x this.
        solver_order: Order of the solver, 1 to 3.
        flow_shift: Shift of the noise levels; above 1 spends more steps on high noise.

    Reference:
        Zhang and Chen, arXiv:2204.13902.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, num_train_timesteps: int = 1000, solver_order: int = 2, flow_shift: float = 1.0
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            solver_order=solver_order,
            flow_shift=flow_shift,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        )

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """Take one step; the last one ends at noise level 0."""
        last = self._denoised(model_output, timestep, sample)
        if last is None:
            return super().step(model_output, timestep, sample, return_dict)
        return SchedulerOutput(prev_sample=last) if return_dict else (last,)


def _ode(timestep: float) -> int:
    return 0


def _sde(timestep: float) -> int:
    # Where diffusers' SA-Solver adds noise: the middle of the trajectory.
    return int(200 <= timestep <= 800)


class FlowSASolverScheduler(_EndsAtZero, _SASolver):  # type: ignore[misc]
    """SA-Solver, stochastic Adams predictor and corrector, down to noise level 0.

    Args:
        num_train_timesteps: Number of training timesteps; timestep = sigma x this.
        predictor_order: Order of the predictor, 1 to 3.
        corrector_order: Order of the corrector, 1 to 4.
        flow_shift: Shift of the noise levels; above 1 spends more steps on high noise.
        stochastic: Add noise at timesteps 200 to 800 (tau 1 there and 0 elsewhere); otherwise the
            deterministic Adams solver (tau 0 everywhere).

    Reference:
        Xue et al., arXiv:2309.05019.
    """

    # diffusers' own mixes clean samples and noise as diffusion models do, not as flows.
    add_noise = _DEIS.add_noise

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        predictor_order: int = 2,
        corrector_order: int = 2,
        flow_shift: float = 1.0,
        stochastic: bool = False,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            predictor_order=predictor_order,
            corrector_order=corrector_order,
            flow_shift=flow_shift,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        )
        # Not through the config, which is written as JSON.
        self.tau_func = _sde if stochastic else _ode

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Take one step; the last one ends at noise level 0."""
        last = self._denoised(model_output, timestep, sample)
        if last is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        return SchedulerOutput(prev_sample=last) if return_dict else (last,)
