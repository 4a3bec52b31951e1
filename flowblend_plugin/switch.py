"""The switch: swaps a pipeline's denoiser in mid-trajectory and puts everything back."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal

import torch
from diffusers.callbacks import PipelineCallback

from flowblend_plugin.denoisers.conditioning import Adaptations
from flowblend_plugin.denoisers.placement import (
    Denoiser,
    Placement,
    all_denoisers,
    check_names,
    forget_switch,
    living_switch,
    note_switch,
    own_placement,
    place,
    refuse_second,
    take_back,
)
from flowblend_plugin.denoisers.residency import Residency
from flowblend_plugin.errors import SwitchError
from flowblend_plugin.schedulers.flow_blend import agreed_stages, make_stages, wrap_scheduler
from flowblend_plugin.schedulers.solver_state import reset_history
from flowblend_plugin.schedulers.stage_mixin import Seed, StageMixin
from flowblend_plugin.schedulers.stage_solvers import spread_stages
from flowblend_plugin.stage_hooks.attention import StageAttention
from flowblend_plugin.stage_hooks.cache import CacheReport, StageCaches
from flowblend_plugin.stage_hooks.early_exit import OnlineSwitch, SelfDifference
from flowblend_plugin.stage_hooks.extrapolation import StageExtrapolation
from flowblend_plugin.stage_hooks.guidance import StageGuidance, check_guidance
from flowblend_plugin.stage_hooks.lora import AdapterSource, StageAdapters
from flowblend_plugin.stages import EXTRAPOLATED, StageSchedule, stage_letters


class DenoiserSwitch(PipelineCallback):
    """Let a large and a small denoiser take turns inside one trajectory of a pipeline.

    The constructor attaches: a scheduler without stages is replaced by a wrapped copy that drives
    the swaps. ``detach``, or leaving a ``with`` block, puts the pipe back as it was, whatever
    happened; the large denoiser also comes back after the last step of every call. A call that
    failed outside ``with`` leaves the pipe as the failure found it until the next call's
    ``set_timesteps``, or ``detach``.

    The switch is also a ``callback_on_step_end``. Passing it is optional: it repeats what the
    scheduler has done already, and it drives the swaps where a pipeline steps private copies of
    its scheduler.

    Args:
        pipe: A diffusers pipeline with a ``transformer`` or a ``unet``. Where it has two experts
            of its own (Wan 2.2), both together are the large denoiser.
        small: The small denoiser: a module, a folder or a Hub id; optional if no stage uses it.
            For a pipe with two experts, one for both of them, or a pair. It follows the pipe's own
            denoiser in offloading, casting and quantisation.
        stages: Stages, or a stage string; None takes those of the pipe's scheduler. A letter
            beyond L and S is the initial of a name in ``denoisers``.
        boundaries: See ``StageSchedule.parse``.
        boundary_sigmas: See ``StageSchedule.parse``.
        solver_history: What a multi-step solver does at a switch: ``"keep"`` its memory of the
            former denoiser's outputs, so that equal denoisers change no bit, or ``"reset"`` it.
        seed: Seed of a stochastic solver's noise; see ``wrap_scheduler``.
        on_step: Called after every step with its index and the role that ran it; what it raises
            ends the call. Works for pipelines without ``callback_on_step_end`` too.
        denoisers: Denoisers by name, as ``small``; ``{"small": m}`` is ``small=m``.
        adapters: LoRA adapters by name, for stages that name them; see ``StageAdapters``.
        adaptive: A rule that ends the first stage of LSL before its boundary.

    Raises:
        SwitchError: The pipe has a switch, no stages, contradicting stages, or no denoiser; or
            can't do what a stage asks for.
        PairMismatchError: The denoisers don't fit; every mismatch is listed.
        AdapterError: An adapter is missing or doesn't fit.
        StageError: The stages make no schedule.

    Reference:
        FlowBlending: stage-aware multi-model sampling, arXiv:2512.24724.
    """

    tensor_inputs: list[str] = []  # noqa: RUF012 - diffusers reads it as an instance attribute

    def __init__(
        self,
        pipe: Any,
        small: Denoiser | None = None,
        stages: StageSchedule | str | None = None,
        boundaries: Sequence[float] | None = None,
        boundary_sigmas: Sequence[float] | None = None,
        solver_history: Literal["keep", "reset"] = "keep",
        seed: Seed | None = None,
        on_step: Callable[[int, str], None] | None = None,
        denoisers: Mapping[str, Denoiser] | None = None,
        adapters: Mapping[str, AdapterSource | Mapping[str, AdapterSource]] | None = None,
        adaptive: SelfDifference | None = None,
    ) -> None:
        super().__init__()
        if solver_history not in ("keep", "reset"):
            raise SwitchError(f"solver_history must be 'keep' or 'reset', got {solver_history!r}")
        refuse_second(pipe)
        given = all_denoisers(small, denoisers)
        self._pipe = pipe
        self._on_step = on_step
        own = take_back(pipe, own_placement(pipe))
        self._solver_history = solver_history
        self._original_scheduler = getattr(pipe.scheduler, "_flowblend_original", pipe.scheduler)
        letters = stage_letters(tuple(given))
        self.stages = agreed_stages(
            self._original_scheduler, make_stages(stages, boundaries, boundary_sigmas, letters)
        )
        self._online = OnlineSwitch(adaptive, self.stages, pipe.scheduler.order)
        check_names(given, self.stages.roles)
        check_guidance(pipe, self.stages.stages)
        self._placements = {
            "large": own,
            **{name: place(pipe, name, given[name], own) for name in given},
        }
        self._stage_indices: tuple[int, ...] = ()
        self._stage = -1
        self._role = "large"
        self._first_iteration: Any = None
        self._companions: weakref.WeakSet[StageMixin] = weakref.WeakSet()
        self.denoisers_run: list[str] = []
        self._attach(seed, adapters)

    def _attach(self, seed: Seed | None, adapters: Mapping[str, Any] | None) -> None:
        stages = self.stages.stages
        modules = {name: list(p.values()) for name, p in self._placements.items()}
        self._attention = StageAttention(stages)
        self._guidance = StageGuidance(self._pipe)
        self._extrapolation = StageExtrapolation(self._pipe, stages)
        self._caches = StageCaches(self._pipe, stages, itertools.chain(*modules.values()))
        with ExitStack() as undo:
            self._adapters = StageAdapters(self._pipe, stages, modules, adapters)
            undo.callback(self._adapters.restore)
            self._residency = Residency(self._pipe, self._placements)
            undo.callback(self._residency.restore)
            self._adaptations = Adaptations(self._placements)
            undo.callback(self._adaptations.remove)
            scheduler: Any = self._original_scheduler
            has_stages = isinstance(scheduler, StageMixin) and scheduler.stages is not None
            if not has_stages or seed is not None:
                scheduler = wrap_scheduler(scheduler, self.stages, seed=seed)
                scheduler._flowblend_original = self._original_scheduler
            scheduler.attach_listener(self)
            undo.pop_all()
        self._scheduler = scheduler
        if self._pipe.scheduler is not scheduler:
            self._pipe.scheduler = scheduler
        note_switch(self._pipe, self, self._placements["large"])

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The planned role of every step of the present, or the last, trajectory."""
        return tuple(self.stages.stages[index].denoiser for index in self._stage_indices)

    @property
    def step_stages(self) -> tuple[int, ...]:
        """The index of every step's stage in the present, or the last, trajectory."""
        return self._stage_indices

    @property
    def cache_reports(self) -> tuple[CacheReport, ...]:
        """What the stages' caches saved in the present, or the last, trajectory."""
        return tuple(self._caches.reports)

    @property
    def attached(self) -> bool:
        """Whether the switch still drives its pipe."""
        return living_switch(self._pipe) is self

    def detach(self) -> None:
        """Put the pipe back as it was; doing it twice does nothing."""
        if not self.attached:
            return
        self.trajectory_finished()
        self._adaptations.remove()
        self._residency.restore()
        self._adapters.restore()
        self._scheduler.detach_listener()
        if self._pipe.scheduler is not self._original_scheduler:
            self._pipe.scheduler = self._original_scheduler
        forget_switch(self._pipe)

    def __enter__(self) -> DenoiserSwitch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    # What the scheduler tells us.

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        """Install the first stage's denoiser: the scheduler's ``set_timesteps`` was called."""
        self._leave_stage()
        self._stage_indices = stage_indices
        self._first_iteration = None
        self.denoisers_run = []
        self._caches.start()
        self._guidance.start()
        self._online.start()
        self._residency.start()
        self._extrapolation.start(self._scheduler)
        self._begin_step(first_step)

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The output that the solver takes: with the stage's guidance scale, or extrapolated."""
        taken = self._extrapolation.model_output(self._guidance.combine(output), sample)
        self._online.note(taken)
        return taken

    def step_finished(self, step_index: int) -> None:
        """Install the denoiser of the step after ``step_index`` (0-based)."""
        self._finish(step_index)

    def trajectory_finished(self) -> None:
        """Give the pipe its large denoiser, and everything else of its own, back."""
        self._leave_stage()
        self._extrapolation.finish()
        self._guidance.finish()
        self._adapters.rest()
        self._install("large")

    def companion_stepped(self, companion: StageMixin, calls: int) -> None:
        """Note a copy of the scheduler, and check that somebody announces the stages.

        Raises:
            SwitchError: The pipeline's second iteration runs, and nobody announced the first; or a
                stage is extrapolated.
        """
        self._extrapolation.refuse_companion()
        self._online.refuse_companion()
        self._companions.add(companion)
        iteration = getattr(self._pipe, "current_timestep", None)
        if self._first_iteration is None:
            self._first_iteration = iteration
        if self.denoisers_run or (calls == 1 and iteration is self._first_iteration):
            return
        raise SwitchError(
            "this pipeline steps private copies of its scheduler, so its stages didn't run: "
            "pass the switch as callback_on_step_end, which follows such pipelines too"
        )

    # For checkpoints.

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self._pipe

    @property
    def scheduler(self) -> Any:
        """The scheduler that drives the swaps."""
        return self._scheduler

    @property
    def placements(self) -> Mapping[str, Placement]:
        """By role, the denoisers and the pipe's attributes that they take."""
        return self._placements

    def remembered(self) -> dict[str, Any] | None:
        """What the further steps go by besides the solver; None within a stage with a cache."""
        if self._caches.is_filled:
            return None
        return {
            "stage_indices": self._stage_indices,
            "extrapolation": self._extrapolation.remembered(),
            "online": self._online.remembered(),
            "caches": [asdict(report) for report in self._caches.reports],
        }

    def recall(self, memory: dict[str, Any], answer: Any, *, is_there: bool) -> None:
        """Go on by another's memory, at the first skipped step and, ``is_there``, after the last.

        ``answer`` is any output of the denoiser, of which only the structure counts.
        """
        self._stage_indices = memory["stage_indices"]
        self._extrapolation.recall(memory["extrapolation"], answer)
        if is_there:  # before that, it would revise what is known already
            self._online.recall(memory["online"])
            self._caches.reports = [CacheReport(**report) for report in memory["caches"]]

    # What the pipeline tells us, where it has a callback.

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Do after a step what the scheduler's announcement does, if it made none."""
        if not self.attached:
            raise SwitchError("this switch was detached: attach a new one for this call")
        if pipeline.scheduler is not self._scheduler:
            raise SwitchError(
                "the pipe's scheduler was replaced while the switch was attached, so its stages "
                "did not run: set the scheduler first, then attach the switch"
            )
        if not self._scheduler.calls and self._stage_indices:
            self._follow(step_index)
        return callback_kwargs

    def _follow(self, iteration: int) -> None:
        """Drive the stages by the iterations of a pipeline that steps copies of the scheduler."""
        order, calls = self._scheduler.order, iteration + 1
        steps = len(self._scheduler.timesteps)
        total = getattr(self._pipe, "num_timesteps", steps)
        if calls == 1 and total > steps:
            self._stage_indices = spread_stages(self._scheduler, self.stages, total)
        last = calls >= total
        if last or calls % order == 0:
            self._finish(len(self._stage_indices) - 1 if last else calls // order - 1)
        if last:
            self.trajectory_finished()

    # Stages.

    def _finish(self, step_index: int) -> None:
        # What was installed, not what was planned.
        role = EXTRAPOLATED if self._extrapolation.is_running else self._role
        self.denoisers_run.append(role)
        self._stage_indices = self._online.revise(step_index, self._stage_indices)
        if step_index + 1 < len(self._stage_indices):
            self._begin_step(step_index + 1)
        if self._on_step is not None:
            self._on_step(step_index, role)

    def _begin_step(self, step: int) -> None:
        index = self._stage_indices[step]
        stage, start = self.stages.stages[index], self._stage_indices.index(index)
        steps, total = self._stage_indices.count(index), len(self._stage_indices)
        # In an extrapolated stage the denoiser of the stage before stays where it is.
        role = self._role if stage.is_extrapolated else stage.denoiser
        modules = list(self._placements[role].values())
        if index != self._stage:
            self._leave_stage()
            self._change(role)
            self._stage = index
            self._guidance.enter(stage, modules)
            self._attention.enter(stage, modules)
            self._caches.enter(index, stage, modules, step, steps - (step - start), total)
        self._extrapolation.enter(stage, self._placements[role], step)
        if not stage.is_extrapolated:
            self._adapters.enter(stage, modules, step - start, steps)

    def _leave_stage(self) -> None:
        self._stage = -1
        self._extrapolation.leave()
        self._caches.leave()
        self._attention.leave()

    def _change(self, role: str) -> None:
        if role == self._role:
            return
        self._install(role)
        if self._solver_history == "reset":
            working = [self._scheduler] if self._scheduler.calls else self._companions
            for scheduler in working:
                reset_history(scheduler)

    def _install(self, role: str) -> None:
        leaving, coming = self._placements[self._role], self._placements[role]
        self._role = role
        if leaving is not coming:
            self._residency.change(leaving, coming)
        for name, module in coming.items():
            if getattr(self._pipe, name) is module:
                continue
            if getattr(module, "is_cache_enabled", False):
                # It kept its cache of the former run; a cache only holds within one stage.
                module._reset_stateful_cache()  # type: ignore[operator]
            setattr(self._pipe, name, module)
