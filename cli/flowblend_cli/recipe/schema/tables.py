"""Tables of a recipe as pydantic models: their keys, and the values that each key takes.

What depends on several tables is checked in ``recipe.expand.checks``.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    WithJsonSchema,
    create_model,
)

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
    Text,
    Threshold,
    Variant,
    argument_types,
)
from flowblend_cli.recipe.schema.names import check_template
from flowblend_cli.recipe.schema.ranges import (
    MAX_STEPS,
    SEEDS_SCHEMA,
    Exploration,
    StepRange,
)
from flowblend_cli.recipe.schema.stage_values import (
    CACHE_SCHEMA,
    check_adapter_name,
    check_backend,
    check_denoiser,
    check_letter,
    check_own_denoiser,
    check_passes,
    parse_cache,
)
from flowblend_cli.recipe.source.limits import MAX_PROMPT, MAX_SAMPLE
from flowblend_cli.utils.devices import check_devices
from flowblend_plugin.stages import Cache

Seeds = Annotated[
    Annotated[list[Seed], Field(min_length=1)] | InstanceOf[Exploration],
    BeforeValidator(Exploration.parse_or_keep),
    WithJsonSchema(SEEDS_SCHEMA),
]
Repeats = Annotated[int, Field(ge=1)]
SampleSize = Annotated[int, Field(ge=1, le=MAX_SAMPLE)]
Steps = Annotated[
    StepRange,
    BeforeValidator(StepRange.parse),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_STEPS}, {"type": "string"}]}
    ),
]


def _prompt_list(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return [value]
    raise ValueError(f"must be a string or a list of strings, got {value!r}")


Prompts = Annotated[
    list[Text],
    BeforeValidator(_prompt_list),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]

Criterion = Literal["best", "extrapolated", "free", "contiguous", "divergence", "complexity"]


class Unknown(Enum):
    """Stands for a value that is written, and so broken that it isn't known."""

    VALUE = "?"


UNKNOWN = Unknown.VALUE


class Table(BaseModel):
    """Base of every table: values as TOML types them, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    _broken: frozenset[str] = PrivateAttr(frozenset())

    @property
    def broken(self) -> frozenset[str]:
        """Keys whose values are told to be wrong: what they were meant to be isn't known."""
        private = self.__pydantic_private__  # its own way to a private attribute takes long
        return private["_broken"] if private else frozenset()

    def without(self, broken: Iterable[str]) -> Self:
        """Mark further keys as broken, and return the table itself."""
        self._broken |= frozenset(broken)
        return self


class RecipeTable(Table):
    """What the batch is called, and where its files go."""

    name: Name | None = None
    """Name of the recipe; without it, the file's name."""
    output_dir: Text = "out"
    """Folder of the final files, relative to the recipe's own folder."""
    filename: Annotated[str, AfterValidator(check_template)] | None = None
    """Name of the final files without extension, such as "{scene}-s{seed}"."""
    passes: Annotated[list[Literal["draft", "final"]], AfterValidator(check_passes)] | None = None
    """Drafts of every job, its finals, or both."""
    max_steps: StepCount | None = None
    """Most steps that a job may have."""
    report: bool = False
    """Whether a render ends with a report of the folder."""
    wildcards: Text = "wildcards"
    """Folder of the files that __name__ in a prompt stands for, in the recipe's own."""
    sample: SampleSize | None = None
    """Most prompts of a scene; more are drawn from. Without it, all are rendered."""
    sample_seed: Seed = 0
    """Another one draws others."""


class RunTable(Table):
    """Where the batch is rendered; no key of it changes a pixel's meaning."""

    devices: Annotated[str, AfterValidator(check_devices)] | None = None
    """A worker process on each of these: all, cuda:0,cuda:2, or cpu*2; as --devices."""


