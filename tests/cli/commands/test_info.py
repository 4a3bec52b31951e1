"""``flowblend info``: a finished file tells how it was rendered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rendered import a_job

from flowblend_cli import main
from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.commands.info import describe, describe_denoisers

DOCUMENT = {
    "flowblend": "0.1.0",
    "v": 1,
    "job": json.loads(
        json.dumps(
            a_job(
                steps=10,
                seed=0,
                prompt="a red square \x1b[31m[/b]\nmoving left",
                negative_prompt="blur",
                sampling={"flow_shift": 3.0},
            ).to_document()
        )
    ),
    "resolved": {"seed": 41, "denoisers": "LLLLSSSSLL"},
    "models": {"pipeline": {"source": "owner/name", "sha256": "0123456789abcdef" * 4}},
    "versions": {"torch": "2.13.0"},
    "pixels_sha256": "ab" * 32,
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["info", *arguments])


@pytest.fixture(params=["a.mp4", "a.png"])
def finished(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    if path.suffix == ".mp4":
        publish_video(frames, path, fps=8, document=DOCUMENT)
    else:
        publish_image(frames[0], path, document=DOCUMENT)
    return path


def test_info_says_how_a_file_was_rendered(finished: Path) -> None:
    result = run(str(finished))

    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert lines["seed"] == "41"
    assert lines["stages"] == "LSL"
    assert lines["denoisers"] == "steps 0-3 large, 4-7 small, 8-9 large"
    assert lines["prompt"] == "a red square \\x1b[31m[/b]\\nmoving left"
    assert "pipeline.source owner/name, pipeline.sha256 0123456789ab" in result.stdout
    assert "flowblend 0.1.0, torch 2.13.0" in result.stdout
    assert "ab" * 32 in result.stdout
    assert "altered" not in result.stdout


def test_info_gives_the_whole_record_as_one_json_object(finished: Path) -> None:
    result = run(str(finished), "--json")

    assert json.loads(result.stdout) == DOCUMENT


def test_info_notes_a_file_that_was_altered(finished: Path) -> None:
    finished.write_bytes(finished.read_bytes() + b"x")

    assert "altered since it was rendered" in run(str(finished)).stdout


def test_info_of_a_foreign_file_is_a_clear_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "holiday.mp4"
    path.write_bytes(b"not ours")

    result = run(str(path))

    assert result.exit_code == 2
    assert "holiday.mp4" in result.stderr
    assert "isn't flowblend's" in result.stderr


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"output": {"container": "/../x.mp4"}}, "job.output.container must be one of"),
        ({"id": "../../x"}, "job.id must not hold /"),
        ({"seed": True}, "job.seed must be a whole number, got true"),
        ({"stages": []}, "job.stages must not be empty"),
        ({"surprise": 1}, "job.surprise is no key that this version of flowblend knows"),
    ],
)
def test_info_of_a_document_that_breaks_a_rule_of_recipes_says_which(
    tmp_path: Path, damage: dict[str, object], told: str
) -> None:
    path = tmp_path / "a.png"
    document = {**DOCUMENT, "job": {**DOCUMENT["job"], **damage}}
    publish_image(np.zeros((16, 16, 3), np.uint8), path, document=document)

    result = run(str(path))

    assert result.exit_code == 2
    assert told in result.stderr


def test_info_of_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    assert run(str(tmp_path / "nothing.mp4")).exit_code == 2


@pytest.mark.parametrize(
    "document",
    [
        {"flowblend": "1"},
        {"flowblend": "1", "job": [], "resolved": 3, "models": "x", "versions": None},
        {"flowblend": "1", "job": {"arguments": [["a", 1]], "prompt": {"a": [1]}}},
    ],
)
def test_a_document_of_any_shape_is_described(document: dict[str, object]) -> None:
    assert all(isinstance(value, str) for _, value in describe(document))


def test_denoisers_are_said_in_words() -> None:
    assert describe_denoisers("LLS") == "steps 0-1 large, 2 small"
    assert describe_denoisers("L") == "step 0 large"
    assert describe_denoisers("DDL") == "steps 0-1 D, 2 large"
