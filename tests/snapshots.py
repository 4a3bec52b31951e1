"""Snapshots of all that a switch may touch; what differs between two of them, line by line."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.hooks.hooks import HookRegistry
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flowblend_plugin import DenoiserSwitch

DENOISERS = ("transformer", "transformer_2", "unet")
# Attributes of modules whose contents are noted by themselves.
_ELSEWHERE = {
    "_parameters", "_buffers", "_modules", "_hf_hook", "_diffusers_hook", "_forward_hooks",
    "_forward_pre_hooks", "forward", "_old_forward", "peft_config", "scaling", "merged_adapters",
    "_active_adapter", "_disable_adapters", "processor", "_cache_config", "_internal_dict",
    "watched",
}  # fmt: skip


class Snapshot:
    """What is in a pipe, and in further modules, at one moment.

    Args:
        pipe: The pipeline, or None.
        modules: Further modules by name, such as the small denoiser.
    """

    def __init__(self, pipe: Any = None, **modules: Any) -> None:
        self.facts: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []  # so that an id isn't given to another object
        parts = {**(_components(pipe) if pipe is not None else {}), **modules}
        for name, module in parts.items():
            for path, part in module.named_modules():
                self._names.setdefault(id(part), f"{name}.{path}".rstrip("."))
        if pipe is not None:
            self._note_pipe(pipe)
        for name, module in parts.items():
            if self._names[id(module)] == name:
                self._note_module(name, module, name in {*DENOISERS, *modules})
        backend = _AttentionBackendRegistry.get_active_backend()[0]
        self.facts["attention backend of all"] = backend.value

    def differences(self, before: Snapshot) -> list[str]:
        """What this one says otherwise than an earlier one, a line each."""
        old, new = before.facts, self.facts
        found = []
        for key in dict.fromkeys([*old, *new]):
            was, now = old.get(key, "not there"), new.get(key, "not there")
            if not _same(was, now):
                found.append(f"{key}: was {_short(was)}, is {_short(now)}")
        return found

    def _ref(self, thing: Any) -> Any:
        """A value that is equal for the very same object only."""
        if isinstance(thing, nn.Module) and id(thing) in self._names:
            return f"<{self._names[id(thing)]}>"
        self._kept.append(thing)
        return _Identity(thing)

    def _note_pipe(self, pipe: Any) -> None:
        # Further values in a pipe, such as _num_timesteps, are written by each of its calls.
        facts, parts = self.facts, vars(pipe)
        facts["config"] = _public(getattr(pipe, "config", {}))
        for name, value in parts.items():
            if callable(value) or hasattr(value, "config") or name.startswith("_flowblend"):
                facts[f"pipe.{name}"] = _Identity(value)
        chain = getattr(pipe, "_all_hooks", [])
        facts["chain"] = [(self._ref(link.model), self._hook(link.hook)) for link in chain]
        scheduler = getattr(pipe, "scheduler", None)
        if scheduler is not None:
            facts["scheduler class"] = type(scheduler)
            facts["scheduler config"] = _public(scheduler.config)
            if getattr(scheduler, "stages", None) is None:  # else it is the one that has run
                for name, value in vars(scheduler).items():
                    if name != "_internal_dict":
                        facts[f"scheduler.{name}"] = _plain(value)

    def _note_module(self, name: str, module: nn.Module, is_denoiser: bool) -> None:
        facts = self.facts
        facts[f"{name} device map"] = _plain(getattr(module, "hf_device_map", None))
        for path, part in module.named_modules():
            key = f"{name}.{path}".rstrip(".")
            facts[f"{key} is"] = _Identity(part)
            facts[f"{key} hook"] = self._hook(vars(part).get("_hf_hook"))
            if is_denoiser:
                self._note_part(key, part)
            if isinstance(part, BaseTunerLayer):
                self._note_adapters(key, part)
        for path, value in (*module.named_parameters(), *module.named_buffers()):
            facts[f"{name}.{path}"] = (value.device, value.dtype, value.requires_grad)
            if is_denoiser and not value.is_meta:
                facts[f"{name}.{path} values"] = value.detach().clone()

    def _note_part(self, key: str, part: Any) -> None:
        facts, own = self.facts, vars(part)
        registry = own.get("_diffusers_hook")
        found = registry.hooks if registry is not None else {}
        facts[f"{key} registry"] = {n: _Identity(hook) for n, hook in found.items()}
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            facts[f"{key} {kind}"] = [_Identity(hook) for hook in getattr(part, kind).values()]
        facts[f"{key} forward"] = self._forward(part)
        facts[f"{key} cache"] = _Identity(own.get("_cache_config"))
        processor = getattr(part, "processor", None)
        backend = getattr(processor, "_attention_backend", None)
        facts[f"{key} processor"] = (_Identity(processor), backend)
        facts[f"{key} config"] = _public(own.get("_internal_dict", {}))
        facts[f"{key} adapter configs"] = {
            n: _Identity(config) for n, config in own.get("peft_config", {}).items()
        }
        for name, value in own.items():
            if name not in _ELSEWHERE:
                facts[f"{key}.{name}"] = _plain(value)

    def _note_adapters(self, key: str, layer: Any) -> None:
        self.facts[f"{key} adapters"] = {
            "names": layer._all_available_adapter_names(),
            "scaling": dict(getattr(layer, "scaling", {})),
            "active": copy.copy(layer.active_adapter),
            "disabled": layer.disable_adapters,
            "merged": list(layer.merged_adapters),
        }

    def _hook(self, hook: Any) -> Any:
        """An accelerate hook: its kind, its device, and what it sends away first."""
        if hook is None:
            return None
        before = getattr(hook, "prev_module_hook", None)
        return (
            type(hook).__name__,
            str(getattr(hook, "execution_device", None)),
            type(before).__name__,
            self._ref(before.model) if before is not None else None,
            [self._hook(each) for each in getattr(hook, "hooks", ())],
        )

    def _forward(self, part: Any) -> str:
        forward = vars(part).get("forward")
        if forward is None:
            return "of its class"
        if getattr(forward, "__func__", None) is type(part).forward:
            return "of its class, written to the module"
        return "another"


class _Identity:
    """Equal to the same object only."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __repr__(self) -> str:
        return f"{type(self.thing).__name__} at {id(self.thing):x}"


