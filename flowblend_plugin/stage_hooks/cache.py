"""StageCaches: switches a cache inside a denoiser on for one stage, for ``DenoiserSwitch``.

A cache only holds within one stage: what it kept belongs to one denoiser's recent steps. So each
stage begins with an empty one, which also makes a second run equal the first.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import diffusers
import torch
from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheBlockState
from diffusers.hooks.hooks import CacheContext, StateManager
from diffusers.hooks.mag_cache import nearest_interp
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastHook,
    PyramidAttentionBroadcastState,
)
from torch import nn

from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.denoisers.offloading import traces
from flowblend_plugin.errors import SwitchError
from flowblend_plugin.stage_hooks import cache_dit
from flowblend_plugin.stage_hooks.base import StageHook, StageStep
from flowblend_plugin.stage_hooks.layer_counts import LayerCounts
from flowblend_plugin.stages import Cache, Stage

logger = logging.getLogger(__name__)

_CONFIGS: dict[str, Any] = {
    "first_block": diffusers.FirstBlockCacheConfig,
    "mag": diffusers.MagCacheConfig,
    "taylorseer": diffusers.TaylorSeerCacheConfig,
    "pab": diffusers.PyramidAttentionBroadcastConfig,
    "faster": diffusers.FasterCacheConfig,
    "sea": diffusers.SeaCacheConfig,
    "text_kv": diffusers.TextKVCacheConfig,
}
_CACHE_DIT = "cache_dit"
KINDS = (*_CONFIGS, _CACHE_DIT)
# Their configs ask for the present timestep, and their state doesn't tell passes apart.
_BY_TIMESTEP = ("pab", "faster")


@dataclass(frozen=True)
class CacheReport:
    """What a cache saved in one stage.

    Args:
        stage: Index of the stage.
        denoiser: Role that ran it.
        kind: Kind of cache.
        forwards: Forwards of the denoiser.
        skipped: Forwards that didn't run in full.
        computed: Share of the linear layers' calls that ran, 0 to 1; 1.0 is a cache that did
            nothing.
    """

    stage: int
    denoiser: str
    kind: str
    forwards: int
    skipped: int
    computed: float


def cache_config(
    cache: Cache, start: int, steps: int, total: int, timestep: Callable[[], int]
) -> Any:
    """Make the diffusers config of a stage's cache.

    Args:
        cache: Kind, one of diffusers' own, and options.
        start: First step of the stage.
        steps: Number of steps of the stage.
        total: Number of steps of the trajectory.
        timestep: Tells the pipeline's present timestep.

    Returns:
        The config. MagCache counts its own forwards, so it gets its stage's part of the ratios.
        FasterCache leaves the unconditional pass alone unless its options say otherwise: only
        pipelines that run both passes as one batch can skip one of them inside the denoiser.

    Raises:
        SwitchError: The kind, or an option of it, is unknown or out of range.
    """
    if cache.kind not in _CONFIGS:
        raise SwitchError(f"cache {cache.kind!r} is unknown: choose one of {', '.join(KINDS)}")
    config_class = _CONFIGS[cache.kind]
    options = dict(cache.options)
    known = {field.name for field in fields(config_class)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise SwitchError(
            f"cache {cache.kind!r} takes no {', '.join(unknown)}: it takes "
            f"{', '.join(sorted(known)) or 'no options'}"
        )
    try:
        options = {name: _plain(name, value) for name, value in options.items()}
    except AttributeError as error:
        raise SwitchError(f"cache {cache.kind!r}: {error}") from error
    if cache.kind in _BY_TIMESTEP:
        options["current_timestep_callback"] = timestep
    if cache.kind == "faster":
        options.setdefault("is_guidance_distilled", True)
    if cache.kind == "mag":
        options |= _mag_options(options, start, steps, total)
    try:
        return config_class(**options)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SwitchError(f"cache {cache.kind!r} can't be made: {reason}") from error


def _mag_options(options: dict[str, Any], start: int, steps: int, total: int) -> dict[str, Any]:
    if options.get("mag_ratios") is None:
        return {"num_inference_steps": steps}
    ratios = torch.as_tensor(options["mag_ratios"], dtype=torch.float32)
    # The ratios describe a whole run: bring them to this run's steps, then cut the stage out.
    part = nearest_interp(ratios, total)[start : start + steps]
    return {"num_inference_steps": steps, "mag_ratios": part}


def _plain(name: str, value: Any) -> Any:
    if name.endswith("_dtype") and isinstance(value, str):
        return getattr(torch, value)
    return value


class StageCaches(StageHook):
    """Switches caches on and off with the stages, and counts what they skip.

    Args:
        pipe: The pipeline, held weakly.
        stages: The stages.
        modules: Every denoiser that may run.

    Raises:
        SwitchError: A denoiser has a cache already, or can't have one; an option is wrong; or the
            pipeline doesn't tell what a cache has to know.
    """

    name = "caches"

    def __init__(self, pipe: Any, stages: Iterable[Stage], modules: Iterable[nn.Module]) -> None:
        self._pipe = weakref.ref(pipe)
        self.reports: list[CacheReport] = []
        self._running: tuple[LayerCounts, int, Stage] | None = None
        self._disable: list[Callable[[], None]] = []
        caches = [stage.cache for stage in stages if stage.cache is not None]
        denoisers = list(modules) if caches else []
        for cache in caches:  # what is wrong is found now, not in mid-run
            self._check(pipe, cache, denoisers)

    def _check(self, pipe: Any, cache: Cache, denoisers: list[nn.Module]) -> None:
        if cache.kind == _CACHE_DIT:
            cache_dit.check_options(dict(cache.options))
        else:
            cache_config(cache, 0, 1, 1, self._timestep)
        if cache.kind in _BY_TIMESTEP and not hasattr(type(pipe), "current_timestep"):
            raise SwitchError(
                f"cache {cache.kind!r} goes by the present timestep, which a {type(pipe).__name__} "
                "doesn't tell: choose another cache"
            )
        for module in denoisers:
            name = type(module).__name__
            if getattr(module, "is_cache_enabled", False):
                raise SwitchError(
                    f"this {name} has a cache enabled already: call disable_cache() on it, or "
                    "leave cache out of the stages"
                )
            if cache.kind == _CACHE_DIT:
                cache_dit.check_denoiser(module, dict(cache.options))
            elif not hasattr(module, "enable_cache"):
                raise SwitchError(f"{name} can't cache: leave cache out of the stages")

    def _timestep(self) -> int:
        pipe = self._pipe()
        return 0 if pipe is None else int(pipe.current_timestep)

    def start(self, scheduler: Any) -> None:
        """Begin with no reports."""
        self.leave()
        self.reports = []

    def enter(self, step: StageStep) -> None:
        """Enable a stage's cache on the denoisers that run it."""
        cache = step.stage.cache
        if cache is None:
            return
        module: Any
        for module in step.modules:
            self._disable.append(traces(module))
            if cache.kind == _CACHE_DIT:
                guided = getattr(self._pipe(), "do_classifier_free_guidance", True)
                disable = cache_dit.enable(module, dict(cache.options), guided)
            else:
                left = step.count - step.position
                config = cache_config(cache, step.index, left, step.total, self._timestep)
                module.enable_cache(config)
                if cache.kind in _BY_TIMESTEP:
                    remember_per_pass(module)
                disable = module.disable_cache
            self._disable.append(disable)
        self._running = (LayerCounts(step.modules), step.stage_index, step.stage)

    def denoiser_answer(self, call: Call) -> None:
        """Count a forward that begins."""
        if self._running is not None:
            self._running[0].begin()

    def denoiser_ran(self, call: Call, output: Any) -> None:
        """Count a forward that ended."""
        if self._running is not None:
            self._running[0].end(call.module)

    @property
    def can_be_stored(self) -> bool:
        """Whether no cache holds anything: its contents aren't part of a state."""
        return self._running is None or not self._running[0].forwards

    def state_dict(self) -> list[dict[str, Any]]:
        """Give the reports so far, as plain values."""
        return [asdict(report) for report in self.reports]

    def load_state_dict(self, state: Any) -> None:
        """Go on after these reports."""
        self.reports = [CacheReport(**report) for report in state]

    def leave(self) -> None:
        """Disable the running stage's cache, if any, and note what it saved."""
        running, self._running = self._running, None
        if running is not None:
            running[0].close()
        while self._disable:
            self._disable.pop()()
        if running is None:
            return
        counter, index, stage = running
        assert stage.cache is not None
        if counter.forwards:
            kind = stage.cache.kind
            report = CacheReport(index, stage.denoiser, kind, counter.forwards, *counter.summary())
            self.reports.append(report)
            if report.computed == 1:
                logger.warning(
                    "cache %r of stage %d (%s) skipped nothing", kind, index, stage.denoiser
                )


