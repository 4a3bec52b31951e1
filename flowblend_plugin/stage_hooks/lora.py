"""StageLora: loads LoRA adapters into denoisers and sets their weights, for ``DenoiserSwitch``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from flowblend_plugin.denoisers.adapter_files import AdapterFile, AdapterSource, load_adapter
from flowblend_plugin.denoisers.placement import uncompiled
from flowblend_plugin.errors import AdapterError
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stage_hooks.lora_state import DenoiserAdapters
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

    What is loaded for several switches stays until the last of them is detached.

    Raises:
        AdapterError: An adapter is in no source and not loaded, can't be read, or doesn't fit its
            denoiser; names the weights that don't. Or another switch has loaded another file under
            its name.
    """

    def __init__(
        self,
        pipe: Any,
        stages: Iterable[Stage],
        modules: Mapping[str, Iterable[nn.Module]],
        sources: Mapping[str, AdapterSource | Mapping[str, AdapterSource]] | None = None,
    ) -> None:
        self._adapters: dict[nn.Module, DenoiserAdapters] = {}
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
                    if module not in self._adapters:
                        self._adapters[module] = DenoiserAdapters(module, stage.denoiser)
            for stage in stages:
                for module in dict.fromkeys(modules.get(stage.denoiser, ())):
                    for adapter in stage.adapters:
                        self._hold(pipe, stage.denoiser, module, adapter.name, sources or {})
        except BaseException:
            self.remove()
            raise

    def _hold(
        self, pipe: Any, role: str, module: nn.Module, name: str, sources: Mapping[str, Any]
    ) -> None:
        adapters, source = self._adapters[module], sources.get(name)
        if isinstance(source, Mapping):
            source = source.get(role)
        file, bare = None if source is None else AdapterFile.of(source), uncompiled(module)
        adapters.hold(name, file, lambda file: load_adapter(pipe, role, bare, name, file.path))
        if name not in adapters.loaded:
            raise AdapterError(
                f"adapter {name!r} isn't loaded in the {role} denoiser and has no source for it: "
                f"give adapters={{{name!r}: FILE}} or {{{name!r}: {{{role!r}: FILE}}}}"
            )

    def start(self, scheduler: Any) -> None:
        """Set all adapters as the user did: a call that failed may have left a stage's."""
        self.finish()

    def begin_step(self, step: StageStep) -> None:
        """Set the adapters of a step, with the weights that its place in its stage gives them.

        Raises:
            AdapterError: The user has deleted one since, or fused some.
        """
        if not self._is_used or step.stage.is_extrapolated:
            return
        adapters = step.stage.adapters
        wanted = tuple((a.name, a.weight_at(step.position, step.count)) for a in adapters)
        for module in step.modules:
            if self._active.get(module) == wanted:
                continue
            self._adapters[module].activate(dict(wanted))
            self._active[module] = wanted

    def finish(self) -> None:
        """Set all adapters as the user did; what was loaded stays loaded, and is inactive."""
        for adapters in self._adapters.values():
            adapters.give_back()
        self._active = {}

    def remove(self) -> None:
        """Unload what was loaded here and no other switch needs, and nothing else."""
        for adapters in self._adapters.values():
            adapters.release()
        self._adapters, self._active = {}, {}
