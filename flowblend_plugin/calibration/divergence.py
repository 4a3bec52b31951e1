"""VelocityLog: measures how far two denoisers are apart along the large one's trajectory.

The functions take tensors whose first dimension is the samples, and give one number a sample.
``VelocityLog`` measures inside a pipeline's call, for one small forward a large one; it holds three
steps at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowblend_plugin.denoisers.calls import Call
from flowblend_plugin.denoisers.placement import Denoiser
from flowblend_plugin.errors import SwitchError
from flowblend_plugin.schedulers.noise import Seed
from flowblend_plugin.schedulers.predictions import Weight
from flowblend_plugin.schedulers.solver_state import step_sigmas
from flowblend_plugin.schedulers.stage_mixin import StageMixin
from flowblend_plugin.stage_hooks.base import StageHook
from flowblend_plugin.stage_hooks.extrapolation import (
    Continued,
    continued,
    prediction_weights,
)
from flowblend_plugin.switch import DenoiserSwitch

_LOW_BAND = 0.5  # of the highest spatial frequency


@dataclass(frozen=True)
class StepVelocities:
    """The velocities of two denoisers for the same latents at one step.

    Args:
        step: Index of the step.
        sigma: Its noise level, 1 to 0.
        large: The large denoiser's velocity after guidance, (B, ...).
        small: The small one's, combined in the same way.
        large_passes: The large one's passes before guidance, one tensor as ``large`` each; empty
            where they are the velocities themselves.
        small_passes: The small one's.
        continued: What extrapolated steps would continue: the noise that a flow velocity sees in
            the latents, the clean latents, or the output itself.
        clean: The clean latents that the large velocity points to, likewise shaped, where those are
            continued; None takes them to change as along a trajectory without new noise.
        clean_weight: Weight that the velocity has in them.
    """

    step: int
    sigma: float
    large: Tensor
    small: Tensor
    large_passes: tuple[Tensor, ...] = ()
    small_passes: tuple[Tensor, ...] = ()
    continued: Continued = "noise"
    clean: Tensor | None = None
    clean_weight: Weight = 1.0


@dataclass(frozen=True)
class StepDivergence:
    """The measures of one step.

    Args:
        step: Index of the step.
        sigma: Its noise level, 1 to 0.
        values: Name of the measure to its number for each sample. ``relative_l2`` and ``cosine``
            are before guidance, over all passes; ``guided_relative_l2`` and ``guided_cosine`` after
            it. ``low_frequency_l2`` and ``high_frequency_l2`` split ``guided_relative_l2`` into
            spatial frequencies below and above half of the highest; their squares add up to its
            square. ``velocity_norm`` is the root mean square of the large velocity after guidance,
            ``acceleration`` that of its first derivative by sigma. ``curvature`` is that of the
            second derivative of what extrapolated steps continue, as far as it bends the velocity:
            what a straight line through neighbouring steps misses. What a step has no neighbours
            for is left out.
    """

    step: int
    sigma: float
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def rms(tensor: Tensor) -> Tensor:
    """Root mean square of each sample, (B,)."""
    return tensor.float().flatten(1).square().mean(1).sqrt()


def relative_l2(found: Tensor, reference: Tensor) -> Tensor:
    """``|found - reference| / |reference|`` of each sample, (B,); 0 where both are nothing."""
    return _ratio(rms(found.float() - reference.float()), rms(reference))


def cosine(found: Tensor, reference: Tensor) -> Tensor:
    """Cosine of the angle between two velocities of each sample, (B,)."""
    return torch.cosine_similarity(found.float().flatten(1), reference.float().flatten(1), dim=1)


def spectral_split(found: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``relative_l2`` into low and high spatial frequencies.

    Args:
        found: (B, ..., H, W).
        reference: Likewise.

    Returns:
        Relative L2 of the frequencies up to half of the highest, and of those above, (B,) each.
    """
    height, width = reference.shape[-2:]
    spectrum = torch.fft.fft2(found.float() - reference.float(), norm="ortho")
    rows = torch.fft.fftfreq(height, device=reference.device)[:, None]
    columns = torch.fft.fftfreq(width, device=reference.device)[None]
    is_low = torch.maximum(rows.abs(), columns.abs()) <= _LOW_BAND / 2
    energy = spectrum.abs().square()
    count = reference[0].numel()
    low, high = ((energy * part).flatten(1).sum(1).div(count).sqrt() for part in (is_low, ~is_low))
    size = rms(reference)
    return _ratio(low, size), _ratio(high, size)