def forget_cached(denoiser: Any) -> None:
    """Empty a cache that the user enabled on a denoiser: it only holds within one stage.

    FasterCache takes it for granted that its first forward is one of the trajectory's first, which
    it never skips. In a later stage it has to be told to compute that one.
    """
    if not getattr(denoiser, "is_cache_enabled", False):
        return
    denoiser._reset_stateful_cache()
    for hook in _cache_hooks(denoiser):
        if isinstance(hook, FasterCacheBlockHook):
            hook.state.iteration = hook.block_skip_range


# PAB and FasterCache keep one memory for all passes of a step; here each pass has its own.

_STATE_MANAGER_FIELDS = ("_state_cls", "_init_args", "_init_kwargs", "_state_cache", "_context")
_ONLY = CacheContext("only")
_Manager: Any = StateManager  # typed for one kind of state, and works with any


class _PassMemory(_Manager):  # type: ignore[misc]
    """Reads and writes the state of the pass that ``cache_context`` names.

    diffusers tells every ``StateManager`` among a hook's attributes which pass begins.
    """

    @property
    def context(self) -> CacheContext:
        given: CacheContext | None = self._context
        return given or _ONLY

    def __getattr__(self, name: str) -> Any:
        return getattr(self.get_state(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STATE_MANAGER_FIELDS:
            super().__setattr__(name, value)
        else:
            setattr(self.get_state(), name, value)


class _ComputeFirstState(FasterCacheBlockState):
    """FasterCache's state, in which the first forward of an attention is computed."""

    def __init__(self, skip_range: int) -> None:
        super().__init__()
        self.iteration = skip_range


def remember_per_pass(denoiser: nn.Module) -> None:
    """Give every attention of a denoiser with PAB or FasterCache one memory per pass.

    Pipelines that don't name their passes with ``cache_context`` keep one memory for all.

    Args:
        denoiser: A denoiser on which the cache was just enabled.
    """
    for hook in _cache_hooks(denoiser):
        if isinstance(hook, PyramidAttentionBroadcastHook):
            hook.state = _PassMemory(PyramidAttentionBroadcastState)
        elif isinstance(hook, FasterCacheBlockHook):
            hook.state = _PassMemory(_ComputeFirstState, (hook.block_skip_range,))


def _cache_hooks(denoiser: nn.Module) -> Iterator[Any]:
    for module in denoiser.modules():
        registry = getattr(module, "_diffusers_hook", None)
        yield from registry.hooks.values() if registry is not None else ()
