"""StageLora: loads LoRA adapters into denoisers and sets their weights, for ``DenoiserSwitch``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowblend_plugin.errors import AdapterError
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stages import Stage

AdapterSource = str | os.PathLike[str]
_SHOWN = 5


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
        weights, metadata, alphas = read_adapter(pipe, source)
        check_adapter(module, role, name, weights)
        module.load_lora_adapter(  # type: ignore[operator]
            _prefixed(weights),
            prefix="transformer",
            adapter_name=name,
            metadata=_prefixed(metadata) if metadata else None,
            network_alphas=_prefixed(alphas) if alphas and not metadata else None,
            _pipeline=pipe,
        )

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


def read_adapter(pipe: Any, source: AdapterSource) -> tuple[dict[str, Any], ...]:
    """Read a LoRA file in any spelling that the pipeline's class knows, by the denoiser's names.

    Args:
        pipe: The pipeline.
        source: A safetensors file, or a Hub id, optionally with the file's name after it.

    Returns:
        Weights by name, such as ``blocks.0.attn1.to_q.lora_A.weight``; by the same names what peft
        wrote beside them (rank, alpha); and by theirs the network alphas of other trainers.

    Raises:
        AdapterError: The file isn't there, isn't safetensors, or is damaged.
    """
    place = os.fspath(source)
    options: dict[str, Any] = {"use_safetensors": True}
    if Path(place).exists():
        if not place.endswith(".safetensors"):
            raise AdapterError(
                f"adapter {place} is no safetensors file: other formats can run code while they "
                "load"
            )
    elif place.startswith((".", "/", "~")):
        raise AdapterError(f"adapter {place} doesn't exist: expected a .safetensors file")
    elif place.endswith(".safetensors") and place.count("/") >= 2:
        owner, name, options["weight_name"] = place.split("/", 2)
        place = f"{owner}/{name}"
    try:
        weights, *others = _read(pipe, place, options)
    except Exception as error:  # whatever a damaged file, or no network, makes its reader raise
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"adapter {place} can't be read: {reason}") from error
    metadata = others[-1] if others else None
    alphas = others[0] if len(others) > 1 else None
    return _stripped(weights), _stripped(metadata or {}), _stripped(alphas or {})


def _read(pipe: Any, place: str, options: dict[str, Any]) -> tuple[Any, ...]:
    """Weights, then network alphas for the pipelines that tell them, then metadata."""
    reader = getattr(type(pipe), "lora_state_dict", None)
    if reader is None:
        from safetensors.torch import load_file

        return (load_file(place),)
    found = reader(place, return_lora_metadata=True, **options)
    return found if isinstance(found, tuple) else (found,)


def _stripped(values: Mapping[str, Any]) -> dict[str, Any]:
    prefixes = ("transformer.", "unet.", "diffusion_model.", "base_model.model.")
    return {
        next((key[len(p) :] for p in prefixes if key.startswith(p)), key): value
        for key, value in values.items()
    }


def _prefixed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"transformer.{key}": value for key, value in values.items()}


def check_adapter(
    module: nn.Module, role: str, name: str, weights: Mapping[str, torch.Tensor]
) -> None:
    """Check that every weight of a LoRA has its layer in a denoiser, in the right size.

    Raises:
        AdapterError: One hasn't; names the first few of them and says how many there are.
    """
    layers = {
        key.removesuffix(".base_layer"): layer
        for key, layer in module.named_modules()
        if isinstance(getattr(layer, "weight", None), torch.Tensor)
    }
    wrong = []
    for key, value in weights.items():
        place, kind = next(
            ((key.split(f".{k}")[0], k) for k in ("lora_A", "lora_B") if f".{k}" in key), (key, "")
        )
        layer = layers.get(place)
        if not kind or layer is None:
            wrong.append(f"{key}: no such layer")
            continue
        rows, columns = layer.weight.shape[0], layer.weight.shape[1]
        got, want = (value.shape[1], columns) if kind == "lora_A" else (value.shape[0], rows)
        if got != want:
            wrong.append(f"{key}: {got} wide, the layer has {want}")
    if wrong or not weights:
        listed = "\n".join(f"  - {line}" for line in wrong[:_SHOWN]) or "  - it holds no weights"
        more = f"\n  - and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise AdapterError(
            f"adapter {name!r} doesn't fit the {role} denoiser ({type(module).__name__}):\n"
            f"{listed}{more}\nA LoRA fits the denoiser that it was trained on: give each denoiser "
            "its own."
        )


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
