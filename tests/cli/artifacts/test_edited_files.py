"""What users and their tools do to finished files: the same, edited, damaged, or not ours."""

from __future__ import annotations

import errno
import io
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from rendered import KEY, a_job, write_clip

from flowblend_cli.artifacts.existing import Existing, Finder
from flowblend_cli.artifacts.finished import FileState, inspect_final, shows_the_same
from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.manifest import Manifest
from flowblend_cli.artifacts.reading import read_native_frames
from flowblend_cli.console.factory import make_reporter
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.errors import OutputError
from flowblend_cli.jobs import Job
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.utils.frames import pixels_sha256
from flowblend_cli.utils.limits import MAX_FINISHED_BYTES
from tests.faults import drawn

STILL = a_job("still", arguments={"num_frames": 1})
CLIP = a_job("clip")
Change = Callable[[Path], None]


def save_png(path: Path, image: Image.Image, texts: dict[str, str], **how: Any) -> None:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    image.save(path, format="PNG", pnginfo=info, **how)


def texts_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)  # type: ignore[attr-defined]


def painted(path: Path) -> None:
    texts, image = texts_of(path), Image.open(path).convert("RGB")
    image.putpixel((3, 4), (255, 255, 255))
    save_png(path, image, texts)


def painted_without_record(path: Path) -> None:
    painted(path)
    save_png(path, Image.open(path).convert("RGB"), {})


def see_through(path: Path) -> None:
    texts, image = texts_of(path), Image.open(path).convert("RGBA")
    image.putalpha(100)
    save_png(path, image, texts)


def enlarged(path: Path) -> None:
    texts, image = texts_of(path), Image.open(path).convert("RGB")
    save_png(path, image.resize((64, 64), Image.Resampling.NEAREST), texts)


def optimized(path: Path) -> None:
    texts, image = texts_of(path), Image.open(path).convert("RGB")
    save_png(path, image, texts, compress_level=9, optimize=True)


def turned_to_a_palette(path: Path) -> None:
    texts, image = texts_of(path), Image.open(path).convert("RGB")
    save_png(path, image.quantize(256), texts)


def stripped(path: Path) -> None:
    save_png(path, Image.open(path).convert("RGB"), {}, optimize=True)


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


def copied(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.unlink()
    path.with_name("copy").rename(path)


def shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def lengthened(path: Path) -> None:
    os.truncate(path, 20 * 2**30)


def remux(path: Path, *, sound: bool = False, **tags: str | None) -> None:
    """As ``ffmpeg -c copy`` does, with a sound track or other tags where they are given."""
    buffer = io.BytesIO()
    with av.open(str(path)) as old, av.open(buffer, "w", format="mp4") as new:
        kept = {"comment": old.metadata["comment"], **tags}
        new.metadata.update({name: text for name, text in kept.items() if text is not None})
        stream = new.add_stream_from_template(old.streams.video[0])
        track = new.add_stream("aac", rate=44100, layout="mono") if sound else None
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
        if track is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 44100, 0, Fraction(1, 44100)
            new.mux(track.encode(silence))
            new.mux(track.encode(None))
    path.write_bytes(buffer.getvalue())


def given_sound(path: Path) -> None:
    remux(path, sound=True)


def given_a_title(path: Path) -> None:
    remux(path, title="My clip")


def record_reworded(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"red square", b"tea square", 1))


def record_removed(path: Path) -> None:
    remux(path, comment=None)


def encoded_again(path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(str(path)) as old, av.open(buffer, "w", format="mp4") as new:
        new.metadata["comment"] = old.metadata["comment"]
        stream = new.add_stream("libx264", rate=8, options={"crf": "40"})
        stream.width = stream.height = 32
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame.reformat(format="yuv420p")))
        new.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())


def look(job: Job, folder: Path, change: Change, **how: bool) -> Existing:
    """Publish a job's file, change it, and look for it as the next run does."""
    finder = Finder(Manifest(folder, pytest.fail), **how)
    path = folder / job.filename
    pixels = write_clip(folder, job)
    finder.published(job, path, KEY, pixels=pixels, seed=job.seed, sampling_s=1.0)
    change(path)
    found = finder.find(job, path, KEY)
    finder.close()
    return found


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("job", "change"),
    [
        *((STILL, change) for change in (touched, copied, optimized, turned_to_a_palette)),
        *((CLIP, change) for change in (touched, copied)),
    ],
)
def test_what_changes_no_pixel_of_a_still_and_no_byte_of_a_clip_is_still_done(
    tmp_path: Path, job: Job, change: Change, verify: bool
) -> None:
    found = look(job, tmp_path, change, verify=verify)
    assert found.done is not None


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("job", "change"),
    [
        *((STILL, change) for change in (painted, see_through, enlarged, lengthened)),
        *((CLIP, change) for change in (given_sound, given_a_title, remux, record_reworded)),
        *((CLIP, change) for change in (encoded_again, lengthened)),
    ],
)
def test_what_was_ours_and_can_be_decoded_is_edited_and_never_damaged(
    tmp_path: Path, job: Job, change: Change, verify: bool
) -> None:
    found = look(job, tmp_path, change, verify=verify)
    assert found.edited
    assert (found.done, found.is_damaged, found.obstacle) == (None, False, "")


