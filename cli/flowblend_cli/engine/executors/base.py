"""Executor: whoever renders jobs for the batch loop, and what it is handed and gives back.

An executor takes requests and gives one answer for each; ``in_process``, ``child_process`` and any
further one implement the same protocol, so that the loop knows none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.events import Event
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models.identity import ResolvedModels

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames


@dataclass(frozen=True)
class FilePlan:
    """What a worker needs besides a request to make the job's file of its frames.

    Args:
        name: The file's final name.
        job_key: Its job key.
        source: Folder that model folders are relative to, as the file's document says it.
        keeps_frames: Whether the frames come back beside the file, for measurements.
    """

    name: str
    job_key: str
    source: str
    keeps_frames: bool = False


@dataclass(frozen=True)
class EncodedFile:
    """A job's file as a worker made it, which is checked again before it gets its name.

    Args:
        data: All its bytes.
        shape: Shape of the frames in it, (T, H, W, 3), before any enlargement.
        elapsed_s: Seconds that encoding and checking it took.
    """

    data: bytes
    shape: tuple[int, ...]
    elapsed_s: float


@dataclass(frozen=True)
class RenderRequest:
    """What an executor is to do; all that it needs to know is in here.

    Args:
        number: Its number, unique in a run; the answer has it too.
        job: The job.
        seed: Seed of its noise, never 0.
        models: The files of its models.
        kind: ``"render"``: all steps, decoded. ``"preview"``: what its first steps lead to.
        planned: The denoiser planned for each step, one letter a step.
        after_steps: How many steps a preview runs.
        checkpoint: Where the job's state is kept, which it goes on from if it is there; None keeps
            none. It names a file of this machine.
        file: Has the worker make the job's file, too; None has its frames come back.
    """

    number: int
    job: Job
    seed: int
    models: ResolvedModels
    kind: Literal["render", "preview"] = "render"
    planned: str = ""
    after_steps: int = 0
    checkpoint: CheckpointFile | None = None
    file: FilePlan | None = None

    def to_document(self) -> dict[str, Any]:
        """The request as plain JSON values; ``from_document`` reads it back equal."""
        kept = self.checkpoint
        return {
            "number": self.number,
            "job": self.job.to_document(),
            "seed": self.seed,
            "models": self.models.to_document(),
            "kind": self.kind,
            "planned": self.planned,
            "after_steps": self.after_steps,
            "checkpoint": None if kept is None else kept.to_document(),
            "file": None if self.file is None else asdict(self.file),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RenderRequest:
        """Read a request back from ``to_document``'s values."""
        kept, file = document["checkpoint"], document["file"]
        return cls(
            **{
                **document,
                "job": Job.from_document(document["job"]),
                "models": ResolvedModels.from_document(document["models"]),
                "checkpoint": None if kept is None else CheckpointFile.from_document(kept),
                "file": None if file is None else FilePlan(**file),
            }
        )


@dataclass(frozen=True)
class RenderResult:
    """What one render of a job gave; all but the frames and the file is plain JSON.

    Args:
        number: Number of the request.
        frames: Pixels, (T, H, W, 3), uint8; None where the worker made the file of them, and
            nobody wants them besides.
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
        memory: What was done since memory ran out, see ``oom_retry.MemoryLevel.names``.
        worker: The worker that rendered it; empty where there is one alone.
        file: Its file; None where it is to be made of the frames here.
    """

    number: int
    frames: Frames | None
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
    worker: str = ""
    file: EncodedFile | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of main memory that its frames and its file take."""
        frames = 0 if self.frames is None else self.frames.nbytes
        return frames + (0 if self.file is None else len(self.file.data))

    def to_document(self) -> dict[str, Any]:
        """All but the frames, and of the file all but its bytes."""
        names = (one.name for one in fields(self) if one.name not in ("frames", "file"))
        document = {name: getattr(self, name) for name in names}
        if self.file is not None:
            document["file"] = {"shape": self.file.shape, "elapsed_s": self.file.elapsed_s}
        return document

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], frames: Frames | None, data: bytes | None = None
    ) -> RenderResult:
        """Put what ``to_document`` gave, the frames and the file's bytes together again."""
        lists: dict[str, Any] = {
            name: tuple(document[name]) for name in ("step_s", "caches", "memory")
        }
        told = document.get("file")
        if told is not None and data is not None:
            lists["file"] = EncodedFile(data, tuple(told["shape"]), told["elapsed_s"])
        return cls(frames=frames, **{**document, **lists})


@dataclass(frozen=True)
class PreviewResult:
    """What a job's first steps lead to.

    Args:
        number: Number of the request.
        frames: Pixels, (T, H, W, 3), uint8.
        elapsed_s: Seconds that it took.
        worker: See ``RenderResult``.
    """

    number: int
    frames: Frames
    elapsed_s: float
    worker: str = ""


@dataclass(frozen=True)
class RenderFailure:
    """Why a request has no result.

    Args:
        number: Number of the request.
        error: What went wrong.
        kind: ``"job"``: this job failed. ``"models"``: its models can't be loaded, nor can those of
            any other job that names them. ``"stopped"``: the executor was told to stop.
        worker: See ``RenderResult``.
    """

    number: int
    error: BaseException
    kind: Literal["job", "models", "stopped"] = "job"
    worker: str = ""


Answer = RenderResult | PreviewResult | RenderFailure


class Executor(Protocol):
    """Whoever renders jobs for the batch loop: this process, another one, or many machines.

    Every request that was submitted gets one answer, in any order. An answer of a number that isn't
    under way, because it comes twice or late, is dropped by the loop.
    """

    @property
    def slots(self) -> int:
        """How many requests may be under way at once."""
        ...

    def expect(self, jobs: int) -> None:
        """Learn how many jobs this run has left; told again and again, and before any ``poll``.

        Args:
            jobs: Those that wait or are under way. Measurements may lead to more.
        """
        ...

    def submit(self, request: RenderRequest) -> None:
        """Take a request; fewer than ``slots`` are under way.

        Args:
            request: What to do.
        """
        ...

    def poll(self, timeout_s: float) -> Answer | Event | None:
        """The next answer, or the next thing that happened; None where neither comes in time.

        Args:
            timeout_s: How long to wait.
        """
        ...

    def models_in_memory(self) -> Collection[ModelSpec]:
        """The models that a job could be rendered with at once."""
        ...

    def stop(self) -> None:
        """End every request under way after its present step; each still gets its answer."""
        ...

    def close(self) -> None:
        """End whatever runs, and free what it holds."""
        ...
