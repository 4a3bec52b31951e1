"""Frames read back from finished files: which ones, in which colours, and where that ends."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rendered import a_job, write_clip

from flowblend_cli.artifacts import reading
from flowblend_cli.artifacts.image import encode_png, publish_image
from flowblend_cli.artifacts.metadata import read_comment
from flowblend_cli.artifacts.reading import (
    TooLarge,
    Undecodable,
    decode_picture,
    middle_frame,
    read_native_frames,
    require_decodable,
    shown_sha256,
)
from flowblend_cli.artifacts.video import encode_mp4, publish_video
from flowblend_cli.errors import OutputError

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (20, 200, 160), (128, 128, 128)]


def shades(count: int) -> np.ndarray:
    """Grey frames, each brighter than the one before."""
    return np.stack([np.full((16, 16, 3), 20 * (1 + index), np.uint8) for index in range(count)])


def mp4(frames: np.ndarray, crf: int = 0) -> io.BytesIO:
    return io.BytesIO(encode_mp4(frames, fps=8, crf=crf, comment=""))


def rgb_by_formula(path: Path) -> np.ndarray:
    """The first frame by the formula of BT.709, of the planes that a decoder gives."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        height, width = frame.height, frame.width
        planes = frame.to_ndarray().astype(float)  # yuv420p, one plane below the other
    luma = planes[:height]
    quarter = planes[height:].reshape(2, height // 2, width // 2)
    blue, red = (part.repeat(2, 0).repeat(2, 1) - 128 for part in quarter)
    y = (luma - 16) * 255 / 219
    r = y + 1.5748 * red * 255 / 224
    b = y + 1.8556 * blue * 255 / 224
    g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
    return np.stack([r, g, b], axis=-1).clip(0, 255)


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_of_a_clip_are_read_as_its_tags_say(tmp_path: Path, colour: Any) -> None:
    path = tmp_path / "a.mp4"
    frames = np.full((2, 16, 16, 3), colour, np.uint8)
    publish_video(frames, path, fps=8, document={"flowblend": "1"}, crf=0)
    found = read_native_frames(path)
    assert found.dtype == np.uint8
    assert np.abs(found[0] - rgb_by_formula(path)).max() <= 1.5
    assert np.abs(found.astype(int) - frames).max() <= 3
    with path.open("rb") as file:
        middle = middle_frame(file)
    assert middle.dtype == np.uint8
    assert np.abs(middle.astype(int) - frames[0]).max() <= 3


def test_all_frames_are_read_in_their_order_at_their_native_size(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for scale in (1, 2, 3, 4):
        publish_video(shades(5), path, fps=8, document={"flowblend": "1"}, crf=0, scale=scale)
        found = read_native_frames(path, scale)
        assert found.shape == (5, 16, 16, 3)
        assert np.abs(found.astype(int) - shades(5)).max() <= 2


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_a_square_becomes_the_mean_of_its_middle_and_neighbours_tint_nothing(
    tmp_path: Path, scale: int
) -> None:
    height, width = 4, 6
    native = np.random.default_rng(0).integers(40, 200, (height, width, 3)).astype(np.uint8)
    large = native.repeat(scale, 0).repeat(scale, 1).astype(int)
    edge = scale // 4
    rows, columns = (np.arange(side * scale) % scale for side in (height, width))
    inner = [(places >= edge) & (places < scale - edge) for places in (rows, columns)]
    large[~(inner[0][:, None] & inner[1][None])] = 255  # a border that tints
    large[inner[0][:, None] & inner[1][None]] += 1
    large[(rows == edge)[:, None] & (columns == edge)[None]] -= 1
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(large.astype(np.uint8)))
    count = (scale - 2 * edge) ** 2
    expected = np.round(native + (count - 1) / count).astype(np.uint8)
    assert np.array_equal(read_native_frames(path, scale), expected[None])


def test_what_is_left_over_beside_the_last_square_isnt_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(np.full((7, 9, 3), 9, np.uint8)))
    assert read_native_frames(path, 2).shape == (1, 3, 4, 3)


@pytest.mark.parametrize(("count", "middle"), [(1, 0), (2, 1), (3, 1), (9, 4)])
def test_the_middle_frame_is_that_of_the_middle(count: int, middle: int) -> None:
    found = middle_frame(mp4(shades(count)))
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - shades(count)[middle]).max() <= 2


