"""An executor that makes noise of a job's seed, without any model."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from flowblend_cli.engine.executors.base import (
    Answer,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.errors import StopRequested
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.utils.frames import pixels_sha256


def render_of(seed: int, shape: tuple[int, ...] = (3, 64, 64, 3), number: int = 1) -> RenderResult:
    frames = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return RenderResult(
        number=number, frames=frames, seed=seed, elapsed_s=2.0, step_s=(1.0, 1.0), denoisers="LS",
        device="cpu", caches=(), versions={}, pixels_sha256=pixels_sha256(frames),
        peak_rss_bytes=1, peak_vram_bytes=None,
    )  # fmt: skip


class NoiseExecutor:
    """Renders one request at a time; what a seed does besides, and its frames' shape, is told."""

    slots = 1

    def __init__(
        self,
        does: dict[int, Callable[[], None]] | None = None,
        shapes: dict[int, tuple[int, ...]] | None = None,
        seconds: float = 0.2,
    ) -> None:
        self.does, self.shapes, self.seconds = does or {}, shapes or {}, seconds
        self.requests: list[RenderRequest] = []
        self.is_stopped = False

    def expect(self, jobs: int) -> None:
        pass

    def submit(self, request: RenderRequest) -> None:
        self.requests.append(request)

    def poll(self, timeout_s: float) -> Answer | None:
        (request,), self.requests = self.requests, []
        self.does.get(request.seed, lambda: None)()
        time.sleep(self.seconds)
        if self.is_stopped or request.seed in self.does:
            return RenderFailure(request.number, StopRequested(), "stopped")
        return render_of(
            request.seed, self.shapes.get(request.seed, (3, 64, 64, 3)), request.number
        )

    def models_in_memory(self) -> tuple[ModelSpec, ...]:
        return ()

    def stop(self) -> None:
        self.is_stopped = True

    def close(self) -> None:
        self.requests = []
