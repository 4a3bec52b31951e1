"""Which schedulers can have stages, and what their steps take, by name."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from flowblend_plugin.errors import SwitchError

_TOKENS = "it steps discrete tokens, not latents"
_OTHER_DENOISERS = "it steps priors and decoders, which are no `transformer` or `unet`"
_REFUSED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "ConsistencyDecoderScheduler": "it steps inside of a VAE's decoder",
    "DDPMWuerstchenScheduler": _OTHER_DENOISERS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "RFD4ProteinaScheduler": "it steps proteins, backbone and residues apart",
    "RePaintScheduler": "it goes back and forth in time",
    "UnCLIPScheduler": _OTHER_DENOISERS,
    "VQDiffusionScheduler": _TOKENS,
}
_NEEDED = {"model_output", "timestep", "sample"}


@functools.cache
def step_signature(kind: Any) -> inspect.Signature:
    """Give the signature of a scheduler class's step, or of the base's that names what it takes.

    Raises:
        SwitchError: Its step doesn't take a model output, a timestep and a sample.
    """
    for base in kind.__mro__:
        step = vars(base).get("step")
        if step is not None:
            signature = inspect.signature(step)
            if signature.parameters.keys() >= _NEEDED:
                return signature
    raise _refusal(kind, "it has no step of a model output, a timestep and a sample")


@functools.cache
def step_defaults(kind: Any) -> dict[str, Any]:
    """What a scheduler's step takes where a pipeline says nothing."""
    return {
        name: parameter.default
        for name, parameter in step_signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }


def bind_step(kind: Any, scheduler: Any, args: Any, kwargs: Any) -> inspect.BoundArguments:
    """Bind what a pipeline hands a scheduler's step to the names of its parameters.

    Args:
        kind: The scheduler's class in diffusers.
        scheduler: The scheduler.
        args: What comes by place.
        kwargs: What comes by name.

    Raises:
        SwitchError: It hands more than this scheduler takes.
    """
    signature = step_signature(kind)
    more = [name for name in kwargs if name not in signature.parameters]
    if more:
        raise SwitchError(
            f"this pipeline hands its scheduler {', '.join(more)}, which {kind.__name__} doesn't "
            "take: choose another scheduler, or keep the pipeline's own"
        )
    return signature.bind(scheduler, *args, **kwargs)


def check_supported(kind: Any) -> None:
    """Check that a scheduler class can announce stages.

    Raises:
        SwitchError: It can't, with the reason.
    """
    for base in kind.__mro__:
        if base.__name__ in _REFUSED:
            raise _refusal(kind, _REFUSED[base.__name__])
    step_signature(kind)
    if not hasattr(kind, "set_timesteps"):
        raise _refusal(kind, "it has no set_timesteps")
    if not isinstance(getattr(kind, "order", None), int):
        raise _refusal(kind, "it doesn't say how often it asks a denoiser in a step (order)")


def _refusal(kind: Any, reason: str) -> SwitchError:
    return SwitchError(
        f"{kind.__name__} can't have stages: {reason}. Give the pipe a scheduler of latents, such "
        "as FlowMatchEulerDiscreteScheduler or DDIMScheduler, or run it without a switch"
    )
