"""Begin a trajectory a little below pure noise, as distilled models may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flowblend_plugin.errors import SchedulerConfigError
from flowblend_plugin.grids import PLAIN_PIPELINES, start_level
from flowblend_plugin.schedulers.flow_blend import wrap_scheduler
from flowblend_plugin.schedulers.stage_solvers import check_grids


@contextmanager
def begin_at(pipe: Any, sigma_max: float) -> Iterator[None]:
    """Let a pipeline's calls begin at the noise level ``t = sigma_max / (1 + sigma_max)``.

    Its scheduler's first level becomes t, the others are spaced from there as its solver spaces
    them, and the initial latents are t times the noise. Attach a DenoiserSwitch inside.

    Args:
        pipe: A text-to-video or text-to-picture pipeline of flow matching.
        sigma_max: Noise to begin at in EDM's convention, above 0: 200 is level 0.9950.

    Raises:
        StageError: ``sigma_max`` isn't above 0.
        SchedulerConfigError: The pipeline isn't one that this is known to hold for, or its
            scheduler isn't a flow-matching one with a fixed shift.

    Reference:
        See ``flowblend_plugin.grids.start_level``.
    """
    level = start_level(sigma_max)
    if type(pipe).__name__ not in PLAIN_PIPELINES:
        raise SchedulerConfigError(
            f"sigma_max isn't possible with {type(pipe).__name__}, whose first latents may hold "
            f"more than noise: leave it out, or use one of {', '.join(sorted(PLAIN_PIPELINES))}"
        )
    check_grids(pipe.scheduler)
    own, prepare = pipe.scheduler, pipe.prepare_latents
    scheduler: Any = wrap_scheduler(own, getattr(own, "stages", None))
    scheduler._start_level = level
    pipe.scheduler = scheduler
    pipe.prepare_latents = _scaling(prepare, level)
    try:
        yield
    finally:
        del pipe.prepare_latents
        pipe.scheduler = own


def _scaling(prepare: Callable[..., Any], level: float) -> Callable[..., Any]:
    def scaled(*args: Any, **kwargs: Any) -> Any:
        found = prepare(*args, **kwargs)
        if isinstance(found, torch.Tensor):
            return found * level
        latents, *more = found
        return (latents * level, *more)

    return scaled
