"""A job as a finished file records it, checked by the rules that recipes have."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from flowblend_cli.artifacts.schema.base import (
    Closed,
    Count,
    Hash,
    JobId,
    Letters,
    ModelName,
    Sentence,
    Writing,
)
from flowblend_cli.recipe.schema.explanations import explain
from flowblend_cli.recipe.schema.fields import (
    Container,
    Crf,
    Device,
    Dtype,
    FlowShift,
    Fps,
    Fraction,
    Guidance,
    History,
    Mode,
    Name,
    Offload,
    Scale,
    Seed,
    SigmaMax,
    Solver,
    StageSolver,
    StepCount,
    Threshold,
    Variant,
    argument_types,
)
from flowblend_cli.recipe.schema.names import check_job_id
from flowblend_cli.recipe.schema.stage_values import (
    check_backend,
    check_denoiser,
    check_letter,
    check_own_denoiser,
    parse_cache,
)
from flowblend_cli.recipe.source.limits import MAX_PROMPT
from flowblend_cli.utils.files import UnsafeName, check_relative
from flowblend_cli.utils.images import CONVERSIONS


def _check_image_path(path: str) -> str:
    try:
        check_relative(path)
    except UnsafeName as error:
        raise ValueError(f"must be a path inside of the recipe's folder, got {path!r}") from error
    return path


def _check_origin(job: str) -> str:
    return check_job_id(job) if job else job


@functools.cache
def _type_of(name: str) -> TypeAdapter[Any] | None:
    kind = argument_types().get(name)
    return None if kind is None else TypeAdapter(kind)


def _check_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in arguments.items():
        kind = _type_of(name)
        if kind is None:
            raise ValueError(f"must hold arguments of pipelines, got {name!r}")
        try:
            kind.validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{name} {explain(*error.errors(include_url=False))}") from error
    return arguments


def _check_cache(cache: dict[str, Any]) -> dict[str, Any]:
    options = cache.get("options", {})
    if not isinstance(options, dict) or cache.keys() - {"kind", "options"}:
        raise ValueError("must be a table of kind and options")
    parse_cache({**options, "kind": cache.get("kind")})
    return cache


def _check_conversion(name: str) -> str:
    if name not in CONVERSIONS:
        raise ValueError(f"must be one of {', '.join(CONVERSIONS)}, got {name!r}")
    return name


Letter = Annotated[str, AfterValidator(check_letter)]
Conversion = Annotated[str, AfterValidator(_check_conversion)]


class AdapterInStage(Closed):
    """A LoRA adapter at work during one stage."""

    name: ModelName
    weight: float = 1.0
    end_weight: float | None = None


class StageDocument(Closed):
    """One stage."""

    denoiser: Annotated[str, AfterValidator(check_denoiser)]
    until: Fraction | None = None
    until_sigma: Fraction | None = None
    guidance_scale: Guidance | None = None
    adapters: list[AdapterInStage] = Field(default_factory=list)
    cache: Annotated[dict[str, Any], AfterValidator(_check_cache)] | None = None
    attention_backend: Annotated[str, AfterValidator(check_backend)] | None = None
    steps: StepCount | None = None
    scheduler: StageSolver | None = None


class ModelDocument(Closed):
    """The models of a job."""

    pipeline: ModelName
    small: ModelName | None = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    offload: Offload = "none"
    denoisers: dict[Letter, ModelName] = Field(default_factory=dict)
    variant: Variant | None = None


class SamplingDocument(Closed):
    """How the trajectory is sampled."""

    mode: Mode = "ode"
    scheduler: Solver | None = None
    flow_shift: FlowShift | None = None
    solver_history: History = "keep"
    sigma_max: SigmaMax | None = None
    noise_seed: Seed | None = None


class OutputDocument(Closed):
    """How the file is written."""

    container: Container = "mp4"
    fps: Fps = 16
    scale: Scale = 1
    crf: Crf = 10


class ImageDocument(Closed):
    """The picture that a job begins with."""

    path: Annotated[str, Field(max_length=4096), AfterValidator(_check_image_path)]
    sha256: Hash
    conversions: list[Conversion] = Field(default_factory=list)


class AdapterDocument(Closed):
    """A LoRA adapter that the stages name."""

    name: ModelName
    role: Annotated[str, AfterValidator(check_own_denoiser)]
    source: ModelName


class OriginDocument(Closed):
    """Why a job is there beside what its recipe lists."""

    kind: Literal["draft", "final", "adapted"]
    of: Annotated[str, AfterValidator(_check_origin)] = ""
    reason: Sentence = ""
    round: Count = 0


class JobDocument(Closed):
    """A job."""

    id: JobId
    recipe: Name
    scene: Name
    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    prompt_template: Writing
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None
    seed: Seed
    stages: Annotated[list[StageDocument], Field(min_length=1, max_length=1000)]
    stage_string: Annotated[Letters, Field(min_length=1)]
    arguments: Annotated[dict[str, Any], AfterValidator(_check_arguments)]
    model: ModelDocument
    sampling: SamplingDocument
    output: OutputDocument
    image: ImageDocument | None = None
    adapters: list[AdapterDocument] = Field(default_factory=list)
    adaptive: Threshold | None = None
    origin: OriginDocument | None = None
