"""The pages in a real browser: clips in step, scores by keyboard alone, nothing leaves the page."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from browser import open_browser, serve, wait_for
from click.testing import CliRunner

from flowblend_cli.analysis.review.unblinding import flagged, read_reviews
from flowblend_cli.main import main

RECIPE = """\
[recipe]
name = "seen"
[model]
pipeline = "sprites"
[blend]
boundaries = [0.4, 0.8]
[defaults]
num_inference_steps = 3
max_sequence_length = 64
[output]
scale = 4
[[scene]]
name = "star"
prompt = "a red star moving left on a navy background"
seeds = [1]
[[scene]]
name = "ring"
prompt = "a </script><img src=x onerror=alert(1)> ring"
seeds = [1]
[[scene]]
name = "picture"
prompt = "a green square on a gray background"
num_frames = 1
seeds = [1]
[sweep]
"blend.stages" = ["LLL", "LSL", "SSS"]
"""
FRAMES = 17
TIMES = "[...document.querySelectorAll('video')].map(video => video.currentTime)"
PLAYER = "document.querySelector('[data-player]').player"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen")
    recipe = folder / "seen.toml"
    recipe.write_text(RECIPE)
    for command in (["render", str(recipe), "--out", str(folder), "-q"], ["review", str(folder)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def site(rendered: Path) -> Iterator[str]:
    with serve(rendered) as address:
        yield address


@dataclass
class Opened:
    """A page, and everything that it asked for or complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, browser: Any, url: str, **context: Any) -> Opened:
        opened = cls(browser.new_context(**context).new_page())
        page = opened.page
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))"
        )
        page.goto(url)
        opened.settle()
        return opened

    def wait_for(self, condition: str) -> None:
        """Wait for a condition of the page."""
        wait_for(self.page, condition)

    def settle(self) -> None:
        """Wait until every clip shows the frame that it was asked for."""
        self.wait_for(
            f"{PLAYER}.cells.every(c => !c.isVideo || c.failed"
            " || (c.wanted === null && c.media.readyState > 1))"
        )

    def frames(self, fps: float = 8) -> list[int]:
        return [int(time * fps) for time in self.page.evaluate(TIMES)]

    def pause(self) -> None:
        self.page.evaluate(f"{PLAYER}.pause()")
        self.settle()

    def close(self, root: str) -> None:
        """Leave, having asked for nothing but what lies below the page's own folder."""
        self.page.context.close()
        assert self.complaints == []
        strangers = [u for u in self.requests if not u.startswith((root, "data:", "blob:"))]
        assert strangers == []
        assert self.requests


def page_of(folder: Path) -> str:
    return (folder / "review/index.html").as_uri()


@pytest.fixture
def opened(browser: Any, rendered: Path) -> Iterator[Opened]:
    opened = Opened.at(browser, page_of(rendered), viewport={"width": 1300, "height": 900})
    go_to_clips(opened)
    yield opened
    opened.close((rendered / "review").as_uri())


def go_to_clips(opened: Opened) -> None:
    """To the first set with clips: sets are shuffled, pictures among them."""
    for _ in range(2):
        if opened.page.locator("video").count():
            break
        opened.page.keyboard.press("n")
    opened.settle()


def test_playing_clips_stay_in_step_and_pause_at_one_frame(opened: Opened) -> None:
    opened.pause()
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("Space")
    apart, clocks = [], []
    for _ in range(40):
        times = opened.page.evaluate(TIMES)
        clocks.append(times[0])
        apart.append(max(times) - min(times))
        opened.page.wait_for_timeout(40)
    opened.page.keyboard.press("Space")
    opened.settle()

    assert len(times) == 3
    assert max(clocks) > 1
    assert np.median(apart) < 1 / 8
    assert len(set(opened.frames())) == 1


def test_steps_and_the_scrubber_show_the_same_frame_in_every_clip(opened: Opened) -> None:
    opened.pause()
    seen = []
    for key in ["Home", ".", ".", "ArrowRight", ",", "End", "ArrowLeft", "ArrowRight", "."]:
        opened.page.keyboard.press(key)
        opened.settle()
        seen.append(opened.frames())
    opened.page.locator("[data-part=scrubber]").fill("7")
    opened.settle()

    assert seen == [[frame] * 3 for frame in (0, 1, 2, 3, 2, 16, 15, 16, 16)]
    assert opened.frames() == [7, 7, 7]
    assert opened.page.locator("[data-part=time]").inner_text() == "8 / 17"