def test_a_clip_that_cant_be_decoded_says_why(tmp_path: Path) -> None:
    whole = mp4(np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)).getvalue()
    path = tmp_path / "a.mp4"
    for data in (b"", b"\0\0\0\x18ftypisom", b"\0\0\0\x18ftypisom" + b"x" * 99, sound_alone()):
        path.write_bytes(data)
        for read in (middle_frame, lambda file: require_decodable(file, "mp4")):
            with pytest.raises(Undecodable) as caught:
                read(io.BytesIO(data))
            assert str(caught.value) not in ("", "None")
        with pytest.raises(OutputError, match=r"a\.mp4: can't be decoded \(.+\): move it away"):
            read_native_frames(path)
    with pytest.raises(Undecodable, match=r"it says that it has 9 frames, and holds [0-8]|after"):
        require_decodable(io.BytesIO(whole[: len(whole) * 2 // 3]), "mp4")
    require_decodable(io.BytesIO(whole), "mp4")


def test_words_that_arent_utf8_in_a_clip_s_tags_keep_nobody_from_its_frames(
    tmp_path: Path,
) -> None:
    data = encode_mp4(shades(3), fps=8, crf=0, comment="a word of Latin")
    odd = data.replace(b"a word of Latin", b"a w\xf6rd of L\xe4tin")
    assert odd != data
    path = tmp_path / "a.mp4"
    path.write_bytes(odd)
    assert np.array_equal(read_native_frames(path), rgb(data))
    assert np.array_equal(middle_frame(io.BytesIO(odd)), middle_frame(io.BytesIO(data)))
    require_decodable(io.BytesIO(odd), "mp4")
    assert shown_sha256(io.BytesIO(odd), "mp4") == shown_sha256(io.BytesIO(data), "mp4")
    assert (
        read_comment(io.BytesIO(odd))
        == "a w\N{REPLACEMENT CHARACTER}rd of L\N{REPLACEMENT CHARACTER}tin"
    )


def rgb(data: bytes) -> np.ndarray:
    return np.stack(list(reading._rgb_frames(io.BytesIO(data))))


def sound_alone() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=44100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 44100
        container.mux(track.encode(silence))
        container.mux(track.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("frames_or_pixels", ["MAX_FRAMES", "MAX_DECODED_PIXELS"])
def test_a_clip_is_decoded_up_to_the_limits_and_no_further(
    tmp_path: Path, frames_or_pixels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_clip = {"MAX_FRAMES": 4, "MAX_DECODED_PIXELS": 4 * 16 * 16}[frames_or_pixels]
    path, clip = tmp_path / "a.mp4", mp4(shades(4))
    path.write_bytes(clip.getvalue())
    monkeypatch.setattr(reading, frames_or_pixels, of_clip)
    require_decodable(clip, "mp4")
    assert len(read_native_frames(path)) == 4
    middle_frame(clip)
    shown_sha256(clip, "mp4")
    monkeypatch.setattr(reading, frames_or_pixels, of_clip - 1)
    with pytest.raises(TooLarge, match=f"{of_clip - 1:,}"):
        require_decodable(clip, "mp4")
    with pytest.raises(OutputError, match=f"{of_clip - 1:,}"):
        read_native_frames(path)
    monkeypatch.setattr(reading, frames_or_pixels, of_clip // 4)
    with pytest.raises(TooLarge):
        middle_frame(clip)


def test_a_picture_shows_what_is_behind_it_in_black_and_any_mode_in_colours() -> None:
    from PIL import Image

    def read(image: Image.Image, **how: Any) -> np.ndarray:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", **how)
        return decode_picture(buffer)

    half = Image.new("RGBA", (2, 3), (200, 100, 50, 128))
    assert np.abs(read(half)[0, 0].astype(int) - (100, 50, 25)).max() <= 1
    assert read(half).shape == (3, 2, 3)
    assert (read(Image.new("L", (2, 2), 7)) == 7).all()
    assert (read(Image.new("1", (2, 2), 1)) == 255).all()
    clear = Image.new("L", (2, 2), 7)
    assert (read(clear, transparency=7) == 0).all()
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, format="JPEG")
    with pytest.raises(Undecodable):
        decode_picture(jpeg)


def test_what_files_show_is_compared_by_frames_sizes_and_number(tmp_path: Path) -> None:
    clip = mp4(shades(4))
    same = shown_sha256(clip, "mp4")
    assert shown_sha256(mp4(shades(4)), "mp4") == same
    others = [shades(3), shades(4)[::-1], shades(4)[:, :, :8], shades(8)[::2]]
    assert len({same, *(shown_sha256(mp4(frames.copy()), "mp4") for frames in others)}) == 5
    wide, tall = (np.full((1, *size, 3), 9, np.uint8) for size in ((16, 32), (32, 16)))
    assert shown_sha256(mp4(wide), "mp4") != shown_sha256(mp4(tall), "mp4")
    still = io.BytesIO(encode_png(shades(1)[0]))
    assert shown_sha256(still, "png") == shown_sha256(still, "png")
    with pytest.raises(Undecodable, match="doesn't begin like a clip"):
        shown_sha256(clip, None)
    with pytest.raises(Undecodable):
        shown_sha256(io.BytesIO(clip.getvalue()[:-200]), "mp4")


def test_no_link_is_followed_where_frames_are_read(tmp_path: Path) -> None:
    write_clip(tmp_path, job := a_job("clip"))
    link = tmp_path / "link.mp4"
    link.symlink_to(tmp_path / job.filename)
    with pytest.raises(OutputError, match="can't be decoded"):
        read_native_frames(link)
    publish_image(shades(1)[0], tmp_path / "a.png", document={"flowblend": "1"})
    assert np.array_equal(read_native_frames(tmp_path / "a.png"), shades(1))
