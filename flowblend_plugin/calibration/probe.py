"""calibrate: probes a pair of denoisers with some prompts, and gives one ``Calibration``."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowblend_plugin.calibration.calibration import CalibratedStep, Calibration
from flowblend_plugin.calibration.divergence import StepDivergence, VelocityLog
from flowblend_plugin.calibration.sensitivity import (
    Sensitivities,
    default_positions,
    measure_sensitivities,
)
from flowblend_plugin.denoisers.placement import Denoiser
from flowblend_plugin.errors import CalibrationError
from flowblend_plugin.schedulers.noise import Seed

SENSITIVITY_PROMPTS = 8


@dataclass(frozen=True)
class Probe:
    """One prompt to probe with.

    Args:
        sample: Calls the pipe with its own noise, the same every time, and gives the final latents.
        seed: Seed of a stochastic solver's noise.
    """

    sample: Callable[[], Tensor]
    seed: Seed | None = None


def calibrate(
    pipe: Any,
    small: Denoiser,
    probes: Sequence[Probe],
    *,
    cost_ratio: float,
    conditions: Mapping[str, Any],
    sensitivity_prompts: int = SENSITIVITY_PROMPTS,
    positions: int = 10,
    on_run: Callable[[str], None] | None = None,
) -> Calibration:
    """Measure a pair of denoisers.

    Args:
        pipe: A pipeline; see ``DenoiserSwitch``.
        small: The small denoiser.
        probes: The prompts. Each costs one run in which both denoisers answer.
        cost_ratio: Full FLOPs of a small forward relative to a large one.
        conditions: What the calibration is to say that it holds for, as plain values.
        sensitivity_prompts: How many of the prompts are asked for sensitivities, too: each costs
            about ``1 + positions / 2`` further runs of the large denoiser.
        positions: Steps at which sensitivities are measured.
        on_run: Called after every run, with what it was for.

    Returns:
        The calibration.

    Raises:
        CalibrationError: There is no prompt, no step is seen, or the trajectories differ in
            their steps.
        SwitchError: See ``DenoiserSwitch`` and ``VelocityLog``.
    """
    if not probes:
        raise CalibrationError("a calibration needs at least one prompt, got none")
    say = on_run or (lambda what: None)
    steps = _log_velocities(pipe, small, probes, say)
    found = [
        measure_sensitivities(
            pipe, small, probe.sample, default_positions(len(steps), positions), probe.seed,
            on_run=lambda: say("sensitivities"),
        )
        for probe in probes[: max(1, sensitivity_prompts)]
    ]  # fmt: skip
    return Calibration(
        conditions=conditions,
        prompts=len(probes),
        steps=steps,
        cost_ratio=cost_ratio,
        positions=found[0].positions,
        interactions=_average(found),
        sensitivity_prompts=len(found),
        final_rms=statistics.fmean(one.final_rms for one in found),
    )


def _log_velocities(
    pipe: Any, small: Denoiser, probes: Sequence[Probe], say: Callable[[str], None]
) -> tuple[CalibratedStep, ...]:
    """Run every prompt with both denoisers answering."""
    log: dict[int, list[StepDivergence]] = defaultdict(list)
    for probe in probes:
        with (
            VelocityLog(pipe, small, lambda d: log[d.step].append(d), probe.seed),
            torch.no_grad(),
        ):
            probe.sample()
        say("velocities")
    if not log:
        raise CalibrationError(
            "no step of this pipeline was seen: it steps private copies of its scheduler, or asks "
            "no denoiser, and can't be probed"
        )
    return tuple(_summarise(log[step]) for step in sorted(log))


def _summarise(records: Sequence[StepDivergence]) -> CalibratedStep:
    """Mean and spread of one step's measures over all samples of all prompts."""
    if len({record.sigma for record in records}) > 1:
        raise CalibrationError(
            f"the prompts' trajectories differ at step {records[0].step}: probe them with one "
            "solver and one number of steps"
        )
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name, numbers in record.values.items():
            values[name] += numbers
    return CalibratedStep(
        records[0].step,
        records[0].sigma,
        {name: statistics.fmean(numbers) for name, numbers in values.items()},
        {name: statistics.pstdev(numbers) for name, numbers in values.items()},
    )


def _average(found: Sequence[Sensitivities]) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(statistics.fmean(cells) for cells in zip(*rows, strict=True))
        for rows in zip(*(one.gram for one in found), strict=True)
    )
