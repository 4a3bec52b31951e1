"""What runs keep beside the clips: records, looks, recipes, states, lines of the manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from flowblend_cli.artifacts.schema.base import (
    Argument,
    Bytes,
    Count,
    Document,
    Hash,
    JobId,
    Measure,
    PathText,
    Seconds,
    Sentence,
    Time,
    Word,
    Writing,
)
from flowblend_cli.recipe.schema.fields import Name, Seed, StepCount

# A point of a path of motion; a value of an axis; a metric's weight in the
# score; how many steps suit a scene; seconds that steps of a model took.
Point = Annotated[list[Measure], Field(min_length=2, max_length=2)]
AxisValue = Annotated[list[Any], Field(min_length=2, max_length=2)]
Weight = Annotated[tuple[Word, Measure], Strict(False)]
StepRange = Annotated[tuple[Name, StepCount, StepCount], Strict(False)]
Speed = Annotated[list[Any], Field(min_length=4, max_length=4)]


class RecordDocument(Document):
    """The measurements of a job."""

    v: Literal[1]
    job: JobId
    recipe: Name
    pixels_sha256: Hash
    elapsed_s: list[Seconds] = Field(default_factory=list)
    pixels: list[Hash] = Field(default_factory=list)
    step_s: list[Seconds] = Field(default_factory=list)
    peak_rss_bytes: Bytes | None = None
    peak_vram_bytes: Bytes | None = None
    metrics: dict[Word, Measure] = Field(default_factory=dict)
    measured_on: Literal["frames", "file"] = "frames"
    tracks: list[list[Point]] = Field(default_factory=list)
    accepted: bool | None = None
    asked: Writing = ""


class LookDocument(Document):
    """An early look at a draft."""

    job_key: Hash
    score: Measure | None
    elapsed_s: Seconds


class LooksDocument(Document):
    """The early looks at the drafts of a selection."""

    v: Literal[1]
    asked: Writing
    after_steps: StepCount
    looks: dict[JobId, LookDocument]


class MeasureDocument(Document):
    """What a recipe measures."""

    names: list[Word] | None = None
    reference: list[AxisValue] = Field(default_factory=list)
    weights: list[Weight] = Field(default_factory=list)


class AdaptDocument(Document):
    """When a recipe renders clips again."""

    rounds: Count = 2
    weak_motion: Measure | None = None
    jitter: Measure | None = None
    guidance_step: Measure = 1.0
    max_guidance: Measure = 8.0


class ReviewDocument(Document):
    """What a recipe asks people."""

    criteria: list[Sentence] = Field(default_factory=list)


class SelectionDocument(Document):
    """Drafts of which only the best become finals."""

    scene: Name
    drafts: Annotated[list[JobId], Field(min_length=1)]
    finals: list[JobId]
    keep: Count
    reject_after: StepCount | None = None
    reject_keep: Count | None = None


class ChoiceDocument(Document):
    """How many steps a prompt has, and why."""

    scene: Name
    prompt: Writing
    steps: StepCount | None
    reason: Writing
    preset: Sentence = ""
    words: list[Sentence] = Field(default_factory=list)
    is_auto: bool = False


class StudyDocument(Document):
    """What a recipe measures, compares and chooses."""

    axes: list[Word] = Field(default_factory=list)
    time_repeats: Count = 1
    measure: MeasureDocument = MeasureDocument()
    adapt: AdaptDocument | None = None
    step_ranges: list[StepRange] = Field(default_factory=list)
    max_steps: StepCount | None = None
    review: ReviewDocument = ReviewDocument()
    selections: list[SelectionDocument] = Field(default_factory=list)
    choices: list[ChoiceDocument] = Field(default_factory=list)
    report: bool = False


class KeptRecipeDocument(Document):
    """A recipe as it was last rendered."""

    v: Literal[1]
    recipe: Name
    path: PathText = ""
    text: Writing = ""
    overrides: list[Writing] = Field(default_factory=list)
    warnings: list[Writing] = Field(default_factory=list)
    study: StudyDocument = StudyDocument()
    jobs: list[JobId] = Field(default_factory=list)


class FailureDocument(Document):
    """A job that failed."""

    scene: Name
    seed: Seed | None = None
    error: Writing
    at: Time = ""


class PresentDocument(Document):
    """A job that renders."""

    job: JobId
    scene: Name
    step: Count
    num_inference_steps: Count
    role: Word
    worker: Word | None = None


class ProcessDocument(Document):
    """What tells a process from all others."""

    pid: Count
    host: Word
    boot: Word | None = None
    born: Word | None = None


class RunStateDocument(Document):
    """How far a run is."""

    v: Literal[1]
    recipe: Name
    command: list[Argument]
    folder: PathText
    output_dir: PathText | None = None
    shard: Word | None = None
    taken_over: list[JobId] = Field(default_factory=list)
    jobs: Count
    started: Time
    process: ProcessDocument
    ended: Time | None
    elapsed_s: Seconds
    clock_s: Seconds
    rendered: Count
    skipped: Count
    added: Count
    added_done: Count
    dropped: list[JobId]
    failed: dict[JobId, FailureDocument]
    present: PresentDocument | None
    under_way: list[PresentDocument] = Field(default_factory=list)
    waiting: Writing
    error: Writing
    remaining_s: Seconds | None
    learned: list[Speed] | None = None


class CheckpointDocument(Document):
    """What a stored state says of itself."""

    v: Literal[1]
    job_key: Hash
    seed: Seed
    step: Count
    total: Count
    surroundings: dict[Word, Sentence]
    elapsed_s: Seconds
    step_s: list[Seconds]
    roles: list[Word]


class ManifestLine(Document):
    """A finished file, as the manifest knows it."""

    v: Literal[1]
    file: Annotated[str, Field(pattern=r"^[^/\x00]{1,255}$")]
    size: Annotated[int, Field(ge=0)]
    sha256: Hash
    recipe: Name
    job_key: Hash
    pixels_sha256: Hash
    seed: Annotated[int, Field(ge=0)]
    sampling_s: Seconds