def _components(pipe: Any) -> dict[str, nn.Module]:
    return {n: m for n, m in vars(pipe).items() if isinstance(m, nn.Module)}


def _public(config: Any) -> dict[str, Any]:
    """A config without what saving, and a call of SkyReels V2, note in it."""
    return {
        key: _plain(value)
        for key, value in config.items()
        if not key.startswith("_") and key != "num_frame_per_block"
    }


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:300]


def _plain(value: Any) -> Any:
    """A copy of a value that later changes don't reach; what can't be copied is itself."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module | HookRegistry) or inspect.isroutine(value):
        return _Identity(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, str | int | float | bool | None | torch.dtype | torch.device | type):
        return value
    return _Identity(value)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def check(before: Snapshot, after: Snapshot) -> None:
    """Fail, and list every difference, where something isn't what it was."""
    found = after.differences(before)
    assert not found, "not put back:\n" + "\n".join(f"  - {line}" for line in found[:40])


@contextmanager
def every_switch_checked() -> Iterator[None]:
    """Compare each pipe, and its further denoisers, before a switch was attached and after."""
    attach, detach = DenoiserSwitch.__init__, DenoiserSwitch.detach
    noted: dict[int, tuple[Any, dict[str, Any], Snapshot]] = {}

    def attached(self: Any, pipe: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(attach).bind(self, pipe, *args, **kwargs).arguments
        named = {"small": given.get("small"), **(given.get("denoisers") or {})}
        modules = {
            f"{name} {place}": module
            for name, one in named.items()
            for place, module in enumerate(one if isinstance(one, list | tuple) else [one])
            if isinstance(module, nn.Module)
        }
        before = Snapshot(pipe, **modules)
        try:
            attach(self, pipe, *args, **kwargs)
        except BaseException:
            check(before, Snapshot(pipe, **modules))
            raise
        noted[id(self)] = pipe, modules, before

    def detached(self: Any) -> None:
        was_attached = self.attached
        detach(self)
        if was_attached and id(self) in noted:
            pipe, modules, before = noted.pop(id(self))
            check(before, Snapshot(pipe, **modules))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenoiserSwitch, "__init__", attached)
        patch.setattr(DenoiserSwitch, "detach", detached)
        yield
