"""OomRetry: renders a job again, with less memory each time, after memory ran out.

First what the last try left behind is let go; then the VAE works tile by tile, where it was the VAE
that ran out; then models wait in main memory, in ever smaller parts. The seed stays, and so do the
bits, unless the VAE is tiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from flowblend_cli.errors import DeviceLostError, UsageError
from flowblend_cli.events import Message, Reporter
from flowblend_cli.jobs import Job, ModelSpec

if TYPE_CHECKING:
    from flowblend_cli.engine.runtime.pipeline import PipelineRuntime

T = TypeVar("T")


@dataclass(frozen=True)
class MemoryLevel:
    """What is done for a job to need less memory.

    Args:
        is_freed: Whether caches were freed before it was tried once more.
        is_tiled: Whether the VAE works tile by tile.
        offload: A stronger offloading than the recipe's; empty for the recipe's.
    """

    is_freed: bool = False
    is_tiled: bool = False
    offload: str = ""

    def __str__(self) -> str:
        return ", ".join(self.names) or "as the recipe says"

    @property
    def names(self) -> tuple[str, ...]:
        """What a finished file's record says of it; empty for a level that changes nothing."""
        names = {
            "freed": self.is_freed,
            "tiled": self.is_tiled,
            f"offload={self.offload}": bool(self.offload),
        }
        return tuple(name for name, applies in names.items() if applies)


class OomRetry:
    """Remembers, over the jobs of a batch, which sizes need which level.

    A job at least as large as one that needed a level begins there, and so does one as large as one
    that failed on the last level; a smaller one begins as its recipe says.

    Args:
        place: Has models in memory, offloaded as the ``ModelSpec`` says.
        tell: Told what is tried next.
    """

    def __init__(self, place: Callable[[ModelSpec], PipelineRuntime], tell: Reporter) -> None:
        self._place = place
        self._tell = tell
        self._needed: dict[ModelSpec, list[tuple[int | None, MemoryLevel]]] = {}

    def run(
        self, job: Job, attempt: Callable[[PipelineRuntime], T], in_vae: Callable[[], bool]
    ) -> tuple[T, tuple[str, ...]]:
        """Try a job until it has memory enough, or nothing more can be spared.

        Args:
            job: The job.
            attempt: Samples it from its beginning, each time with the same seed.
            in_vae: Whether it was the VAE's turn when the last attempt ended.

        Returns:
            What the attempt that worked gave, and the names of its level.

        Raises:
            SamplingError: Memory ran out on the last level, too.
            DeviceLostError: The device failed, or the models don't fit as the recipe places them.
        """
        from flowblend_cli.engine.runtime.placement import free_memory, is_out_of_memory

        level = self._first(job)
        while True:
            runtime, level = self._placed(job.model, level)
            try:
                with tiled(runtime.vae, level.is_tiled):
                    result = attempt(runtime)
            except DeviceLostError:
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                tiles = in_vae() and can_tile(runtime.vae)
                further = _next_level(level, tiles=tiles, offload=runtime.stronger_offload)
                if further is None:
                    self._keep(job, level)
                    raise
            else:
                self._keep(job, level)
                return result, level.names
            # Only here are the error, and all that the failed attempt held, let go.
            del runtime
            level = further
            told = f"{job.id}: out of memory, tried again with the same seed: {level}"
            self._tell(Message(told, job=job.id))
            free_memory()

    def _placed(self, model: ModelSpec, level: MemoryLevel) -> tuple[PipelineRuntime, MemoryLevel]:
        """The models as a level has them, or as the next one does that they can be placed on."""
        from flowblend_cli.engine.runtime.finite_checks import SamplingError
        from flowblend_cli.engine.runtime.placement import is_out_of_memory, stronger_than

        while True:
            try:
                return self._place(replace(model, offload=level.offload or model.offload)), level
            except (UsageError, DeviceLostError) as error:
                if not level.offload or not (
                    isinstance(error, UsageError) or is_out_of_memory(error)
                ):
                    raise
                stronger, problem = stronger_than(level.offload), str(error)
            if not stronger:
                raise SamplingError(problem)
            level = replace(level, offload=stronger)

    def _first(self, job: Job) -> MemoryLevel:
        """Where a job begins: with all that a job of its size, or a smaller one, needed."""
        from flowblend_cli.engine.runtime.placement import OFFLOADS

        size = _size(job)
        found = [
            level
            for other, level in self._needed.get(job.model, ())
            if other == size or (other is not None and size is not None and other <= size)
        ]
        offloads = [level.offload for level in found if level.offload]
        return MemoryLevel(
            is_tiled=any(level.is_tiled for level in found),
            offload=max(offloads, key=OFFLOADS.index, default=""),
        )

    def _keep(self, job: Job, level: MemoryLevel) -> None:
        entry = (_size(job), replace(level, is_freed=False))
        known = self._needed.setdefault(job.model, [])
        if entry[1] != MemoryLevel() and entry not in known:
            known.append(entry)


@contextmanager
def tiled(vae: Any, wanted: bool) -> Iterator[None]:
    """Let a VAE work tile by tile for a while, where that is wanted and it can."""
    if not (wanted and can_tile(vae)) or vae.use_tiling:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.use_tiling = False


def can_tile(vae: Any) -> bool:
    """Whether a VAE knows how to work tile by tile."""
    return hasattr(vae, "use_tiling") and hasattr(vae, "enable_tiling")


def _next_level(level: MemoryLevel, *, tiles: bool, offload: str) -> MemoryLevel | None:
    """The next level; None on the last one.

    Args:
        level: The present one.
        tiles: Whether tiling the VAE would help.
        offload: The next way of offloading; empty where there is none.
    """
    if not level.is_freed:
        return replace(level, is_freed=True)
    if tiles and not level.is_tiled:
        return replace(level, is_tiled=True)
    return replace(level, offload=offload) if offload else None


def _size(job: Job) -> int | None:
    """Pixels of all frames; None where the pipeline chooses them."""
    sides = [job.argument(name) for name in ("height", "width", "num_frames")]
    if not all(isinstance(side, int) for side in sides[:2]):
        return None
    return int(sides[0] * sides[1] * (sides[2] or 1))