@pytest.mark.parametrize("kind", ["avi", "flv", "nut", "mpegts"])
def test_a_clip_converted_to_another_format_under_its_name_is_edited(
    tmp_path: Path, kind: str
) -> None:
    codec = {"flv": "flv", "mpegts": "mpeg2video"}.get(kind, "mpeg4")

    def convert(path: Path) -> None:
        with av.open(str(path)) as clip:
            comment = clip.metadata["comment"]
            frames = [frame.to_image() for frame in clip.decode(video=0)]
        target = path.with_suffix(".converted")
        with av.open(str(target), "w", format=kind) as out:
            out.metadata["comment"] = comment
            stream: Any = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
            for image in frames:
                out.mux(stream.encode(av.VideoFrame.from_image(image)))
            out.mux(stream.encode())
        target.replace(path)

    found = look(CLIP, tmp_path, convert)
    assert found.edited or found.obstacle
    assert (found.done, found.is_damaged) == (None, False)


def test_a_still_saved_as_a_jpeg_under_its_name_is_kept(tmp_path: Path) -> None:
    def convert(path: Path) -> None:
        texts, image = texts_of(path), Image.open(path).convert("RGB")
        image.save(path, format="JPEG", comment=texts["comment"].encode())

    found = look(STILL, tmp_path, convert)
    assert found.edited or found.obstacle
    assert (found.done, found.is_damaged) == (None, False)


@pytest.mark.parametrize("job", [STILL, CLIP], ids=["still", "clip"])
def test_only_what_cannot_be_decoded_is_damaged(tmp_path: Path, job: Job) -> None:
    assert look(job, tmp_path, shortened) == Existing(is_damaged=True)


@pytest.mark.parametrize(
    ("job", "change"),
    [(STILL, painted_without_record), (STILL, stripped), (CLIP, record_removed)],
)
def test_a_file_whose_record_was_removed_is_nobody_s_of_ours_and_left_alone(
    tmp_path: Path, job: Job, change: Change
) -> None:
    assert "someone else" in look(job, tmp_path, change).obstacle


@pytest.mark.parametrize(
    ("job", "change"),
    [(STILL, painted), (STILL, shortened), (CLIP, given_sound), (CLIP, shortened)],
)
def test_another_recipe_s_file_is_left_alone_whatever_was_done_to_it(
    tmp_path: Path, job: Job, change: Change
) -> None:
    path = tmp_path / job.filename
    write_clip(tmp_path, replace(job, recipe="another"))
    change(path)
    found = Finder(Manifest(tmp_path, pytest.fail)).find(job, path, KEY)
    assert found == Existing(obstacle=found.obstacle)
    assert found.obstacle.startswith(f"{path} belongs to recipe 'another' and is left alone: move")


def test_a_whole_file_that_names_no_recipe_is_nobody_s_of_ours(tmp_path: Path) -> None:
    path = tmp_path / STILL.filename
    publish_image(np.zeros((4, 4, 3), np.uint8), path, document={"flowblend": "1"})
    found = Finder(None).find(STILL, path, KEY)
    assert "belongs to recipe None" in found.obstacle


def test_a_manifest_that_knows_a_painted_still_is_not_believed_where_all_is_verified(
    tmp_path: Path,
) -> None:
    pixels = write_clip(tmp_path, STILL)
    path = tmp_path / STILL.filename
    painted(path)
    finder = Finder(Manifest(tmp_path, pytest.fail), verify=True)
    finder.published(STILL, path, KEY, pixels=pixels, seed=1, sampling_s=1.0)
    assert finder.find(STILL, path, KEY).edited


def test_frames_are_compared_whatever_lies_around_them(tmp_path: Path) -> None:
    write_clip(tmp_path, CLIP)
    path, other = tmp_path / CLIP.filename, tmp_path / "other.mp4"
    for change, is_same in ((given_sound, True), (remux, True), (encoded_again, False)):
        shutil.copy(path, other)
        change(other)
        assert shows_the_same(path, other) is is_same


def test_links_that_somebody_named_are_followed_and_no_others(tmp_path: Path) -> None:
    write_clip(tmp_path, CLIP)
    path, link = tmp_path / CLIP.filename, tmp_path / "link.mp4"
    link.symlink_to(path)
    assert shows_the_same(path, link)
    assert shows_the_same(link, path)
    assert not shows_the_same(path, tmp_path / "nothing.mp4")
    assert inspect_final(link).state is FileState.FOREIGN
    assert inspect_final(link, follow=True).state is FileState.INTACT


