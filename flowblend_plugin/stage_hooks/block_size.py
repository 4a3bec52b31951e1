"""StageBlockSize: the frames of causal blocks, told to one denoiser of SkyReels V2, hold for all.

The pipeline tells it to the denoiser that is in its place when a call begins, and reads it there.
It stands in the denoiser's config, which every pipe that shares the denoiser sees.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.denoisers.placement import DenoiserSlots, followed, uncompiled
from flowblend_plugin.stage_hooks.base import StageHook, StageStep


class StageBlockSize(StageHook):
    """Gives each denoiser that runs the block size of its pipe's present call.

    The pipe's own denoiser keeps it, as without a switch. The further ones have theirs again when
    the last switch that they have is detached. Other denoisers than SkyReels V2's have none, and
    nothing happens.

    Args:
        slots: Role -> its denoisers; ``"large"`` is the pipe's own.
    """

    def __init__(self, slots: Mapping[str, DenoiserSlots]) -> None:
        self._own = [uncompiled(module) for module in slots["large"].values()]
        self._present = self._own[0]
        self._frames: int | None = None  # of the present call, once it is known
        self._sizes: dict[nn.Module, _BlockSize] = {}
        further = [uncompiled(module) for module in followed(slots)]
        modules = [*self._own, *further]
        if further and all(hasattr(module, "_set_ar_attention") for module in modules):
            self._sizes = {module: _BlockSize.of(module) for module in modules}
            for module in further:
                self._sizes[module].hold(self)

    def start(self, scheduler: Any) -> None:
        """Begin with the block size of the pipe's own denoiser."""
        self.finish()

    def enter(self, step: StageStep) -> None:
        """Hand the block size on, where the pipeline may read it."""
        self._hand_on([uncompiled(module) for module in step.modules])

    def denoiser_answer(self, call: Call) -> None:
        """Answer nothing, but see to it that the denoiser has the block size of this call."""
        size = self._sizes.get(uncompiled(call.module))
        if size is None:
            return
        if self._frames is None or size.is_told:
            self._frames = size.frames
        size.give(self._frames)

    def finish(self) -> None:
        """Leave it with the pipe's own denoiser."""
        self._hand_on(self._own)
        self._frames = None

    def _hand_on(self, modules: list[Any]) -> None:
        if not self._sizes:
            return
        frames = self._sizes[self._present].frames if self._frames is None else self._frames
        for module in modules:
            self._sizes[module].give(frames)
        self._present = modules[0]

    def remove(self) -> None:
        """Give the further denoisers their own back, unless another switch has them."""
        for size in self._sizes.values():
            size.release(self)
        self._sizes = {}


class _BlockSize:
    """The block size in one denoiser's config, which several switches may write."""

    _all: ClassVar[weakref.WeakValueDictionary[int, _BlockSize]] = weakref.WeakValueDictionary()

    def __init__(self, module: Any) -> None:
        self._module = module  # alive as long as this is, so that nobody else gets its id
        self._former = self._written = self.frames
        self._holders: weakref.WeakSet[StageBlockSize] = weakref.WeakSet()

    @classmethod
    def of(cls, module: nn.Module) -> _BlockSize:
        """Give that of a denoiser; whoever uses it keeps this object."""
        return cls._all.setdefault(id(module), cls(module))

    @property
    def frames(self) -> int:
        """Frames of a block now."""
        found: int = self._module.config.num_frame_per_block
        return found

    @property
    def is_told(self) -> bool:
        """Whether somebody else than a switch has set it since one did."""
        return self.frames != self._written

    def give(self, frames: int) -> None:
        """Set it."""
        if self.frames != frames:
            self._module._set_ar_attention(frames)
        self._written = frames

    def hold(self, holder: StageBlockSize) -> None:
        """Note what is to come back when the last holder goes."""
        if not self._holders:
            self._former = self.frames
        self._holders.add(holder)

    def release(self, holder: StageBlockSize) -> None:
        """Let it go; what somebody else than a switch has set since stays."""
        is_last = list(self._holders) == [holder]
        self._holders.discard(holder)
        if is_last and not self.is_told:
            self.give(self._former)
