"""LoadedAdapters: the LoRA adapters that switches have loaded into one denoiser."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from flowblend_plugin.denoisers.adapter_files import AdapterFile
from flowblend_plugin.denoisers.calls import LOCK, at_rest
from flowblend_plugin.denoisers.offloading import without_sequential
from flowblend_plugin.denoisers.shared import SharedLayers
from flowblend_plugin.errors import AdapterError
from flowblend_plugin.stage_hooks.lora_layers import LayerState, adapter_layers

_IS_LOADED = "_hf_peft_config_loaded"  # what diffusers asks before it looks for adapters


@dataclass
class _Loaded:
    file: AdapterFile
    config: Any  # tells it from another adapter of that name, which is the user's
    holders: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


@dataclass(frozen=True)
class _Former:
    """What loading changes in a denoiser beside the adapters."""

    is_loaded: Any
    names: frozenset[str]
    # Loading lets only adapters require gradients; rounding depends on it, so it stays so while
    # any adapter of a switch's is there.
    gradients: Mapping[str, bool]


class LoadedAdapters:
    """The adapters that switches have loaded into one denoiser, each until its last holder goes.

    An adapter that the user has loaded is none of them, nor one that replaced one of them since.
    """

    _all: ClassVar[weakref.WeakKeyDictionary[nn.Module, LoadedAdapters]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, module: nn.Module) -> None:
        self._ref = weakref.ref(module)
        self._entries: dict[str, _Loaded] = {}
        self._wrapped: weakref.WeakSet[Any] = weakref.WeakSet()  # layers that had no adapters
        self._former = _Former(..., frozenset(), {})

    @classmethod
    def of(cls, module: nn.Module) -> LoadedAdapters:
        """Give those of a denoiser."""
        with LOCK:
            return cls._all.setdefault(module, cls(module))

    @property
    def _module(self) -> Any:
        module = self._ref()
        assert module is not None  # whoever asks holds it
        return module

    @property
    def _present(self) -> Mapping[str, Any]:
        """All adapters that the denoiser has now, by name."""
        return getattr(self._module, "peft_config", {})

    @property
    def names(self) -> set[str]:
        """Those that are loaded, and still the ones that a switch loaded."""
        found, present = self._entries.items(), self._present
        return {name for name, one in found if present.get(name) is one.config}

    def hold(
        self, holder: Any, name: str, file: AdapterFile | None, load: Callable[[AdapterFile], None]
    ) -> None:
        """Have an adapter there, which is loaded where none of its name is, and left inactive.

        Args:
            holder: Whoever wants it, held weakly.
            name: Its name.
            file: Its file; None takes what is there, if anything is.
            load: Loads it from that.

        Raises:
            AdapterError: Somebody else holds another one of that name.
        """
        with at_rest(self._module):
            self._unload(name for name, one in self._entries.items() if not one.holders)
            entry = self._entries.get(name)
            is_users = name in self._present.keys() - self.names
            if entry is not None and file is not None and not is_users and entry.file != file:
                raise AdapterError(
                    f"adapter {name!r} lies on this {type(self._module).__name__} already, from "
                    f"{entry.file.path}, for a stage or a switch that is attached; {file.path} "
                    "holds something else: give one of them another name, or detach() that switch "
                    "first"
                )
            if file is not None and name not in self._present:
                self._load(name, file, load)
                entry = self._entries[name]
            if entry is not None:
                entry.holders.add(holder)

    def release(self, holder: Any) -> None:
        """Unload all that nobody else holds; it may have been taken away before."""
        with at_rest(self._module):
            for one in self._entries.values():
                one.holders.discard(holder)
            self._unload(name for name, one in self._entries.items() if not one.holders)

    def _load(self, name: str, file: AdapterFile, load: Callable[[AdapterFile], None]) -> None:
        if not self._entries:
            self._former = self._state()
        with _bare_of_offloading(self._module), self._unchanged():
            try:
                load(file)
            finally:
                if name in self._present:
                    entry = self._entries.setdefault(name, _Loaded(file, None))
                    entry.config = self._present[name]

    def _state(self) -> _Former:
        module = self._module
        return _Former(
            vars(module).get(_IS_LOADED, ...),
            frozenset(self._present),
            {_bare(name): p.requires_grad for name, p in module.named_parameters()},
        )

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Leave all that is there as it is; what is new in the block isn't active."""
        before = {layer: LayerState.of(layer) for layer in adapter_layers(self._module)}
        try:
            yield
        finally:
            # A layer without adapters of its own says of the others what every layer says.
            common = next(iter(before.values()), LayerState()).without(self.names)
            for layer in adapter_layers(self._module):
                if layer not in before:
                    self._wrapped.add(layer)
                before.get(layer, common).put_back(layer)

    def _unload(self, names: Iterable[str]) -> None:
        gone = set(names)
        if not gone:
            return
        ours = gone & self.names
        for name in gone:
            del self._entries[name]
        with _bare_of_offloading(self._module):
            self._take_away(ours)

    def _take_away(self, ours: set[str]) -> None:
        module = self._module
        for layer in adapter_layers(module):
            LayerState.of(layer).without(ours).put_back(layer)
            for name in ours:
                layer.delete_adapter(name)
        for name in ours:
            del module.peft_config[name]
        bare = {layer for layer in self._wrapped if not layer._all_available_adapter_names()}
        _unwrap(module, bare)
        self._wrapped -= bare
        if "peft_config" in vars(module) and not module.peft_config:
            del module.peft_config
            _restore_flag(module, self._former.is_loaded)
        if not self._entries and self._present.keys() <= self._former.names:
            for key, parameter in module.named_parameters():
                if parameter.requires_grad != self._former.gradients.get(_bare(key), False):
                    parameter.requires_grad_(not parameter.requires_grad)


@contextmanager
def _bare_of_offloading(module: Any) -> Iterator[None]:
    """Have nothing on a denoiser that would miss a layer that comes or goes in the block."""
    with SharedLayers.lifted(module), without_sequential(module):
        yield
        module.delete_adapters([])  # which sets group offloading up anew


def _bare(name: str) -> str:
    """A parameter's name in the denoiser without adapters."""
    return name.replace(".base_layer.", ".")


def _unwrap(module: nn.Module, wrapped: set[Any]) -> None:
    """Put layers back in the place of what adapters wrapped them in."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child in wrapped:
                setattr(parent, name, child.base_layer)  # type: ignore[union-attr]


def _restore_flag(module: nn.Module, before: Any) -> None:
    if before is ...:
        vars(module).pop(_IS_LOADED, None)
    else:  # as diffusers says it where there were some
        setattr(module, _IS_LOADED, None if before else before)
