"""Residency: decides which denoiser is on the device, and when, for ``DenoiserSwitch``.

The further denoisers follow what the user chose for the pipe's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import accelerate  # type: ignore[import-untyped]
import torch
from accelerate.hooks import (  # type: ignore[import-untyped]
    UserCpuOffloadHook,
    remove_hook_from_module,
)
from accelerate.utils.memory import clear_device_cache  # type: ignore[import-untyped]
from torch import nn

from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.denoisers.offloading import FollowCasting, FollowPlacing
from flowblend_plugin.denoisers.placement import (
    DenoiserSlots,
    check_storage,
    followed,
    uncompiled,
)
from flowblend_plugin.denoisers.shared import SharedLayers
from flowblend_plugin.stage_hooks.base import StageHook, StageStep

_AWAY = (torch.device("cpu"), torch.device("meta"))  # on meta, hooks bring layer by layer


class Residency(StageHook):
    """Keeps the denoisers of a switch where, and as, the pipe keeps its own.

    A further denoiser takes over casting, group offloading, device map or sequential offloading
    from the pipe's own denoiser whose place it takes. Under model offloading it gets a hook of its
    own, which makes everybody else leave the device before it runs; at a change of denoisers the
    one that leaves goes at once. So exactly one denoiser is on the device.

    What is put on a denoiser that several switches have stays until the last of them is detached.
    A pipe whose offloading begins, ends or is rebuilt, in mid-call too, is followed.

    Args:
        pipe: The pipeline.
        slots: Role -> its denoisers; ``"large"`` is the pipe's own.
    """

    def __init__(self, pipe: Any, slots: Mapping[str, DenoiserSlots]) -> None:
        self._pipe = pipe
        self._slots = slots
        self._own = self._present = slots["large"]
        self._denoisers = list(dict.fromkeys(m for s in slots.values() for m in s.values()))
        self._followed = followed(slots)
        self._layers = {m: SharedLayers.of(uncompiled(m)) for m in self._followed}
        self._choices: dict[nn.Module, tuple[Hashable, ...]] = {}
        self._chain: list[tuple[UserCpuOffloadHook, _OtherModels | None]] = []
        self._known_chain: Any = None
        try:
            self._set_up()
        except BaseException:
            self.remove()
            raise

    def _set_up(self) -> None:
        if len(self._denoisers) < 2:
            return
        self._unchain()
        for module in self._denoisers:
            self._set_up_one(module)
        if self._offloads:
            self._chain_up()
            self._offload(self._denoisers)
        self._known_chain = self._pipes_chain

    def start(self, scheduler: Any) -> None:
        """Set all denoisers up anew, for the pipe may have rebuilt its own hooks since."""
        self._set_up()

    def enter(self, step: StageStep) -> None:
        """Make room for the stage's denoiser.

        Raises:
            SwitchError: As ``denoiser_answer``.
        """
        self._keep_up()
        self._make_room(step.denoisers)

    def denoiser_answer(self, call: Call) -> None:
        """Answer nothing, but see to it that the pipe's hooks, rebuilt in mid-call, are known.

        Raises:
            SwitchError: Offloading ended in mid-call, and left the denoisers on several devices.
        """
        self._keep_up()

    def finish(self) -> None:
        """Make room for the pipe's own denoiser."""
        self._renew()
        self._make_room(self._own)

    def _make_room(self, coming: Mapping[str, nn.Module]) -> None:
        leaving, self._present = self._present, dict(coming)
        if self._offloads and set(leaving.values()) != set(coming.values()):
            self._offload(leaving.values())

    def _keep_up(self) -> None:
        if self._renew():
            check_storage(self._slots, tuple(self._slots))

    def _renew(self) -> bool:
        """Set all denoisers up anew, where somebody has rebuilt the pipe's hooks in mid-call."""
        is_new = len(self._denoisers) > 1 and self._pipes_chain is not self._known_chain
        if is_new:
            self._set_up()
        return is_new

    def remove(self) -> None:
        """Take away everything that was put on any denoiser, and nobody else needs."""
        self._unchain()
        for module in self._denoisers:
            self._unlink(module)
        for layers in self._layers.values():
            layers.release(self)
        self._layers, self._slots = {}, {}

    # One denoiser.

    def _set_up_one(self, module: nn.Module) -> None:
        if not self._offloads:
            self._unlink(module)
        if module in self._followed:
            like, layers = uncompiled(self._followed[module]), self._layers[module]
            ways = (FollowCasting, FollowPlacing)
            wanted = [way(uncompiled(module), like) for way in ways]
            choices = tuple(one.choice for one in wanted)
            if self._choices.get(module) != choices:
                self._choices[module] = choices
                for one in wanted:
                    layers.hold(self, one)
        if self._offloads:
            self._link(module)

    # Model offloading.

    @property
    def _pipes_chain(self) -> Any:
        """The hooks of the pipe's models, a list that is another one whenever they are rebuilt."""
        return getattr(self._pipe, "_all_hooks", None)

    @property
    def _offloads(self) -> bool:
        return bool(self._pipes_chain)

    def _chain_up(self) -> None:
        """Let the model after the denoisers send whichever is on the device away.

        A call that is given up goes on to it with any of them there.
        """
        for link in self._pipes_chain:
            before = link.hook.prev_module_hook
            if isinstance(before, _OtherModels):  # a copy of the pipe shares its hooks
                others = before
            elif before is not None and before.model in self._denoisers:
                others = link.hook.prev_module_hook = _OtherModels(link.model, before)
            else:
                others = None
            if others is not None:
                others.holders.add(self)
            self._chain.append((link, others))

    def _unchain(self) -> None:
        """Leave the pipe a chain of its own models only, whatever it was built around."""
        chain = self._pipes_chain or []
        for link, others in self._chain:
            if others is not None:
                others.holders.discard(self)
                if not others.holders and link.hook.prev_module_hook is others:
                    link.hook.prev_module_hook = others.before
            is_dropped = link not in chain
            if is_dropped and getattr(link.model, "_hf_hook", None) is link.hook:
                link.remove()  # its model wasn't in the pipe when the pipe removed them all
        self._chain = []
        strangers = [link for link in chain if link.model in self._followed]
        for link in strangers:
            link.remove()
        if strangers:
            with self._with_own():
                self._pipe.enable_model_cpu_offload(device=self._pipe._offload_device)

    @contextmanager
    def _with_own(self) -> Iterator[None]:
        """Have the pipe's own denoisers in their places for a moment."""
        present = {name: getattr(self._pipe, name) for name in self._own}
        moved = {name: m for name, m in present.items() if m in self._followed}
        try:
            for name in moved:
                setattr(self._pipe, name, self._own[name])
            yield
        finally:
            for name, module in moved.items():
                setattr(self._pipe, name, module)

    @property
    def _first(self) -> Any:
        """The hook of the first denoiser in the pipe's chain of models."""
        chain = self._pipes_chain
        return next((hook for hook in chain if hook.model in self._denoisers), chain[0])

    def _link(self, module: nn.Module) -> None:
        """Give a denoiser a hook, unless it has one from the pipe or the user, and share ours."""
        device, hook = self._first.hook.execution_device, getattr(module, "_hf_hook", None)
        others = _link_of(hook)
        if hook is not None and others is None:
            return
        if hook is None or others is None or hook.execution_device != device:
            others = others or _OtherModels(module)
            accelerate.cpu_offload_with_hook(module, device, prev_module_hook=others)
        others.holders.add(self)

    def _unlink(self, module: nn.Module) -> None:
        others = _link_of(getattr(module, "_hf_hook", None))
        if others is not None and self in others.holders:
            others.holders.discard(self)
            if not others.holders:
                remove_hook_from_module(module)

    def _offload(self, modules: Iterable[nn.Module]) -> None:
        moved = [module for module in dict.fromkeys(modules) if _on_device(module)]
        for module in moved:
            module.to("cpu")
        if moved:
            clear_device_cache()

    def others(self, module: nn.Module) -> Iterator[nn.Module]:
        """Name all that leaves the device before a denoiser runs, such as the other denoisers."""
        before = self._first.hook.prev_module_hook if self._offloads else None
        if before is not None and not isinstance(before, _OtherModels):
            yield before.model
        yield from (other for other in self._denoisers if other is not module)