class ModelTable(Table):
    """The pair of models."""

    pipeline: Text
    """A bundled or known pair, ./folder, an absolute folder, or owner/name on the Hub."""
    small: Text | None = None
    """Where the small denoiser comes from, likewise; a known pair has its own."""
    dtype: Dtype = "auto"
    """Number format of the weights."""
    device: Device = "auto"
    """Where to render: auto, cpu, cuda, cuda:1, mps."""
    offload: Offload = "none"
    """What waits in main memory until it runs: nothing, whole models, or single layers."""
    variant: Variant | None = None
    """Variant of the weights, as in model.fp16.safetensors, where a folder has files of it."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Jobs rendered together; only 1, because more change pixels."""
    denoisers: dict[Annotated[str, AfterValidator(check_letter)], Text] = {}
    """Further denoisers: a letter for stage strings, and where its denoiser comes from."""
    adapters: dict[
        Annotated[str, AfterValidator(check_adapter_name)],
        Text | dict[Annotated[str, AfterValidator(check_own_denoiser)], Text],
    ] = {}
    """LoRA files by name: one file, or one for each denoiser."""


class AdapterTable(Table):
    """A LoRA adapter at work during one stage."""

    name: Text
    """A name from [model.adapters], or the file itself."""
    weight: float = 1.0
    """Its weight; in a ramp, that of the stage's first step."""
    end_weight: float | None = None
    """Weight of the stage's last step, where it ramps."""


class StageTable(Table):
    """One stage in the long form."""

    denoiser: Annotated[str, AfterValidator(check_denoiser)]
    """Who runs the stage: large, small, a letter from [model.denoisers], or extrapolated: none."""
    until: Fraction | None = None
    """Fraction of the steps where the stage ends; left out in the last stage."""
    until_sigma: Fraction | None = None
    """Noise level where the stage ends, instead of until."""
    guidance_scale: Guidance | None = None
    """Guidance of this stage; 1.0 runs no unconditional pass. Without it, the call's own."""
    adapters: list[AdapterTable] = []
    """LoRA adapters at work in this stage."""
    cache: Annotated[Cache, BeforeValidator(parse_cache), WithJsonSchema(CACHE_SCHEMA)] | None = (
        None
    )
    """Kind of cache in this stage, or a table of kind and options."""
    attention_backend: Annotated[str, AfterValidator(check_backend)] | None = None
    """One of diffusers' attention backends in this stage."""
    steps: StepCount | None = None
    """Steps that the stage spends on noise levels of its own; all stages have them, or none."""
    scheduler: StageSolver | None = None
    """Solver of a stage with steps; without it, that of the pipeline or of [sampling]."""


class BlendTable(Table):
    """Which denoiser runs which steps."""

    stages: Text | None = None
    """One letter a stage, L large, S small, E extrapolated; or "auto", or "adaptive"."""
    boundaries: list[Fraction] | None = None
    """Where all stages but the last end, as fractions of the steps, ascending."""
    boundary_sigmas: list[Fraction] | None = None
    """The same as noise levels, descending."""
    stage: Annotated[list[StageTable], Field(min_length=1)] | None = None
    """The long form: one table a stage."""
    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of stages left to data: share of the all-large FLOPs that is never exceeded; 0.6."""
    calibration: Text | None = None
    """Likewise: file that flowblend probe made; without it, the pipeline's own."""
    criterion: Criterion | None = None
    """Of "auto": how stages are chosen; without it, by the smallest predicted error."""
    max_stages: Annotated[int, Field(ge=1, le=5)] | None = None
    """Of "auto": most stages of the criterion "contiguous"; 3."""
    threshold: Threshold | None = None
    """Of "adaptive": change of the velocity at which the small denoiser takes over; 0.05."""


