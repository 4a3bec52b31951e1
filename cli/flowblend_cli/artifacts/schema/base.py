"""Document: the base of every schema of what is read back, and the values that several have."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from flowblend_cli.errors import DocumentError
from flowblend_cli.recipe.schema.explanations import explain, show
from flowblend_cli.recipe.schema.names import check_job_id
from flowblend_cli.text import is_unsafe, printable
from flowblend_cli.utils.toml_positions import format_path

_SHOWN = 3
_MAX_PATH = 4096
_MAX_ARGUMENT = 2**17
_HASH = re.compile("[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}")
# As runs write it, or as browsers and people do: with fractions, with an offset, the day alone.
_TIME = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d))?", re.ASCII)


def _check_plain(text: str) -> str:
    bad = next((character for character in text if is_unsafe(character)), None)
    if bad is not None:
        raise ValueError(f"must not hold control characters, got {text!r}")
    return text


def _check_argument(text: Any, most: int = _MAX_ARGUMENT) -> str:
    # Folders may have names that aren't UTF-8, which are text with lone surrogates here.
    if not isinstance(text, str):
        raise ValueError(f"must be a string, got {show(text)}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"must be text that a system can name, got {show(text)}") from error
    if len(text) > most or "\0" in text:
        raise ValueError(f"must have at most {most:,} characters and no NUL, got {show(text)}")
    return text


def _check_path(path: Any) -> str:
    return _check_argument(path, _MAX_PATH)


def _check_letters(text: str) -> str:
    if not text.isascii() or not (text.isalpha() or not text):
        raise ValueError(f"must be letters of denoisers, got {show(text)}")
    return text


def _check_hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise ValueError(f"must be 64 hexadecimal digits in lower case, got {show(text)}")
    return text


def _check_commit(text: str) -> str:
    if not _COMMIT.fullmatch(text):
        raise ValueError(f"must be 40 hexadecimal digits in lower case, got {show(text)}")
    return text


def _check_time(text: str) -> str:
    try:
        if not _TIME.fullmatch(text):
            raise ValueError(text)
        datetime.fromisoformat(text)
    except ValueError as error:
        message = f"must be a time such as '2026-01-31T23:59:59Z', got {show(text)}"
        raise ValueError(message) from error
    return text


# A sha256: of pixels, of a file, of all that decides a job.
Hash = Annotated[str, AfterValidator(_check_hash)]
Commit = Annotated[str, AfterValidator(_check_commit)]
Time = Annotated[str, AfterValidator(_check_time)]
Letters = Annotated[str, Field(max_length=10_000), AfterValidator(_check_letters)]
JobId = Annotated[str, AfterValidator(check_job_id)]
Word = Annotated[str, Field(max_length=200)]
Sentence = Annotated[str, Field(max_length=10_000)]
Writing = Annotated[str, Field(max_length=2**23)]
Argument = Annotated[str, PlainValidator(_check_argument)]
PathText = Annotated[str, PlainValidator(_check_path)]
ModelName = Annotated[str, Field(min_length=1, max_length=_MAX_PATH), AfterValidator(_check_plain)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Measure = Annotated[float, Field(ge=-1e15, le=1e15)]
DocumentType = TypeVar("DocumentType", bound="Document")


class Document(BaseModel):
    """What one JSON object may hold. Keys that a later version may add are left out."""

    # Built when it is used first: commands that only look wait for none of the others.
    model_config = ConfigDict(
        extra="ignore", strict=True, frozen=True, allow_inf_nan=False, defer_build=True
    )

    @classmethod
    def read(cls, value: Any) -> Self:
        """Check an object that was read back.

        Raises:
            DocumentError: It isn't what it should be; names up to three of the problems.
        """
        if not isinstance(value, dict):
            raise DocumentError("is no JSON object")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise DocumentError(_told(error, value)) from error


class Closed(Document):
    """An object in which an unknown key may decide pixels, so that it isn't left out."""

    model_config = ConfigDict(extra="forbid")


def _told(error: ValidationError, value: Any) -> str:
    """The first problems of an object, each with its place."""
    places: dict[tuple[str | int, ...], list[Any]] = {}
    for one in error.errors(include_url=False):
        places.setdefault(_place(one["loc"], value), []).append(one)
    told = [_problem(place, found) for place, found in itertools.islice(places.items(), _SHOWN)]
    more = [f"and {len(places) - _SHOWN} more"] if len(places) > _SHOWN else []
    return printable("; ".join([*told, *more]))


def _place(loc: tuple[str | int, ...], value: Any) -> tuple[str | int, ...]:
    """The part of pydantic's location that is in the object; what follows names a type."""
    place: list[str | int] = []
    for part in loc:
        if isinstance(value, Mapping):
            place.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
        else:
            break
    return tuple(place)


def _problem(place: tuple[str | int, ...], found: list[Any]) -> str:
    kind = found[0]["type"]
    where = format_path(place)
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where} is no key that this version of flowblend knows"
    return f"{where} {explain(*found)}".strip()
