"""What an executor is, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from flowblend_cli.engine.runtime.checkpoint_file import Keeping
from flowblend_cli.jobs import Job, ModelSpec

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames


@dataclass(frozen=True)
class Render:
    """What one render of a job gave; all but the frames is plain JSON.

    Args:
        frames: Pixels, (T, H, W, 3), uint8.
        seed: Seed of its noise.
        elapsed_s: Seconds for sampling and decoding.
        step_s: Seconds of each step.
        denoisers: Who ran each step, one letter a step.
        device: Type of the device, such as ``"cuda"``.
        caches: What the stages' caches saved, see ``stage_hooks.cache.CacheReport``.
        versions: Versions of everything that decides bits.
        pixels_sha256: Hash of its frames.
        peak_rss_bytes: Most main memory meanwhile.
        peak_vram_bytes: Most accelerator memory meanwhile; None on a CPU.
        memory: What was done since memory ran out, see ``memory_ladder.Rung.names``.
    """

    frames: Frames
    seed: int
    elapsed_s: float
    step_s: tuple[float, ...]
    denoisers: str
    device: str
    caches: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    pixels_sha256: str
    peak_rss_bytes: int
    peak_vram_bytes: int | None
    memory: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """All but the frames."""
        names = (one.name for one in fields(self) if one.name != "frames")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], frames: Frames) -> Render:
        """Put what ``to_document`` gave and the frames together again."""
        lists = {name: tuple(document[name]) for name in ("step_s", "caches", "memory")}
        return cls(frames=frames, **{**document, **lists})


class Renders(Protocol):
    """Who renders jobs for the engine: this process, or one of its own."""

    @property
    def model(self) -> ModelSpec | None:
        """The models that are in memory."""
        ...

    def load(self, model: ModelSpec, check: Callable[[], None]) -> None:
        """Have these models in memory, and no others.

        Args:
            model: The models.
            check: May be called meanwhile; may raise ``StopRequested``.
        """
        ...

    def render(
        self, job: Job, seed: int, check: Callable[[], None], keeping: Keeping | None = None
    ) -> Render:
        """Sample and decode a job.

        Args:
            job: The job.
            seed: Seed of its noise.
            keeping: Where its state is kept, which it goes on from if it is there; None keeps none.
            check: Called after every step, at least; where it raises ``StopRequested``, the
                present step is the last one.
        """
        ...

    def preview(self, job: Job, after_steps: int, check: Callable[[], None]) -> Frames:
        """What a job's first steps lead to, as frames.

        Args:
            job: The job; its seed isn't to be drawn.
            after_steps: How many steps to run.
            check: See ``render``.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