def guidance_weights(output: Tensor, passes: Sequence[Tensor]) -> Tensor:
    """Find the weights with which a pipeline combined its passes to a guided velocity.

    Args:
        output: The guided velocity, (B, ...).
        passes: The denoiser's outputs of this step, K tensors like ``output``.

    Returns:
        Weights (B, K), double, in main memory: ``output[b]`` is the sum of
        ``weights[b, k] * passes[k][b]``.

    Raises:
        SwitchError: It is no weighted sum of them.
    """
    if any(p.shape != output.shape for p in passes):
        raise SwitchError(
            f"the denoiser's passes have shapes {[tuple(p.shape) for p in passes]}, and the "
            f"pipeline's velocity has {tuple(output.shape)}, so that the small one's can't be "
            "told: this pipeline can't be probed"
        )
    # In main memory: not every accelerator knows double precision.
    rows = torch.stack([p.cpu().double().flatten(1) for p in passes], 1)
    wanted = output.cpu().double().flatten(1)[..., None]
    weights = torch.linalg.pinv(rows @ rows.mT, hermitian=True) @ (rows @ wanted)
    again = (rows.mT @ weights)[..., 0]
    if bool((relative_l2(again, wanted[..., 0]) > 1e-2).any()):
        raise SwitchError(
            "the pipeline's velocity is no weighted sum of its denoiser's passes, so that of the "
            "small one can't be told: probe with a guidance that is"
        )
    found: Tensor = weights[..., 0]
    return found


def measure_step(
    before: StepVelocities | None, present: StepVelocities, after: StepVelocities | None
) -> StepDivergence:
    """Measure a step; its neighbours, where it has them, are for the derivatives by sigma."""
    large, small = present.large, present.small
    every_large = torch.cat([p.flatten(1) for p in present.large_passes or (large,)], 1)
    every_small = torch.cat([p.flatten(1) for p in present.small_passes or (small,)], 1)
    found = {
        "guided_relative_l2": relative_l2(small, large),
        "guided_cosine": cosine(small, large),
        "velocity_norm": rms(large),
        "relative_l2": relative_l2(every_small, every_large),
        "cosine": cosine(every_small, every_large),
    }
    if large.ndim >= 4:  # otherwise tokens, without rows and columns
        found["low_frequency_l2"], found["high_frequency_l2"] = spectral_split(small, large)
    if before is not None:
        found["acceleration"] = rms(_slope(before, present))
        if after is not None:
            found["curvature"] = rms(_bend(before, present, after))
    values = {name: tuple(tensor.tolist()) for name, tensor in found.items()}
    return StepDivergence(present.step, present.sigma, values)


def _bend(before: StepVelocities, present: StepVelocities, after: StepVelocities) -> Tensor:
    """Second derivative by sigma of what extrapolated steps continue, on the velocity's scale.

    Along a trajectory the noise ``x + (1 - sigma) v`` changes by ``(1 - sigma)`` times what the
    velocity v changes by, and the clean latents ``x - sigma v`` by ``-sigma`` times that. Where
    noise is added on the way, only the clean latents themselves tell.
    """
    width = (after.sigma - before.sigma) / 2 or math.inf
    if before.clean is not None and present.clean is not None and after.clean is not None:
        first = (present.clean - before.clean) / (present.sigma - before.sigma or math.inf)
        second = (after.clean - present.clean) / (after.sigma - present.sigma or math.inf)
        return (second - first) / width / present.clean_weight

    def weigh(sigma: float) -> float:
        return {"noise": 1 - sigma, "clean": sigma, "output": 1.0}[present.continued]

    slopes = []
    for a, b in ((before, present), (present, after)):
        weight = weigh((a.sigma + b.sigma) / 2) / (weigh(present.sigma) or math.inf)
        slopes.append(_slope(a, b) * weight)
    return (slopes[1] - slopes[0]) / width


def _slope(a: StepVelocities, b: StepVelocities) -> Tensor:
    width = b.sigma - a.sigma
    return (b.large.float() - a.large.float()) / (width or math.inf)


def _ratio(size: Tensor, reference: Tensor) -> Tensor:
    return torch.where(size == 0, 0.0, size / reference)


