"""Files that somebody made up, among good ones: named and left out, and they lead nowhere."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rendered import KEY, a_job, keep_recipe, values_for, write_clip

from flowblend_cli import main
from flowblend_cli.artifacts import png, reading
from flowblend_cli.artifacts.existing import Finder
from flowblend_cli.artifacts.image import encode_png
from flowblend_cli.artifacts.metadata import COMMENT, read_document, to_text
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.artifacts.records import recipe_path, record_path, review_path, run_path
from flowblend_cli.errors import ModelMissingError, OutputError
from flowblend_cli.models.contents import check_contents
from flowblend_cli.utils.frames import Frames

STILL = {"num_frames": 1}


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good pictures of a study, beside another folder's clip."""
    out = tmp_path / "out"
    jobs = [a_job(f"good-{steps}", steps=steps, arguments=STILL) for steps in (30, 50)]
    for job in jobs:
        write_clip(out, job, metrics=values_for(0.5))
    keep_recipe(out, jobs)
    write_clip(tmp_path / "other", a_job("victim"))
    return out


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A picture of ours whose document somebody changed, whole as a file."""
    document = read_document(folder / "good-50.png")
    assert document is not None
    document["job"]["id"] = name
    change(document)
    path = folder / f"{name}.png"
    path.write_bytes(encode_png(read_native_frames(folder / "good-50.png")[0], document))
    return path


def _set(*place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *holders, key = place
        for name in holders:
            document = document[name]
        document[key] = value

    return change


CHANGES = {
    "container": _set("job", "output", "container", value="/../../other/victim.mp4"),
    "upwards": _set("job", "id", value="../other/victim"),
    "scale": _set("job", "output", "scale", value=0),
    "scale-true": _set("job", "output", "scale", value=True),
    "mode": _set("job", "sampling", "mode", value=["ode"]),
    "steps": _set("job", "arguments", "num_inference_steps", value=10**12),
    "width": _set("job", "arguments", "width", value=-64),
    "unknown-argument": _set("job", "arguments", "callback", value="os.system"),
    "seed": _set("job", "seed", value=-1),
    "seed-used": _set("resolved", "seed", value=1.5),
    "scene": _set("job", "scene", value="a\0b"),
    "recipe": _set("job", "recipe", value="../../other"),
    "image": _set("job", "image", value={"path": "/etc/passwd", "sha256": "ab" * 32}),
    "stages": _set("job", "stages", value=[{"denoiser": "nobody"}]),
    "boundary": _set("job", "stages", value=[{"denoiser": "large", "until": 5}]),
    "pipeline": _set("job", "model", "pipeline", value="\x1b[31m"),
    "seconds": _set("resolved", "sampling_s", value=-1),
    "no-model": lambda document: document["job"].pop("model"),
    "no-job": lambda document: document.pop("job"),
    "versions": _set("versions", value=["torch"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_with_a_made_up_document_is_named_and_renders_nothing(
    folder: Path, name: str
) -> None:
    path = rewrite(folder, name, CHANGES[name])
    before = {each: each.read_bytes() for each in folder.parent.rglob("*.*") if each.is_file()}

    again = run("render", path)
    told = run("info", path)

    assert (again.exit_code, told.exit_code) == (2, 2)
    assert f"{name}.png: its record can't be used: " in again.stderr
    after = {each: each.read_bytes() for each in folder.parent.rglob("*.*") if each.is_file()}
    assert after == before


def test_all_of_them_among_good_ones_are_warnings_of_report_and_review(folder: Path) -> None:
    for name, change in CHANGES.items():
        rewrite(folder, name, change)

    for command in ("report", "review"):
        result = run(command, folder)
        assert result.exit_code == 0, result.output
        for name in CHANGES:
            assert f"{name}.png is left out: its record can't be used: " in result.stderr


@pytest.mark.parametrize(
    ("place", "value"), [("seed", -1), ("seed", True), ("sampling_s", "1"), ("denoisers", "L/S")]
)
def test_a_finished_file_whose_values_are_none_does_not_count_as_done(
    folder: Path, place: str, value: object
) -> None:
    job = a_job("bad", arguments=STILL, steps=50)
    path = rewrite(folder, "bad", lambda document: None)
    finder = Finder(None)
    assert finder.find(job, path, KEY).done is not None

    rewrite(folder, "bad", _set("resolved", place, value=value))

    found = finder.find(job, path, KEY)
    assert found.done is None
    assert found.edited.startswith(f"has a record that can't be used ({place} must be ")


@pytest.mark.parametrize(
    "text",
    [b"[]", b'{"v": 1}', b"{" * 100_000, b"\xff\xfe{}", b'{"v": NaN}', b"1" * 5000],
    ids=["list", "empty", "deep", "utf-16", "nan", "digits"],
)
def test_records_that_are_none_are_named_and_left_out(folder: Path, text: bytes) -> None:
    record, recipe, state = (
        record_path(folder, "good-50"), recipe_path(folder, "study"), run_path(folder, "study"),
    )  # fmt: skip
    state.parent.mkdir(parents=True, exist_ok=True)
    keep_recipe(folder, [a_job("good-30", recipe="other")])
    (recipe.parent / "other.json").write_bytes(recipe.read_bytes())
    for path in (record, recipe, state):
        path.write_bytes(text)

    told, seen = run("report", folder), run("status", folder)

    assert (told.exit_code, seen.exit_code) == (0, 0)
    assert ".flowblend/jobs/good-50.json can't be used (" in told.stderr
    assert ".flowblend/recipes/study.json can't be used (" in told.stderr
    assert "warning: .flowblend/recipes/study.json can't be used (" in seen.stderr
    assert "warning: .flowblend/runs/study.json can't be used (" in seen.stderr


def test_a_record_of_another_job_counts_for_nobody(folder: Path) -> None:
    path = record_path(folder, "good-50")
    path.write_text(path.read_text().replace('"good-50"', '"../../../other/victim"'))

    assert "good-50.json can't be used (job must not hold /" in run("report", folder).stderr
    path.write_text(path.read_text().replace("../../../other/victim", "good-30"))
    assert "good-50.json is of job good-30, and is left out" in run("report", folder).stderr


def test_ratings_and_keys_that_are_none_are_usage_errors(folder: Path, tmp_path: Path) -> None:
    review = run("review", folder)
    assert review.exit_code == 0
    (key,) = review_path(folder, "x").parent.glob("*.json")
    ratings = tmp_path / "ann.json"
    sound = {"v": 1, "review": key.stem, "rater": "ann", "scores": []}
    for document, told in [
        ({**sound, "rater": "x" * 4000}, "rater has 4,000 characters"),
        ({**sound, "scores": [{"item": "a", "criterion": "b", "score": 10**30}]}, "at most 10"),
        ({**sound, "review": key.stem * 40}, "must be the id of a review"),
    ]:
        ratings.write_text(json.dumps(document))
        result = run("report", folder, "--reviews", ratings)
        assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    ratings.write_text(json.dumps(sound))
    for damaged in ([], {"v": 1, "review": key.stem, "items": []}, {"v": [1]}):
        key.write_text(json.dumps(damaged))
        result = run("report", folder, "--reviews", ratings)
        assert result.exit_code == 2
        assert "run `flowblend review` again" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["render", "quickstart", "--out", "{}"], ["status", "{}"], ["report", "{}"],
     ["review", "{}"], ["render", "{}"], ["check", "{}.toml"], ["info", "{}.mp4"],
     ["recipes", "cp", "quickstart", "{}.toml"],],
    ids=" ".join,
)  # fmt: skip
def test_a_path_that_is_too_long_is_said_so(tmp_path: Path, arguments: list[str]) -> None:
    result = run(*(one.format(tmp_path / ("x" * 300)) for one in arguments))

    assert result.exit_code == 2
    assert "too long" in result.stderr or "does not exist" in result.stderr


def _with_size(data: bytes, width: int, height: int) -> bytes:
    """A PNG whose header claims another size, its checksum right."""
    start = len(png.SIGNATURE) + 4
    header = data[start : start + 4] + struct.pack(">II", width, height) + data[start + 12 :][:5]
    crc = struct.pack(">I", zlib.crc32(header))
    return data[:start] + header + crc + data[start + 21 :]


def test_a_picture_whose_header_claims_too_much_is_refused_before_it_is_decoded(
    folder: Path,
) -> None:
    path = folder / "good-50.png"
    path.write_bytes(_with_size(path.read_bytes(), 30_000, 30_000))
    record_path(folder, "good-50").unlink()
    began = time.monotonic()

    result = run("report", folder)

    assert result.exit_code == 0
    assert "good-50.png" in result.stderr
    assert time.monotonic() - began < 5
    with pytest.raises(OutputError, match="pixels"):
        read_native_frames(path)


def test_a_file_of_twenty_gigabytes_is_looked_at_and_not_read(folder: Path) -> None:
    for path in (folder / "good-50.png", record_path(folder, "good-30")):
        os.truncate(path, 20 * 2**30)
    began = time.monotonic()

    result = run("report", folder)

    assert result.exit_code == 0
    assert "good-50.png" in result.stderr
    assert "good-30.json can't be used (is larger than" in result.stderr
    assert time.monotonic() - began < 5


def test_more_frames_than_any_clip_has_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path, a_job("clip"))
    monkeypatch.setattr(reading, "MAX_FRAMES", 4)

    with pytest.raises(OutputError, match="more than 4 frames"):
        read_native_frames(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "{", "[]", "\ufeff{}", '{"a": ' + "9" * 5000 + "}"],
    ids=["deep", "cut", "list", "mark", "digits"],
)
def test_a_model_whose_index_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)

    told = r"model_index\.json in .*(JSON|nested|mark|digits)"
    with pytest.raises(ModelMissingError, match=told):
        check_contents(tmp_path, "./model", None, pipeline=True)


def test_free_mappings_are_shown_without_their_control_characters(folder: Path) -> None:
    word = "\x1b[31m\u202e<b>"
    write_clip(folder, a_job("odd"), metrics={**values_for(0.5), word: 1.0}, versions={word: word})

    report, info = run("report", folder), run("info", folder / "odd.mp4")

    page = (folder / "report.html").read_text()
    assert (report.exit_code, info.exit_code) == (0, 0)
    for text in (page, report.output, info.output, (folder / "report.json").read_text()):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\\x1b[31m\\u202e&lt;b&gt;" in page
    assert "\\x1b[31m\\u202e<b>" in info.stdout


def test_a_document_with_a_mark_in_its_comment_is_none_of_ours(tmp_path: Path) -> None:
    pixels: Frames = read_native_frames(_picture(tmp_path))[0]
    path = tmp_path / "b.png"
    data = encode_png(pixels, {"flowblend": "1"})
    path.write_bytes(data.replace(to_text({"flowblend": "1"}).encode(), b"[" * 17))

    assert COMMENT.encode() in data
    assert run("info", path).exit_code == 2


def _picture(folder: Path) -> Path:
    write_clip(folder, a_job("a", arguments=STILL))
    return folder / "a.png"
