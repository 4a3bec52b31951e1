"""The schema of finished files' records knows all that a job can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flowblend_cli import jobs
from flowblend_cli.artifacts.schema import job as schema
from flowblend_plugin.stages import Stage


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
