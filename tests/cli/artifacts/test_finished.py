"""Finished files: complete or absent, the same bytes for the same frames, and readable again."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from flowblend_cli.artifacts import png
from flowblend_cli.artifacts.finished import FileState, Finished, inspect_final
from flowblend_cli.artifacts.image import encode_image, encode_png, publish_image
from flowblend_cli.artifacts.metadata import (
    from_text,
    parameters_text,
    read_comment,
    read_document,
    to_text,
)
from flowblend_cli.artifacts.video import (
    check_video,
    count_frames,
    encode_mp4,
    encode_video,
    publish_video,
)
from flowblend_cli.errors import OutputError
from flowblend_cli.utils.files import publish, seal, seal_holds, temporary_path
from flowblend_cli.utils.frames import FramesError, pixels_sha256, upscale

HOSTILE = 'a;b=\'c\'="d"\r\n\t\\é😀\x00\x1b[31m\ud800 "file_sha256":"' + "0" * 64 + '"'
DOCUMENT = {
    "flowblend": "0.1.0",
    "v": 1,
    "job": {
        "recipe": "harbour",
        "scene": "square",
        "prompt": HOSTILE,
        "negative_prompt": "blur",
        "stage_string": "LSL",
        "arguments": {"num_inference_steps": 50, "guidance_scale": 5.0, "width": 64, "height": 64},
        "model": {"pipeline": "sprites"},
        "sampling": {"scheduler": "unipc"},
    },
    "resolved": {"seed": 7, "denoisers": "L" * 50},
}


def clip(count: int = 9, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    """A bright square moving over a quiet background."""
    frames = np.full((count, height, width, 3), (20, 24, 60), np.uint8)
    for index in range(count):
        frames[index, 8:24, index : index + 16] = (230, 40 + seed, 30)
    return frames


def publish_clip(path: Path, **settings: object) -> Path:
    publish_video(clip(), path, **{"fps": 8, "document": DOCUMENT, **settings})  # type: ignore[arg-type]
    return path


# Frames


def test_pixels_are_hashed_in_c_order_whatever_their_layout() -> None:
    frames = clip()
    turned = np.asfortranarray(frames)

    assert pixels_sha256(frames) == pixels_sha256(turned)
    assert pixels_sha256(frames) != pixels_sha256(frames[::-1])


def test_only_uint8_pixels_are_hashed() -> None:
    with pytest.raises(FramesError, match="uint8"):
        pixels_sha256(clip().astype(np.float32))


def test_upscaling_makes_each_pixel_a_square_of_equal_pixels() -> None:
    large = upscale(clip(), 3)

    assert large.shape == (9, 96, 144, 3)
    assert np.array_equal(large[:, 1::3, 2::3], clip())


@pytest.mark.parametrize("scale", [0, -1, 1.5, True])
def test_a_scale_that_is_no_whole_number_is_refused(scale: object) -> None:
    with pytest.raises(FramesError, match="whole number"):
        upscale(clip(), scale)  # type: ignore[arg-type]


# Clips


def test_a_clip_holds_every_frame_at_its_scaled_size(tmp_path: Path) -> None:
    path = publish_clip(tmp_path / "a.mp4", scale=2)

    with path.open("rb") as file:
        assert count_frames(file) == (9, {(96, 64)})
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_clip_starts_with_its_index_so_that_it_plays_while_it_loads(tmp_path: Path) -> None:
    data = publish_clip(tmp_path / "a.mp4").read_bytes()

    assert data.index(b"moov") < data.index(b"mdat")


def test_colours_come_back_as_they_were(tmp_path: Path) -> None:
    import av

    path = publish_clip(tmp_path / "a.mp4", scale=2)

    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    difference = np.abs(first[32, 12].astype(int) - (230, 40, 30))
    assert difference.max() <= 6


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    first = publish_clip(tmp_path / "a.mp4").read_bytes()
    second = publish_clip(tmp_path / "b.mp4").read_bytes()

    assert first == second


@pytest.mark.parametrize(("height", "width"), [(32, 16), (64, 64), (128, 144), (64, 176)])
def test_the_same_frames_give_the_same_bytes_whatever_memory_held_before(
    height: int, width: int
) -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    still = coarse.repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([np.roll(still, 3 * index, axis=1) for index in range(5)])

    def after_other_work() -> bytes:
        for size in generator.integers(1_000, 400_000, 30):
            generator.integers(0, 255, size, np.uint8)
        return encode_mp4(frames, fps=8, crf=10, comment="")

    assert len({after_other_work() for _ in range(30)}) == 1


def test_an_odd_size_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FramesError, match=r"33x17.*output\.scale to 2"):
        publish_video(clip(height=17, width=33), tmp_path / "a.mp4", fps=8, document=DOCUMENT)

    assert os.listdir(tmp_path) == []


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FramesError, match="shape"):
        publish_video(clip()[0], tmp_path / "a.mp4", fps=8, document=DOCUMENT)


def test_a_clip_that_lost_frames_is_not_published(tmp_path: Path) -> None:
    short = encode_mp4(clip()[:7], fps=8, crf=10, comment=to_text(DOCUMENT))
    check = functools.partial(
        check_video, name="a.mp4", num_frames=9, size=(48, 32), document=DOCUMENT
    )

    with pytest.raises(OutputError, match="9 frames of 48x32 were encoded, but 7"):
        publish(tmp_path / "a.mp4", short, check)

    assert os.listdir(tmp_path) == []


def test_a_clip_whose_header_promises_more_than_it_holds_is_not_published(tmp_path: Path) -> None:
    whole = encode_mp4(clip(), fps=8, crf=0, comment=to_text(DOCUMENT))
    check = functools.partial(
        check_video, name="a.mp4", num_frames=9, size=(48, 32), document=DOCUMENT
    )

    with pytest.raises(OutputError, match="wasn't published"):
        publish(tmp_path / "a.mp4", whole[: int(len(whole) * 0.9)], check)

    assert os.listdir(tmp_path) == []


def test_a_clip_with_other_metadata_is_not_published(tmp_path: Path) -> None:
    data = encode_mp4(clip(), fps=8, crf=10, comment=to_text({"flowblend": "other"}))

    with pytest.raises(OutputError, match="metadata"):
        check_video(io.BytesIO(data), name="a.mp4", num_frames=9, size=(48, 32), document=DOCUMENT)


@pytest.mark.parametrize("crf", [0, 10, 30])
def test_the_encoder_is_told_what_decides_bits_and_players_what_colours_mean(
    tmp_path: Path, crf: int
) -> None:
    import av

    path = publish_clip(tmp_path / "a.mp4", crf=crf, fps=7)
    data = path.read_bytes()
    for option in (b"mbtree=0", b"threads=1 ", f"crf={crf}.0".encode() if crf else b"qp=0"):
        assert option in data  # x264 notes its options in the clip
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 7)
        told = (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc)
        assert [int(one) for one in told] == [1, 1, 1, 1]  # BT.709, in a television's range


def test_without_a_word_a_clip_is_native_in_size_and_hard_to_tell_from_the_original(
    tmp_path: Path,
) -> None:
    publish_video(clip(), tmp_path / "a.mp4", fps=8, document=DOCUMENT)
    data, check = encode_video(clip(), "b.mp4", fps=8, document=DOCUMENT)
    assert data == (tmp_path / "a.mp4").read_bytes()
    assert b"crf=10.0" in data
    check(io.BytesIO(data))
    assert count_frames(io.BytesIO(data)) == (9, {(48, 32)})


def test_the_check_of_a_clip_takes_that_very_clip(tmp_path: Path) -> None:
    data, check = encode_video(clip(), "b.mp4", fps=8, document=DOCUMENT, scale=2)
    check(io.BytesIO(data))
    others = [
        (clip(8), DOCUMENT, "9 frames of 96x64 were encoded, but 8 of 96x64 read back, so it w"),
        (clip(width=64), DOCUMENT, "9 frames of 96x64 were encoded, but 9 of 128x64 read back"),
        (clip(), {**DOCUMENT, "v": 2}, "its metadata reads back differently, so it wasn't publi"),
    ]
    for frames, document, says in others:
        other, _ = encode_video(frames, "b.mp4", fps=8, document=document, scale=2)
        with pytest.raises(OutputError) as caught:
            check(io.BytesIO(other))
        assert str(caught.value).startswith(f"b.mp4: {says}")
    with pytest.raises(OutputError, match="but 0 of nothing read back"):
        check(io.BytesIO(b""))


def test_the_check_of_a_picture_takes_that_very_picture() -> None:
    data, check = encode_image(clip()[0], "a.png", document=DOCUMENT)
    check(io.BytesIO(data))
    assert np.asarray(Image.open(io.BytesIO(data))).shape == (32, 48, 3)
    other = clip()[0].copy()
    other[3, 4, 0] += 1
    for pixels, document in ((other, DOCUMENT), (clip()[0], {**DOCUMENT, "v": 2})):
        wrong, _ = encode_image(pixels, "a.png", document=document)
        with pytest.raises(OutputError, match=r"^a\.png: reads back differently from what was"):
            check(io.BytesIO(wrong))
    for wrong in (encode_png(clip()[0]), data + b"x"):
        with pytest.raises(OutputError, match=r"^a\.png: reads back differently"):
            check(io.BytesIO(wrong))
    with pytest.raises(FramesError, match="shape"):
        encode_image(clip(), "a.png", document=DOCUMENT)


# Images


def test_an_image_keeps_every_pixel_and_its_document(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    publish_image(clip()[0], path, scale=2, document=DOCUMENT)

    assert np.array_equal(np.asarray(Image.open(path))[::2, ::2], clip()[0])
    assert read_document(path) == DOCUMENT
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_image_says_its_parameters_as_other_tools_read_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    publish_image(clip()[0], path, document={**DOCUMENT, "job": {**DOCUMENT["job"], "prompt": "a"}})

    text = Image.open(path).text["parameters"]  # type: ignore[attr-defined]
    assert text == (
        "a\nNegative prompt: blur\nSteps: 50, Sampler: unipc, CFG scale: 5.0, Seed: 7, "
        "Size: 64x64, Model: sprites, Stages: LSL, Version: flowblend 0.1.0"
    )


def test_what_a_png_text_cant_hold_is_replaced_in_its_parameters_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    document = {"flowblend": "1", "job": {"prompt": "a\0b\ud800c \N{SNOWMAN}"}}
    publish_image(clip()[0], path, document=document)

    text = Image.open(path).text["parameters"]  # type: ignore[attr-defined]
    assert text.split("\n")[0] == "a\N{REPLACEMENT CHARACTER}b?c \N{SNOWMAN}"
    assert read_document(path) == document


def test_parameters_of_an_empty_document_are_nothing_but_the_version() -> None:
    assert parameters_text({"flowblend": "1"}) == "\nVersion: flowblend 1"


def test_the_same_image_gives_the_same_bytes() -> None:
    assert encode_png(clip()[0], DOCUMENT) == encode_png(clip()[0], DOCUMENT)


# Documents

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(json_values)
def test_any_document_reads_back_equal_from_text(value: object) -> None:
    document = {"flowblend": "0.1.0", "value": value}

    text = to_text(document)

    assert text.isascii()
    assert text.isprintable()
    assert from_text(text) == document


@given(st.text(max_size=200))
def test_any_prompt_reads_back_equal_from_a_clip(prompt: str) -> None:
    document = {"flowblend": "0.1.0", "job": {"prompt": prompt}}
    data = encode_mp4(clip(2, 16, 16), fps=8, crf=40, comment=to_text(document))

    text = read_comment(io.BytesIO(data))

    assert text is not None
    assert from_text(text) == document


@given(st.text(max_size=200))
def test_any_prompt_reads_back_equal_from_an_image(prompt: str) -> None:
    document = {"flowblend": "0.1.0", "job": {"prompt": prompt}}

    text = read_comment(io.BytesIO(encode_png(clip(1, 4, 4)[0], document)))

    assert text is not None
    assert from_text(text) == document


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_a_hundred_kilobytes_of_metadata_read_back_equal(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    document = {**DOCUMENT, "long": HOSTILE * 1000}
    if suffix == ".mp4":
        publish_clip(path, document=document)
    else:
        publish_image(clip()[0], path, document=document)

    assert read_document(path) == document


def test_a_document_survives_remuxing_into_another_container(tmp_path: Path) -> None:
    import av

    source = publish_clip(tmp_path / "a.mp4")
    target = tmp_path / "a.mkv"
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        new.metadata["comment"] = old.metadata["comment"]
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)

    assert read_document(target) == DOCUMENT


def test_a_text_compressed_by_another_tool_is_still_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Comment", to_text(DOCUMENT), zip=True)
    buffer = io.BytesIO()
    Image.fromarray(clip()[0]).save(buffer, format="PNG", pnginfo=info)
    buffer.seek(0)

    assert from_text(read_comment(buffer) or "") == DOCUMENT


def test_a_text_that_inflates_beyond_the_limit_is_not_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("comment", "x" * 100_000, zip=True)
    buffer = io.BytesIO()
    Image.fromarray(clip()[0]).save(buffer, format="PNG", pnginfo=info)

    assert png.read_text(buffer, "comment", 10_000) is None
    assert png.read_text(buffer, "comment", 200_000) == "x" * 100_000


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"not a video",
        b"\0\0\0\x20ftypisom",
        b"\x1a\x45\xdf\xa3",
        png.SIGNATURE,
        png.SIGNATURE + b"\xff\xff\xff\xffiTXtcomment",
        b"#EXTM3U\nhttp://127.0.0.1/x.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
)
def test_a_strange_file_has_no_document_and_is_foreign(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(contents)

    assert read_document(path) is None
    assert inspect_final(path).state is FileState.FOREIGN


@pytest.mark.parametrize(
    "comment", ["[]", "{}", '{"flowblend":1}', "[" * 100_000, "9" * 100_000, "{", '"x"']
)
def test_a_comment_of_another_kind_is_no_document(comment: str) -> None:
    assert from_text(comment) is None


def test_a_missing_file_is_an_error_and_a_folder_is_no_document(tmp_path: Path) -> None:
    assert read_document(tmp_path) is None
    says = r"nothing\.mp4: can't be read \(No such file or directory\): give the path of a finish"
    with pytest.raises(OutputError, match=says):
        read_document(tmp_path / "nothing.mp4")


def test_nothing_but_numbers_and_text_goes_into_a_document() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_text({"flowblend": "1", "x": float("nan")})
    with pytest.raises(KeyError):
        to_text({"x": 1})


# What lies under a final name


@pytest.fixture(params=["a.mp4", "a.png"])
def finished(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    if path.suffix == ".mp4":
        return publish_clip(path)
    publish_image(clip()[0], path, document=DOCUMENT)
    return path


def test_a_finished_file_is_intact_and_names_its_recipe(finished: Path) -> None:
    found = inspect_final(finished)

    assert found == Finished(FileState.INTACT, DOCUMENT, "harbour", "")


def test_any_flipped_byte_is_noticed_and_the_file_still_known_as_ours(finished: Path) -> None:
    whole = finished.read_bytes()
    states = set()
    for position in range(0, len(whole), max(1, len(whole) // 97)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        finished.write_bytes(damaged)
        states.add(inspect_final(finished).state)

    # Of a PNG no decoder takes a chunk whose CRC doesn't hold; of an mp4 many bytes may change.
    assert states <= {FileState.DAMAGED, FileState.EDITED}
    assert states == {FileState.DAMAGED} or finished.suffix == ".mp4"


@pytest.mark.parametrize("share", [0.99, 0.8, 0.6])
def test_a_truncated_file_is_damaged(finished: Path, share: float) -> None:
    whole = finished.read_bytes()
    finished.write_bytes(whole[: int(len(whole) * share)])

    found = inspect_final(finished)
    assert (found.state, found.change) == (FileState.DAMAGED, "")


def test_bytes_added_at_the_end_are_noticed(finished: Path) -> None:
    finished.write_bytes(finished.read_bytes() + b"more")

    assert inspect_final(finished).state is FileState.EDITED


def test_an_altered_document_still_names_its_recipe(tmp_path: Path) -> None:
    path = publish_clip(tmp_path / "a.mp4")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"v":1', b'"v":!', 1))

    found = inspect_final(path)

    assert (found.state, found.document, found.recipe) == (FileState.EDITED, None, "harbour")


def test_nothing_a_link_and_a_folder_are_told_apart(tmp_path: Path, finished: Path) -> None:
    link = tmp_path / "link.mp4"
    link.symlink_to(finished)
    folder = tmp_path / "folder.mp4"
    folder.mkdir()

    assert inspect_final(tmp_path / "none.mp4").state is FileState.MISSING
    assert inspect_final(link).state is FileState.FOREIGN
    assert inspect_final(folder).state is FileState.FOREIGN


def test_a_seal_needs_its_mark_exactly_once() -> None:
    mark = b'"file_sha256":"' + b"0" * 64 + b'"'

    assert seal_holds(seal(b"x" + mark + b"y"))
    assert not seal_holds(b"no mark")
    with pytest.raises(ValueError, match="found 0"):
        seal(b"no mark")
    with pytest.raises(ValueError, match="found 2"):
        seal(mark + mark)


# Publishing


def test_what_was_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    publish(path, b"old")
    publish(path, b"new")

    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_temporary_name_never_looks_like_media() -> None:
    assert temporary_path(Path("out/a.mp4")) == Path("out/a.mp4.tmp")


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.mp4.tmp").write_bytes(b"half")

    publish_clip(tmp_path / "a.mp4")

    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_link_at_the_temporary_name_is_refused_and_its_target_unchanged(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "a.mp4.tmp").symlink_to(victim)

    with pytest.raises(OutputError, match="symbolic link"):
        publish_clip(tmp_path / "a.mp4")

    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "a.mp4").exists()


def test_a_link_at_the_final_name_is_replaced_and_its_target_unchanged(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "a.mp4").symlink_to(victim)

    publish_clip(tmp_path / "a.mp4")

    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "a.mp4").is_symlink()


def test_a_folder_at_the_final_name_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()

    with pytest.raises(OutputError, match="can't be written"):
        publish_clip(tmp_path / "a.mp4")

    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written") as caught:
        publish_clip(tmp_path / "nowhere" / "a.mp4")

    assert caught.value.exit_code == 4


def test_an_interruption_leaves_neither_a_final_nor_a_temporary_file(tmp_path: Path) -> None:
    def interrupted(_file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "a.bin", b"data", interrupted)

    assert os.listdir(tmp_path) == []


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from flowblend_cli.artifacts.image import publish_image
    from flowblend_cli.artifacts.video import publish_video
    from flowblend_cli.errors import OutputError
    import numpy as np

    frames = np.random.default_rng(0).integers(0, 255, (9, 128, 128, 3), dtype=np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    failures = 0
    try:
        publish_video(frames, Path("a.mp4"), fps=8, scale=2, document={"flowblend": "1"})
    except OutputError:
        failures += 1
    try:
        publish_image(frames[0], Path("a.png"), scale=4, document={"flowblend": "1"})
    except OutputError:
        failures += 1
    Path("small").write_text("the disk takes small files")
    sys.exit(40 + failures)
"""


def test_a_full_disk_publishes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([source, os.getcwd()])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 42, done.stderr
    assert os.listdir(tmp_path) == ["small"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "unlink"])
def test_each_failing_system_call_is_an_output_error_and_never_a_bad_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(os, call)
    for failing in range(1, 5):
        (tmp_path / "a.mp4.tmp").write_bytes(b"leftover")
        count = 0

        def fail(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == failing:  # noqa: B023
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, fail)
            try:
                publish_clip(tmp_path / "a.mp4")
            except OutputError:
                pass
        final = tmp_path / "a.mp4"
        assert not final.exists() or inspect_final(final).state is FileState.INTACT
    publish_clip(tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]
