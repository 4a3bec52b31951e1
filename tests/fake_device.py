"""An accelerator that isn't there: it writes down whose weights are on it at every forward.

``cpu:0`` names the CPU, but isn't equal to ``cpu``. So diffusers and accelerate offload to and from
it as they would for a GPU, with their own code, while every tensor stays in main memory.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

ACCELERATOR = torch.device("cpu:0")


class FakeDevice:
    """Watches modules; ``forwards`` holds (who ran, whose weights were on the device then)."""

    def __init__(self, **modules: nn.Module) -> None:
        self.resident: set[str] = set()
        self.forwards: list[tuple[str, frozenset[str]]] = []
        self.moves: list[tuple[str, str]] = []
        self.watch(**modules)

    def watch(self, **modules: nn.Module) -> None:
        for name, module in modules.items():
            module.__dict__["watched"] = (self, name)
            if not isinstance(module, _Watched):  # loaded beside one that is
                module.__class__ = _watched(type(module))

    def moved(self, name: str, device: torch.device) -> None:
        self.moves.append((name, str(device)))
        (self.resident.discard if device == torch.device("cpu") else self.resident.add)(name)

    def ran(self, name: str) -> None:
        self.forwards.append((name, frozenset(self.resident)))


class _OnDevice(torch.nn.Parameter):
    device = ACCELERATOR


class _Watched:
    watched: tuple[FakeDevice, str] | None = None

    def to(self, *args: Any, **kwargs: Any) -> Any:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if self.watched is not None and device is not None:
            self.watched[0].moved(self.watched[1], device)
        return super().to(*args, **kwargs)  # type: ignore[misc]

    def parameters(self, recurse: bool = True) -> Any:
        here = self.watched is not None and self.watched[1] in self.watched[0].resident
        for parameter in super().parameters(recurse):  # type: ignore[misc]
            yield torch.Tensor._make_subclass(_OnDevice, parameter.data) if here else parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.watched is not None:
            self.watched[0].ran(self.watched[1])
        return super().forward(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def _watched(kind: type) -> type:
    return type(kind.__name__, (_Watched, kind), {"__module__": kind.__module__})
