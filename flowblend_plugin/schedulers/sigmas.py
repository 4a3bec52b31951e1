"""The noise level of every step, worked out without torch, so that a plan needs no model.

Pure Python. The formulas are those of diffusers' flow-matching schedulers, rounded where those
round, so that levels are equal to the last bit; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable

from flowblend_plugin.errors import StageError
from flowblend_plugin.grids import NUM_TRAIN_TIMESTEPS, Leg, joined_grid, shifted, single
from flowblend_plugin.stages import SOLVERS


def _linspace(start: float, stop: float, count: int) -> list[float]:
    if count == 1:
        return [start]
    # Rounded as numpy rounds: a whole timestep may hang on the last bit.
    step = (stop - start) / (count - 1)
    return [*(start + i * step for i in range(count - 1)), stop]


def _shifted_single(sigma: float, shift: float) -> float:
    lower = single(1 + single(single(shift - 1) * single(sigma)))
    return single(single(single(shift) * single(sigma)) / lower)


def _euler(n: int, shift: float) -> list[float]:
    # diffusers shifts twice: once the ends of the range, once every sigma in it.
    first = _shifted_single(1, shift) * NUM_TRAIN_TIMESTEPS
    last = _shifted_single(1 / NUM_TRAIN_TIMESTEPS, shift) * NUM_TRAIN_TIMESTEPS
    sigmas = [shifted(t / NUM_TRAIN_TIMESTEPS, shift) for t in _linspace(first, last, n)]
    timesteps = [single(single(sigma) * NUM_TRAIN_TIMESTEPS) for sigma in sigmas]
    return [timestep / NUM_TRAIN_TIMESTEPS for timestep in timesteps]


def _cut(sigma: float) -> float:
    # These solvers keep their timesteps as whole numbers, cut, not rounded.
    return int(sigma * NUM_TRAIN_TIMESTEPS) / NUM_TRAIN_TIMESTEPS


def _unipc(n: int, shift: float) -> list[float]:
    first, *rest = (shifted(s, shift) for s in _linspace(1.0, 1 / NUM_TRAIN_TIMESTEPS, n + 1)[:-1])
    # UniPC keeps its first sigma just below 1.
    return [_cut(first - 1e-6), *map(_cut, rest)]


def _dpmpp(n: int, shift: float) -> list[float]:
    alphas = _linspace(1.0, 1 / NUM_TRAIN_TIMESTEPS, n + 1)
    return [_cut(shifted(1 - alpha, shift)) for alpha in reversed(alphas[1:])]


_RULES: dict[str, Callable[[int, float], list[float]]] = {
    "flow_match_euler": _euler,
    "heun": _euler,
    "unipc": _unipc,
    "dpmpp_2m": _dpmpp,
    "dpmpp_2m_sde": _dpmpp,
    "deis": _dpmpp,
    "sa_solver": _dpmpp,
    "lcm": _euler,
}


def noise_levels(
    scheduler: str,
    num_inference_steps: int,
    flow_shift: float = 1.0,
    start: float | None = None,
) -> tuple[float, ...]:
    """Work out ``timesteps / num_train_timesteps`` of every whole step.

    Args:
        scheduler: A name of ``flowblend_plugin.schedulers.factory``, such as ``"unipc"``.
        num_inference_steps: Number of steps, at least 1.
        flow_shift: Shift of the noise levels; above 1 spends more steps on high noise.
        start: Noise level of the first step, see ``grids.start_level``; None for the scheduler's.

    Returns:
        One level per step, from about 1 down towards 0.

    Raises:
        StageError: The scheduler's levels aren't known.
    """
    if start is not None and scheduler in SOLVERS:
        return joined_grid([Leg(scheduler, num_inference_steps)], flow_shift, start).levels
    rule = _RULES.get(scheduler)
    if rule is None or start is not None:
        raise StageError(
            f"the noise levels of scheduler {scheduler!r} aren't known here: use one of "
            f"{', '.join(sorted(_RULES))}, or give boundaries as fractions of the steps"
        )
    return tuple(min(1.0, level) for level in rule(num_inference_steps, flow_shift))
