"""Offloading: stores a denoiser's weights in the same way as another denoiser's, for ``Residency``.

Three ways to place weights (group offloading, a device map, sequential offloading) exclude each
other; layerwise casting goes with any of them. Model offloading belongs to a whole pipeline: see
``flowblend_plugin.stage_hooks.residency``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import accelerate  # type: ignore[import-untyped]
import torch
from accelerate.hooks import (  # type: ignore[import-untyped]
    AlignDevicesHook,
    SequentialHook,
    remove_hook_from_module,
)
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.layerwise_casting import LayerwiseCastingHook
from torch import nn

_CASTING = "layerwise_casting"
_GROUPS = "group_offloading"
_PREFETCH = ("layer_execution_tracker", "lazy_prefetch_group_offloading")


def is_placed(module: nn.Module) -> bool:
    """Whether hooks decide where a denoiser's weights are, so that ``.to`` doesn't."""
    return any(True for _ in _hooks(module, _GROUPS)) or any(
        hasattr(part, "_hf_hook") for part in module.modules()
    )


def storage_device(module: nn.Module) -> torch.device:
    """Give the device on which another denoiser, loaded beside this one, waits for its hooks."""
    return torch.device("cpu") if is_placed(module) else next(module.parameters()).device


@dataclass(frozen=True)
class FollowCasting:
    """Casts a denoiser's layers as another's, of the same class, are cast.

    A denoiser that has castings of its own is left alone.
    """

    module: nn.Module
    like: nn.Module
    is_below: ClassVar[bool] = True  # weights on meta can't be cast

    @property
    def choice(self) -> Hashable:
        """How the other one's layers are cast; None where they aren't."""
        casting = next((hook for _, hook in _hooks(self.like, _CASTING)), None)
        return casting and (casting.storage_dtype, casting.compute_dtype, casting.non_blocking)

    def __call__(self, undo: ExitStack) -> None:
        """Cast them, and keep what is rounded."""
        if not any(True for _ in _hooks(self.module, _CASTING)):
            _cast_like(self.module, self.like, undo)


@dataclass(frozen=True)
class FollowPlacing:
    """Keeps a denoiser's weights where another's, of the same class, are kept.

    A denoiser that hooks place already is left alone.
    """

    module: nn.Module
    like: nn.Module
    is_below: ClassVar[bool] = False

    @property
    def choice(self) -> Hashable:
        """The other one's groups, device map or sequential offloading; None for none of them."""
        groups = next((hook.config for _, hook in _hooks(self.like, _GROUPS)), None)
        device_map = _device_map(self.like)
        found = (
            id(groups) if groups is not None else None,
            tuple(device_map.items()) if device_map else None,
            _sequential_device(self.like),
        )
        return found if any(one is not None for one in found) else None

    def __call__(self, undo: ExitStack) -> None:
        """Place them."""
        if not is_placed(self.module):
            for way in (_follow_groups, _follow_device_map, _follow_sequential):
                if way(self.module, self.like, undo):
                    break


def traces(module: nn.Module) -> Callable[[], None]:
    """Note what hooks of accelerate and diffusers leave on a denoiser's parts when they go.

    They write the class's own ``forward`` to each part, which then holds itself alive, and keep an
    empty registry.

    Returns:
        What takes away all that came since.
    """
    names = ("forward", "_diffusers_hook")
    before = {part: vars(part).keys() & names for part in module.modules()}

    def remove() -> None:
        for part in module.modules():
            for name in (vars(part).keys() & names) - before.get(part, set()):
                if _is_trace(part, vars(part)[name]):
                    delattr(part, name)

    return remove


def _is_trace(part: nn.Module, value: Any) -> bool:
    if isinstance(value, HookRegistry):
        return not value.hooks
    return getattr(value, "__func__", None) is type(part).forward and value.__self__ is part


