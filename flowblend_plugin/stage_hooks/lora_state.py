"""DenoiserAdapters: sets a denoiser's LoRA adapters, and puts them back; for ``StageLora``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flowblend_plugin.denoisers.adapter_files import AdapterFile
from flowblend_plugin.denoisers.placement import uncompiled
from flowblend_plugin.errors import AdapterError
from flowblend_plugin.stage_hooks.lora_layers import LayerState, adapter_layers
from flowblend_plugin.stage_hooks.lora_loaded import LoadedAdapters


class DenoiserAdapters:
    """The adapters of one denoiser: those of the user, and those that switches bring.

    The user's may change at any time, also within a trajectory: what is put back is what the user
    set last. Adapters that a switch loaded are active in its stages only.

    Args:
        module: The denoiser.
        role: Its role, for errors.

    Raises:
        AdapterError: It has adapters that are fused into its weights.
    """

    def __init__(self, module: nn.Module, role: str) -> None:
        self._module: Any = uncompiled(module)
        self._role = role
        self._shared = LoadedAdapters.of(self._module)
        self._user: dict[nn.Module, LayerState] = {}
        self._set: dict[nn.Module, LayerState] = {}
        self._check_unfused()

    @property
    def loaded(self) -> Mapping[str, Any]:
        """The adapters that the denoiser has now, by name."""
        return getattr(self._module, "peft_config", {})

    def hold(
        self, name: str, file: AdapterFile | None, load: Callable[[AdapterFile], None]
    ) -> None:
        """Have an adapter there until ``release``; see ``LoadedAdapters``."""
        self._shared.hold(self, name, file, load)

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
        for layer in adapter_layers(self._module):
            self._user[layer] = self._of_the_user(layer)
            layer._active_adapter, layer._disable_adapters = list(weights), False
            for name in weights.keys() & getattr(layer, "scaling", {}).keys():
                layer.set_scale(name, weights[name])
            self._set[layer] = LayerState.of(layer)

    def give_back(self) -> None:
        """Set the adapters as the user has set them last."""
        for layer in self._set:
            user = self._of_the_user(layer)
            user.put_back(layer)
        self._user, self._set = {}, {}

    def release(self) -> None:
        """Give back, and take away what was loaded and no other switch holds."""
        self.give_back()
        self._shared.release(self)

    def _of_the_user(self, layer: Any) -> LayerState:
        state = LayerState.of(layer)
        if layer in self._set:
            state = self._user[layer].with_changes(self._set[layer], state)
        return state.without(self._shared.names)

    def _check_unfused(self) -> None:
        layers = adapter_layers(self._module)
        fused = {name for layer in layers for name in layer.merged_adapters}
        if fused:
            raise AdapterError(
                f"adapters {', '.join(sorted(fused))} are fused into the weights of the "
                f"{self._role} denoiser, so stages can't set adapters there: call "
                "pipe.unfuse_lora() first; or unload_lora_weights(), which leaves them in the "
                "weights for good"
            )
