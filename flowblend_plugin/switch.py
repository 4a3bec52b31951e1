"""DenoiserSwitch: swaps a pipeline's denoiser in mid-trajectory, and puts everything back."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from diffusers.callbacks import PipelineCallback

from flowblend_plugin.denoisers.adapter_files import AdapterSource
from flowblend_plugin.denoisers.calls import PipeCalls, calling_pipe, is_interrupted
from flowblend_plugin.denoisers.conditioning import fit_inputs
from flowblend_plugin.denoisers.placement import (
    Denoiser,
    DenoiserSlots,
    all_denoisers,
    check_names,
    check_present,
    check_storage,
    followed,
    forget_switch,
    living_switch,
    note_switch,
    place,
    take_back,
)
from flowblend_plugin.errors import CheckpointError, SwitchError
from flowblend_plugin.schedulers.flow_blend import agreed_stages, make_stages, wrap_scheduler
from flowblend_plugin.schedulers.noise import Seed
from flowblend_plugin.schedulers.solver_state import check_resettable, reset_history
from flowblend_plugin.schedulers.stage_mixin import StageMixin
from flowblend_plugin.schedulers.stage_solvers import spread_stages
from flowblend_plugin.schedulers.support import check_supported
from flowblend_plugin.stage_hooks.attention import StageAttention
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stage_hooks.block_size import StageBlockSize
from flowblend_plugin.stage_hooks.cache import CacheReport, StageCaches, forget_cached
from flowblend_plugin.stage_hooks.early_exit import EarlyExit, SelfDifference
from flowblend_plugin.stage_hooks.extrapolation import StageExtrapolation
from flowblend_plugin.stage_hooks.guidance import StageGuidance
from flowblend_plugin.stage_hooks.lora import StageLora
from flowblend_plugin.stage_hooks.residency import Residency
from flowblend_plugin.stages import EXTRAPOLATED, Stage, StageSchedule, stage_letters

_STAGES = "stage_indices"  # beside the hooks' names in a stored state


class DenoiserSwitch(PipelineCallback):
    """Lets a large and a small denoiser take turns inside one trajectory of a pipeline.

    The constructor attaches: a scheduler without stages is replaced by a wrapped copy that drives
    the swaps. ``detach``, or leaving a ``with`` block, puts the pipe back as it was, whatever
    happened, and holds no model any longer. The large denoiser also comes back after the last step
    of every call, and where a call ends before it (``pipe._interrupt``, SDXL's ``denoising_end``)
    at the pipeline's ``maybe_free_model_hooks``, which nearly all pipelines end with. A call that
    failed outside ``with`` leaves the pipe as the failure found it until the next call's
    ``set_timesteps``, or ``detach``. A copy of the pipe, made between two calls, has no switch, but
    keeps what stages' adapters, casting or offloading have on the modules until ``detach``, as a
    saved pipe does; the switch itself can't be copied.

    The switch is also a ``callback_on_step_end``. Passing it is optional: it does nothing more than
    the scheduler does, unless a pipeline steps private copies of its scheduler. Then it drives the
    swaps.

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
        seed: Seed of a stochastic solver's noise, also where the pipeline hands its scheduler a
            generator; see ``wrap_scheduler``.
        on_step: Called after every step with its index and the role that ran it; what it raises
            ends the call. Works for pipelines without ``callback_on_step_end`` too.
        denoisers: Denoisers by name, as ``small``; ``{"small": m}`` is ``small=m``.
        adapters: LoRA adapters by name, for stages that name them; see ``StageLora``.
        adaptive: A rule that ends the first stage of LSL before its boundary.
        hooks: Further hooks, called after the switch's own; see ``StageHook``. One hook belongs to
            one switch.

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
        *,
        hooks: Sequence[StageHook] = (),
    ) -> None:
        super().__init__()
        if solver_history not in ("keep", "reset"):
            raise SwitchError(f"solver_history must be 'keep' or 'reset', got {solver_history!r}")
        check_supported(type(pipe.scheduler))
        if solver_history == "reset":
            check_resettable(pipe.scheduler)
        own = take_back(pipe)
        given = all_denoisers(small, denoisers)
        self._pipe = pipe
        self._on_step = on_step
        self._solver_history = solver_history
        self._original_scheduler = getattr(pipe.scheduler, "_flowblend_original", pipe.scheduler)
        letters = stage_letters(tuple(given))
        self.stages = agreed_stages(
            self._original_scheduler, make_stages(stages, boundaries, boundary_sigmas, letters)
        )
        early_exit = EarlyExit(adaptive, self.stages, pipe.scheduler.order)
        check_names(given, self.stages.roles)
        guidance = StageGuidance(pipe, self.stages.stages)
        self._slots = {
            "large": own,
            **{name: place(pipe, name, given[name], own) for name in given},
        }
        self._stage_indices: tuple[int, ...] = ()
        self._stage = -1
        self._role = "large"
        self._first_iteration: Any = None
        self._followed: int | None = None
        self._copies: weakref.WeakSet[StageMixin] = weakref.WeakSet()
        self.denoisers_run: list[str] = []
        self._attach(guidance, early_exit, hooks, adapters, seed)

    def _attach(
        self,
        guidance: StageGuidance,
        early_exit: EarlyExit,
        further: Sequence[StageHook],
        adapters: Mapping[str, Any] | None,
        seed: Seed | None,
    ) -> None:
        """Make the hooks, and let the scheduler announce its stages to this switch."""
        pipe, stages = self._pipe, self.stages.stages
        modules = {name: list(slots.values()) for name, slots in self._slots.items()}
        attention, extrapolation = StageAttention(stages), StageExtrapolation(pipe, stages)
        self._caches = StageCaches(pipe, stages, itertools.chain(*modules.values()))
        with ExitStack() as undo:
            lora = StageLora(pipe, stages, modules, adapters)
            undo.callback(lora.remove)
            residency = Residency(pipe, self._slots)
            undo.callback(residency.remove)
            self._inputs = undo.enter_context(ExitStack())
            for small, large in followed(self._slots).items():
                self._inputs.push(fit_inputs(large, small))
            blocks = StageBlockSize(self._slots)
            undo.callback(blocks.remove)
            own = (lora, residency, blocks, guidance, attention, self._caches)
            self._hooks: tuple[StageHook, ...] = (*own, extrapolation, early_exit, *further)
            self._states = _states(self._hooks)
            self._scheduler = self._wrapped_scheduler(seed)
            every = itertools.chain(*modules.values())
            self._calls = PipeCalls(pipe, self._scheduler, every, self._hooks)
            undo.callback(self._calls.close)
            self._scheduler.attach_listener(self)
            undo.pop_all()
        if pipe.scheduler is not self._scheduler:
            pipe.scheduler = self._scheduler
        note_switch(pipe, self, self._slots)

    def _wrapped_scheduler(self, seed: Seed | None) -> Any:
        """The pipe's scheduler, wrapped where it has no stages or another seed is asked for."""
        scheduler: Any = self._original_scheduler
        if isinstance(scheduler, StageMixin) and scheduler.stages is not None and seed is None:
            return scheduler
        scheduler = wrap_scheduler(scheduler, self.stages, seed=seed)
        scheduler.own_noise = seed is not None
        scheduler._flowblend_original = self._original_scheduler
        return scheduler

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
        return self._pipe is not None and living_switch(self._pipe) is self

    def detach(self) -> None:
        """Put the pipe back as it was; doing it twice does nothing."""
        if not self.attached:
            return
        with ExitStack() as undo:  # last in, first out, and all of it where one of them raises
            undo.callback(self._let_go)
            undo.callback(forget_switch, self._pipe)
            undo.callback(self._give_scheduler_back)
            undo.callback(self._scheduler.detach_listener)
            undo.callback(self._calls.close)
            for hook in self._hooks:
                undo.callback(hook.remove)
            undo.callback(self._inputs.close)
            undo.callback(self.trajectory_finished)

    def _give_scheduler_back(self) -> None:
        if self._pipe.scheduler is self._scheduler:  # otherwise the user has set another
            self._pipe.scheduler = self._original_scheduler

    def _let_go(self) -> None:
        """Hold no model any longer; what was noted of the last trajectory stays readable."""
        self._pipe = None
        self._slots, self._hooks, self._states = {}, (), {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SwitchError(
            "a DenoiserSwitch belongs to one pipe, and can't be copied or pickled: copy the pipe, "
            "and attach another switch to the copy"
        )

    def __enter__(self) -> DenoiserSwitch:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    # Called by the scheduler.

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        """Install the first stage's denoiser: the scheduler's ``set_timesteps`` was called.

        Raises:
            SwitchError: Another pipe called it; or a denoiser in the pipe was replaced, moved or
                cast since the switch was attached.
        """
        self._check_caller()
        check_present(self._pipe, self._slots)
        self._leave_stage()
        self._install("large")  # a call that failed may have left another one there
        self._stage_indices = stage_indices
        self._first_iteration = self._followed = None
        self.denoisers_run = []
        for hook in self._hooks:
            hook.start(self._scheduler)
        check_storage(self._slots, self.stages.roles)
        self._calls.begin(first_step > 0)
        self._begin_step(first_step)

    def is_called_by_own_pipe(self) -> bool:
        """Whether no other pipe makes the present call."""
        caller, _ = calling_pipe(self)
        return caller is None or caller is self._pipe

    def _check_caller(self) -> bool:
        """Check that no other pipe uses this one's scheduler; say whether a pipe does at all."""
        caller, _ = calling_pipe(self)
        if caller is not None and caller is not self._pipe:
            raise SwitchError(
                f"another {type(caller).__name__} uses the scheduler of a DenoiserSwitch, which "
                "swaps the denoisers of its own pipe only: give the other pipe a scheduler of its "
                "own, such as copy.deepcopy(scheduler), and a switch of its own where it is to "
                "blend"
            )
        return caller is not None

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Give the output that the solver takes: what the hooks make of it, one after another.

        Raises:
            SwitchError: The planned denoiser didn't run, or not for this pipe; or a hook refuses.
        """
        self._check_ran()
        for hook in self._hooks:
            output = hook.model_output(output, sample)
        return output

    def _check_ran(self) -> None:
        """Check that what was called since the last step is what was planned, and nothing else.

        A loop of the user's own may call what can't be seen, but nothing that wasn't planned.
        """
        is_pipes = self._check_caller()
        if not self._calls.is_here:
            raise SwitchError(
                "this pipe's trajectory was begun in another thread: one pipe runs one call at a "
                "time, so give each thread copy.copy(pipe) with a scheduler of its own. Where one "
                "call hops between threads, such as a generator that a pool resumes, run all of "
                "it in one, such as that of ThreadPoolExecutor(max_workers=1)"
            )
        self._calls.check_watched()
        ran = self._calls.take()
        planned = list(self._slots[self._role].values())
        if not ran or any(module not in planned for module in ran):
            check_present(self._pipe, {self._role: self._slots[self._role]})
            if ran or is_pipes:
                raise SwitchError(self._not_planned(ran))

    def _not_planned(self, ran: Sequence[Any]) -> str:
        step, places = len(self.denoisers_run), " or ".join(self._slots[self._role])
        what = (
            f"step {step} was planned for the {self._role} denoiser, in {places}, and this "
            f"{type(self._pipe).__name__} called"
        )
        if not ran:
            return (
                f"{what} none: it skips its denoiser, or calls a copy of it, or calls it past the "
                "module itself, as forward(). Let it call the module in its attribute, or leave "
                "the switch out"
            )
        slots = self._slots.items()
        others = [r for r, own in slots if r != self._role and not {*ran}.isdisjoint(own.values())]
        return (
            f"{what} the {' and the '.join(others)} one: it keeps a denoiser of an earlier step, "
            "or something that is no callback called one between two steps. Let it read its "
            "attribute at every step, and call denoisers yourself in callbacks only"
        )

    def step_finished(self, step_index: int) -> None:
        """Install the denoiser of the step after ``step_index`` (0-based)."""
        self._finish(step_index)

    def trajectory_finished(self) -> None:
        """Give the pipe its large denoiser, and everything else of its own, back."""
        with ExitStack() as undo:
            undo.callback(self._calls.end)
            undo.callback(self._install, "large")
            for hook in self._hooks:
                undo.callback(hook.finish)
            undo.callback(self._leave_stage)

    def call_finished(self) -> None:
        """Give everything back, where the call ended before the last step of its trajectory.

        It goes on where a callback frees the pipe's offloaded models, as pipelines do at the end.

        Raises:
            SwitchError: The pipeline called its denoisers, and never its scheduler's ``step``.
        """
        if self.is_at_rest or is_interrupted(self._pipe):
            return
        is_unseen = bool(self._calls.take()) and not (self.denoisers_run or self._copies)
        self.trajectory_finished()
        if is_unseen:
            raise SwitchError(
                f"{type(self._pipe).__name__} called its denoiser, and never its scheduler's step, "
                "so its stages didn't run: stages follow pipelines that call scheduler.step alone"
            )

    def copy_stepped(self, copied: StageMixin, calls: int) -> None:
        """Note a copy of the scheduler, and check that the stages are announced.

        Raises:
            SwitchError: The pipeline's second iteration runs, and the first wasn't announced; or a
                hook refuses such pipelines.
        """
        for hook in self._hooks:
            hook.refuse_copies()
        self._copies.add(copied)
        iteration = getattr(self._pipe, "current_timestep", None)
        if self._first_iteration is None:
            self._first_iteration = iteration
        if self.denoisers_run or (calls == 1 and iteration is self._first_iteration):
            return
        raise SwitchError(
            "this pipeline steps private copies of its scheduler, so its stages didn't run: "
            "pass the switch as callback_on_step_end, which follows such pipelines too"
        )

    @property
    def is_at_rest(self) -> bool:
        """Whether no trajectory is under way, so that the pipe holds its own denoiser."""
        return self._stage < 0

    # For checkpoints.

    @property
    def pipe(self) -> Any:
        """The pipeline; None once the switch is detached."""
        return self._pipe

    @property
    def scheduler(self) -> Any:
        """The scheduler that drives the swaps."""
        return self._scheduler

    @property
    def calls(self) -> PipeCalls:
        """The calls of its denoisers that the pipe makes."""
        return self._calls

    @property
    def slots(self) -> Mapping[str, DenoiserSlots]:
        """By role, the denoisers and the pipe's attributes that they take."""
        return self._slots

    def state_dict(self) -> dict[str, Any] | None:
        """Give the state of all hooks; None where one of them can't be stored now."""
        if not all(hook.can_be_stored for hook in self._hooks):
            return None
        states = {name: hook.state_dict() for name, hook in self._states.items()}
        return {_STAGES: self._stage_indices} | {k: v for k, v in states.items() if v is not None}

    def prepare_skip(self, state: Mapping[str, Any], answer: Any) -> None:
        """Get ready for stages whose steps aren't computed, up to a stored state.

        Args:
            state: What ``state_dict`` gave.
            answer: An output of the denoiser, of which only the structure counts; None where no
                denoiser has run.

        Raises:
            CheckpointError: A hook whose state was stored isn't there.
        """
        unknown = sorted(state.keys() - {_STAGES, *self._states})
        if unknown:
            raise CheckpointError(
                f"the stored state is of a switch with the hooks {', '.join(unknown)}, which this "
                "one lacks: give it the same hooks, or begin at the first step"
            )
        self._stage_indices = state[_STAGES]
        for name, hook in self._states.items():
            if name in state:
                hook.prepare_skip(state[name], answer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the switch whose ``state_dict()`` this is, after the last skipped step."""
        self._stage_indices = state[_STAGES]
        for name, hook in self._states.items():
            if name in state:
                hook.load_state_dict(state[name])

    # Called by the pipeline, where it takes a callback.

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Drive the stages after a step, where the scheduler itself announced none."""
        if not self.attached:
            raise SwitchError("this switch was detached: attach a new one for this call")
        self._calls.check_scheduler()
        if not self._scheduler.calls and self._stage_indices and step_index != self._followed:
            self._followed = step_index
            self._check_ran()
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
        self._calls.take()  # of a step that was skipped, whose calls were answered
        # What was installed, not what was planned.
        is_extrapolated = self._stage >= 0 and self.stages.stages[self._stage].is_extrapolated
        role = EXTRAPOLATED if is_extrapolated else self._role
        self.denoisers_run.append(role)
        for hook in self._hooks:
            self._stage_indices = hook.revise_stages(step_index + 1, self._stage_indices)
        if step_index + 1 < len(self._stage_indices):
            self._begin_step(step_index + 1)
        if self._on_step is not None:
            self._on_step(step_index, role)
        self._calls.watch()  # also what was compiled in place since the step began

    def _begin_step(self, index: int) -> None:
        stage_index = self._stage_indices[index]
        stage = self.stages.stages[stage_index]
        # In an extrapolated stage the denoiser of the stage before stays where it is.
        role = self._role if stage.is_extrapolated else stage.denoiser
        step = StageStep(
            index=index,
            total=len(self._stage_indices),
            stage=stage,
            stage_index=stage_index,
            start=self._stage_indices.index(stage_index),
            count=self._stage_indices.count(stage_index),
            denoisers=self._slots[role],
        )
        if stage_index != self._stage:
            self._leave_stage()
            self._change(role)
            self._stage = stage_index
            self._calls.claim(step.modules if self._touches(stage) else ())
            for hook in self._hooks:
                hook.enter(step)
        for hook in self._hooks:
            hook.begin_step(step)

    def _touches(self, stage: Stage) -> bool:
        """Whether a stage sets something on its denoiser itself."""
        has_adapters = any(one.adapters for one in self.stages.stages)
        return has_adapters or bool(stage.cache or stage.attention_backend)

    def _leave_stage(self) -> None:
        self._stage = -1
        with ExitStack() as undo:
            for hook in self._hooks:
                undo.callback(hook.leave)

    def _change(self, role: str) -> None:
        if role == self._role:
            return
        self._install(role)
        if self._solver_history == "reset":
            working = [self._scheduler] if self._scheduler.calls else self._copies
            for scheduler in working:
                reset_history(scheduler)

    def _install(self, role: str) -> None:
        self._role = role
        for name, module in self._slots[role].items():
            leaving = getattr(self._pipe, name)
            if leaving is module or all(leaving is not s[name] for s in self._slots.values()):
                continue  # it is there, or the user has put another in its place
            for one in (leaving, module):  # which may have kept something of a former run
                if self._calls.is_free(one):
                    forget_cached(one)
            setattr(self._pipe, name, module)


def _states(hooks: Sequence[StageHook]) -> dict[str, StageHook]:
    """Find the hooks that have a state to store, by the name that it is stored under.

    Raises:
        SwitchError: Two of them share a name.
    """
    found: dict[str, StageHook] = {}
    for hook in hooks:
        if type(hook).state_dict is StageHook.state_dict:
            continue
        name = hook.name or type(hook).__name__
        if name in (_STAGES, *found):
            raise SwitchError(
                f"two hooks store their state as {name!r}: give {type(hook).__name__} another name"
            )
        found[name] = hook
    return found
