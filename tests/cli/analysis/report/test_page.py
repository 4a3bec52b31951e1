"""The report in a real browser, and with what raters said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import open_browser, serve, wait_for
from click.testing import CliRunner
from rendered import a_job, frames_of, keep_recipe, values_for, write_clip

from flowblend_cli import main
from flowblend_cli.analysis.review.folder import write_review

VIDEOS = "document.querySelectorAll('.thumb video').length"
SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"


def report(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    jobs = []
    for steps in (30, 50, 100):
        for seed in (1, 2):
            job = a_job(steps=steps, seed=seed)
            frames = frames_of(steps + seed)
            write_clip(folder, job, frames=frames, metrics=values_for(0.5 + steps / 400))
            jobs.append(job)
    keep_recipe(folder, jobs)
    report(folder)
    return folder


def rate(folder: Path, rater: str, scores: dict[str, int]) -> Path:
    """A rater's file that gives every clip of a variant the same scores."""
    written = write_review(folder)
    key = json.loads(written.key.read_text("utf-8"))
    given = [
        {"item": item, "criterion": criterion, "score": scores[told["clips"][0]["variant"]]}
        for item, told in key["items"].items()
        for criterion in told["criteria"]
    ]
    path = folder / f"{rater}.json"
    path.write_text(
        json.dumps(
            {"v": 1, "review": written.arrangement.id, "rater": rater, "session": rater,
             "saved": "2026-01-01", "scores": given, "notes": []}
        )
    )  # fmt: skip
    return path


def test_reviews_are_joined_whatever_number_of_files_a_pattern_gives(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    ann = rate(copy, "ann", {"30 steps": 4, "50 steps": 9, "100 steps": 7})
    ben = rate(copy, "ben", {"30 steps": 3, "50 steps": 8, "100 steps": 8})

    said = report("--reviews", ann, ben, copy)

    assert "2 raters of study gave the most to 50 steps: 8.5 of 10 over all criteria" in said
    assert "Krippendorff's alpha" in said
    reviews = json.loads((copy / "report.json").read_text("utf-8"))["reviews"]
    means = {row["name"]: row["mean"] for row in reviews["by_variant"]}
    assert means == {"30 steps": 3.5, "50 steps": 8.5, "100 steps": 7.5}
    page = (copy / "report.html").read_text("utf-8")
    assert "What people said" in page
    assert "preferred" in page
    assert report(copy, "--reviews", ann, "--reviews", ben) == said


def test_an_option_without_a_file_is_refused(folder: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(folder), "--reviews"])

    assert result.exit_code == 2
    assert "--reviews" in result.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    with serve(folder) as address:
        yield address


@pytest.mark.parametrize("width", [1280, 320])
@pytest.mark.parametrize("place", ["disk", "server"])
def test_the_page_works_from_disk_and_server_wide_and_narrow(
    browser: Any, folder: Path, served: str, place: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    start = folder.as_uri() if place == "disk" else served

    page.goto(f"{start}/report.html")
    page.focus(".winners .thumb")
    wait_for(page, f"{VIDEOS} == 1")
    wait_for(page, "document.querySelector('.thumb video').readyState >= 2")
    plays = page.evaluate("document.querySelector('.thumb video').error") is None
    page.evaluate("document.activeElement.blur()")

    assert plays
    assert page.evaluate(VIDEOS) == 0
    assert page.evaluate(SIDEWAYS) <= 0
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert not [text for text in complaints if "favicon" not in text and "404" not in text]
    assert not [url for url in asked if not url.startswith((start, "data:", "blob:"))]
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_their_paper(browser: Any, folder: Path, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{folder.as_uri()}/report.html")

    for selector in (".lead", ".facts", ".quiet", ".overline", "thead th", "a[href='report.json']"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, (scheme, selector)
    context.close()


CONTRAST = """selector => {
  const light = colour => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(Number).map(part => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ink = light(getComputedStyle(document.querySelector(selector)).color);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}"""
