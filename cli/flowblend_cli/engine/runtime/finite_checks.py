"""Finite checks: fail a job whose latents or pixels hold NaN or infinity, naming step and stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from flowblend_cli.utils.frames import Frames
from flowblend_plugin import DenoiserSwitch, FlowBlendError

_TRY = 'try dtype = "float32", or a lower guidance_scale'


class SamplingError(FlowBlendError, RuntimeError):
    """A trajectory that went wrong: no numbers at a named step, or no memory for it."""


class Soundness:
    """Looks at the latents of one trajectory, and at its pixels.

    Args:
        on_step: Called after every step with its index and the role that ran it; may raise.
    """

    def __init__(self, on_step: Callable[[int, str], None]) -> None:
        self._on_step = on_step
        self._switch: DenoiserSwitch | None = None
        self._step, self._role = -1, ""

    def on_step(self, index: int, role: str) -> None:
        """Note which step is over; for the switch."""
        self._step, self._role = index, role
        self._on_step(index, role)

    @contextmanager
    def watching(self, pipe: Any, switch: DenoiserSwitch, *, has_callback: bool) -> Iterator[None]:
        """Look at all that happens in a pipeline meanwhile.

        Between two steps the latents are looked at by ``after_step``; of a pipeline without a
        callback, the scheduler shows each step's. Last come the latents that the VAE decodes, and
        its pixels.

        Args:
            pipe: The pipeline.
            switch: The switch that is attached to it, with ``on_step``.
            has_callback: Whether the pipeline calls ``after_step``.

        Raises:
            SamplingError: Some of it are no numbers.
        """
        self._switch = switch
        if not has_callback:  # the switch brought this scheduler, and takes it away
            pipe.scheduler.watch(lambda _, sample, __: self._check(sample))
        vae: Any = getattr(pipe, "vae", None)
        decode: Any = getattr(vae, "decode", None)
        decoder: Any = getattr(vae, "decoder", None)

        def checked(latents: Any, *args: Any, **kwargs: Any) -> Any:
            self._check(latents)
            decoded = decode(latents, *args, **kwargs)
            self._check_pixels(None, None, decoded[0])
            return decoded

        with ExitStack() as undo:
            if decode is not None:
                vae.decode = checked
                undo.callback(delattr, vae, "decode")
            if hasattr(decoder, "register_forward_hook"):  # after it, many VAEs clip to -1 to 1
                undo.callback(decoder.register_forward_hook(self._check_pixels).remove)
            yield

    def after_step(
        self, pipe: Any, step_index: int, timestep: Any, kwargs: dict[str, Any]
    ) -> Mapping[str, Any]:
        """Let the switch drive what its scheduler can't, and look at the latents."""
        if self._switch is not None:
            kwargs = self._switch.callback_fn(pipe, step_index, timestep, kwargs)
        self._check(kwargs["latents"])
        return kwargs

    def _check(self, latents: Any) -> None:
        if not latents.isfinite().all():
            raise SamplingError(
                f"the latents are no numbers any more (NaN or infinity) after {self._where}: {_TRY}"
            )

    def _check_pixels(self, _: object, __: object, pixels: Any) -> None:
        if hasattr(pixels, "isfinite") and not pixels.isfinite().all():
            raise SamplingError(
                "the VAE's pixels are no numbers (NaN or infinity), although the latents are, "
                f'after {self._where}: try dtype = "float32"'
            )

    @property
    def _where(self) -> str:
        step = self._step
        if self._switch is None or step < 0:
            return "no step at all"
        return f"step {step}, in stage {self._switch.step_stages[step] + 1} ({self._role})"


def check_latents(
    pipe: Any, step_index: int, timestep: Any, kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """See that the latents are numbers where no switch is attached: a ``callback_on_step_end``.

    Raises:
        SamplingError: They aren't.
    """
    if not kwargs["latents"].isfinite().all():
        raise SamplingError(
            f"the latents are no numbers any more (NaN or infinity) after step {step_index}: {_TRY}"
        )
    return kwargs


def to_uint8(output: Any, job_id: str) -> Frames:
    """Pixels as diffusers' own image conversion rounds them.

    Args:
        output: What the pipeline returned.
        job_id: The job, for the message.

    Raises:
        SamplingError: The pixels are no numbers.
    """
    pixels = np.asarray(output.frames if hasattr(output, "frames") else output.images)
    pixels = pixels[0] if pixels.ndim == 5 else pixels
    if not np.isfinite(pixels).all():
        raise SamplingError(
            f"the decoded pixels of {job_id} are no numbers (NaN or infinity): the VAE failed, try "
            'dtype = "float32"'
        )
    return (pixels * 255).round().astype(np.uint8)
