"""SharedLayers: what switches lay on a module that they share, as long as one of them needs it."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Protocol

from torch import nn

from flowblend_plugin.denoisers.calls import LOCK
from flowblend_plugin.denoisers.offloading import traces


class Lay(Protocol):
    """Lays one thing on a module. It holds nobody who asks for that alive."""

    is_below: ClassVar[bool]
    """Whether it has to lie beneath all others."""

    @property
    def choice(self) -> Hashable:
        """What it would lay now; equal as long as that is the same, None for nothing."""

    def __call__(self, undo: ExitStack) -> None:
        """Lay it, unless the module has such a thing of its own."""


class _Layer:
    def __init__(self, kind: type[Lay]) -> None:
        self.kind = kind
        self.choice: Hashable = None
        self.undo = ExitStack()
        self.wanted: weakref.WeakKeyDictionary[Any, Lay] = weakref.WeakKeyDictionary()

    @property
    def present(self) -> Lay | None:
        """What lays it, by somebody who still chooses it."""
        return next((lay for lay in self.wanted.values() if lay.choice == self.choice), None)


class SharedLayers:
    """The layers on one module. Each stays until the last of its holders lets go.

    Somebody who comes while a layer is there holds it too, whatever they would have laid. One that
    goes from beneath others takes these away for a moment, so that all is undone in its order.
    """

    _all: ClassVar[weakref.WeakValueDictionary[int, SharedLayers]] = weakref.WeakValueDictionary()

    def __init__(self, module: nn.Module) -> None:
        self._module = module  # alive as long as this is, so that nobody else gets its id
        self._layers: list[_Layer] = []
        self._remove_traces = traces(module)

    @classmethod
    def of(cls, module: nn.Module) -> SharedLayers:
        """Give the layers of a module; whoever uses them keeps this object."""
        with LOCK:
            found = cls._all.get(id(module))
            if found is None:
                found = cls._all[id(module)] = cls(module)
            return found

    @classmethod
    @contextmanager
    def lifted(cls, module: nn.Module) -> Iterator[None]:
        """Have a module bare of all layers for a moment, such as to change its parts."""
        with LOCK:
            layers = cls._all.get(id(module))
            above = layers._take(0) if layers is not None else []
            try:
                yield
            finally:
                if layers is not None:
                    layers._lay(above)

    def hold(self, holder: Any, lay: Lay) -> None:
        """Have a layer laid, unless one of its kind is there that any holder still chooses."""
        kind = type(lay)
        with LOCK:
            index = next((i for i, one in enumerate(self._layers) if one.kind == kind), None)
            if index is None:
                if lay.choice is None:
                    return
                layer, index = _Layer(kind), 0 if lay.is_below else len(self._layers)
                self._layers.insert(index, layer)
            layer = self._layers[index]
            layer.wanted[holder] = lay
            if layer.present is None:
                layer.choice = lay.choice
                self._lay_again(index)

    def release(self, holder: Any) -> None:
        """Let all layers go; nothing is left of those that nobody else holds."""
        with LOCK:
            for layer in self._layers:
                layer.wanted.pop(holder, None)
            unheld = (i for i, layer in enumerate(self._layers) if not layer.wanted)
            index = next(unheld, None)
            if index is not None:
                self._lay_again(index)
            self._remove_traces()

    def _lay_again(self, index: int) -> None:
        """Take away a layer and those above it, and lay what is still held of them."""
        self._lay(self._take(index))

    def _take(self, index: int) -> list[_Layer]:
        above = self._layers[index:]
        with ExitStack() as undo:
            for layer in above:
                undo.push(layer.undo.pop_all())
        del self._layers[index:]
        return above

    def _lay(self, layers: list[_Layer]) -> None:
        for layer in layers:
            lay = layer.present or next(iter(layer.wanted.values()), None)
            if lay is None or lay.choice is None:
                continue
            layer.choice = lay.choice
            self._layers.append(layer)
            with ExitStack() as undo:
                lay(undo)
                layer.undo = undo.pop_all()
