"""FlowBlendBlock: chooses each step's denoiser in diffusers' modular pipelines.

A modular denoise loop hands its components from block to block. This block, inserted first, hands
on a view of them in which the stage's denoiser sits where the large one is, so the pipeline itself
is never changed and has nothing to put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
)

from flowblend_plugin.denoisers.conditioning import fit_inputs
from flowblend_plugin.denoisers.placement import check_pair, uncompiled
from flowblend_plugin.errors import StageError, SwitchError
from flowblend_plugin.schedulers.flow_blend import make_stages
from flowblend_plugin.schedulers.solver_state import check_resettable, reset_history, step_sigmas
from flowblend_plugin.schedulers.support import check_supported
from flowblend_plugin.stages import StageSchedule


class FlowBlendBlock(ModularPipelineBlocks):
    """Chooses the denoiser of each step, as the first block of a modular pipeline's denoise loop.

    ::

        blocks = WanBlocks()
        loop = blocks.sub_blocks["denoise"].sub_blocks["denoise"]
        loop.sub_blocks.insert("flowblend", FlowBlendBlock("LSL", boundaries=(0.4, 0.8)), 0)
        pipe = blocks.init_pipeline("owner/large")
        pipe.update_components(transformer_small=small)

    Every role but ``large`` is a component ``transformer_{role}``. The roles that ran come out as
    the intermediate value ``denoisers_run``.

    Args:
        stages: Stages, or a stage string. Stages choose denoisers here, and nothing else.
        boundaries: See ``StageSchedule.parse``.
        boundary_sigmas: See ``StageSchedule.parse``.
        solver_history: See ``DenoiserSwitch``.
        denoiser_class: Class of the denoisers, such as ``WanTransformer3DModel``.
        attribute: The component that holds the large denoiser.

    Raises:
        StageError: The stages make no schedule, or set more than the denoiser.

    Reference:
        FlowBlending: stage-aware multi-model sampling, arXiv:2512.24724.
    """

    def __init__(
        self,
        stages: StageSchedule | str,
        boundaries: Sequence[float] | None = None,
        boundary_sigmas: Sequence[float] | None = None,
        solver_history: Literal["keep", "reset"] = "keep",
        denoiser_class: type = WanTransformer3DModel,
        attribute: str = "transformer",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        made = make_stages(stages, boundaries, boundary_sigmas)
        if made is None:
            raise StageError("no stages: give a stage string such as 'LSL', or a StageSchedule")
        for stage in made.stages:
            more = stage.settings or (stage.denoiser,) * stage.is_extrapolated
            more = more or ("steps",) * (stage.steps is not None)
            if more:
                raise StageError(
                    f"a modular stage chooses its denoiser only, got {', '.join(more)}: "
                    "leave that out, or use DenoiserSwitch on the pipeline"
                )
        if solver_history not in ("keep", "reset"):
            raise SwitchError(f"solver_history must be 'keep' or 'reset', got {solver_history!r}")
        self.stages = made
        self._solver_history = solver_history
        self._denoiser_class = denoiser_class
        self._attribute = attribute
        self._roles: tuple[str, ...] = ()
        self._fitted = ExitStack()

    @property
    def description(self) -> str:
        """What the block does, for diffusers' own documentation of a pipeline."""
        return f"Chooses the denoiser of each step by the stages {self.stages}."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The further denoisers."""
        return [ComponentSpec(name, self._denoiser_class) for name in self._others]

    @property
    def inputs(self) -> list[InputParam]:
        """The timesteps that the loop runs over."""
        return [InputParam("timesteps", required=True, type_hint=torch.Tensor)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The roles that ran."""
        return [OutputParam("denoisers_run", type_hint=tuple)]

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        """Hand on the components with the denoiser of iteration ``i`` in its place."""
        pipe = components.pipe if isinstance(components, _View) else components
        scheduler = pipe.scheduler
        if i == 0:
            self._begin(pipe)
            block_state.denoisers_run = ()
        # image-to-image loops run the last timesteps only.
        full, run = scheduler.timesteps, block_state.timesteps
        index = i if full[0] == run[0] else i + len(full) - len(run)
        role = self._roles[min(index // scheduler.order, len(self._roles) - 1)]
        ran = block_state.denoisers_run
        if ran and role != ran[-1] and self._solver_history == "reset":
            reset_history(scheduler)
        if index % scheduler.order == 0 or not ran:
            block_state.denoisers_run = (*ran, role)
        if role == "large":
            return pipe, block_state
        small = getattr(pipe, f"{self._attribute}_{role}")
        return _View(pipe, dict.fromkeys(self._places(pipe), small)), block_state

    def _begin(self, pipe: Any) -> None:
        check_supported(type(pipe.scheduler))
        if self._solver_history == "reset":
            check_resettable(pipe.scheduler)
        levels = step_sigmas(pipe.scheduler)
        self._roles = self.stages.denoisers(len(levels), levels)
        self._fitted.close()
        for name in self._others:
            small = getattr(pipe, name, None)
            if small is None:
                raise SwitchError(
                    f"the pipeline has no {name}, which the stages {self.stages} use: give it one "
                    f"with update_components({name}=...)"
                )
            for place in self._places(pipe):
                large = getattr(pipe, place)
                check_pair(uncompiled(large), uncompiled(small))
                self._fitted.push(fit_inputs(large, small))

    @property
    def _others(self) -> list[str]:
        """Names of the components that hold the further denoisers."""
        return [f"{self._attribute}_{role}" for role in self.stages.roles if role != "large"]

    def _places(self, pipe: Any) -> list[str]:
        """Name the components that a denoiser stands in for: for Wan 2.2 both experts."""
        places = (self._attribute, f"{self._attribute}_2")
        return [place for place in places if getattr(pipe, place, None) is not None]


class _View:
    """A pipeline as its loop's blocks see it, with another denoiser in the large one's place."""

    def __init__(self, pipe: Any, denoisers: dict[str, Any]) -> None:
        self.__dict__.update(denoisers, pipe=pipe)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pipe"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.pipe, name, value)
