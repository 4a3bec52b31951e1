"""StageHook: the base of everything that a stage sets, called by ``DenoiserSwitch``.

A hook of one's own needs only the methods that it has something to do in::

    class Louder(StageHook):
        def enter(self, step):
            log(f"stage {step.stage_index}: {step.stage.denoiser}")

    with DenoiserSwitch(pipe, small, "LSL", (0.4, 0.8), hooks=[Louder()]):
        pipe("a red star bouncing")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flowblend_plugin.denoisers.calls import Call
    from flowblend_plugin.stages import Stage


@dataclass(frozen=True)
class StageStep:
    """One step of a trajectory, as the switch hands it to its hooks.

    Args:
        index: Index of the step in the whole trajectory, 0-based.
        total: Number of steps of the trajectory.
        stage: The step's stage.
        stage_index: Index of the stage in the schedule.
        start: Index of the stage's first step.
        count: Number of the stage's steps.
        denoisers: The pipe's attributes, each with the denoiser that is in it. In an extrapolated
            stage those of the stage before.
    """

    index: int
    total: int
    stage: Stage
    stage_index: int
    start: int
    count: int
    denoisers: Mapping[str, nn.Module]

    @property
    def modules(self) -> list[nn.Module]:
        """The distinct denoisers: one may be in two attributes."""
        return list(dict.fromkeys(self.denoisers.values()))

    @property
    def position(self) -> int:
        """Index of the step in its stage, 0-based."""
        return self.index - self.start


class StageHook:
    """Something that is set for a stage, and undone at its end; every method does nothing here.

    The order of the calls in a trajectory::

        start, (enter, (begin_step, denoiser_ran, model_output, revise_stages) per step, leave)
        per stage, finish

    A switch calls ``start``, ``enter``, ``begin_step`` and ``model_output`` of its hooks in their
    order, ``leave``, ``finish`` and ``remove`` in the reverse order. Where one of these three
    raises, the other hooks are still undone, and the error is raised after that.

    A call may end in many ways. At its last step, and in ``detach`` or at the end of ``with``, the
    switch calls ``leave``, then ``finish``; so it does at the end of a call that was given up
    (``pipe._interrupt``), where the pipeline ends with ``maybe_free_model_hooks``. A call that
    failed, or was interrupted by Ctrl-C, calls nothing by itself: then ``detach`` does, or the next
    call, which begins with ``leave`` and ``start``, without ``finish``. So ``leave`` and ``finish``
    have to undo everything from any state, twice in a row and without ``enter`` too.
    """

    name: str = ""
    """Key of the hook's state in checkpoints; empty for the name of its class."""

    def start(self, scheduler: Any) -> None:
        """Begin a trajectory; called by the scheduler's ``set_timesteps``, before the first step.

        Called again, after ``leave``, where a pipeline says only then at which step it begins.
        What a call that failed left behind has to be forgotten here.

        Args:
            scheduler: The switch's scheduler, whose timesteps are set.

        Raises:
            SwitchError: The trajectory can't be run; ends the call.
        """

    def enter(self, step: StageStep) -> None:
        """Set what a stage asks for; called before its first step, its denoiser in the pipe.

        Args:
            step: The first step of the stage that runs.

        Raises:
            SwitchError: It can't be set; ends the call, and ``leave`` undoes what was set.
        """

    def begin_step(self, step: StageStep) -> None:
        """Prepare a step; called before each one, after ``enter`` for the first of a stage.

        Raises:
            SwitchError: It can't be run; ends the call.
        """

    def model_output(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Give what the solver is to take for a model output; called at each call of the solver.

        Args:
            output: What the pipeline, and the hooks before this one, hand the solver.
            sample: The latents that it belongs to.

        Returns:
            ``output`` itself, or a tensor of the same shape and dtype.

        Raises:
            SwitchError: There is nothing to take; ends the call.
        """
        return output

    def denoiser_answer(self, call: Call) -> Any:
        """Answer a call of a denoiser that this switch's pipe makes, so that nothing is computed.

        Returns:
            What the pipeline gets, in the structure of the denoiser's own outputs; None lets it
            run. Of several hooks the first to answer counts.
        """
        return None

    def denoiser_ran(self, call: Call, output: Any) -> None:
        """Hear what a denoiser gave to this switch's pipe, in its own structure; not for change.

        Other pipes' calls of the same module are never told, nor are those within a call, or those
        that a callback makes.
        """

    def revise_stages(self, done: int, stage_indices: tuple[int, ...]) -> tuple[int, ...]:
        """Give the stage of every step; called after each one, before the next begins.

        Args:
            done: Number of steps that have run. Their stages can't be changed any more.
            stage_indices: Index of the stage of every step, as planned so far.
        """
        return stage_indices

    def refuse_copies(self) -> None:
        """Say no to a pipeline that steps private copies of its scheduler, where need be.

        Of such a pipeline ``model_output`` is never called.

        Raises:
            SwitchError: The hook can't do without; ends the call.
        """

    def leave(self) -> None:
        """Undo what ``enter`` and ``begin_step`` set; called at the end of every stage.

        Raises:
            Exception: Something couldn't be undone; the other hooks are undone first.
        """

    def finish(self) -> None:
        """End the trajectory: nothing of it is kept, and what ``start`` set is undone.

        Raises:
            Exception: As ``leave``.
        """

    def remove(self) -> None:
        """Undo what the constructor did; called when the switch is detached.

        Raises:
            Exception: As ``leave``.
        """

    # For checkpoints.

    @property
    def can_be_stored(self) -> bool:
        """Whether the present state can be stored; where it can't, no checkpoint is stored now."""
        return True

    def state_dict(self) -> Any:
        """Give what the further steps depend on, as plain values and tensors; None for nothing.

        Called after a step, with the next one begun. See ``flowblend_plugin.checkpoints`` for what
        can be stored. The very objects may be given, and not copies.
        """
        return None

    def load_state_dict(self, state: Any) -> None:
        """Go on as the hook whose ``state_dict()`` this is; called where stored steps end.

        Before that the stages of all stored steps were entered and left, without computing.
        """

    def prepare_skip(self, state: Any, answer: Any) -> None:
        """Get ready to enter stages whose steps aren't computed; called at the first such step.

        Args:
            state: As for ``load_state_dict``, which is called later.
            answer: An output of the pipe's denoiser, of which only the structure counts; None
                where no denoiser has run.
        """
