"""The schema of finished files' records knows all that a job can hold."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from rendered import a_job

from flowblend_cli import jobs
from flowblend_cli.artifacts.schema import job as schema
from flowblend_cli.artifacts.schema.base import (
    Argument,
    Closed,
    Commit,
    Document,
    Hash,
    Letters,
    ModelName,
    PathText,
    Time,
    Word,
)
from flowblend_cli.artifacts.schema.description import Description, describe
from flowblend_cli.artifacts.schema.reviews import RatingsDocument, ReviewId
from flowblend_cli.errors import DocumentError
from flowblend_plugin.stages import Cache, Stage


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (jobs.ModelSpec, schema.ModelDocument),
        (jobs.SamplingSpec, schema.SamplingDocument),
        (jobs.ImageSpec, schema.ImageDocument),
        (jobs.OutputSpec, schema.OutputDocument),
        (jobs.AdapterSpec, schema.AdapterDocument),
        (jobs.Origin, schema.OriginDocument),
        (jobs.Job, schema.JobDocument),
        (Stage, schema.StageDocument),
    ],
)
def test_every_field_has_its_rule(kind: Any, document: Any) -> None:
    assert {field.name for field in dataclasses.fields(kind)} == set(document.model_fields)


def test_a_converted_picture_and_a_variant_are_read_back() -> None:
    picture = jobs.ImageSpec("first.png", "0" * 64, ("to_srgb", "over_white"))
    image = schema.ImageDocument.model_validate(picture.to_document())
    assert image.conversions == ["to_srgb", "over_white"]
    model = schema.ModelDocument.model_validate(
        {**jobs.ModelSpec("./wan", variant="fp16").to_document(), "denoisers": {}}
    )
    assert model.variant == "fp16"


class Tall(Document):
    a: int
    b: int
    c: int
    d: int
    e: int


@pytest.mark.parametrize("present", range(6))
def test_up_to_three_problems_are_named_and_the_others_counted(present: int) -> None:
    given_keys = dict.fromkeys("abcde"[:present], 1)
    if present == 5:
        assert Tall.read(given_keys).e == 1
        return
    with pytest.raises(DocumentError) as caught:
        Tall.read(given_keys)
    missing = [f"{name} is missing" for name in "abcde"[present:]]
    more = [f"and {len(missing) - 3} more"] if len(missing) > 3 else []
    assert str(caught.value) == "; ".join([*missing[:3], *more])


def test_a_problem_is_one_printable_line() -> None:
    class Named(Closed):
        x: Word = ""

    with pytest.raises(DocumentError) as caught:
        Named.read({"\x1b[31mred\u202e\n": 1})
    assert str(caught.value).isprintable()
    with pytest.raises(DocumentError, match="is no JSON object"):
        Named.read([1])


def refusal(kind: Any, value: Any) -> str:
    """What is said of a value of a field; empty where it is taken."""

    class One(Document):
        x: kind

    try:
        One.read({"x": value})
    except DocumentError as error:
        return str(error)
    return ""


LONG = "a" * 4096
VALUES: list[tuple[Any, Any, str]] = [
    (Argument, "--out=caf\udce9", ""),
    (Argument, "a" * 2**17, ""),
    (Argument, "a" * (2**17 + 1), "x must have at most 131,072 characters and no NUL, got 'aaa"),
    (Argument, "a\0b", "x must have at most 131,072 characters and no NUL, got"),
    (Argument, "a\ud800", "x must be text that a system can name, got"),
    (Argument, 3, "x must be a string, got 3"),
    (PathText, LONG, ""),
    (PathText, LONG + "a", "x must have at most 4,096 characters and no NUL, got 'aaa"),
    (Letters, "", ""),
    (Letters, "LSe", ""),
    (Letters, "L1", "x must be letters of denoisers, got 'L1'"),
    (Letters, "\u00e9", "x must be letters of denoisers, got '\u00e9'"),
    (ModelName, "owner/name", ""),
    (ModelName, "a\nb", "x must not hold control characters, got 'a\\nb'"),
    (Hash, "ab", "x must be 64 hexadecimal digits in lower case, got 'ab'"),
    (Commit, "ab", "x must be 40 hexadecimal digits in lower case, got 'ab'"),
    (Time, "2026-01-31T23:59:59+02:00", ""),
    (Time, "2026-13-31", "x must be a time such as '2026-01-31T23:59:59Z', got '2026-13-31'"),
    (ReviewId, "a" * 64, ""),
    (ReviewId, "a" * 65, "x must be the id of a review, got 'aaa"),
    (ReviewId, "a-b", "x must be the id of a review, got 'a-b'"),
    (ReviewId, "caf\u00e9", "x must be the id of a review, got 'caf\u00e9'"),
    (schema.Letter, "D", ""),
    (schema.Conversion, "over_white", ""),
    (schema.Conversion, "x", "x must be one of "),
]


@pytest.mark.parametrize(("kind", "value", "says"), VALUES, ids=range(len(VALUES)))
def test_a_value_is_taken_or_refused_with_what_it_should_be(
    kind: Any, value: Any, says: str
) -> None:
    found = refusal(kind, value)
    assert found.startswith(says)
    assert bool(found) == bool(says)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("arguments", "colour"), 1, "arguments must hold arguments of pipelines, got 'colour'"),
        (("arguments", "num_frames"), 0, "arguments num_frames must be"),
        (("stages", 0, "cache"), {"kind": "mag", "more": 1}, "cache must be a table of kind and o"),
        (("stages", 0, "cache"), {"kind": "mag", "options": 3}, "cache must be a table of kind an"),
        (("image",), {"path": "../a.png", "sha256": "0" * 64},
         "image.path must be a path inside of the recipe's folder, got '../a.png'"),
        (("origin",), {"kind": "draft", "of": "../x"}, "origin.of must"),
        (("more",), 1, "job.more is no key that this version of flowblend knows"),
    ],
)  # fmt: skip
def test_a_job_s_value_is_refused_at_its_place(place: Any, value: Any, says: str) -> None:
    document = a_document()
    holder: Any = document["job"]
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(DocumentError) as caught:
        describe(document)
    assert says in str(caught.value)
    assert str(caught.value).startswith("its record can't be used: job.")
    assert str(caught.value).endswith(
        ": it is damaged, or was written by another version of flowblend"
    )


def test_a_cache_s_options_and_an_empty_origin_are_read_back() -> None:
    document = a_document()
    document["job"]["stages"][0]["cache"] = {"kind": "first_block", "options": {"threshold": 0.1}}
    document["job"]["origin"] = {"kind": "final", "of": "", "reason": "", "round": 0}
    found = describe(document).job
    assert found is not None
    assert found.stages[0].cache == Cache.of("first_block", {"threshold": 0.1})
    assert found.origin == jobs.Origin("final")


def test_all_that_a_file_says_is_in_its_description() -> None:
    document = a_document()
    job = describe(document).job
    assert describe(document) == Description(job, 42, "", "", None, "", {}, HASH)
    document |= {
        "resolved": {"seed": 7, "denoisers": "LS", "device": "cuda", "sampling_s": 1.5,
                     "source": "/home/me"},
        "versions": {"torch": "2"},
    }  # fmt: skip
    assert describe(document) == Description(
        job, 7, "LS", "cuda", 1.5, "/home/me", {"torch": "2"}, HASH
    )
    picture = {"flowblend": "1", "gallery": True}
    assert describe(picture) == Description(None)
    for lacking in ({"flowblend": "1"}, {"flowblend": "1", "gallery": 1}):
        with pytest.raises(DocumentError, match="job is missing"):
            describe(lacking)


HASH, COMMIT = "0123456789abcdef" * 4, "0123456789" * 4
BAD = ["../../x", "", HASH.upper(), HASH[:-1], HASH + "0", HASH + "\n", "\u0661" * 64, 7, None]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", [("job_key",), ("pixels_sha256",), ("models", "small", "sha256")])
def test_a_hash_of_the_wrong_form_is_refused(place: tuple[str, ...], value: object) -> None:
    document = a_document()
    assert describe(document).pixels_sha256 == HASH
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value

    with pytest.raises(DocumentError, match=re.escape(".".join(place))):
        describe(document)


@pytest.mark.parametrize("commit", ["main", "../x", COMMIT[:-1], COMMIT[:-1] + "G"])
def test_a_commit_of_the_wrong_form_is_refused(commit: str) -> None:
    document = a_document()
    document["models"]["pipeline"]["commit"] = commit

    with pytest.raises(DocumentError, match=r"models\.pipeline\.commit must be 40 hexadecimal"):
        describe(document)


@pytest.mark.parametrize("path", ["../x", "A" * 64, "ab"])
def test_a_picture_whose_hash_has_the_wrong_form_is_refused(path: str) -> None:
    document = a_document()
    document["job"]["image"] = {"path": "first.png", "sha256": path}

    with pytest.raises(DocumentError, match=r"job\.image\.sha256 must be 64 hexadecimal"):
        describe(document)


@pytest.mark.parametrize("time", ["2026-01-31T23:59:59Z", "2026-01-31T23:59:59.123Z", "2026-01-31"])
def test_times_that_runs_and_browsers_write_are_read(time: str) -> None:
    ratings = {"v": 1, "review": "abc", "rater": "ann", "saved": time}
    assert RatingsDocument.read(ratings).saved == time


@pytest.mark.parametrize("time", ["yesterday", "2026-02-30", "2026-01-31T25:00:00Z", "2026"])
def test_what_is_no_time_is_refused(time: str) -> None:
    with pytest.raises(DocumentError, match="saved must be a time"):
        RatingsDocument.read({"v": 1, "review": "abc", "rater": "ann", "saved": time})


def a_document() -> dict[str, Any]:
    job = json.loads(json.dumps(a_job("clip").to_document()))
    return {
        "flowblend": "0.1.0", "v": 1, "job": job, "job_key": HASH, "pixels_sha256": HASH,
        "models": {
            "pipeline": {"repo": "owner/name", "commit": COMMIT, "sha256": HASH},
            "small": {"path": "/models/small", "sha256": HASH},
        },
    }  # fmt: skip
