"""Residency: decides which denoiser is on the device, and when, for ``DenoiserSwitch``.

The further denoisers follow what the user chose for the pipe's own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import accelerate  # type: ignore[import-untyped]
import torch
from accelerate.hooks import UserCpuOffloadHook  # type: ignore[import-untyped]
from accelerate.utils.memory import clear_device_cache  # type: ignore[import-untyped]
from torch import nn

from flowblend_plugin.denoisers.offloading import follow, storage_choice, traces
from flowblend_plugin.denoisers.placement import DenoiserSlots, followed, uncompiled
from flowblend_plugin.stage_hooks.base import StageHook, StageStep

_CPU = torch.device("cpu")


class Residency(StageHook):
    """Keeps the denoisers of a switch where, and as, the pipe keeps its own.

    A further denoiser takes over casting, group offloading, device map or sequential offloading
    from the pipe's own denoiser whose place it takes. Under model offloading it gets a hook of its
    own, which makes everybody else leave the device before it runs; at a change of denoisers the
    one that leaves goes at once. So exactly one denoiser is on the device.

    Args:
        pipe: The pipeline.
        slots: Role -> its denoisers; ``"large"`` is the pipe's own.
    """

    def __init__(self, pipe: Any, slots: Mapping[str, DenoiserSlots]) -> None:
        self._pipe = pipe
        self._own = self._present = slots["large"]
        self._denoisers = list(dict.fromkeys(m for s in slots.values() for m in s.values()))
        self._followed = followed(slots)
        self._ways: dict[nn.Module, tuple[Hashable, ExitStack]] = {}
        self._links: dict[nn.Module, UserCpuOffloadHook] = {}
        self._chain: list[tuple[UserCpuOffloadHook, Any]] = []
        self._traces = [traces(uncompiled(module)) for module in self._followed]
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

    def start(self, scheduler: Any) -> None:
        """Set all denoisers up anew, for the pipe may have rebuilt its own hooks since."""
        self._set_up()

    def enter(self, step: StageStep) -> None:
        """Make room for the stage's denoiser."""
        self._make_room(step.denoisers)

    def finish(self) -> None:
        """Make room for the pipe's own denoiser."""
        self._make_room(self._own)

    def _make_room(self, coming: Mapping[str, nn.Module]) -> None:
        leaving, self._present = self._present, dict(coming)
        if self._offloads and set(leaving.values()) != set(coming.values()):
            self._offload(leaving.values())

    def remove(self) -> None:
        """Take away everything that was put on any denoiser."""
        self._unchain()
        for module in self._followed:
            self._unlink(module)
            self._unfollow(module)
        for remove_trace in self._traces:
            remove_trace()

    # One denoiser.

    def _set_up_one(self, module: nn.Module) -> None:
        if not self._offloads:
            self._unlink(module)
        if module in self._followed:
            like = uncompiled(self._followed[module])
            ways = storage_choice(like)
            if module not in self._ways or self._ways[module][0] != ways:
                self._unfollow(module)
                self._ways[module] = ways, follow(uncompiled(module), like)
        if self._offloads:
            self._link(module)

    def _unfollow(self, module: nn.Module) -> None:
        if module in self._ways:
            self._ways.pop(module)[1].close()

    # Model offloading.

    @property
    def _offloads(self) -> bool:
        return bool(getattr(self._pipe, "_all_hooks", None))

    def _chain_up(self) -> None:
        """Let the model after the denoisers send whichever is on the device away.

        A call that is given up goes on to it with any of them there.
        """
        for link in self._pipe._all_hooks:
            before = link.hook.prev_module_hook
            self._chain.append((link, before))
            if before is not None and before.model in self._denoisers:
                link.hook.prev_module_hook = _OtherModels(self, link.model)

    def _unchain(self) -> None:
        """Leave the pipe a chain of its own models only, whatever it was built around."""
        for link, before in self._chain:
            link.hook.prev_module_hook = before
            is_dropped = link not in self._pipe._all_hooks
            if is_dropped and getattr(link.model, "_hf_hook", None) is link.hook:
                link.remove()  # its model wasn't in the pipe when the pipe removed them all
        self._chain = []
        strangers = [h for h in getattr(self._pipe, "_all_hooks", []) if h.model in self._followed]
        for link in strangers:
            link.remove()
        if strangers:
            self._pipe.enable_model_cpu_offload(device=self._pipe._offload_device)

    @property
    def _first(self) -> Any:
        """The hook of the first denoiser in the pipe's chain of models."""
        chain = self._pipe._all_hooks
        return next((hook for hook in chain if hook.model in self._denoisers), chain[0])

    def _link(self, module: nn.Module) -> None:
        """Give a denoiser a hook, unless it has one from the pipe or the user."""
        device = self._first.hook.execution_device
        link, hook = self._links.get(module), getattr(module, "_hf_hook", None)
        if hook is not None and (link is None or hook is not link.hook):
            return
        if link is None or hook is None or hook.execution_device != device:
            self._unlink(module)
            before = _OtherModels(self, module)
            _, self._links[module] = accelerate.cpu_offload_with_hook(
                module, device, prev_module_hook=before
            )

    def _unlink(self, module: nn.Module) -> None:
        link = self._links.pop(module, None)
        if link is not None and getattr(module, "_hf_hook", None) is link.hook:
            link.remove()

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
    """The models that leave the device before a denoiser runs; accelerate itself knows only one."""

    def __init__(self, residency: Residency, module: nn.Module) -> None:
        self._residency = residency
        self._module = module

    @property
    def model(self) -> nn.Module:
        """One that is on the device, if any is: its device is what accelerate asks for."""
        others = list(self._residency.others(self._module))
        return next(filter(_on_device, others), others[0])

    def offload(self) -> None:
        """Send them all away."""
        for other in filter(_on_device, self._residency.others(self._module)):
            other.to("cpu")


def _on_device(module: nn.Module) -> bool:
    return next(module.parameters()).device != _CPU
