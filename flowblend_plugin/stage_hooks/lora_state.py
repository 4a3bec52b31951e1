"""DenoiserAdapters: sets the LoRA adapters of one denoiser, and puts them back; for ``StageLora``.

What was set is noted layer by layer, as each layer's own numbers. The weights that somebody called
``set_adapters`` with can't be told from them: ranks, rsLoRA and weights by block are in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from flowblend_plugin.denoisers.placement import uncompiled
from flowblend_plugin.errors import AdapterError

_IS_LOADED = "_hf_peft_config_loaded"  # what diffusers asks before it looks for adapters


@dataclass(frozen=True)
class _LayerState:
    """How the adapters of one layer are set."""

    active: str | list[str] = field(default_factory=list)
    disabled: bool = False
    scaling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Any) -> _LayerState:
        return cls(
            layer.active_adapter, layer.disable_adapters, dict(getattr(layer, "scaling", {}))
        )

    def put_back(self, layer: Any) -> None:
        # The layer's own methods would also change which weights require gradients.
        layer._active_adapter, layer._disable_adapters = self.active, self.disabled
        for name in self.scaling.keys() & getattr(layer, "scaling", {}).keys():
            layer.scaling[name] = self.scaling[name]

    def with_changes(self, ours: _LayerState, now: _LayerState) -> _LayerState:
        """This state, and over it what others than the switch changed since it set ``ours``."""
        return _LayerState(
            self.active if now.active == ours.active else now.active,
            self.disabled if now.disabled == ours.disabled else now.disabled,
            {
                name: self.scaling.get(name, value) if value == ours.scaling.get(name) else value
                for name, value in now.scaling.items()
            },
        )

    def without(self, names: set[str]) -> _LayerState:
        """This state with none of these adapters active."""
        active = [self.active] if isinstance(self.active, str) else self.active
        if names.isdisjoint(active):
            return self
        kept = [name for name in active if name not in names]
        return _LayerState(kept, self.disabled, self.scaling)


class DenoiserAdapters:
    """The adapters of one denoiser: those of the user, and those that the switch brings.

    The user's may change at any time, also within a trajectory: what is put back is what the user
    set last. Adapters that the switch loaded are active in their stages only.

    Args:
        module: The denoiser.
        role: Its role, for errors.

    Raises:
        AdapterError: It has adapters that are fused into its weights.
    """

    def __init__(self, module: nn.Module, role: str) -> None:
        self._module: Any = uncompiled(module)
        self._role = role
        self._was_loaded = vars(self._module).get(_IS_LOADED, ...)
        self._configs: dict[str, Any] = {}  # of the adapters that the switch loaded
        self._wrapped: list[Any] = []  # the layers that had no adapters before
        self._user: dict[nn.Module, _LayerState] = {}
        self._set: dict[nn.Module, _LayerState] = {}
        self._before = set(self.loaded)
        # Loading lets only adapters require gradients; rounding depends on it, so it stays so
        # while the switch's are there.
        parameters = self._module.named_parameters()
        self._gradients = {_bare(name): p.requires_grad for name, p in parameters}
        self._check_unfused()

    @property
    def loaded(self) -> Mapping[str, Any]:
        """The adapters that the denoiser has now, by name."""
        return getattr(self._module, "peft_config", {})

    @property
    def _ours(self) -> set[str]:
        """Names that are loaded, and still those that the switch loaded."""
        return {n for n, config in self._configs.items() if self.loaded.get(n) is config}

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Load an adapter in the block; afterwards all others are as they were, it is inactive."""
        module, former = self._module, dict(self.loaded)
        before = {layer: _LayerState.of(layer) for layer in _layers(module)}
        try:
            yield
        finally:
            if name in self.loaded and name not in former:
                self._configs[name] = self.loaded[name]
            # A layer without adapters of its own says of the others what every layer says.
            common = next(iter(before.values()), _LayerState())
            for layer in _layers(module):
                if layer not in before:
                    self._wrapped.append(layer)
                before.get(layer, common).put_back(layer)

    def activate(self, weights: Mapping[str, float]) -> None:
        """Make these adapters, and no others, active with these weights.

        Raises:
            AdapterError: One isn't loaded any more, or the user has fused some.
        """
        self._check_unfused()
        if gone := sorted(weights.keys() - self.loaded.keys()):
            raise AdapterError(
                f"adapter {gone[0]!r} isn't loaded in the {self._role} denoiser any more: it was "
                "deleted while the switch was attached; load it again, or attach a new switch"
            )
        for layer in _layers(self._module):
            self._user[layer] = self._of_the_user(layer)
            layer._active_adapter, layer._disable_adapters = list(weights), False
            for name in weights.keys() & getattr(layer, "scaling", {}).keys():
                layer.set_scale(name, weights[name])
            self._set[layer] = _LayerState.of(layer)

    def give_back(self) -> None:
        """Set the adapters as the user has set them last."""
        for layer in self._set:
            user = self._of_the_user(layer)
            user.put_back(layer)
        self._user, self._set = {}, {}

    def unload(self) -> None:
        """Give back, and take away what the switch loaded; it may have been taken away before."""
        self.give_back()
        module, ours = self._module, self._ours
        for layer in _layers(module):
            _LayerState.of(layer).without(ours).put_back(layer)
            for name in ours:
                layer.delete_adapter(name)
        for name in ours:
            del module.peft_config[name]
        wrapped = {layer for layer in self._wrapped if not layer._all_available_adapter_names()}
        _unwrap(module, wrapped)
        if self._configs and "peft_config" in vars(module) and not module.peft_config:
            del module.peft_config
            _restore_flag(module, self._was_loaded)
        if self._configs and self.loaded.keys() <= self._before:
            for key, parameter in module.named_parameters():
                if parameter.requires_grad != self._gradients.get(_bare(key), False):
                    parameter.requires_grad_(not parameter.requires_grad)
        if ours or wrapped:
            module.delete_adapters(
                []
            )  # group offloading is set up anew for the layers that are left
        self._configs, self._wrapped = {}, []

    def _of_the_user(self, layer: Any) -> _LayerState:
        state = _LayerState.of(layer)
        if layer in self._set:
            state = self._user[layer].with_changes(self._set[layer], state)
        return state.without(self._ours)

    def _check_unfused(self) -> None:
        fused = {name for layer in _layers(self._module) for name in layer.merged_adapters}
        if fused:
            raise AdapterError(
                f"adapters {', '.join(sorted(fused))} are fused into the weights of the "
                f"{self._role} denoiser, so stages can't set adapters there: call "
                "pipe.unfuse_lora() first; or unload_lora_weights(), which leaves them in the "
                "weights for good"
            )


def _layers(module: nn.Module) -> list[Any]:
    """The layers that adapters are on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


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
