"""What image tools read under ``parameters``, line by line, whatever a document lacks."""

from __future__ import annotations

from typing import Any

import pytest

from flowblend_cli.artifacts.metadata import from_text, parameters_text, to_text, without_seal
from flowblend_cli.utils.limits import MAX_DOCUMENT_BYTES

JOB: dict[str, Any] = {
    "prompt": "a red square", "negative_prompt": "blur", "seed": 0, "stage_string": "LSL",
    "arguments": [["num_inference_steps", 50], ["guidance_scale", 5.0], ["width", 64],
                  ["height", 32]],
    "model": {"pipeline": "sprites"}, "sampling": {"scheduler": "unipc"},
}  # fmt: skip
SETTINGS = (
    "Steps: 50, Sampler: unipc, CFG scale: 5.0, Seed: 7, Size: 64x32, Model: sprites, "
    "Stages: LSL, Version: flowblend 0.1.0"
)


def parameters(resolved: Any = {"seed": 7}, **changes: Any) -> list[str]:  # noqa: B006
    job = {**JOB, **changes}
    document = {"flowblend": "0.1.0", "job": job, "resolved": resolved}
    return parameters_text(document).split("\n")


def without(*names: str) -> list[Any]:
    return [one for one in JOB["arguments"] if one[0] not in names]


def test_a_whole_document_is_a_prompt_a_negative_prompt_and_a_line_of_settings() -> None:
    assert parameters() == ["a red square", "Negative prompt: blur", SETTINGS]
    assert parameters(arguments=dict(JOB["arguments"])) == parameters()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"arguments": without("num_inference_steps")}, "Steps: 50, "),
        ({"arguments": without("guidance_scale")}, "CFG scale: 5.0, "),
        ({"arguments": without("width")}, "Size: 64x32, "),
        ({"arguments": without("height")}, "Size: 64x32, "),
        ({"sampling": None}, "Sampler: unipc, "),
        ({"sampling": {"scheduler": None}}, "Sampler: unipc, "),
        ({"model": None}, "Model: sprites, "),
        ({"stage_string": None}, "Stages: LSL, "),
    ],
)
def test_a_setting_that_a_document_lacks_is_left_out(changes: Any, gone: str) -> None:
    assert gone in SETTINGS
    assert parameters(**changes)[-1] == SETTINGS.replace(gone, "")


def test_the_seed_is_the_drawn_one_or_else_the_job_s() -> None:
    assert parameters({}, seed=3)[-1] == SETTINGS.replace("Seed: 7", "Seed: 3")
    assert parameters(None, seed=3)[-1] == SETTINGS.replace("Seed: 7", "Seed: 3")
    assert parameters({}, seed=None)[-1] == SETTINGS.replace("Seed: 7, ", "")


@pytest.mark.parametrize("negative", [None, ""])
def test_no_negative_prompt_has_no_line(negative: Any) -> None:
    assert parameters(negative_prompt=negative) == ["a red square", SETTINGS]


def test_a_document_of_no_job_and_no_version_still_has_lines() -> None:
    assert parameters_text({"job": None, "resolved": None}) == "\nVersion: flowblend"
    assert parameters_text({}) == "\nVersion: flowblend"
    assert parameters(arguments=None)[-1] == (
        "Sampler: unipc, Seed: 7, Model: sprites, Stages: LSL, Version: flowblend 0.1.0"
    )


def test_a_document_begins_with_its_mark_and_has_no_spare_blanks() -> None:
    assert to_text({"a": [1, 2], "flowblend": "1"}) == '{"flowblend":"1","a":[1,2]}'


def test_a_document_may_be_as_long_as_its_limit() -> None:
    text = to_text({"flowblend": "1", "a": ""})
    for more in (0, 1):
        long = text[:-2] + "x" * (MAX_DOCUMENT_BYTES - len(text) + more) + text[-2:]
        assert (from_text(long) is not None) == (not more)


def test_the_seal_isnt_part_of_a_document() -> None:
    assert without_seal({"flowblend": "1", "file_sha256": "0"}) == {"flowblend": "1"}
    assert without_seal({"flowblend": "1"}) == {"flowblend": "1"}
    assert without_seal(None) is None
