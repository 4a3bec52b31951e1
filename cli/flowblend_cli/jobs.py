"""Job and Batch: what a recipe becomes, one frozen job for each final file, free of torch.

Jobs are plain data, serialisable and free of torch, so that any engine, here or on another
machine, can be handed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from flowblend_cli.errors import DocumentError
from flowblend_cli.study import Study
from flowblend_plugin.stages import Stage, StageSchedule

# A repeat of the noise isn't another variant: its reference may have none of its own.
_MAY_DIFFER = "sampling.noise_seed"
# Axes that leave nothing in a job but the stages that came of them.
OF_STAGES = tuple(
    f"blend.{key}"
    for key in ("stage", "budget", "calibration", "criterion", "max_stages", "threshold")
)


@dataclass(frozen=True)
class ModelSpec:
    """The models of a job as the recipe names them.

    Args:
        pipeline: Bundled or known-pair name, folder, or Hub id of the pipeline.
        small: Where the small denoiser comes from, likewise; None if no stage uses it.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:0"``, ``"mps"``...
        offload: ``"none"``: all models stay on the device. ``"model"``, ``"group"`` or
            ``"sequential"``: what doesn't run waits in main memory.
        denoisers: Further denoisers: the letter of each, and where it comes from, as ``small``.
        variant: Variant of the weights, such as ``"fp16"``, taken wherever there are files of it.
    """

    pipeline: str
    small: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    offload: str = "none"
    denoisers: tuple[tuple[str, str], ...] = ()
    variant: str | None = None

    def to_document(self) -> dict[str, Any]:
        """The models as plain JSON values; ``from_document`` reads them back equal."""
        return _fields(self) | {"denoisers": dict(self.denoisers)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ModelSpec:
        """Read the models back from ``to_document``'s values."""
        denoisers = tuple(sorted(document.get("denoisers", {}).items()))
        return cls(**{**document, "denoisers": denoisers})


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter that a job's stages name.

    Args:
        name: The adapter's name.
        role: The denoiser that is to have it.
        source: Where its file comes from, as the recipe names it.
    """

    name: str
    role: str
    source: str


@dataclass(frozen=True)
class SamplingSpec:
    """How the trajectory is sampled.

    Args:
        mode: ``"ode"`` (deterministic) or ``"sde"`` (noise added back at every step).
        scheduler: Solver, such as ``"unipc"``; None for the pipeline's own.
        flow_shift: Shift of the noise levels, above 0; None for the scheduler's own.
        solver_history: What a multi-step solver remembers where the denoiser changes: ``"keep"``
            or ``"reset"``.
        sigma_max: Noise level that sampling begins at, in the convention of EDM, where the noise
            of flow matching's level t is t / (1 - t); None for the pipeline's own.
        noise_seed: Seed of the noise that ``"sde"`` adds; None for the job's own seed.
    """

    mode: Literal["ode", "sde"] = "ode"
    scheduler: str | None = None
    flow_shift: float | None = None
    solver_history: Literal["keep", "reset"] = "keep"
    sigma_max: float | None = None
    noise_seed: int | None = None


@dataclass(frozen=True)
class Origin:
    """Why a job is there beside what its recipe lists: it decides no pixel.

    Args:
        kind: ``"draft"``: a cheap look. ``"final"``: what a draft is finished as. ``"adapted"``:
            another job once more, with other settings.
        of: Id of the job that it goes back to; empty for a draft.
        reason: Why, in words.
        round: How many adapted jobs stand between it and the recipe's own, counted from 1.
    """

    kind: Literal["draft", "final", "adapted"]
    of: str = ""
    reason: str = ""
    round: int = 0


@dataclass(frozen=True)
class ImageSpec:
    """The picture that a job begins with.

    Args:
        path: The file as the recipe names it, relative to the recipe's folder.
        sha256: Hash of its bytes.
        conversions: What has to be done to show it as people see it, of
            ``utils.images.CONVERSIONS``.
    """

    path: str
    sha256: str
    conversions: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """The picture as plain JSON values; conversions only where there are some."""
        document = _fields(self) | {"conversions": list(self.conversions)}
        return document if self.conversions else {"path": self.path, "sha256": self.sha256}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ImageSpec:
        """Read a picture back from ``to_document``'s values."""
        return cls(**{**document, "conversions": tuple(document.get("conversions", ()))})


@dataclass(frozen=True)
class OutputSpec:
    """How the final file is written.

    Args:
        container: ``"mp4"`` or ``"png"``.
        fps: Frames per second.
        scale: Whole-number upscale.
        crf: H.264 quality, 0 (lossless) to 51.
    """

    container: str = "mp4"
    fps: int = 16
    scale: int = 1
    crf: int = 10