def test_a_file_that_cant_be_read_is_named_with_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("flowblend_cli.artifacts.finished.open_regular", refuse)
    with pytest.raises(OutputError) as caught:
        inspect_final(tmp_path / "a.mp4")
    assert str(caught.value) == (
        f"{tmp_path / 'a.mp4'}: can't be read (Permission denied), so it's unknown whether its job "
        "is done: give the file's owner back the right to read it, or move it away"
    )


def test_a_still_whose_record_has_no_hash_of_pixels_is_believed_and_an_empty_one_isnt(
    tmp_path: Path,
) -> None:
    path = tmp_path / "still.png"
    picture, document = np.zeros((3, 3, 3), np.uint8), {"flowblend": "1"}
    publish_image(picture, path, document=document)
    assert inspect_final(path).state is FileState.INTACT
    scaled = {"job": {"output": {"scale": 2}}, "pixels_sha256": ""}
    publish_image(picture, path, document=document | scaled)
    assert inspect_final(path).state is FileState.EDITED


def test_a_huge_picture_is_kept_and_never_decoded(tmp_path: Path) -> None:
    write_clip(tmp_path, STILL)
    path = tmp_path / STILL.filename
    data = bytearray(path.read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2  # width and height, in the header
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    found = inspect_final(path)
    assert found.state is FileState.EDITED
    assert "too many pixels" in found.change


def test_a_sparse_file_of_any_size_is_looked_at_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with path.open("wb") as file:
        file.truncate(MAX_FINISHED_BYTES * 5)
    assert inspect_final(path).state is FileState.FOREIGN


def test_edited_clips_are_kept_beside_and_their_jobs_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = drawn.load(drawn.write_recipe(tmp_path, 2))
    out = batch.output_dir
    drawn.run(batch)
    clip = next(path for path in sorted(out.iterdir()) if path.suffix == ".mp4")
    before, kept = clip.read_bytes(), []
    for _ in range(2):
        given_sound(clip)
        kept.append(clip.read_bytes())
        capsys.readouterr()
        executor, progress = drawn.DrawnFramesExecutor(), RunProgress(batch)
        shown = make_reporter(progress, json=False, verbosity=-1)
        run = BatchRun(batch, shown, overrides=(), progress=progress, executor=executor)
        assert run.run() == 0
        assert executor.rendered == [clip.stem]
        said = capsys.readouterr().err
        assert said.count("was altered since it was rendered: it is kept as") == 1
    assert clip.read_bytes() == before
    assert (out / f"{clip.stem}.edited.mp4").read_bytes() == kept[0]
    assert (out / f"{clip.stem}.edited-2.mp4").read_bytes() == kept[1]


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_still_is_what_was_rendered_up_to_its_last_enlarged_pixel(
    tmp_path: Path, scale: int
) -> None:
    path = tmp_path / "still.png"
    native = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    document = {
        "flowblend": "1",
        "job": {"recipe": "r", "output": {"scale": scale}},
        "pixels_sha256": pixels_sha256(native[None]),
    }
    publish_image(native, path, document=document, scale=scale)
    assert inspect_final(path).state is FileState.INTACT
    assert np.array_equal(read_native_frames(path, scale), native[None])
    assert read_native_frames(path).shape == (1, 8 * scale, 6 * scale, 3)

    texts, image = texts_of(path), Image.open(path).convert("RGB")
    for place in ((0, 0), (image.width - 1, image.height - 1)):
        other = image.copy()
        red, *rest = image.getpixel(place)  # type: ignore[misc]
        other.putpixel(place, (255 - red, *rest))
        save_png(path, other, texts)
        found = inspect_final(path)
        assert (found.state, found.recipe) == (FileState.EDITED, "r")
        assert found.change == "has pixels that differ from its record"


@pytest.mark.parametrize(
    "job",
    [None, {}, {"output": 3}, *({"output": {"scale": scale}} for scale in (True, 0, -2, "2"))],
)
def test_a_still_that_says_no_enlargement_has_none(tmp_path: Path, job: object) -> None:
    path, native = tmp_path / "still.png", np.full((1, 4, 4, 3), 7, np.uint8)
    document = {"flowblend": "1", "job": job, "pixels_sha256": pixels_sha256(native)}
    publish_image(native[0], path, document=document)
    assert inspect_final(path).state is FileState.INTACT


def test_a_picture_that_no_decoder_takes_says_why(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    publish_image(np.zeros((4, 4, 3), np.uint8), path, document={"flowblend": "1"})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(OutputError) as caught:
        read_native_frames(path)
    assert str(caught.value).startswith(f"{path}: can't be decoded (")
    assert "(None)" not in str(caught.value)
    assert "()" not in str(caught.value)


def test_a_clip_has_the_pixel_format_that_players_take(tmp_path: Path) -> None:
    write_clip(tmp_path, CLIP)
    with av.open(str(tmp_path / CLIP.filename)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
