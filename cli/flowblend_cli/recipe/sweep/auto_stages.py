"""Automatic stages, chosen from a calibration: ``stages = "auto"`` and ``stages = "adaptive"``."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowblend_cli.errors import ModelNameError, UsageError
from flowblend_cli.jobs import Job
from flowblend_cli.models.calibrations import BUNDLED_NAME, read_calibration
from flowblend_cli.models.forwards import PIPELINES
from flowblend_cli.models.registry import find_pair, resolve_model
from flowblend_cli.models.solvers import find_solver
from flowblend_plugin.calibration.calibration import Calibration, most_large_steps
from flowblend_plugin.calibration.criteria import choose
from flowblend_plugin.errors import BudgetError, CalibrationError, StageError
from flowblend_plugin.schedulers.sigmas import noise_levels
from flowblend_plugin.stages import Stage, StageSchedule

Kind = Literal["auto", "adaptive"]
KINDS: tuple[Kind, ...] = ("auto", "adaptive")
DEFAULT_BUDGET = 0.6
DEFAULT_THRESHOLD = 0.05
# What only one kind of stages reads.
KEYS: Mapping[Kind, frozenset[str]] = {
    "auto": frozenset({"budget", "calibration", "criterion", "max_stages"}),
    "adaptive": frozenset({"budget", "calibration", "threshold"}),
}
AUTOMATIC_KEYS = KEYS["auto"] | KEYS["adaptive"]
# Fewest positions of a calibration from which the steps between follow.
_FEWEST = 5
# Conditions that a calibration holds for; other differences, of seeds or of steps, don't matter.
_COMPARED = ("pipeline", "small", "height", "width", "num_frames", "guidance_scale", "mode")


@dataclass(frozen=True)
class Automatic:
    """What [blend] sets where it leaves the stages to data.

    Args:
        kind: ``"auto"`` chooses before the render, ``"adaptive"`` during it.
        budget: Share of the all-large cost that is never exceeded.
        criterion: See ``flowblend_plugin.calibration.criteria.choose``.
        max_stages: Likewise.
        calibration: File as the recipe names it; None for the one that comes with the pipeline.
        threshold: See ``flowblend_plugin.stage_hooks.early_exit.SelfDifference``.
    """

    kind: Kind
    budget: float = DEFAULT_BUDGET
    criterion: str = "best"
    max_stages: int = 3
    calibration: str | None = None
    threshold: float = DEFAULT_THRESHOLD

    @property
    def placeholder(self) -> tuple[Stage, ...]:
        """The stages of a job until its own are known."""
        if self.kind == "auto":
            return (Stage("large"),)
        return StageSchedule.parse("LSL", (0.4, 0.8)).stages

    @classmethod
    def of(cls, values: Mapping[str, Any], *, is_swept: bool = False) -> Automatic | None:
        """Read the values of [blend]; None where its stages are written out.

        Args:
            values: Keys of [blend] with their values.
            is_swept: Whether other combinations have other stages, which may read other keys.

        Raises:
            StageError: A key is set that these stages don't read.
        """
        kind = values.get("stages")
        if isinstance(kind, str) and kind not in KINDS and kind.lower() in KINDS:
            raise StageError(f"stages {kind!r} are no letters: did you mean {kind.lower()!r}?")
        read = KEYS[kind] if kind in KINDS else frozenset()
        for key in sorted(AUTOMATIC_KEYS):
            if values.get(key) is not None and key not in read and not is_swept:
                kinds = " or ".join(f'"{k}"' for k in KINDS if key in KEYS[k])
                found = f'"{kind}"' if kind in KINDS else "stages that are written out"
                raise StageError(
                    f"{key} is for stages = {kinds}, and {found} don't read it: remove it"
                )
        if kind not in KINDS:
            return None
        return cls(kind, **{key: values[key] for key in read if values.get(key) is not None})


@dataclass
class Settler:
    """Settles the stages of jobs that leave them to data.

    Args:
        recipe_dir: Folder that calibrations and model folders are relative to.
        is_idle: Whether jobs are to keep what stands for their stages.
    """

    recipe_dir: Path
    is_idle: bool = False
    warnings: dict[str, None] = field(default_factory=dict)
    _known: dict[Any, tuple[Stage, ...]] = field(default_factory=dict)

    def settle(self, job: Job, automatic: Automatic) -> tuple[Stage, ...]:
        """Choose the stages of a job.

        Raises:
            CalibrationError: There is no calibration, or it can't be read.
            StageError: The budget can't be kept.
            UsageError: The noise levels of the steps aren't known offline.
        """
        key = (automatic, job.model, job.sampling, job.arguments)
        if key not in self._known:
            settle = self._best_stages if automatic.kind == "auto" else self._most_large
            self._known[key] = settle(job, automatic)
        return self._known[key]

    def _best_stages(self, job: Job, automatic: Automatic) -> tuple[Stage, ...]:
        calibration = self._calibration(job, automatic)
        try:
            solver = find_solver(job.model.pipeline, job.sampling, self.recipe_dir)
        except UsageError as error:
            reason = str(error).rpartition("): ")[0]
            raise UsageError(f"{reason}), which 'auto' reads: write the stages out") from error
        if solver.name == "heun":
            raise StageError(
                "stages = 'auto' isn't possible with heun, which asks the denoiser twice a step: "
                "choose another scheduler"
            )
        steps = job.num_inference_steps
        sigmas = noise_levels(solver.name, steps, solver.flow_shift, solver.start)
        chosen = choose(
            calibration.at(sigmas), automatic.budget, automatic.criterion, automatic.max_stages
        )
        return chosen.schedule.stages

    def _most_large(self, job: Job, automatic: Automatic) -> tuple[Stage, ...]:
        steps = job.num_inference_steps
        ratio = self._calibration(job, automatic).cost_ratio
        large = most_large_steps(steps, ratio, automatic.budget)
        if job.sampling.scheduler == "heun":
            raise StageError(
                "adaptive stages compare one step with the next, and heun asks the denoiser twice "
                "a step: choose another scheduler"
            )
        if large >= steps:
            return (Stage("large"),)
        if large < 2:
            least = math.ceil((ratio + 2 / steps * (1 - ratio)) * 1000) / 1000
            raise BudgetError(
                f"a budget of {automatic.budget} leaves {max(0, large)} of {steps} steps to the "
                f"large denoiser, and adaptive stages need 2 at least: raise it to {least:g}"
            )
        return StageSchedule.parse("LSL", [(large - 1) / steps, (steps - 1) / steps]).stages

    def _calibration(self, job: Job, automatic: Automatic) -> Calibration:
        found = find_calibration(automatic.calibration, job.model.pipeline, self.recipe_dir)
        # A pipeline's own calibration is for that pipeline, under every name.
        ignored: tuple[str, ...] = () if automatic.calibration is not None else ("pipeline",)
        if ignored and job.model.small == job.model.pipeline:
            ignored = ("pipeline", "small")
        self.warnings |= dict.fromkeys(_mismatches(found, job, ignored))
        if len(found.positions) < _FEWEST:
            has = f"sensitivities of {len(found.positions)} of {len(found.steps)} steps"
            self.warnings[f"the calibration has {has}, too few to go by: probe more"] = None
        return found


def find_calibration(name: str | None, pipeline: str, recipe_dir: Path) -> Calibration:
    """Read a calibration.

    Args:
        name: File as the recipe names it; None for the one in the pipeline's folder.
        pipeline: The pipeline as the recipe names it.
        recipe_dir: Folder that both are relative to.

    Raises:
        CalibrationError: It isn't there, or can't be used.
    """
    if name is not None:
        return _read(recipe_dir / name)
    try:
        folder = resolve_model(pipeline, recipe_dir).path
    except ModelNameError:
        folder = None
    path = folder / BUNDLED_NAME if folder is not None else None
    if path is None or not path.is_file():
        raise CalibrationError(
            f"{pipeline!r} brings no calibration: make one with flowblend probe, and name it in "
            'calibration = "calibration.json"'
        )
    return _read(path)


_read = functools.cache(read_calibration)


def _mismatches(calibration: Calibration, job: Job, ignored: Sequence[str]) -> list[str]:
    """Compare the conditions of a calibration with the job's; at most one warning."""
    found = []
    pair = find_pair(job.model.pipeline)
    facts = PIPELINES.get((pair.pipeline_class if pair is not None else None) or "")
    now = {
        "pipeline": job.model.pipeline, "small": job.model.small, "mode": job.sampling.mode
    }  # fmt: skip
    for key in _COMPARED:
        if key in ignored:
            continue
        then = calibration.conditions.get(key)
        here = now[key] if key in now else job.argument(key, getattr(facts, key, None))
        if then is not None and here is not None and _unlike(key, then, here):
            found.append(f"{key} {here} (calibrated at {then})")
    if not found:
        return []
    return [f"the calibration was made under other conditions: {', '.join(found)}; probe again"]


def _unlike(key: str, then: Any, here: Any) -> bool:
    """Whether two values differ by more than a calibration allows: sizes by a third."""
    is_number = isinstance(then, (int, float)) and not isinstance(then, bool) and then > 0
    if is_number and key in ("height", "width", "num_frames"):
        return not 0.75 <= here / then <= 4 / 3
    return bool(then != here)
