"""Description: what a finished file says about itself, checked before anybody goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from flowblend_cli.artifacts.schema.base import (
    Commit,
    Count,
    Document,
    Hash,
    Letters,
    ModelName,
    PathText,
    Seconds,
    Sentence,
    Word,
)
from flowblend_cli.artifacts.schema.job import JobDocument
from flowblend_cli.errors import DocumentError
from flowblend_cli.jobs import Job
from flowblend_cli.recipe.schema.fields import Fraction, Seed
from flowblend_plugin.errors import FlowBlendError

_REMEDY = "it is damaged, or was written by another version of flowblend"


class CacheDocument(Document):
    """What a cache saved in one stage."""

    stage: Count
    kind: Word
    forwards: Count
    skipped: Count
    computed: Fraction


class ResolvedDocument(Document):
    """What was found out while rendering."""

    seed: Seed | None = None
    denoisers: Letters = ""
    device: Word = ""
    sampling_s: Seconds | None = None
    source: PathText = ""
    memory: list[Sentence] = Field(default_factory=list)
    caches: list[CacheDocument] = Field(default_factory=list)


class IdentityDocument(Document):
    """Which files of a model, or of a LoRA, decided the bits."""

    path: PathText | None = None
    repo: ModelName | None = None
    commit: Commit | None = None
    sha256: Hash


class PublishedDocument(Document):
    """What a batch reads of a file that its job key proves to be its own."""

    pixels_sha256: Hash


class FileDocument(Document):
    """The document inside of a finished file, or of one that the gallery made."""

    flowblend: Word
    v: Literal[1] = 1
    job: JobDocument | None = None
    gallery: bool = False
    job_key: Hash = ""
    resolved: ResolvedDocument = ResolvedDocument()
    models: dict[Word, IdentityDocument] = Field(default_factory=dict)
    versions: dict[Word, Word] = Field(default_factory=dict)
    pixels_sha256: Hash = ""

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_job(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("gallery") is not True and "job" not in value:
            raise ValueError("job is missing")
        return value


@dataclass(frozen=True)
class Description:
    """What a finished file says about itself.

    Args:
        job: Its job; None for a file of the gallery, which is nobody's.
        seed: The seed that was used, also where the job lets one be drawn.
        denoisers: One letter a step: who ran it.
        device: Kind of device, such as ``"cpu"``.
        sampling_s: Seconds for sampling and decoding; None where it says nothing.
        source: The recipe's folder; may be empty.
        versions: Versions of the packages that decide bits.
        pixels_sha256: Hash of its frames.
    """

    job: Job | None
    seed: int = 0
    denoisers: str = ""
    device: str = ""
    sampling_s: float | None = None
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    pixels_sha256: str = ""


def describe(document: Mapping[str, Any]) -> Description:
    """Check a finished file's document.

    Args:
        document: As ``metadata.read_document`` gives it.

    Raises:
        DocumentError: It doesn't hold what it should.
    """
    try:
        found = FileDocument.read(document)
        job = None if found.job is None else Job.from_document(document["job"])
        if job is not None:
            _ = job.schedule
    except FlowBlendError as error:
        raise DocumentError(f"its record can't be used: {error}: {_REMEDY}") from error
    resolved = found.resolved
    seed = resolved.seed if resolved.seed is not None else job.seed if job is not None else 0
    return Description(
        job,
        seed,
        resolved.denoisers,
        resolved.device,
        resolved.sampling_s,
        resolved.source,
        found.versions,
        found.pixels_sha256,
    )