@dataclass(frozen=True)
class Job:
    """One render: everything that decides its bits, and the name of its file.

    Args:
        id: Stem of the final file, unique in its batch; the one name in plan, events, metadata.
        recipe: Name of the recipe.
        scene: Name of the scene.
        prompt: The prompt with every alternative chosen.
        prompt_template: The prompt as the recipe has it.
        negative_prompt: What to avoid, or None.
        seed: 0 asks the engine to draw one.
        stages: The stages in order.
        stage_string: The stages as letters, as the recipe writes them, such as ``"LSL"``.
        arguments: Further pipeline arguments, sorted by name; lists are held as tuples.
        model: The models.
        sampling: The sampling.
        output: The final file.
        image: The picture that the pipeline begins with, if it takes one.
        adapters: The LoRA adapters that the stages name, one entry for each denoiser.
        adaptive: Change of the velocity, from step to step, that ends the first stage before its
            boundary; None where stages end where they say.
        origin: Why the job is there, where it isn't simply one that the recipe lists.
    """

    id: str
    recipe: str
    scene: str
    prompt: str
    prompt_template: str
    negative_prompt: str | None
    seed: int
    stages: tuple[Stage, ...]
    stage_string: str
    arguments: tuple[tuple[str, Any], ...]
    model: ModelSpec
    sampling: SamplingSpec
    output: OutputSpec
    image: ImageSpec | None = None
    adapters: tuple[AdapterSpec, ...] = ()
    adaptive: float | None = None
    origin: Origin | None = None

    @property
    def num_inference_steps(self) -> int:
        """Number of steps of the full trajectory."""
        return int(self.argument("num_inference_steps", 50))

    @property
    def extension(self) -> str:
        """The final file's extension with its dot: one frame makes a picture."""
        is_picture = self.argument("num_frames") == 1
        return ".png" if is_picture else f".{self.output.container}"

    @property
    def filename(self) -> str:
        """Name of the final file inside the output folder."""
        return self.id + self.extension

    @property
    def schedule(self) -> StageSchedule:
        """The stages as the library's schedule."""
        return schedule_of(self.stages)

    def empty_stages(self, noise_levels: tuple[float, ...] | None = None) -> tuple[str, ...]:
        """Say which stages get no step: legal at few steps, but worth knowing.

        Args:
            noise_levels: Level of each step, for stages that end at noise levels.
        """
        steps = self.num_inference_steps
        return tuple(
            f"stage {index + 1} of {self.stage_string} ({self.stages[index].denoiser}) gets no "
            f"step at num_inference_steps = {steps}"
            for index in self.schedule.empty_stages(steps, noise_levels)
        )

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of one pipeline argument, or ``default`` if the job doesn't set it."""
        return next((value for key, value in self.arguments if key == name), default)

    def pipeline_arguments(self) -> dict[str, Any]:
        """The further arguments as the pipeline wants them, lists as lists."""
        return {name: _thaw(value) for name, value in self.arguments}

    def to_document(self) -> dict[str, Any]:
        """The job as plain JSON values; ``from_document`` reads it back equal."""
        document = _fields(self)
        document["stages"] = [stage.to_document() for stage in self.stages]
        document["arguments"] = self.pipeline_arguments()
        document["model"] = self.model.to_document()
        document["adapters"] = [_fields(adapter) for adapter in self.adapters]
        document["image"] = self.image and self.image.to_document()
        for name in ("sampling", "output", "origin"):
            part = document[name]
            document[name] = None if part is None else _fields(part)
        for place, key, unset in _LEFT_OUT:
            table = document[place] if place else document
            if table[key] == unset:
                del table[key]
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Job:
        """Read a job back from ``to_document``'s values.

        Raises:
            DocumentError: A key is missing, unknown, or of another shape.
        """
        try:
            arguments = {name: freeze(value) for name, value in document["arguments"].items()}
            for name, kind in _KINDS.items():
                if not isinstance(document[name], kind):
                    raise TypeError(f"{name} is {document[name]!r}")
            if not isinstance(document.get("adaptive", 0.0), (int, float)):
                raise TypeError(f"adaptive is {document['adaptive']!r}")
            return cls(
                **{
                    **document,
                    "stages": tuple(Stage.from_document(stage) for stage in document["stages"]),
                    "arguments": tuple(sorted(arguments.items())),
                    "model": ModelSpec.from_document(document["model"]),
                    "sampling": SamplingSpec(**document["sampling"]),
                    "output": OutputSpec(**document["output"]),
                    "image": ImageSpec.from_document(document["image"])
                    if "image" in document
                    else None,
                    "adapters": tuple(AdapterSpec(**a) for a in document.get("adapters", ())),
                    "origin": Origin(**document["origin"]) if "origin" in document else None,
                }
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DocumentError(
                f"the recorded job can't be read ({error}): it is damaged, or was written by "
                "another version of flowblend"
            ) from error


@lru_cache(maxsize=1024)
def schedule_of(stages: tuple[Stage, ...]) -> StageSchedule:
    """The schedule of some stages, checked once however many jobs have them.

    Raises:
        StageError: They make none together.
    """
    return StageSchedule(stages)


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields by name; ``asdict`` copies all that is in them, which takes long."""
    return {name: getattr(value, name) for name in value.__match_args__}


# Left out of a document where nothing is set: files from before they existed stay finished.
_LEFT_OUT: tuple[tuple[str, str, Any], ...] = (
    ("", "image", None),
    ("", "adapters", []),
    ("", "adaptive", None),
    ("", "origin", None),
    ("model", "denoisers", {}),
    ("model", "variant", None),
    ("sampling", "solver_history", "keep"),
    ("sampling", "sigma_max", None),
    ("sampling", "noise_seed", None),
)
_KINDS = {"id": str, "recipe": str, "scene": str, "prompt": str, "seed": int, "arguments": dict}


MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """One of the parts that a batch is divided into, each for a run of its own.

    Args:
        index: Which one it is, from 1.
        count: How many there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``: the second of eight.

        Raises:
            ValueError: It is no shard; says what one is.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.index <= shard.count <= MOST_SHARDS:
            raise ValueError(
                f"{text!r} is no shard: write I/N, the I-th of N, such as 2/8, with I from 1 to N "
                f"and N up to {MOST_SHARDS:,}"
            )
        return shard

    @property
    def slug(self) -> str:
        """What names of files say: ``"2-of-8"``."""
        return f"{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class Batch:
    """All jobs of one recipe, in the order they are rendered.

    Args:
        recipe_name: Name of the recipe.
        output_dir: Absolute folder of the final files.
        jobs: The jobs; those of one model stand together.
        warnings: What is legal, but probably not meant.
        source: The recipe's file; model folders are relative to its folder.
        study: What is measured, compared and chosen.
        reserve: Jobs that are rendered only if they are chosen, see ``study.selections``.
        text: The recipe's text, with that of what it includes.
        devices: Where it asks to be rendered, see ``utils.devices``; empty where it doesn't.
        shard: Which part of the recipe's jobs these are; None for all of them.
        undivided: The batch that this is a part of; None where it is whole.
    """

    recipe_name: str
    output_dir: Path
    jobs: tuple[Job, ...]
    warnings: tuple[str, ...]
    source: Path
    study: Study = field(default_factory=Study)
    reserve: tuple[Job, ...] = ()
    text: str = field(default="", repr=False)
    devices: str = ""
    shard: Shard | None = None
    undivided: Batch | None = field(default=None, repr=False)

    @property
    def whole(self) -> Batch:
        """All jobs of the recipe, those of other shards too."""
        return self.undivided or self

    def path_of(self, job: Job) -> Path:
        """Absolute path of a job's final file."""
        return self.output_dir / job.filename


def freeze(value: Any) -> Any:
    """Turn lists into tuples, all the way down, so that a job stays immutable and hashable."""
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    return [_thaw(item) for item in value] if isinstance(value, tuple) else value


def axis_value(job: Job, axis: str) -> Any:
    """What a job has on an axis of a sweep; None where a job can't tell.

    Args:
        job: The job.
        axis: A dotted key as in a recipe; a bare one is a key of ``[defaults]``.
    """
    table, _, key = axis.rpartition(".")
    if table in ("sampling", "output", "model"):
        return freeze(getattr(getattr(job, table), key, None))
    if table == "blend":
        values = {
            "stages": job.stage_string,
            "boundaries": tuple(stage.until for stage in job.stages[:-1]),
            "boundary_sigmas": tuple(stage.until_sigma for stage in job.stages[:-1]),
        }
        return values.get(key)
    if key in ("seed", "negative_prompt"):
        return getattr(job, key)
    return freeze(job.argument(key))


def references(batch: Batch) -> dict[str, Job]:
    """The reference of each job that has one, by the job's id.

    A reference has the values that the study names, and everything else as the job that is
    compared with it: scene, prompt, seed, and the other axes of the sweep. Jobs that draw their
    seed have none, since their noise differs.
    """
    wanted = batch.study.measure.reference
    if not wanted:
        return {}
    jobs = [job for job in (*batch.jobs, *batch.reserve) if job.seed]
    others = [axis for axis in batch.study.axes if axis not in dict(wanted)]
    relaxed = [axis for axis in others if axis != _MAY_DIFFER]
    found = [job for job in jobs if all(axis_value(job, a) == freeze(v) for a, v in wanted)]
    # Of several in one place, the first one.
    known = {_place(job, others): job for job in reversed(found)}
    nearly = {_place(job, relaxed): job for job in reversed(found)}
    ids = {job.id for job in found}
    chosen: dict[str, Job] = {}
    for job in jobs:
        reference = known.get(_place(job, others)) or nearly.get(_place(job, relaxed))
        if reference is not None and job.id not in ids:
            chosen[job.id] = reference
    return chosen


def _place(job: Job, axes: Iterable[str]) -> tuple[Any, ...]:
    kind = job.origin.kind if job.origin is not None else ""
    values = (
        # How stages came about isn't in a job; what came out of it is.
        (job.stages, job.adaptive, job.adapters) if axis in OF_STAGES else axis_value(job, axis)
        for axis in axes
    )
    return (job.scene, job.prompt, job.seed, kind, *values)