def _hooks(module: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """The diffusers hooks of one kind in a denoiser, each with its layer's name."""
    for place, part in module.named_modules():
        registry = part.__dict__.get("_diffusers_hook")
        hook = registry.get_hook(name) if registry is not None else None
        if hook is not None:
            yield place, hook


# Layerwise casting: low-precision storage, cast up for each layer's forward.


class _UndoableCast(LayerwiseCastingHook):
    """Layerwise casting that can be undone: it keeps the weights that it rounds."""

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self._weights = {name: p.data.to("cpu") for name, p in module.named_parameters()}
        cast: nn.Module = super().initialize_hook(module)
        return cast

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
        for name, parameter in module.named_parameters():
            parameter.data = self._weights[name].to(parameter.device)
        return module


def _cast_like(module: nn.Module, like: nn.Module, undo: ExitStack) -> None:
    cast = {_numberless(place): hook for place, hook in _hooks(like, _CASTING)}
    for place, layer in list(module.named_modules()):
        hook = cast.get(_numberless(place))
        if hook is None or hasattr(layer, "base_layer"):  # a LoRA around the layer that is meant
            continue
        registry = HookRegistry.check_if_exists_or_initialize(layer)
        registry.register_hook(
            _UndoableCast(hook.storage_dtype, hook.compute_dtype, hook.non_blocking), _CASTING
        )
        undo.callback(registry.remove_hook, _CASTING, recurse=False)


def _numberless(place: str) -> str:
    """Leave the numbers of blocks out of a layer's name: denoisers differ in their count."""
    return re.sub(r"\.\d+(?=\.|$)", ".#", place.replace(".base_layer", ""))


# Group offloading: a few blocks at a time on the device.


def _follow_groups(module: nn.Module, like: nn.Module, undo: ExitStack) -> bool:
    config = next((hook.config for _, hook in _hooks(like, _GROUPS)), None)
    if config is None:
        return False
    folder = config.offload_to_disk_path
    module.enable_group_offload(  # type: ignore[operator]
        onload_device=config.onload_device,
        offload_device=config.offload_device,
        offload_type=config.offload_type.value,
        num_blocks_per_group=config.num_blocks_per_group,
        non_blocking=config.non_blocking,
        use_stream=config.stream is not None,
        record_stream=config.record_stream,
        low_cpu_mem_usage=config.low_cpu_mem_usage,
        # Its files are named after the class and the blocks, so two denoisers can't share a folder.
        offload_to_disk_path=_own_folder(folder, undo) if folder is not None else None,
        block_modules=config.block_modules,
        exclude_kwargs=config.exclude_kwargs,
    )
    undo.callback(_ungroup, module)
    return True


def _ungroup(module: nn.Module) -> None:
    groups = {id(hook.group): hook.group for _, hook in _hooks(module, _GROUPS)}
    for group in groups.values():
        if group.offload_to_disk_path is None:
            group.offload_()
            continue
        group.onload_()
        for tensor in group.tensor_to_key:
            tensor.data = tensor.data.to(group.offload_device)
    registry = HookRegistry.check_if_exists_or_initialize(module)
    for name in (*_PREFETCH, _GROUPS):
        registry.remove_hook(name, recurse=True)


# A device map: layers on several devices.


def _device_map(module: nn.Module) -> dict[str, Any] | None:
    """The device map of a denoiser that was dispatched with hooks."""
    device_map = getattr(module, "hf_device_map", None)
    return device_map if device_map and is_placed(module) else None


def _follow_device_map(module: nn.Module, like: nn.Module, undo: ExitStack) -> bool:
    chosen = _device_map(like)
    if chosen is None:
        return False
    device_map = scaled_device_map(chosen, like, module)
    on_disk = "disk" in device_map.values()
    accelerate.dispatch_model(
        module,
        device_map,
        main_device=_main_device(like),
        # accelerate finds the weights of a map's parts by their names; the whole has none.
        state_dict=module.state_dict() if device_map == {"": "cpu"} else None,
        offload_dir=_own_folder(None, undo) if on_disk else None,
        skip_keys=getattr(module, "_skip_keys", None),
        force_hooks=True,
    )
    undo.callback(_undispatch, module)
    return True


def _undispatch(module: nn.Module) -> None:
    remove_hook_from_module(module, recurse=True)
    del module.hf_device_map


def scaled_device_map(
    device_map: Mapping[str, Any], large: nn.Module, small: nn.Module
) -> dict[str, Any]:
    """Give a denoiser the device map of another that has more, or fewer, blocks.

    Args:
        device_map: Part -> device of ``large``.
        large: The denoiser that the map was made for.
        small: The one that needs a map; of the same class.

    Returns:
        The map of ``small``: a block as deep in it, as a share of all blocks, as one of ``large``
        gets that one's device; every other part gets the device of its namesake.
    """
    if "" in device_map:
        return dict(device_map)
    parts: dict[str, Any] = {}
    for name, child in small.named_children():
        if not isinstance(child, nn.ModuleList):
            parts[name] = _device_of(name, device_map)
            continue
        theirs = len(getattr(large, name))
        for i in range(len(child)):
            namesake = f"{name}.{i * theirs // len(child)}"
            parts[f"{name}.{i}"] = _device_of(namesake, device_map)
    for name in (*small._parameters, *small._buffers):
        parts[name] = _device_of(name, device_map)
    return parts


def _device_of(name: str, device_map: Mapping[str, Any]) -> Any:
    for part, device in device_map.items():
        if f"{name}.".startswith(f"{part}.") or part.startswith(f"{name}."):
            return device
    return next(iter(device_map.values()))


def _main_device(module: nn.Module) -> Any:
    devices = (hook.execution_device for hook in _align_hooks(module))
    return next((device for device in devices if device is not None), "cpu")


# Sequential offloading: one layer at a time on the device.


def _follow_sequential(module: nn.Module, like: nn.Module, undo: ExitStack) -> bool:
    device = _sequential_device(like)
    if device is None:
        return False
    accelerate.cpu_offload(module, device, offload_buffers=bool(module._parameters))
    undo.callback(remove_hook_from_module, module, recurse=True)
    return True


@contextmanager
def without_sequential(module: nn.Module) -> Iterator[None]:
    """Have the weights of a sequentially offloaded denoiser in its layers, to change these."""
    device = _sequential_device(module)
    if device is None:
        yield
        return
    remove_hook_from_module(module, recurse=True)
    try:
        yield
    finally:
        accelerate.cpu_offload(module, device, offload_buffers=bool(module._parameters))


def _sequential_device(module: nn.Module) -> torch.device | None:
    """The device on which a sequentially offloaded denoiser's layers run."""
    if _device_map(module) is not None:
        return None
    device = next((hook.execution_device for hook in _align_hooks(module) if hook.offload), None)
    return torch.device(device) if device is not None else None


def _align_hooks(module: nn.Module) -> Iterator[AlignDevicesHook]:
    for part in module.modules():
        hook = part.__dict__.get("_hf_hook")
        hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
        yield from (h for h in hooks if isinstance(h, AlignDevicesHook))


def _own_folder(parent: str | None, undo: ExitStack) -> str:
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    return undo.enter_context(tempfile.TemporaryDirectory(prefix="flowblend-", dir=parent))
