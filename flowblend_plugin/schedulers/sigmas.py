"""Sigmas: the noise level of every step, computed without torch, so that a plan needs no model.

Pure Python. A noise level is a sigma of flow matching, from 1 (noise) to 0. The formulas are those
of diffusers' schedulers, rounded where those round, so that levels are equal to the last bit; a
test compares them.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import SOLVERS, Stage

NUM_TRAIN_TIMESTEPS = 1000
# Pipelines that ask their scheduler for a number of steps and nothing else, and whose first latents
# are noise, with at most a condition beside it. Others hand it noise levels of their own, or a
# shift that depends on the picture's size.
PLAIN_PIPELINES = frozenset(
    {
        "Kandinsky5T2IPipeline",
        "Kandinsky5T2VPipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "SkyReelsV2Pipeline",
        "StableDiffusion3Pipeline",
        "WanImageToVideoPipeline",
        "WanPipeline",
        "WanVACEPipeline",
    }
)
# Solvers that keep their timesteps as they are; the others cut them to whole numbers.
_EXACT = ("flow_match_euler", "lcm")
_LEAST = 1 / NUM_TRAIN_TIMESTEPS


@dataclass(frozen=True)
class SigmaSegment:
    """One stage's share of a trajectory: so many steps of one solver, down to a noise level.

    Args:
        solver: One of ``stages.SOLVERS``.
        steps: Number of its steps, at least 1.
        until: Noise level that its last step ends at; None for 0.
    """

    solver: str
    steps: int
    until: float | None = None


@dataclass(frozen=True)
class SigmaGrid:
    """The sigmas and timesteps of a whole trajectory, for schedulers and plans.

    Args:
        sigmas: Noise level that each step begins at, descending; the last step ends at 0.
        timesteps: Timestep that the denoiser is given at each step, from 1000 to 0.
        is_whole: Whether all of these are whole numbers.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    is_whole: bool

    @property
    def levels(self) -> tuple[float, ...]:
        """``timesteps / num_train_timesteps``: the levels that stages end at."""
        return tuple(min(1.0, t / NUM_TRAIN_TIMESTEPS) for t in self.timesteps)


def noise_levels(
    scheduler: str,
    num_inference_steps: int,
    flow_shift: float = 1.0,
    start: float | None = None,
) -> tuple[float, ...]:
    """Compute ``timesteps / num_train_timesteps`` of every whole step.

    Args:
        scheduler: A name of ``flowblend_plugin.schedulers.factory``, such as ``"unipc"``.
        num_inference_steps: Number of steps, at least 1.
        flow_shift: Shift of the noise levels; above 1 spends more steps on high noise.
        start: Noise level of the first step, see ``start_level``; None for the scheduler's.

    Returns:
        One level per step, from about 1 down towards 0.

    Raises:
        StageError: The scheduler's levels aren't known.
    """
    if start is not None and scheduler in SOLVERS:
        return join_segments(
            [SigmaSegment(scheduler, num_inference_steps)], flow_shift, start
        ).levels
    rule = _RULES.get(scheduler)
    if rule is None or start is not None:
        raise StageError(
            f"the noise levels of scheduler {scheduler!r} aren't known here: use one of "
            f"{', '.join(sorted(_RULES))}, or give boundaries as fractions of the steps"
        )
    return tuple(min(1.0, level) for level in rule(num_inference_steps, flow_shift))


def start_level(sigma_max: float) -> float:
    """Give the noise level t of flow matching whose noise, beside the signal, is ``t / (1 - t)``.

    Args:
        sigma_max: That ratio, in EDM's convention, above 0: 200 is level 0.9950.

    Raises:
        StageError: It isn't above 0.

    Reference:
        EDM, arXiv:2206.00364; as a start of flow-matching models in rCM (arXiv:2510.08431) and
        TurboDiffusion (arXiv:2512.16093).
    """
    if isinstance(sigma_max, bool) or not 0 < sigma_max < float("inf"):
        raise StageError(f"sigma_max must be a number above 0, such as 200, got {sigma_max!r}")
    return sigma_max / (1 + sigma_max)


def segments_of(stages: Sequence[Stage], solver: str) -> tuple[SigmaSegment, ...]:
    """Give the segments of stages that have steps of their own.

    Args:
        stages: The stages.
        solver: Solver of those that name none.
    """
    return tuple(SigmaSegment(s.scheduler or solver, s.steps or 1, s.until_sigma) for s in stages)


def join_segments(
    segments: Sequence[SigmaSegment], shift: float = 1.0, start: float | None = None
) -> SigmaGrid:
    """Join the segments of a trajectory to one grid.

    Args:
        segments: The segments in order; only the last one ends at 0.
        shift: Shift of the noise levels; above 1 spends more steps on high noise.
        start: Noise level of the first step, below 1; None for the first solver's own.

    Raises:
        StageError: Levels don't descend: a segment ends above its start, or below its solver's last
            level.
    """
    sigmas: list[float] = []
    timesteps: list[float] = []
    begins = start
    for segment in segments:
        first = _own_start(segment.solver) if begins is None else _time(begins, shift)
        found = [shifted(u, shift) for u in _times(segment, first, shift)]
        if begins is not None:
            found[0] = begins
        elif segment.solver == "unipc":
            found[0] -= 1e-6  # as diffusers does, for a logarithm
        sigmas += found
        timesteps += [_timestep(segment.solver, sigma) for sigma in found]
        begins = segment.until
    held = [single(sigma) for sigma in sigmas]
    for before, after in itertools.pairwise([*held, 0.0]):
        if not before > after:
            told = ", ".join(
                str(segment.until) for segment in segments if segment.until is not None
            )
            raise StageError(
                f"noise levels must descend from {held[0]:.4g} to 0, and the steps around "
                f"{before:.4g} don't: move until_sigma ({told or 'none'}) away from there, or "
                "give the stage fewer steps"
            )
    is_whole = not any(segment.solver in _EXACT for segment in segments)
    return SigmaGrid(tuple(sigmas), tuple(timesteps), is_whole)


def _own_start(solver: str) -> float:
    return 1.0 if solver in (*_EXACT, "unipc") else 1 - _LEAST


def _times(segment: SigmaSegment, first: float, shift: float) -> list[float]:
    """Compute the unshifted time of each step of a segment."""
    n = segment.steps
    if segment.until is not None:
        last = _time(segment.until, shift)
    elif segment.solver in _EXACT:
        # These end at their last level before 0, and step from there.
        last, n = shifted(_LEAST, shift), n - 1
    else:
        last = _LEAST if segment.solver == "unipc" else 0.0
    return [first + (last - first) * i / n if i else first for i in range(segment.steps)]


def _time(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)


def _timestep(solver: str, sigma: float) -> float:
    if solver in _EXACT:
        return single(single(sigma) * NUM_TRAIN_TIMESTEPS)
    return float(int(sigma * NUM_TRAIN_TIMESTEPS))


def shifted(time: float, shift: float) -> float:
    """Compute the noise level of an unshifted time."""
    return shift * time / (1 + (shift - 1) * time)


def single(number: float) -> float:
    """Round to single precision, as tensors hold numbers."""
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


# The plain levels of each solver, rounded as diffusers rounds.


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