class SamplingTable(Table):
    """How the trajectory is sampled."""

    mode: Mode = "ode"
    """Deterministic, or with noise added back at every step."""
    scheduler: Solver | None = None
    """The solver; without it, the pipeline's own."""
    flow_shift: FlowShift | None = None
    """Shift of the noise levels; without it, the scheduler's own."""
    solver_history: History = "keep"
    """What a multi-step solver does with its memory where the denoiser changes."""
    sigma_max: SigmaMax | None = None
    """Noise level that sampling begins at, by EDM's convention; without it, pure noise."""
    noise_seed: Seed | None = None
    """Seed of the noise that "sde" adds; without it, the job's own seed."""


class OutputTable(Table):
    """How the final files are written."""

    container: Container | None = None
    """Kind of file; without it, png for a single frame and mp4 for a clip."""
    fps: Fps | None = None
    """Frames per second; without it, what the models were trained on."""
    scale: Scale = 1
    """Whole-number upscale of every pixel."""
    crf: Crf = 10
    """H.264 quality: 0 is lossless, 51 the smallest."""


ARGUMENTS: dict[str, Any] = argument_types()
PIXEL_AREA = Annotated[int, Field(ge=256, le=16_384**2)]
NEGATIVE = Annotated[str, Field(max_length=MAX_PROMPT)]
# What defaults, presets, scenes and the sweep may set.
SETTINGS: dict[str, Any] = {**ARGUMENTS, "negative_prompt": NEGATIVE, "pixel_area": PIXEL_AREA}
_PLACES = {name: place for place, name in enumerate(SETTINGS)}
_OPTIONAL: dict[str, Any] = {name: (kind | None, None) for name, kind in SETTINGS.items()}


class _Settings(Table):
    """Pipeline arguments of every scene."""

    def settings(self) -> dict[str, Any]:
        """The arguments that the table sets, and only those; broken ones are ``UNKNOWN``."""
        broken = self.broken
        written = (self.model_fields_set | broken) & SETTINGS.keys()
        return {
            key: UNKNOWN if key in broken else getattr(self, key)
            for key in sorted(written, key=_PLACES.__getitem__)
        }


class SceneFields(_Settings):
    """One scene, and the pipeline arguments that only it changes."""

    name: Name
    """Unique name, the first part of its files' names."""
    prompt: Prompts | None = None
    """What to show; a list, {alternatives|like these}, or a __wildcard__ renders each."""
    prompts_file: Text | None = None
    """Instead of prompt: a text file in the recipe's folder, one prompt a line."""
    sample: SampleSize | None = None
    """How many of the scene's prompts are drawn; without it, all are rendered."""
    sample_seed: Seed | None = None
    """Another one draws others; without it, that of [recipe]."""
    image: Text | None = None
    """Picture to begin with: a PNG or JPEG in the recipe's folder, or below it."""
    seeds: Seeds | None = None
    """Seeds to render, or "explore 8" of them; 0 draws one. Without it, 42."""
    preset: Text | None = None
    """Name of a preset, or "auto": by the words of the prompt."""
    lint: bool = True
    """Whether words that ask for randomness are pointed out where none is added."""
    repeats: Repeats | None = None
    """Renders of each seed s: with the seeds s, s + 1, s + 2..."""


class PresetFields(_Settings):
    """Pipeline arguments for one kind of scene."""

    keywords: list[Text] | None = None
    """Words of a prompt that hint at this kind of scene."""
    medium: Literal["clip", "picture"] | None = None
    """What it is for, where it isn't for both."""


TableType = TypeVar("TableType", bound=Table)


def extended(name: str, base: type[TableType], fields: dict[str, Any]) -> type[TableType]:
    """A table with further keys.

    Args:
        name: Name of the new table.
        base: What it extends, and whose docstring it has.
        fields: The keys, each with its type and default.
    """
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)


DefaultsTable = extended("DefaultsTable", _Settings, _OPTIONAL)
SceneTable = extended("SceneTable", SceneFields, _OPTIONAL)
PresetTable = extended(
    "PresetTable", PresetFields, {**_OPTIONAL, "num_inference_steps": (Steps | None, None)}
)
