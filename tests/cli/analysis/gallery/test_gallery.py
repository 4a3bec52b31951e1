"""Contact sheet and comparison: every clip there, in step, captioned, and harmless."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import WanTransformer3DModel
from PIL import Image

from flowblend_cli.analysis.gallery.comparison import caption, compared
from flowblend_cli.analysis.gallery.contact_sheet import (
    animated_webp,
    comparison_video,
    contact_sheet,
    side_by_side,
)
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.artifacts.video import count_frames
from flowblend_cli.jobs import AdapterSpec, Batch
from flowblend_cli.main import main
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.utils.frames import FramesError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], count: int = 9, side: int = 64) -> np.ndarray:
    return np.full((count, side, side, 3), colour, np.uint8)


def area(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=-1).sum())


def test_a_contact_sheet_shows_six_enlarged_frames_of_each_clip(tmp_path: Path) -> None:
    contact_sheet([("a red one", plain(RED)), ("a green one", plain(GREEN))], tmp_path / "s.png")

    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert area(sheet, RED) == area(sheet, GREEN) == 6 * 128 * 128


def test_a_contact_sheet_starts_with_the_first_frame_and_ends_with_the_last(tmp_path: Path) -> None:
    frames = np.concatenate([plain(RED, 1), plain(GREEN, 15), plain(BLUE, 1)])

    contact_sheet([("over time", frames)], tmp_path / "s.png", columns=3)

    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert [area(sheet, colour) for colour in (RED, GREEN, BLUE)] == [128 * 128] * 3


def test_a_clip_with_fewer_frames_than_columns_shows_each_once(tmp_path: Path) -> None:
    contact_sheet([("short", plain(RED, 2))], tmp_path / "s.png")

    assert area(np.asarray(Image.open(tmp_path / "s.png")), RED) == 2 * 128 * 128


@pytest.mark.parametrize("caption", ["", "word " * 300, "x" * 3000, "😀 \x1b[31m\n\u202e é"])
def test_any_caption_is_drawn(tmp_path: Path, caption: str) -> None:
    contact_sheet([(caption, plain(RED, 2))], tmp_path / "s.png")
    frames = side_by_side([(caption, plain(RED, 2))])

    assert area(np.asarray(Image.open(tmp_path / "s.png")), RED) == 2 * 128 * 128
    assert area(frames[0], RED) == 256 * 256


def test_captions_are_drawn_in_ink() -> None:
    empty = side_by_side([("", plain(RED, 1))])
    written = side_by_side([("LSL 3.1 s", plain(RED, 1))])

    assert (empty != written).any()


def test_clips_side_by_side_stay_in_step_and_the_shorter_holds_its_last_frame() -> None:
    short = np.concatenate([plain(RED, 1), plain(GREEN, 1)])

    frames = side_by_side([("short", short), ("long", plain(BLUE, 4))])

    assert len(frames) == 4
    assert area(frames[0], RED) == 256 * 256
    assert [area(frame, GREEN) for frame in frames[1:]] == [256 * 256] * 3
    assert [area(frame, BLUE) for frame in frames] == [256 * 256] * 4


@pytest.mark.parametrize("side", [33, 64, 480])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_comparison_has_even_sides(count: int, side: int) -> None:
    frames = side_by_side([("x", plain(RED, 1, side))] * count)

    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0


def test_a_comparison_is_published_as_a_video(tmp_path: Path) -> None:
    clips = [("LLL 3.0 s", plain(RED)), ("LSL 2.0 s", plain(GREEN)), ("SSS 1.0 s", plain(BLUE))]

    comparison_video(clips, tmp_path / "compare.mp4", fps=8)

    with (tmp_path / "compare.mp4").open("rb") as file:
        assert count_frames(file)[0] == 9
    document = read_document(tmp_path / "compare.mp4")
    assert document is not None
    assert document["comparison"] == ["LLL 3.0 s", "LSL 2.0 s", "SSS 1.0 s"]


def test_an_animated_webp_holds_every_frame_and_loops(tmp_path: Path) -> None:
    frames = np.concatenate([plain(RED, 2), plain(GREEN, 2), plain(BLUE, 1)])
    frames[1] //= 2
    frames[3] //= 2

    animated_webp(frames, tmp_path / "a.webp", fps=8)

    image = Image.open(tmp_path / "a.webp")
    assert image.n_frames == 5  # type: ignore[attr-defined]
    assert image.info["loop"] == 0


def test_no_clip_and_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FramesError, match="at least one"):
        contact_sheet([], tmp_path / "s.png")
    with pytest.raises(FramesError, match="shape"):
        side_by_side([("x", plain(RED)[0])])


@contextmanager
def forwards() -> Iterator[list[str]]:
    """Note whose forward runs, as it runs: L or S."""
    ran: list[str] = []
    config = bundled_dir() / "models" / "sprites" / "transformer" / "config.json"
    layers = json.loads(config.read_text("utf-8"))["num_layers"]

    def note(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, WanTransformer3DModel):
            ran.append("L" if module.config.num_layers == layers else "S")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        handle.remove()


QUICK = ["--set", "defaults.num_inference_steps=3", "--set", "defaults.max_sequence_length=32"]


@pytest.mark.night
def test_the_gallery_shows_every_clip_and_compares_the_stages(
    recipe_file: Callable[[], Path],
) -> None:
    path = recipe_file()
    with forwards() as ran:
        result = CliRunner().invoke(main, ["render", str(path), "--gallery", *QUICK])
    assert result.exit_code == 0, result.output
    out = path.parent / "out"
    assert {"contact-sheet.png", "compare.mp4", "compare.webp"} <= {p.name for p in out.iterdir()}
    for name in ("LLL", "LSL", "SSS"):
        assert f"\n  {name}  " in result.stdout
    assert "next: " in result.stdout
    assert read_native_frames(out / "compare.mp4").shape[0] == 17
    # Two forwards a step: the clip; two steps that warm both denoisers up; then what is timed.
    assert "".join(ran) == "LLSSLL" + "LLSS" + "LLLLLL" + "LLSSLL" + "SSSSSS"


def test_the_gallery_leaves_other_peoples_files_alone(recipe_file: Callable[[], Path]) -> None:
    path = recipe_file()
    out = path.parent / "out"
    out.mkdir()
    (out / "contact-sheet.png").write_bytes(b"holiday")
    result = CliRunner().invoke(main, ["render", str(path), "--gallery", *QUICK])
    assert result.exit_code == 4
    assert (out / "contact-sheet.png").read_bytes() == b"holiday"


def test_clips_of_one_prompt_are_told_apart_by_their_names(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    several = batch_of(minimal, "scene[0].seeds=[1, 2]").jobs
    (single,) = batch_of(minimal).jobs

    assert caption(single, [single]) == single.prompt
    assert [caption(job, several) for job in several] == [
        f"square-s{seed}-n10: a red square moving left on a navy background" for seed in (1, 2)
    ]


def test_only_the_blend_itself_is_compared_with_its_adapters(
    batch_of: Callable[..., Batch], minimal: str
) -> None:
    batch = batch_of(minimal)
    batch.output_dir.mkdir()
    batch.path_of(batch.jobs[0]).touch()
    style = AdapterSpec("style", "large", "./style.safetensors")
    large, own, small = compared(batch, replace(batch.jobs[0], adapters=(style,))).jobs

    assert (large.adapters, own.adapters, small.adapters) == ((), (style,), ())
    assert [job.stage_string for job in (large, own, small)] == ["LLL", "LSL", "SSS"]
