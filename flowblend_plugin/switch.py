"""The switch: swaps a pipeline's denoiser in mid-trajectory and puts everything back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

from diffusers.callbacks import PipelineCallback
from torch import nn

from flowblend_plugin.errors import PairMismatchError, SwitchError
from flowblend_plugin.loading import denoiser_name, load_denoiser
from flowblend_plugin.pairing import config_mismatches
from flowblend_plugin.scheduler import make_stages, wrap_scheduler
from flowblend_plugin.solvers import reset_history
from flowblend_plugin.stages import StageSchedule
from flowblend_plugin.trajectory import Seed, StageMixin

# Per pipe its switch, and its own denoiser: a switch may be forgotten while another is installed.
_attached: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[DenoiserSwitch], nn.Module]] = (
    weakref.WeakKeyDictionary()
)


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
        pipe: A diffusers pipeline with a ``transformer`` or a ``unet``.
        small: The small denoiser: a module, a folder or a Hub id; optional if no stage uses it.
        stages: Stages, or a stage string; None takes those of the pipe's scheduler.
        boundaries: See ``StageSchedule.parse``.
        boundary_sigmas: See ``StageSchedule.parse``.
        solver_history: What a multi-step solver does at a switch: ``"keep"`` its memory of the
            former denoiser's outputs, so that equal denoisers change no bit, or ``"reset"`` it.
        seed: Seed of a stochastic solver's noise; see ``wrap_scheduler``.
        on_step: Called after every step with its index and the role that ran it; what it raises
            ends the call. Works for pipelines without ``callback_on_step_end`` too.

    Raises:
        SwitchError: The pipe has a switch, no stages, contradicting stages, or no denoiser.
        PairMismatchError: The denoisers don't fit; every mismatch is listed.
        StageError: The stages make no schedule.

    Reference:
        FlowBlending: stage-aware multi-model sampling, arXiv:2512.24724.
    """

    tensor_inputs: list[str] = []  # noqa: RUF012 - diffusers reads it as an instance attribute

    def __init__(
        self,
        pipe: Any,
        small: nn.Module | str | os.PathLike[str] | None = None,
        stages: StageSchedule | str | None = None,
        boundaries: Sequence[float] | None = None,
        boundary_sigmas: Sequence[float] | None = None,
        solver_history: Literal["keep", "reset"] = "keep",
        seed: Seed | None = None,
        on_step: Callable[[int, str], None] | None = None,
    ) -> None:
        super().__init__()
        if solver_history not in ("keep", "reset"):
            raise SwitchError(f"solver_history must be 'keep' or 'reset', got {solver_history!r}")
        _refuse_second(pipe)
        self._pipe = pipe
        self._on_step = on_step
        self._name = denoiser_name(pipe)
        if getattr(pipe, "transformer_2", None) is not None:
            raise SwitchError(
                "this pipe has two experts of its own (transformer_2), which stages can't share "
                "with yet: load it without transformer_2 and boundary_ratio"
            )
        _take_back(pipe, self._name)
        self._solver_history = solver_history
        self._original_scheduler = getattr(pipe.scheduler, "_flowblend_original", pipe.scheduler)
        self.stages = _agreed_stages(
            self._original_scheduler, make_stages(stages, boundaries, boundary_sigmas)
        )
        self._denoisers = self._pair(small)
        self._roles: tuple[str, ...] = ()
        self._role = "large"
        self._driven_by_scheduler = False
        self.denoisers_run: list[str] = []
        self._attach(seed)

    def _pair(self, small: nn.Module | str | os.PathLike[str] | None) -> dict[str, nn.Module]:
        large = getattr(self._pipe, self._name)
        if small is None:
            if "small" in self.stages.roles:
                raise SwitchError(
                    f"stages {self.stages.letters!r} use the small denoiser, but none was given: "
                    "pass small="
                )
            return {"large": large}
        if getattr(self._pipe, "_all_hooks", None):
            raise SwitchError(
                "this pipe offloads its models, which the switch can't do for the small denoiser "
                "yet: attach it to a pipe without enable_model_cpu_offload"
            )
        if isinstance(small, (str, os.PathLike)):
            vae = getattr(self._pipe, "vae", None)
            small = load_denoiser(small, large, self._name, getattr(vae, "config", None))
        check_pair(getattr(large, "_orig_mod", large), getattr(small, "_orig_mod", small))
        return {"large": large, "small": small}

    def _attach(self, seed: Seed | None) -> None:
        scheduler: Any = self._original_scheduler
        has_stages = isinstance(scheduler, StageMixin) and scheduler.stages is not None
        if not has_stages or seed is not None:
            wrapped = wrap_scheduler(scheduler, self.stages, seed=seed)
            wrapped._flowblend_original = scheduler
            self._pipe.scheduler = wrapped
        self._scheduler: Any = self._pipe.scheduler
        self._scheduler.attach_listener(self)
        _attached[self._pipe] = (weakref.ref(self), self._denoisers["large"])

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The planned role of every step of the present, or the last, trajectory."""
        return self._roles

    @property
    def attached(self) -> bool:
        """Whether the switch still drives its pipe."""
        return _living_switch(self._pipe) is self

    def detach(self) -> None:
        """Put the pipe back as it was; doing it twice does nothing."""
        if not self.attached:
            return
        self._install("large")
        self._scheduler.detach_listener()
        if self._pipe.scheduler is not self._original_scheduler:
            self._pipe.scheduler = self._original_scheduler
        del _attached[self._pipe]

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

    def trajectory_started(self, roles: tuple[str, ...], role: str) -> None:
        """Install the first stage's denoiser: the scheduler's ``set_timesteps`` was called."""
        self._roles = roles
        self._driven_by_scheduler = False
        self.denoisers_run = []
        self._install(role)

    def step_finished(self, step_index: int, next_role: str) -> None:
        """Install the denoiser of the step after ``step_index`` (0-based)."""
        self._driven_by_scheduler = True
        self._finish(step_index, next_role)

    def _finish(self, step_index: int, next_role: str) -> None:
        role = self._role  # what was installed, not what was planned
        self.denoisers_run.append(role)
        self._change(next_role)
        if self._on_step is not None:
            self._on_step(step_index, role)

    def trajectory_finished(self) -> None:
        """Give the pipe its large denoiser back after the last step."""
        self._install("large")

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
        if not self._driven_by_scheduler and self._roles:
            order, calls = self._scheduler.order, step_index + 1
            last = calls >= len(self._scheduler.timesteps)
            if last or calls % order == 0:
                done = len(self._roles) if last else calls // order
                self._finish(done - 1, self._roles[min(done, len(self._roles) - 1)])
            if last:
                self.trajectory_finished()
        return callback_kwargs

    def _change(self, role: str) -> None:
        if role == self._role:
            return
        self._install(role)
        if self._solver_history == "reset":
            reset_history(self._scheduler)

    def _install(self, role: str) -> None:
        module = self._denoisers[role]
        self._role = role
        if getattr(self._pipe, self._name) is module:
            return
        if getattr(module, "is_cache_enabled", False):
            # The module that left the pipe kept its cache of the former run; a cache only holds
            # within one stage.
            module._reset_stateful_cache()  # type: ignore[operator]
        setattr(self._pipe, self._name, module)


def check_pair(large: nn.Module, small: nn.Module) -> None:
    """Check that two loaded denoisers can take turns.

    Raises:
        PairMismatchError: They can't; every mismatch is listed.
    """
    found = []
    if type(large) is not type(small):
        found.append(f"class: large {type(large).__name__}, small {type(small).__name__}")
    found += config_mismatches(
        {k: v for k, v in large.config.items() if k != "_class_name"},  # type: ignore[operator, union-attr]
        {k: v for k, v in small.config.items() if k != "_class_name"},  # type: ignore[operator, union-attr]
    )
    for what in ("dtype", "device"):
        a, b = getattr(large, what), getattr(small, what)
        if a != b:
            found.append(f"{what}: large {a}, small {b}; move the small one with .to(...)")
    if found:
        raise PairMismatchError(type(large).__name__, type(small).__name__, tuple(found))


def _living_switch(pipe: Any) -> DenoiserSwitch | None:
    entry = _attached.get(pipe)
    return entry[0]() if entry is not None else None


def _take_back(pipe: Any, name: str) -> None:
    """Give a pipe its own denoiser back after a switch that was forgotten in mid-trajectory."""
    entry = _attached.pop(pipe, None)
    if entry is not None and getattr(pipe, name) is not entry[1]:
        setattr(pipe, name, entry[1])


def _refuse_second(pipe: Any) -> None:
    if _living_switch(pipe) is not None:
        raise SwitchError(
            "this pipe has a DenoiserSwitch already: leave its with block, or detach() it, before "
            "attaching another"
        )


def _agreed_stages(scheduler: Any, stages: StageSchedule | None) -> StageSchedule:
    own = scheduler.stages if isinstance(scheduler, StageMixin) else None
    if own is None and stages is None:
        raise SwitchError(
            "no stages: give the switch stages (such as 'LSL' with boundaries=(0.4, 0.8)), or give "
            "the pipe a FlowBlendScheduler that has them"
        )
    if own is not None and stages is not None and own != stages:
        raise SwitchError(
            f"the pipe's scheduler has stages {own} and the switch was given {stages}: give them "
            "in one place"
        )
    chosen = stages or own
    assert chosen is not None
    return chosen