def test_the_picture_on_the_screen_is_that_frame_of_the_file(
    browser: Any, rendered: Path, site: str
) -> None:
    # Python's simple server sends no parts of files, as a browser needs them to seek.
    opened = Opened.at(browser, f"{site}/review/index.html")
    go_to_clips(opened)
    opened.pause()
    names = opened.page.evaluate(f"{PLAYER}.cells.map(cell => cell.clip.url)")
    files = [decode(rendered / "review" / name) for name in names]
    draw = """[...document.querySelectorAll("video")].map(video => {
        const canvas = document.createElement("canvas");
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0, 64, 64);
        return btoa(String.fromCharCode(...context.getImageData(0, 0, 64, 64).data));
    })"""
    for frame in (0, 1, 8, 15, 16):
        opened.page.evaluate(f"{PLAYER}.goTo({frame})")
        opened.settle()
        for drawn, frames in zip(opened.page.evaluate(draw), files, strict=True):
            seen = np.frombuffer(base64.b64decode(drawn), np.uint8).reshape(64, 64, 4)[..., :3]
            error = np.abs(frames - seen).mean(axis=(1, 2, 3))
            assert error.argmin() == frame
    opened.close(site)


def decode(path: Path) -> np.ndarray:
    """Frames of a clip at native size: squares of four by four pixels as their means."""
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    return frames.reshape(FRAMES, 64, 4, 64, 4, 3).mean(axis=(2, 4))


def test_two_clips_are_compared_swapped_and_wiped(opened: Opened) -> None:
    page = opened.page
    captions = page.locator(".player-caption")
    page.get_by_role("button", name="Side by side").click()
    shown = [captions.all_inner_texts()]
    for key in "12s":
        page.keyboard.press(key)
        shown.append(captions.all_inner_texts())
    page.get_by_role("button", name="Wipe").click()
    page.get_by_label("Divider").fill("25")

    assert shown == [["A", "B"], ["B", "B"], ["B", "C"], ["C", "B"]]
    second = page.locator(".player-cell").nth(1)
    assert second.evaluate("e => getComputedStyle(e).clipPath") == "inset(0px 0px 0px 25%)"
    page.get_by_role("button", name="All").click()
    assert captions.all_inner_texts() == ["A", "B", "C"]


def test_without_loop_a_clip_stops_at_its_last_frame(opened: Opened) -> None:
    opened.pause()
    opened.page.keyboard.press("l")
    opened.page.keyboard.press("End")
    opened.page.keyboard.press("ArrowLeft")
    opened.page.keyboard.press("Space")
    opened.wait_for(f"!{PLAYER}.playing")
    opened.settle()

    assert opened.frames() == [16, 16, 16]


def score_everything(opened: Opened, folder: Path, score: dict[str, int]) -> None:
    """By the keyboard alone: each clip gets the score of its variant."""
    page = opened.page
    (key,) = (folder / ".flowblend/reviews").glob("*.json")
    items = json.loads(key.read_text())["items"]
    page.evaluate("document.activeElement.blur()")
    for _ in range(3):
        cells = page.evaluate(f"{PLAYER}.cells.map(cell => cell.clip.id)")
        page.keyboard.press("a")
        for item in cells:
            value = score[items[item]["clips"][0]["variant"]]
            for _ in items[item]["criteria"]:
                page.keyboard.press("x" if value == 10 else str(value))
        assert page.locator("#next").inner_text() == "Next"
        page.keyboard.press("Enter")


def test_keys_alone_score_save_and_unblind(browser: Any, rendered: Path, tmp_path: Path) -> None:
    opened = Opened.at(browser, page_of(rendered))
    page = opened.page
    assert page.locator("input[type=radio]:checked").count() == 0
    page.locator("#rater").focus()
    page.keyboard.type("Ann <b>O'Hara</b>")
    score_everything(opened, rendered, {"LLL": 10, "LSL": 7, "SSS": 0})
    assert page.locator("#told").inner_text() == "9 of 9 scored"
    assert "All 9 scored" in page.locator("#end-title").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)

    result = CliRunner().invoke(main, ["report", str(rendered), "--reviews", str(saved)])

    assert result.exit_code == 0, result.output
    reviews = json.loads((rendered / "report.json").read_text())["reviews"]
    assert reviews["raters"] == ["Ann <b>O'Hara</b>"]
    means = {(row["name"], row["mean"]) for row in reviews["by_variant"]}
    assert means == {("LLL", 10), ("LSL", 7), ("SSS", 0)}
    assert {row["n"] for row in reviews["by_job"]} == {1}
    jobs = flagged(read_reviews(rendered, [saved]))
    assert len(jobs) == 3
    assert all(job.endswith("SSS") for job in jobs)
    opened.close((rendered / "review").as_uri())


