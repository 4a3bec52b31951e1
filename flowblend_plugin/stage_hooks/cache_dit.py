"""cache-dit's block cache, one of the kinds of ``StageCaches``; needs the extra ``cache-dit``.

cache-dit was made to stay on a pipeline for good, and leaves traces when it goes: a ``forward`` of
its own, patched blocks, another order of the submodules. Here all of it is undone.

Reference:
    https://github.com/vipshop/cache-dit
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from flowblend_plugin.errors import SwitchError

if TYPE_CHECKING:
    from torch import nn

_TAYLORSEER = "taylorseer_order"
# Which cache it is, and what belongs to runs that outlive a stage.
_HIDDEN = ("cache_type", "num_inference_steps", "force_refresh_step_hint",
           "force_refresh_step_policy")  # fmt: skip


def _cache_dit() -> Any:
    try:
        import cache_dit  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise SwitchError(
            "cache 'cache_dit' needs the package cache-dit, which isn't installed: "
            "pip install 'flowblend[cache-dit]', or choose another cache"
        ) from error
    # It logs every step of its setup to stdout, where a caller may print results.
    for handler in logging.getLogger("CACHE_DIT").handlers:  # the one that all its loggers share
        stdout = (sys.stdout, sys.__stdout__)
        if isinstance(handler, logging.StreamHandler) and handler.stream in stdout:
            handler.setStream(sys.stderr)
            handler.setLevel(logging.ERROR)
    return cache_dit


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of a cache before a run.

    Raises:
        SwitchError: cache-dit isn't installed, or has no such option.
    """
    cache_dit = _cache_dit()
    known = {field.name for field in fields(cache_dit.DBCacheConfig)} - {*_HIDDEN}
    unknown = sorted(set(options) - known - {_TAYLORSEER})
    if unknown:
        raise SwitchError(
            f"cache 'cache_dit' takes no {', '.join(unknown)}: it takes "
            f"{', '.join(sorted([*known, _TAYLORSEER], key=str.lower))}"
        )


def check_denoiser(denoiser: nn.Module, options: Mapping[str, Any]) -> None:
    """Check that a denoiser can have the cache.

    Raises:
        SwitchError: It is of a class that cache-dit doesn't know, has a cache-dit cache already,
            or has fewer blocks than are to be computed.
    """
    cache_dit, name = _cache_dit(), type(denoiser).__name__
    adapter = cache_dit.BlockAdapterRegister.get_adapter(denoiser, skip_post_init=True)
    if adapter is None:
        raise SwitchError(f"cache-dit doesn't know {name}: choose another cache")
    if getattr(denoiser, "_is_cached", False):
        raise SwitchError(
            f"this {name} has a cache of cache-dit already: call cache_dit.disable_cache on it, "
            "or leave cache out of the stages"
        )
    config = cache_dit.DBCacheConfig()
    blocks = min(len(each) for each in cache_dit.BlockAdapter.flatten([adapter.blocks]))
    for key in ("Fn_compute_blocks", "Bn_compute_blocks"):
        if (computed := options.get(key, getattr(config, key))) > blocks:
            raise SwitchError(
                f"{key} of cache 'cache_dit' is {computed}, and this {name} has {blocks} blocks: "
                "give a smaller number"
            )


def enable(denoiser: nn.Module, options: Mapping[str, Any], guided: bool) -> Callable[[], None]:
    """Switch cache-dit's block cache on.

    Args:
        denoiser: The denoiser, without a cache.
        options: Fields of cache-dit's ``DBCacheConfig``, and ``taylorseer_order`` to extrapolate
            what is skipped instead of reusing it.
        guided: Whether guidance is on. Where it runs a pass of its own, cache-dit tells the two
            passes apart by counting, which it must not do when there is only one.

    Returns:
        What switches it off again and leaves no trace.
    """
    cache_dit = _cache_dit()
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    order = plain.pop(_TAYLORSEER, None)
    config = cache_dit.DBCacheConfig(**{"enable_separate_cfg": None if guided else False, **plain})
    calibrator = None
    if order is not None:
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    children = list(denoiser._modules)
    before = [(module, dict(vars(module))) for module in denoiser.modules()]
    cache_dit.enable_cache(denoiser, cache_config=config, calibrator_config=calibrator)
    added = [(module, set(vars(module)) - set(old)) for module, old in before]

    def disable() -> None:
        # Its own way back fails on a forward that diffusers' hooks have replaced.
        vars(denoiser).pop("_original_forward", None)
        cache_dit.disable_cache(denoiser)
        for module, names in added:
            for name in names:
                vars(module).pop(name, None)
        for module, old in before:
            if "forward" in old:
                module.forward = old["forward"]
        for name in children:  # in every forward it took the blocks out and put them at the end
            denoiser._modules[name] = denoiser._modules.pop(name)

    return disable
