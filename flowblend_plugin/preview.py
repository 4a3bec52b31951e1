"""EarlyLook and LatentProjection: show the predicted clip after some of its steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional

from flowblend_plugin.errors import SchedulerConfigError, SwitchError
from flowblend_plugin.schedulers.predictions import clean_weights
from flowblend_plugin.schedulers.stage_mixin import StageMixin

_RIDGE = 3e-3  # of latents of deviation 1: costs encoded clips 0.3 dB, gains others 4 to 12
_NEAR = 9  # a voxel and its neighbours in its frame
PROJECTION_NAME = "preview.safetensors"  # in the folder of the pipeline that it is for


def clean_latents(
    scheduler: Any, output: torch.Tensor, sample: torch.Tensor, index: int
) -> torch.Tensor:
    """Compute the clean latents that one step's output points to, such as ``x - sigma v``.

    Args:
        scheduler: A diffusers scheduler whose timesteps are set.
        output: What the solver took as the denoiser's output.
        sample: The latents that it belongs to, likewise shaped.
        index: Index of the step in ``scheduler.timesteps``.

    Returns:
        The clean latents, of the sample's shape and dtype.

    Raises:
        SchedulerConfigError: It isn't known what this scheduler's outputs say of clean latents.
    """
    weights = clean_weights(scheduler, index)
    if weights is None:
        raise SchedulerConfigError(
            f"clean latents can't be told from what {type(scheduler).__name__} is handed, so "
            "nothing can be seen early: render the clip instead"
        )
    of_sample, of_output = weights
    clean: torch.Tensor = of_sample * sample.float() + of_output * output.float()
    return clean.to(sample.dtype)


class EarlyLook:
    """Ends one call of a pipeline after some steps, with the clean latents that those point to.

    Give ``on_step`` to the DenoiserSwitch and ``after_step`` to the pipeline, and call it inside
    ``watching``. The remaining steps are left out; what the pipeline then decodes, or returns with
    ``output_type="latent"``, are the clean latents.

    Args:
        pipe: The pipeline.
        after_steps: Number of whole steps to run, at least 1.
        on_step: Called after every step with its index and the role that ran it; may raise.

    Raises:
        SwitchError: The pipeline can't be ended early, or ``after_steps`` is below 1.
    """

    def __init__(
        self, pipe: Any, after_steps: int, on_step: Callable[[int, str], None] | None = None
    ) -> None:
        takes = inspect.signature(pipe.__call__).parameters
        if "callback_on_step_end" not in takes or not hasattr(type(pipe), "interrupt"):
            raise SwitchError(
                f"{type(pipe).__name__} can't be ended early: it takes no callback_on_step_end, "
                "or knows no interrupt"
            )
        if after_steps < 1:
            raise SwitchError(f"after_steps must be at least 1, got {after_steps}")
        self._pipe = pipe
        self._left = after_steps
        self._on_step = on_step
        self._seen: torch.Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the pipeline hands its scheduler, which has stages.

        Within, a step raises SchedulerConfigError where clean latents can't be told from it.

        Raises:
            SwitchError: The pipeline's scheduler has no stages.
        """
        scheduler = self._pipe.scheduler
        if not isinstance(scheduler, StageMixin):
            raise SwitchError("an early look needs a DenoiserSwitch on the pipe: attach one first")
        scheduler.watch(self._see)
        try:
            yield
        finally:
            scheduler.watch(None)
            self._pipe._interrupt = False

    def _see(self, output: torch.Tensor, sample: torch.Tensor, index: int) -> None:
        # Now: pipelines write into their latents.
        self._seen = clean_latents(self._pipe.scheduler, output, sample, index)

    @property
    def latents(self) -> torch.Tensor:
        """The clean latents that the last step pointed to.

        Raises:
            SwitchError: The pipeline stepped something else than its own scheduler.
        """
        if self._seen is None:
            raise SwitchError(
                f"{type(self._pipe).__name__} steps private copies of its scheduler, so nothing "
                "can be seen early: render the clip instead"
            )
        return self._seen

    def on_step(self, step_index: int, role: str) -> None:
        """Count a whole step; called by the DenoiserSwitch."""
        self._left -= 1
        if self._on_step is not None:
            self._on_step(step_index, role)

    def after_step(
        self, pipe: Any, step_index: int, timestep: Any, callback_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """End the call where enough steps have run: the pipeline's ``callback_on_step_end``.

        Raises:
            SwitchError: The scheduler steps only a part of the latents.
        """
        kwargs = dict(callback_kwargs)
        if self._left > 0:
            return kwargs
        clean, latents = self.latents, kwargs["latents"]
        if clean.shape != latents.shape:
            raise SwitchError(
                f"{type(pipe).__name__} steps a part of its latents, {tuple(clean.shape)} of "
                f"{tuple(latents.shape)}, so it can't be ended early: render the clip instead"
            )
        pipe._interrupt = True
        return kwargs | {"latents": clean.to(latents)}


class LatentProjection:
    """A linear map from each latent voxel, and its eight neighbours, to the pixels it stands for.

    The first latent frame stands for one frame and every other for ``temporal`` of them, as in
    video VAEs that compress causally, so it has a map of its own.

    Args:
        first: Map of the first latent frame, (9 C + 1, 1, s, s, 3); the last row is the constant.
        rest: Map of the others, (9 C + 1, temporal, s, s, 3).

    Reference:
        Linear latent previews, as in ComfyUI's latent2rgb, here with neighbours and a colour for
        each pixel.
    """

    def __init__(self, first: torch.Tensor, rest: torch.Tensor) -> None:
        self.first = first.half().contiguous()
        self.rest = rest.half().contiguous()

    @classmethod
    def fit(cls, latents: torch.Tensor, frames: Any) -> LatentProjection:
        """Fit the map by least squares.

        Args:
            latents: Latents as the pipeline's denoiser sees them, (N, C, T', H', W').
            frames: Their pixels, uint8, (N, T, H, W, 3).

        Raises:
            ValueError: The sizes don't fit: ``T = 1 + (T' - 1) temporal``, and one whole factor
                from W' to W and from H' to H.
        """
        pixels = torch.as_tensor(frames).double() / 255
        spatial = pixels.shape[2] // latents.shape[3]
        later = latents.shape[2] - 1
        temporal = (pixels.shape[1] - 1) // later if later else 1
        wanted = (
            latents.shape[0],
            1 + later * temporal,
            latents.shape[3] * spatial,
            latents.shape[4] * spatial,
            3,
        )
        if tuple(pixels.shape) != wanted or not spatial or not temporal:
            raise ValueError(
                f"latents {tuple(latents.shape)} and frames {tuple(pixels.shape)} have no whole "
                "factors between them"
            )
        first = _solve(latents[:, :, :1], pixels[:, :1], 1, spatial)
        rest = _solve(latents[:, :, 1:], pixels[:, 1:], temporal, spatial) if later else first
        return cls(first, rest)

    def project(self, latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Turn latents into pixels.

        Args:
            latents: (1, C, T', H', W'), or (1, C, H', W') for a picture.

        Returns:
            Frames, uint8, (T, H, W, 3).

        Raises:
            ValueError: They aren't of that shape, or have another number of channels.
        """
        clip = latents.unsqueeze(2) if latents.ndim == 4 else latents
        channels = (len(self.first) - 1) // _NEAR
        if clip.ndim != 5 or clip.shape[:2] != (1, channels):
            raise ValueError(
                f"the projection shows latents (1, {channels}, T, H, W), got "
                f"{tuple(latents.shape)}: fit one for this pipeline"
            )
        clip = clip.float().cpu()
        parts = [_apply(self.first, clip[:, :, :1])]
        if clip.shape[2] > 1:
            parts.append(_apply(self.rest, clip[:, :, 1:]))
        shown = torch.cat(parts, dim=1)[0]
        return np.asarray((shown.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), np.uint8)

    def save(self, path: Path) -> None:
        """Write the maps as safetensors."""
        save_file({"first": self.first, "rest": self.rest}, path)

    @classmethod
    def load(cls, path: Path) -> LatentProjection:
        """Read ``save``'s file.

        Raises:
            SwitchError: It isn't one.
        """
        try:
            found = load_file(path)
            return cls(found["first"], found["rest"])
        except (OSError, KeyError, SafetensorError) as error:
            raise SwitchError(f"{path} is no latent projection ({error}): fit it again") from error


def _voxels(latents: torch.Tensor) -> torch.Tensor:
    """List voxels with their neighbours and a constant, one row each: (N T' H' W', 9 C + 1)."""
    padded = functional.pad(latents, (1, 1, 1, 1, 0, 0), mode="replicate")
    near = padded.unfold(3, 3, 1).unfold(4, 3, 1).movedim(1, 4)  # (N, T', H', W', C, 3, 3)
    rows = near.flatten(4).flatten(0, 3)
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)


def _solve(latents: torch.Tensor, pixels: torch.Tensor, t: int, s: int) -> torch.Tensor:
    n, _, frames, height, width = latents.shape
    patches = pixels.reshape(n, frames, t, height, s, width, s, 3)
    wanted = patches.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n * frames * height * width, -1)
    rows = _voxels(latents.double())
    # What denoisers make varies in directions in which encoded clips hardly do.
    ridge = _RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    found: torch.Tensor = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ wanted)
    return found.reshape(-1, t, s, s, 3)


def _apply(weights: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Compute the pixels of latents, (N, T' t, H' s, W' s, 3)."""
    n, _, frames, height, width = latents.shape
    t, s = weights.shape[1:3]
    rows = (_voxels(latents) @ weights.float().flatten(1)).reshape(
        n, frames, height, width, t, s, s, 3
    )
    return rows.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, frames * t, height * s, width * s, 3)
