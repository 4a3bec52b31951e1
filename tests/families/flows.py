"""Denoisers that compute an exact flow, from what their pipeline hands them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from families.base import Family

MEAN, SPREAD, SLOPE = 0.7, 0.5, 1.3
# From latents, the shares of clean latents and noise in them and the noise level of the step, to
# the clean latents.
Guess = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def constant(
    x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, _: torch.Tensor
) -> torch.Tensor:
    """All data are one picture, which every velocity points to; what has no noise is as it is."""
    return torch.where(sigma > 1e-3, MEAN, x)


def gaussian(
    x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, _: torch.Tensor
) -> torch.Tensor:
    """The mean of the data that the latents may come from, data of mean 0.7 and deviation 0.5."""
    variance = SPREAD**2
    return MEAN + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * MEAN)


def clean_on_a_line(
    x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, level: torch.Tensor
) -> torch.Tensor:
    """Clean latents that are a line over the noise level, wherever the latents are."""
    return MEAN + SLOPE * level + 0 * x


def noise_on_a_line(
    x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, level: torch.Tensor
) -> torch.Tensor:
    """Noise that is one; where there is nothing else, clean latents are."""
    noise = MEAN + SLOPE * level
    return torch.where(alpha > 1e-3, (x - sigma * noise) / alpha.clamp(min=1e-3), MEAN)


class Known:
    """What stands in for a pipe's denoisers, and what it saw.

    Args:
        family: The family.
        pipe: Its pipeline.
        guess: The clean latents that each answer points to.
        is_line: Whether the very outputs are a line over the noise level, instead.
    """

    def __init__(self, family: Family, pipe: Any, guess: Guess, is_line: bool = False) -> None:
        self.pipe, self.guess, self.is_line = pipe, guess, is_line
        self.clean: list[torch.Tensor] = []
        self.answers = 0
        for name in family.attributes:
            module = getattr(pipe, name)
            kind = type(module)
            signature = inspect.signature(kind.forward)

            def forward(module: Any, *args: Any, signature: Any = signature, **kwargs: Any) -> Any:
                given = signature.bind(module, *args, **kwargs).arguments
                found = self.answer(module, given)
                if given.get("return_dict") is False:
                    return found
                return Transformer2DModelOutput(sample=found[0])

            module.__class__ = type(
                kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}
            )

    def answer(self, module: Any, given: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        x = given["hidden_states"] if "hidden_states" in given else given["sample"]
        self.answers += 1
        x = self.latents(module, x).float()
        shares = self.shares(torch.as_tensor(given["timestep"]), x)
        output = self.output(x, *shares)
        if "audio_hidden_states" in given:
            return output, torch.zeros_like(given["audio_hidden_states"])
        return (output,)

    def latents(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Leave out the channels beside the latents that image-to-video denoisers take."""
        if x.ndim == 3:
            return x
        kind, config = type(self.pipe).__name__, module.config
        channels = config.get("out_visual_dim") or config.get("out_channels") or config.in_channels
        dimension = {"Kandinsky5T2VPipeline": -1, "CogVideoXPipeline": 2}.get(kind, 1)
        return x.narrow(dimension, 0, channels)

    def shares(self, t: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Shares of clean latents and noise in what the module sees, and the noise level."""
        scheduler, kind = self.pipe.scheduler, type(self.pipe).__name__
        t = self.spread(t.float(), x)
        if kind.startswith("Cosmos2"):  # sigma / (1 + sigma), and latents scaled likewise
            return 1 - t, t, t
        if kind.startswith(("QwenImage", "Flux")):
            t = t * 1000
        if hasattr(scheduler, "alphas_cumprod") and "flow" not in scheduler.config.prediction_type:
            if type(scheduler).__name__.startswith(("Euler", "Heun", "LMS")):
                nearest = (scheduler.timesteps - t[..., None]).abs().argmin(-1)
                signal = 1 / (1 + scheduler.sigmas[nearest] ** 2)
            else:
                signal = scheduler.alphas_cumprod[t.long()].float()
            return signal.sqrt(), (1 - signal).sqrt(), t / 1000
        level = t / 1000
        if scheduler.config.get("invert_sigmas"):
            level = 1 - level
        sigma = level
        if "FlowMatch" not in type(scheduler).__name__:  # whole timesteps
            nearest = (scheduler.timesteps - t[..., None]).abs().argmin(-1)
            sigma = scheduler.sigmas[nearest]
        return 1 - sigma, sigma, level

    def spread(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """A timestep for all latents, for each sample, for each token, or for each frame."""
        if t.ndim == 0:
            return t.view([1] * x.ndim)
        if t.ndim == 1:
            return t.view(-1, *[1] * (x.ndim - 1))
        if t.ndim == x.ndim:
            return t
        if t.ndim == 2 and x.ndim == 3:
            return t[..., None]
        if t.ndim == 2 and t.shape[1] == x.shape[2]:
            return t[:, None, :, None, None]
        return t.flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1))

    def output(
        self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, level: torch.Tensor
    ) -> torch.Tensor:
        scheduler = self.pipe.scheduler
        if self.is_line:
            return MEAN + SLOPE * level + 0 * x
        clean = self.guess(x, alpha, sigma, level)
        self.clean.append(clean)
        noise = torch.where(sigma > 0, (x - alpha * clean) / sigma.clamp(min=1e-6), 0.0)
        prediction = scheduler.config.get("prediction_type")
        if prediction == "epsilon":
            return noise
        if prediction == "sample":
            return clean
        if prediction == "v_prediction":
            return alpha * noise - sigma * clean
        sign = -1 if scheduler.config.get("invert_sigmas") else 1
        return sign * (noise - clean)