def test_scores_survive_a_reload_and_can_be_taken_back(opened: Opened) -> None:
    page = opened.page
    for key in "a34":
        page.keyboard.press(key)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Delete")
    page.locator(".note").first.fill("a smear")
    page.locator("#rater").fill("Ben")
    page.reload()
    opened.settle()

    checked = page.locator("input[type=radio]:checked")
    assert checked.evaluate_all("all => all.map(radio => radio.value)") == ["3"]
    assert page.locator(".note").first.input_value() == "a smear"
    assert page.locator("#rater").input_value() == "Ben"
    assert page.locator("#told").inner_text() == "0 of 9 scored"


def test_a_skipped_set_is_named_at_the_end_and_a_file_needs_a_name(opened: Opened) -> None:
    page = opened.page
    page.locator("#sets button").last.click()
    page.locator("#save").click()

    assert page.locator("#nameless").is_visible()
    assert page.locator("#rater").evaluate("e => e === document.activeElement")
    assert page.locator("#gaps").inner_text().split(":")[0] == "Not complete"
    page.locator("#gaps button").nth(1).click()
    assert page.locator("#title").inner_text() == "Set 2 of 3"
    assert page.locator("#next").inner_text() == "Skip for now"


def test_what_somebody_else_left_in_the_storage_does_no_harm(opened: Opened) -> None:
    page = opened.page
    review = page.evaluate("JSON.parse(document.getElementById('review').textContent).review")
    for left in ("{", "null", "[]", '{"scores": {"x": 3}, "set": 99, "rater": 4, "notes": []}'):
        page.evaluate(f"localStorage.setItem('flowblend-review-{review}', {json.dumps(left)})")
        page.reload()
        assert page.locator("#told").inner_text() == "0 of 9 scored"


def test_a_prompt_with_markup_is_text(browser: Any, rendered: Path) -> None:
    opened = Opened.at(browser, page_of(rendered))
    prompts = []
    for _ in range(3):
        prompts.append(opened.page.locator("#prompt").inner_text())
        opened.page.keyboard.press("n")

    assert "a </script><img src=x onerror=alert(1)> ring" in prompts
    opened.close((rendered / "review").as_uri())


def test_pictures_have_no_clock(opened: Opened) -> None:
    page = opened.page
    for number in range(3):
        page.locator("#sets button").nth(number).click()
        if page.locator("img.player-media").count():
            break
    opened.wait_for("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

    assert page.locator("img.player-media").count() == 3
    assert not page.locator("[data-part=scrubber]").is_visible()
    assert page.locator("legend").all_text_contents()[:4] == [
        "structure", "texture", "colour", "adherence",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [320, 375, 768])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_no_small_finger(
    browser: Any, rendered: Path, width: int, scheme: str
) -> None:
    opened = Opened.at(
        browser, page_of(rendered), viewport={"width": width, "height": 640}, has_touch=True,
        is_mobile=True, color_scheme=scheme,
    )  # fmt: skip
    page = opened.page
    go_to_clips(opened)
    for view in ("All", "Side by side", "Wipe"):
        page.get_by_role("button", name=view).tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate(
            "[...document.querySelectorAll('button, select, .scale label, #rater')]"
            ".filter(e => e.offsetParent).map(e => e.getBoundingClientRect())"
            ".map(b => [b.width, b.height])"
        )
        assert min(height for _, height in sizes) >= 44
        assert min(across for across, _ in sizes) >= 43
    page.locator("#sets button").last.tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    opened.close((rendered / "review").as_uri())


def test_a_missing_clip_says_so_and_the_others_still_play(
    browser: Any, rendered: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(rendered / "review", copy / "review")
    opened = Opened.at(browser, page_of(copy))
    go_to_clips(opened)
    first = opened.page.evaluate(f"{PLAYER}.cells[0].clip.url")
    (copy / "review" / first).unlink()
    opened.page.reload()
    opened.page.locator(".player-error").wait_for()
    opened.wait_for(f"{PLAYER}.playing && {PLAYER}.frame > 2")

    assert "its file isn't beside this page" in opened.page.locator(".player-error").inner_text()
    assert opened.page.evaluate(TIMES)[1:] != [0, 0]
    opened.page.context.close()


def test_the_reports_player_keeps_any_two_clips_in_step(browser: Any, rendered: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(rendered)])
    assert result.exit_code == 0, result.output
    opened = Opened.at(browser, (rendered / "report.html").as_uri())
    page = opened.page
    before = page.evaluate(f"{PLAYER}.cells.map(cell => cell.clip.id)")
    for key in "12":
        page.keyboard.press(key)
    page.keyboard.press("Home")
    opened.settle()
    page.keyboard.press("Space")
    opened.wait_for(f"{PLAYER}.frame > 3")
    opened.pause()
    page.keyboard.press(".")
    opened.settle()

    after = page.evaluate(f"{PLAYER}.cells.map(cell => cell.clip.id)")
    assert len(before) == 2
    assert len(after) == 2
    assert before != after
    assert len(set(opened.frames())) == 1
    opened.close(rendered.as_uri())
