"""pytest plugin under diffusers' tests: notes what each call of a pipeline gave, plain or switched.

``FLOWBLEND_PEERS_NOTES`` names the file that gets one JSON line a test. ``FLOWBLEND_PEERS`` is
``plain`` or ``switched``: the latter attaches a switch around each call of a pipeline, and gives
the tests of schedulers our classes.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

IS_SWITCHED = os.environ.get("FLOWBLEND_PEERS") == "switched"
NOTES = Path(os.environ.get("FLOWBLEND_PEERS_NOTES", os.devnull))

_calls: list[str] = []
_depth = 0


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Give the tests of schedulers our classes instead of diffusers' own."""
    if not IS_SWITCHED:
        return
    for kind in {item.cls for item in items if getattr(item, "cls", None) is not None}:
        own = getattr(kind, "scheduler_classes", ())
        if own:
            kind.scheduler_classes = tuple(map(_ours, own))
    # These tests ask which class it is, too.
    modules = [module for name, module in sys.modules.items() if "test_scheduler" in name]
    for module in modules:
        for name, value in [*vars(module).items()]:
            if isinstance(value, type) and value.__module__.startswith("diffusers.schedulers.sch"):
                setattr(module, name, _ours(value))


def _ours(kind: type) -> type:
    """Our class of a scheduler's; its own where it can't have stages."""
    from diffusers import SchedulerMixin

    from flowblend_plugin.errors import SwitchError
    from flowblend_plugin.schedulers.stage_mixin import with_stages

    try:
        return kind if kind is SchedulerMixin else with_stages(kind)
    except SwitchError:
        return kind


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Iterator[None]:
    """Seed torch, numpy and random, and watch every pipeline that is known by now."""
    _calls.clear()
    _watch_pipelines()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what those tests draw from
    random.seed(0)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """Write a test's outcome, and the hashes of what its pipelines gave."""
    report = yield
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        note = {
            "test": item.nodeid,
            "outcome": "skipped" if report.when == "setup" and report.skipped else report.outcome,
            "calls": list(_calls),
            "error": _last_line(report),
        }
        with NOTES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
    return report


def _last_line(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message)[:2000] if crash is not None else ""


def _watch_pipelines() -> None:
    from diffusers import DiffusionPipeline
    from diffusers.modular_pipelines import ModularPipeline

    for base in (DiffusionPipeline, ModularPipeline):
        for kind in _descendants(base):
            call = vars(kind).get("__call__")
            if call is not None and not hasattr(call, "_is_watched"):
                kind.__call__ = _watched(call)  # type: ignore[method-assign]


def _descendants(kind: type) -> Iterator[Any]:
    yield kind
    for below in kind.__subclasses__():
        yield from _descendants(below)


def _watched(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def watched(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        global _depth
        if _depth:  # pipelines that call others
            return call(pipe, *args, **kwargs)
        _depth += 1
        try:
            found = (
                _switched(call, pipe, args, kwargs) if IS_SWITCHED else call(pipe, *args, **kwargs)
            )
        finally:
            _depth -= 1
        _calls.append(_hash(found))
        return found

    watched._is_watched = True  # type: ignore[attr-defined]
    return watched


def _plain(call: Callable[..., Any], pipe: Any, args: Any, kwargs: Any) -> Any:
    return call(pipe, *args, **kwargs)


def _switched(call: Callable[..., Any], pipe: Any, args: Any, kwargs: Any) -> Any:
    """Call a pipeline whose small denoiser has the large one's weights: no bit may change."""
    from flowblend_plugin import DenoiserSwitch
    from flowblend_plugin.denoisers.placement import own_slots
    from flowblend_plugin.errors import SwitchError

    try:
        own = own_slots(pipe)
    except SwitchError:  # priors and upscalers, which have no denoiser
        own = {}
    if not own or getattr(pipe, "scheduler", None) is None:
        return call(pipe, *args, **kwargs)
    with DenoiserSwitch(pipe, [twin(module) for module in own.values()], "LSL", (0.4, 0.8)):
        return call(pipe, *args, **kwargs)


def twin(module: Any) -> Any:
    """A module with the same weights and its own memory, without the hooks of the other's.

    Nothing is drawn from torch's own generator: some pipelines draw their noise from it.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            other = type(module).from_config(module.config)
        other.load_state_dict(module.state_dict())
    except (KeyError, RuntimeError, TypeError, ValueError):
        other = copy.deepcopy(module)  # adapters, or weights that aren't where their config says
    return other.to(module.device, module.dtype).train(module.training)


def _hash(found: Any) -> str:
    digest = hashlib.sha256()
    for part in _parts(found):
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(found: Any) -> Iterator[bytes]:
    if isinstance(found, torch.Tensor):
        yield found.detach().cpu().float().numpy().tobytes()
    elif hasattr(found, "tobytes"):  # an array or a picture
        yield found.tobytes()
    elif isinstance(found, dict):
        for value in found.values():
            yield from _parts(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _parts(value)
    elif hasattr(found, "__dict__") and not isinstance(found, type):
        yield from _parts({k: v for k, v in vars(found).items() if k in ("values", "images")})
