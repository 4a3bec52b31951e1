"""The noise level of every step, worked out without torch, so that a plan needs no model.

Pure Python. The formulas are those of diffusers' flow-matching schedulers; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable

from flowblend_plugin.errors import StageError

NUM_TRAIN_TIMESTEPS = 1000


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _linspace(start: float, stop: float, count: int) -> list[float]:
    if count == 1:
        return [start]
    return [start + (stop - start) * i / (count - 1) for i in range(count)]


def _euler(n: int, shift: float) -> list[float]:
    # diffusers shifts twice: once the range's lower end, once every sigma in it.
    lowest = _shifted(1 / NUM_TRAIN_TIMESTEPS, shift)
    return [_shifted(s, shift) for s in _linspace(1.0, lowest, n)]


def _cut(sigma: float) -> float:
    # These solvers keep their timesteps as whole numbers, cut, not rounded.
    return int(sigma * NUM_TRAIN_TIMESTEPS) / NUM_TRAIN_TIMESTEPS


def _unipc(n: int, shift: float) -> list[float]:
    first, *rest = (_shifted(s, shift) for s in _linspace(1.0, 1 / NUM_TRAIN_TIMESTEPS, n + 1)[:-1])
    # UniPC keeps its first sigma just below 1.
    return [_cut(first - 1e-6), *map(_cut, rest)]


def _dpmpp(n: int, shift: float) -> list[float]:
    alphas = _linspace(1.0, 1 / NUM_TRAIN_TIMESTEPS, n + 1)
    return [_cut(_shifted(1 - alpha, shift)) for alpha in reversed(alphas[1:])]


_RULES: dict[str, Callable[[int, float], list[float]]] = {
    "flow_match_euler": _euler,
    "heun": _euler,
    "unipc": _unipc,
    "dpmpp_2m": _dpmpp,
}


def noise_levels(
    scheduler: str, num_inference_steps: int, flow_shift: float = 1.0
) -> tuple[float, ...]:
    """Work out ``timesteps / num_train_timesteps`` of every whole step.

    Args:
        scheduler: ``"flow_match_euler"``, ``"heun"``, ``"unipc"`` or ``"dpmpp_2m"``.
        num_inference_steps: Number of steps, at least 1.
        flow_shift: Shift of the noise levels; above 1 spends more steps on high noise.

    Returns:
        One level per step, from about 1 down towards 0.

    Raises:
        StageError: The scheduler's levels aren't known.
    """
    rule = _RULES.get(scheduler)
    if rule is None:
        raise StageError(
            f"the noise levels of scheduler {scheduler!r} aren't known here: use one of "
            f"{', '.join(sorted(_RULES))}, or give boundaries as fractions of the steps"
        )
    return tuple(rule(num_inference_steps, flow_shift))