class _OtherModels(UserCpuOffloadHook):  # type: ignore[misc]
    """The models that leave the device before one runs; accelerate itself knows only one.

    Args:
        module: The one that is to run.
        before: What stood here, in the chain of a pipe; None in a hook of ours.
    """

    def __init__(self, module: nn.Module, before: UserCpuOffloadHook | None = None) -> None:
        self._module = module
        self.before = before
        self.holders: weakref.WeakSet[Residency] = weakref.WeakSet()

    @property
    def _others(self) -> list[nn.Module]:
        found = [other for holder in self.holders for other in holder.others(self._module)]
        return [other for other in dict.fromkeys(found) if other is not self._module]

    @property
    def model(self) -> nn.Module:
        """One that is on the device, if any is: its device is what accelerate asks for."""
        others = self._others
        return next(filter(_on_device, others), others[0] if others else self._module)

    def offload(self) -> None:
        """Send them all away."""
        for other in filter(_on_device, self._others):
            other.to("cpu")


def _link_of(hook: Any) -> _OtherModels | None:
    """Whom a hook sends away, where it is one of ours; None for one of a pipe's, or none."""
    others = getattr(hook, "prev_module_hook", None)
    return others if isinstance(others, _OtherModels) and others.before is None else None


def _on_device(module: nn.Module) -> bool:
    return next(module.parameters()).device not in _AWAY
