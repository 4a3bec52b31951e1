"""StageLora: loads LoRA adapters into denoisers and sets their weights, for ``DenoiserSwitch``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from flowblend_plugin.denoisers.adapter_files import AdapterSource, load_adapter
from flowblend_plugin.errors import AdapterError
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stages import Stage


class StageLora(StageHook):
    """Gives each stage of a trajectory its LoRA adapters.

    Loads what isn't loaded yet into the denoisers whose stages use it. A schedule in which no stage
    names adapters touches nothing.

    Args:
        pipe: The pipeline, whose class knows how published LoRA files name their weights.
        stages: The stages.
        modules: Role -> the modules that run it; none for a role that isn't there.
        sources: Adapter name -> safetensors file or Hub id (``owner/name`` or
            ``owner/name/file.safetensors``), or a mapping of role -> such a source. A name that is
            left out has to be loaded in the denoiser already.

    Raises:
        AdapterError: An adapter is in no source and not loaded, can't be read, or doesn't fit its
            denoiser; names the weights that don't.
    """

    def __init__(
        self,
        pipe: Any,
        stages: Iterable[Stage],
        modules: Mapping[str, Iterable[nn.Module]],
        sources: Mapping[str, AdapterSource | Mapping[str, AdapterSource]] | None = None,
    ) -> None:
        self._touched: dict[nn.Module, _FormerAdapters] = {}
        self._active: dict[nn.Module, tuple[tuple[str, float], ...]] = {}
        stages = tuple(stages)
        self._is_used = any(stage.adapters for stage in stages)
        if not self._is_used:
            if sources:
                raise AdapterError(
                    f"adapters {', '.join(sources)} were given, but no stage uses any: name them "
                    "in the stages, or leave them out"
                )
            return
        try:
            for stage in stages:
                for module in dict.fromkeys(modules.get(stage.denoiser, ())):
                    self._touched.setdefault(module, _FormerAdapters(module))
                    for adapter in stage.adapters:
                        self._load(pipe, stage.denoiser, module, adapter.name, sources or {})
            self.finish()
        except BaseException:
            self.remove()
            raise

    def _load(
        self, pipe: Any, role: str, module: nn.Module, name: str, sources: Mapping[str, Any]
    ) -> None:
        if name in getattr(module, "peft_config", {}):
            return
        source = sources.get(name)
        if isinstance(source, Mapping):
            source = source.get(role)
        if source is None:
            raise AdapterError(
                f"adapter {name!r} isn't loaded in the {role} denoiser and has no source for it: "
                f"give adapters={{{name!r}: FILE}} or {{{name!r}: {{{role!r}: FILE}}}}"
            )
        load_adapter(pipe, role, module, name, source)

    def begin_step(self, step: StageStep) -> None:
        """Set the adapters of a step, with the weights that its place in its stage gives them."""
        if not self._is_used or step.stage.is_extrapolated:
            return
        adapters = step.stage.adapters
        wanted = tuple((a.name, a.weight_at(step.position, step.count)) for a in adapters)
        for module in step.modules:
            if self._active.get(module) == wanted:
                continue
            _activate(module, dict(wanted))
            self._active[module] = wanted

    def finish(self) -> None:
        """Reactivate the adapters that were active before; what was loaded stays loaded."""
        for module, before in self._touched.items():
            before.reactivate(module)
        self._active = {}

    def remove(self) -> None:
        """Unload what was loaded, and reactivate what was active."""
        for module, before in self._touched.items():
            before.restore(module)
        self._touched, self._active = {}, {}


class _FormerAdapters:
    """The adapters that a denoiser had before the switch."""

    def __init__(self, module: nn.Module) -> None:
        self.loaded = set(getattr(module, "peft_config", {}))
        self.active: dict[str, float] = _active_adapters(module) if self.loaded else {}

    def reactivate(self, module: nn.Module) -> None:
        if getattr(module, "peft_config", None):
            _activate(module, self.active)

    def restore(self, module: nn.Module) -> None:
        ours = sorted(set(getattr(module, "peft_config", {})) - self.loaded)
        if ours and not self.loaded:
            module.unload_lora()  # type: ignore[operator]
        elif ours:
            module.delete_adapters(ours)  # type: ignore[operator]
        if self.loaded:
            _activate(module, self.active)


def _lora_layers(module: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def _active_adapters(module: nn.Module) -> dict[str, float]:
    active: dict[str, float] = {}
    for layer in _lora_layers(module):
        if layer.disable_adapters:
            continue
        for name in layer.active_adapters:
            if name in layer.scaling:
                initial = layer.lora_alpha[name] / layer.r[name]
                active[name] = layer.scaling[name] / initial
    return active


def _activate(module: nn.Module, weights: Mapping[str, float]) -> None:
    if weights:
        module.enable_lora()  # type: ignore[operator]
        module.set_adapters(list(weights), list(weights.values()))  # type: ignore[operator]
    else:
        module.disable_lora()  # type: ignore[operator]