class VelocityLog(DenoiserSwitch):
    """Runs the small denoiser wherever the large one runs, and measures how far they are apart.

    The trajectory is the large denoiser's own; the small one's answers change nothing. Both stay
    on the device, so that a pipeline must not be offloaded.

    Args:
        pipe: See ``DenoiserSwitch``.
        small: See ``DenoiserSwitch``.
        on_divergence: Called with every step's measures, one step behind; the last step's come
            before the call ends.
        seed: See ``DenoiserSwitch``.

    Raises:
        SwitchError: See ``DenoiserSwitch``; or the two denoisers are on different devices.

    Reference:
        FlowBlending, arXiv:2512.24724, which compares the two models' velocities over the steps.
    """

    def __init__(
        self,
        pipe: Any,
        small: Denoiser,
        on_divergence: Callable[[StepDivergence], None],
        seed: Seed | None = None,
    ) -> None:
        self._asker = _Asker()
        super().__init__(pipe, small=small, stages="L", seed=seed, hooks=[self._asker])
        self._on_divergence = on_divergence
        self._window: list[StepVelocities] = []
        own, other = self._slots["large"], self._slots["small"]
        self._asker.small = {module: other[name] for name, module in own.items()}

    def trajectory_started(self, stage_indices: tuple[int, ...], first_step: int) -> None:
        """Forget the former trajectory.

        Raises:
            SwitchError: It begins late, as image-to-image does.
        """
        if first_step > 0:
            raise SwitchError(
                f"this call begins at step {first_step} of its trajectory, and a pair is probed "
                "over a whole one: probe without an image to start from (strength = 1)"
            )
        self._asker.passes, self._window = [], []
        super().trajectory_started(stage_indices, first_step)

    def copy_stepped(self, copied: StageMixin, calls: int) -> None:
        """See ``DenoiserSwitch``.

        Raises:
            SwitchError: The pipeline steps private copies of its scheduler, and nothing else.
        """
        try:
            super().copy_stepped(copied, calls)
        except SwitchError as error:
            raise SwitchError(
                "this pipeline steps private copies of its scheduler, so that what it takes for "
                "the velocity of a step isn't seen: such pipelines can't be probed"
            ) from error

    def model_output(self, output: Tensor, sample: Tensor) -> Tensor:
        """Note both denoisers' velocities of this step; the solver gets the large one's."""
        passes, self._asker.passes = self._asker.passes, []
        step = len(self.denoisers_run)
        if passes and not (self._window and self._window[-1].step == step):
            self._note(step, output, sample, passes)
        return super().model_output(output, sample)

    def _note(
        self, step: int, output: Tensor, sample: Tensor, passes: list[tuple[Tensor, Tensor]]
    ) -> None:
        # One forward of a doubled batch is two passes.
        batch = len(output)
        large = [part for pair in passes for part in torch.split(pair[0], batch)]
        small = [part for pair in passes for part in torch.split(pair[1], batch)]
        weights = guidance_weights(output, large)
        shape = (-1, *[1] * (output.ndim - 1))
        weights = weights.float().to(output.device)
        guided = torch.zeros_like(output, dtype=torch.float)
        for k, part in enumerate(small):
            guided += weights[:, k].view(shape) * part
        levels, what = step_sigmas(self._scheduler), continued(self._scheduler)
        present = StepVelocities(
            step, levels[step], output.clone(), guided, tuple(large), tuple(small), continued=what
        )
        terms = prediction_weights(self._scheduler, step * self._scheduler.order)
        if what == "clean" and terms is not None:
            clean = terms[0] * sample.float() + terms[1] * output.float()
            present = replace(present, clean=clean, clean_weight=terms[1])
        self._window.append(present)
        if len(self._window) > 1:
            before = self._window[-3] if len(self._window) > 2 else None
            self._on_divergence(measure_step(before, *self._window[-2:]))
        self._window = self._window[-2:]

    def trajectory_finished(self) -> None:
        """Measure the last step."""
        window, self._window = getattr(self, "_window", []), []
        if window and self.denoisers_run:
            before = window[-2] if len(window) > 1 else None
            if window[-1].step == len(self.denoisers_run) - 1:
                self._on_divergence(measure_step(before, window[-1], None))
        super().trajectory_finished()


class _Asker(StageHook):
    """Asks the small denoiser whatever the large one was asked."""

    def __init__(self) -> None:
        self.small: dict[nn.Module, nn.Module] = {}
        self.passes: list[tuple[Tensor, Tensor]] = []

    def denoiser_ran(self, call: Call, output: Any) -> None:
        small = self.small[call.module]
        if next(small.parameters()).device != next(call.module.parameters()).device:
            raise SwitchError(
                "the two denoisers are on different devices, and a velocity log asks both at "
                'once: load them without offloading (offload = "none")'
            )
        with torch.no_grad():
            # A copy: compiled denoisers write into their outputs again.
            large = _tensor(output).clone()
            self.passes.append((large, _tensor(small(*call.args, **call.kwargs)).clone()))


def _tensor(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, (tuple, list)) else output.sample
    return first.detach().clone()  # compiled denoisers write into their outputs again
