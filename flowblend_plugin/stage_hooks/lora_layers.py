"""LayerState: how the LoRA adapters of one layer are set, in the layer's own numbers.

The weights that somebody called ``set_adapters`` with can't be told from them: ranks, rsLoRA and
weights by block are in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerState:
    """How the adapters of one layer are set."""

    active: str | list[str] = field(default_factory=list)
    disabled: bool = False
    scaling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Any) -> LayerState:
        """Read it off a layer."""
        return cls(
            layer.active_adapter, layer.disable_adapters, dict(getattr(layer, "scaling", {}))
        )

    def put_back(self, layer: Any) -> None:
        """Set a layer so."""
        # The layer's own methods would also change which weights require gradients.
        layer._active_adapter, layer._disable_adapters = self.active, self.disabled
        for name in self.scaling.keys() & getattr(layer, "scaling", {}).keys():
            layer.scaling[name] = self.scaling[name]

    def with_changes(self, ours: LayerState, now: LayerState) -> LayerState:
        """This state, and over it what others than the switch changed since it set ``ours``."""
        return LayerState(
            self.active if now.active == ours.active else now.active,
            self.disabled if now.disabled == ours.disabled else now.disabled,
            {
                name: self.scaling.get(name, value) if value == ours.scaling.get(name) else value
                for name, value in now.scaling.items()
            },
        )

    def without(self, names: set[str]) -> LayerState:
        """This state with none of these adapters active."""
        active = [self.active] if isinstance(self.active, str) else self.active
        if names.isdisjoint(active):
            return self
        kept = [name for name in active if name not in names]
        return LayerState(kept, self.disabled, self.scaling)


def adapter_layers(module: nn.Module) -> list[Any]:
    """The layers that adapters are on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
