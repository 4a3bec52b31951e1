"""The pictures that scenes begin with: what is read, what is refused, what a job makes of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    WanImageToVideoPipeline,
)
from PIL import Image, ImageCms
from tiny import wan_denoiser
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.errors import ImageError
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import job_key, resolve_models
from flowblend_cli.utils import images
from flowblend_cli.utils.images import examine_image, load_image

RECIPE = """\
[model]
pipeline = "wan2.2-i2v"

[[scene]]
name = "walk"
prompt = "a walk"
image = "first.png"
"""


def draw(path: Path, color: tuple[int, ...] = (200, 30, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6), color).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    ihdr = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + ihdr + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("name", ["first.png", "./first.png", "below/first.jpg"])
def test_a_png_or_jpeg_in_the_recipes_tree_is_read_as_rgb(tmp_path: Path, name: str) -> None:
    draw(tmp_path / name)

    picture = load_image(name, tmp_path)

    assert (picture.mode, picture.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(picture, int) - (200, 30, 30)).max() <= 2


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 6)).save(tmp_path / "first.jpg", exif=exif)

    assert load_image("first.jpg", tmp_path).size == (6, 8)


# Columns: what red, green and blue are in XYZ, under the white of profiles (D50).
DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


def profile_of(colorants: Any, gamma: float = 2.2) -> bytes:
    """A colour profile of three colorants and one gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    def text(kind: bytes, words: bytes) -> bytes:
        if kind == b"desc":
            return b"desc\0\0\0\0" + struct.pack(">I", len(words) + 1) + words + bytes(79)
        return b"text\0\0\0\0" + words + b"\0"

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        b"desc": text(b"desc", b"tried"),
        b"cprt": text(b"text", b"none"),
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        **{name: xyz(colorants[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(data), len(value))
        data += value
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + body


def in_srgb(color: tuple[int, ...], colorants: Any, gamma: float = 2.2) -> Any:
    """The colour's sRGB levels, by the definitions of both spaces."""
    light = np.linalg.inv(SRGB) @ colorants @ (np.array(color) / 255) ** gamma
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", ["first.png", "first.jpg"])
@pytest.mark.parametrize("color", [(200, 100, 60), (90, 160, 90), (255, 255, 255), (30, 30, 200)])
def test_colours_of_another_profile_are_converted(
    tmp_path: Path, name: str, color: tuple[int, ...]
) -> None:
    quality: dict[str, Any] = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    picture = Image.new("RGB", (8, 8), color)
    picture.save(tmp_path / name, icc_profile=profile_of(DISPLAY_P3), **quality)

    found = np.asarray(load_image(name, tmp_path), float)

    assert np.abs(found - in_srgb(color, DISPLAY_P3)).max() <= 2.5
    if color != (255, 255, 255):
        assert examine_image(name, tmp_path)[1] == ("to_srgb",)


def test_a_picture_that_says_it_is_srgb_keeps_its_very_levels(tmp_path: Path) -> None:
    levels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(levels).save(tmp_path / "first.png", icc_profile=profile)

    assert np.array_equal(np.asarray(load_image("first.png", tmp_path)), levels)
    assert examine_image("first.png", tmp_path)[1] == ()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_picture_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (3, 2), (0, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    if mode == "P":  # one colour of its palette is transparent
        picture = Image.new("P", (3, 2), 1)
        picture.putpalette([255, 0, 0, 0, 0, 0])
        picture.putpixel((0, 0), 0)
        picture.info["transparency"] = 0
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    picture.convert(mode).save(tmp_path / "first.png", exif=exif)

    found = np.asarray(load_image("first.png", tmp_path))[::-1, ::-1]

    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [0, 0, 0]
    assert found[0, 1].tolist() == ([0, 0, 0] if mode == "P" else [127, 127, 127])
    assert examine_image("first.png", tmp_path)[1] == ("over_white",)


def test_what_is_opaque_everywhere_is_not_laid_over_anything(tmp_path: Path) -> None:
    draw(tmp_path / "first.png", (9, 8, 7, 255), "RGBA")

    assert np.asarray(load_image("first.png", tmp_path))[0, 0].tolist() == [9, 8, 7]
    assert examine_image("first.png", tmp_path)[1] == ()


def test_a_profile_that_is_none_is_left_out_and_said(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "first.png", icc_profile=b"no profile")
    Image.new("L", (4, 4), 100).save(tmp_path / "grey.png", icc_profile=profile_of(SRGB, 1.0))

    assert examine_image("first.png", tmp_path)[1] == ("profile_left_out",)
    assert np.asarray(load_image("first.png", tmp_path))[0, 0].tolist() == [9, 8, 7]
    grey = np.asarray(load_image("grey.png", tmp_path), float)
    assert np.abs(grey - in_srgb((100, 100, 100), SRGB, 1.0)).max() <= 2.5


def test_a_converted_picture_is_told_and_rendered_anew(
    tmp_path: Path, batch_of: Callable[..., Any]
) -> None:
    draw(tmp_path / "first.png", (9, 8, 7, 100), "RGBA")
    batch = batch_of(RECIPE)
    (job,) = batch.jobs

    assert any("'first.png' is partly transparent, and is laid over white" in w
               for w in batch.warnings)  # fmt: skip
    assert Job.from_document(job.to_document()) == job
    as_it_was = replace(job, image=replace(job.image, conversions=()))
    assert job_key(job, {}) != job_key(as_it_was, {})


def test_a_link_inside_the_tree_is_followed(tmp_path: Path) -> None:
    draw(tmp_path / "real.png")
    (tmp_path / "first.png").symlink_to("real.png")

    assert load_image("first.png", tmp_path).size == (8, 6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("http://127.0.0.1:9/first.png", "nothing is ever fetched"),
        ("file:///etc/passwd", "nothing is ever fetched"),
        ("data:image/png;base64,AAAA", "nothing is ever fetched"),
        ("../outside.png", "isn't inside the recipe's folder"),
        ("below/../../outside.png", "isn't inside the recipe's folder"),
        ("link-outside.png", "isn't inside the recipe's folder"),
        ("link-folder/outside.png", "isn't inside the recipe's folder"),
        ("none.png", "doesn't exist"),
        ("~/first.png", "isn't inside the recipe's folder"),
        (".", "is no file"),
        ("pipe.png", "is no file"),
        ("a\x1b[31m.png", "control characters"),
        ("a\0.png", "control characters"),
        ("x" * 5000, "image"),
        ("circle.png", "image"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, said: str) -> None:
    draw(tmp_path / "outside.png")
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "link-outside.png").symlink_to(tmp_path / "outside.png")
    (folder / "link-folder").symlink_to(tmp_path)
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")

    with pytest.raises(ImageError, match=said):
        examine_image(name, folder)


def test_an_absolute_path_is_refused_even_inside_the_tree(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="isn't inside"):
        examine_image(str(draw(tmp_path / "first.png")), tmp_path)


@pytest.mark.parametrize("size", [(12_000, 12_000), (20_000, 20_000), (2**31 - 1, 2)])
def test_a_picture_that_says_it_is_huge_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "first.png").write_bytes(png_header(*size))

    with pytest.raises(ImageError, match="more than 50,000,000 pixels"):
        examine_image("first.png", tmp_path)


def test_a_file_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw(tmp_path / "first.png")
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", path.stat().st_size - 1)

    with pytest.raises(ImageError, match="larger than the limit"):
        examine_image("first.png", tmp_path)


def test_what_is_no_whole_picture_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (4, 4)).save(tmp_path / "moving.gif")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")

    for name, said in {
        "cut.png": "damaged",
        "text.png": "no PNG or JPEG",
        "empty.png": "no PNG or JPEG",
        "moving.gif": "no PNG or JPEG",
        "deep.png": "more than 8 bits",
    }.items():
        with pytest.raises(ImageError, match=said):
            examine_image(name, tmp_path)


def test_a_changed_picture_is_not_the_jobs(tmp_path: Path) -> None:
    draw(tmp_path / "first.png")
    known, _ = examine_image("first.png", tmp_path)
    draw(tmp_path / "first.png", (1, 2, 3))

    with pytest.raises(ImageError, match="has changed"):
        load_image("first.png", tmp_path, known)


def test_a_scenes_picture_is_part_of_its_jobs(tmp_path: Path, batch_of: Callable[..., Any]) -> None:
    draw(tmp_path / "first.png")

    (job,) = batch_of(RECIPE).jobs

    assert job.image is not None
    assert job.image.path == "first.png"
    assert job.image.sha256 == examine_image("first.png", tmp_path)[0]
    assert Job.from_document(job.to_document()) == job


def test_the_job_key_follows_the_pictures_bytes_and_not_its_name(
    tmp_path: Path, batch_of: Callable[..., Any]
) -> None:
    def key(text: str = RECIPE) -> str:
        (job,) = batch_of(text).jobs
        return job_key(job, {})

    draw(tmp_path / "first.png")
    first = key()
    draw(tmp_path / "other.png")
    assert key(RECIPE.replace("first.png", "other.png")) == first
    draw(tmp_path / "first.png", (1, 2, 3))
    assert key() != first


def test_records_from_before_there_were_pictures_are_still_read(
    batch_of: Callable[..., Any],
) -> None:
    (job,) = batch_of().jobs

    document = job.to_document()

    assert "image" not in document
    assert Job.from_document(document).image is None


def test_a_pipeline_that_begins_with_a_picture_needs_one(
    problems_of: Callable[..., list[str]],
) -> None:
    (line,) = problems_of(RECIPE.replace('image = "first.png"\n', ""))

    assert line.startswith("recipe.toml:4:1: scene[0].image: is missing")


def test_a_pipeline_that_takes_no_picture_is_given_none(
    tmp_path: Path, problems_of: Callable[..., list[str]], minimal: str
) -> None:
    draw(tmp_path / "first.png")

    (line,) = problems_of(minimal + 'image = "first.png"\n')

    assert "recipe.toml:18:1: scene[0].image: WanPipeline takes no image" in line


def test_a_picture_that_cannot_be_used_is_shown_where_it_is_named(
    problems_of: Callable[..., list[str]],
) -> None:
    (line,) = problems_of(RECIPE)

    assert line.startswith("recipe.toml:7:9: scene[0].image: the image 'first.png' doesn't exist")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny image-to-video pipeline around the bundled pair's VAE and encoder."""
    parts = WanImageToVideoPipeline.from_pretrained(
        bundled_dir() / "models/sprites", transformer=None, image_encoder=None, image_processor=None
    )
    folder = tmp_path_factory.mktemp("pipeline") / "i2v"
    parts.register_modules(
        transformer=wan_denoiser(
            in_channels=2 * 16 + parts.vae_scale_factor_temporal,  # noise, picture, mask
            out_channels=16,
            text_dim=parts.text_encoder.config.d_model,
        )
    )
    parts.save_pretrained(folder)
    return folder


def test_a_job_gives_the_pipeline_its_picture(
    tmp_path: Path, pipeline: Path, batch_of: Callable[..., Any]
) -> None:
    torch.set_num_threads(1)
    draw(tmp_path / "first.png")
    text = RECIPE.replace("wan2.2-i2v", str(pipeline)) + (
        "seeds = [3]\nnum_inference_steps = 2\nheight = 32\nwidth = 32\nnum_frames = 5\n"
        'max_sequence_length = 16\n[blend]\nstages = "L"\n'
    )
    (job,) = batch_of(text).jobs
    runtime = PipelineRuntime(resolve_models(ModelSpec(str(pipeline)), tmp_path))

    def frames(job: Job) -> Any:
        return runtime.sample(job, 3, lambda *_: None).frames

    plain = WanImageToVideoPipeline.from_pretrained(pipeline)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        image=Image.open(tmp_path / "first.png"),
        prompt="a walk",
        generator=torch.Generator().manual_seed(3),
        **job.pipeline_arguments(),
    ).frames[0]
    first = frames(job)
    assert np.array_equal(first, (expected * 255).round().astype(np.uint8))
    assert np.array_equal(frames(job), first)

    draw(tmp_path / "first.png", (0, 250, 250))
    with pytest.raises(ImageError, match="has changed"):
        frames(job)
    (changed,) = batch_of(text).jobs
    assert not np.array_equal(frames(replace(changed, id=job.id)), first)


def i2vgen_parts() -> dict[str, Any]:
    """The parts of a tiny I2VGen-XL pipeline."""
    torch.manual_seed(0)
    clip = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "w", "a", "l", "k</w>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    text = CLIPTextConfig(
        **clip, vocab_size=len(words), max_position_embeddings=8, bos_token_id=0, eos_token_id=1
    )
    return {
        "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8),
        "text_encoder": CLIPTextModel(text),
        "image_encoder": CLIPVisionModelWithProjection(
            CLIPVisionConfig(**clip, image_size=8, patch_size=4)
        ),
        "feature_extractor": CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8),
        "vae": AutoencoderKL(
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
        ),
        "unet": I2VGenXLUNet(
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=8,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        "scheduler": DDIMScheduler(clip_sample=False),
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_one_seed_gives_the_same_pixels_where_a_pipeline_draws_without_its_generator(
    tmp_path: Path, batch_of: Callable[..., Any]
) -> None:
    torch.set_num_threads(1)
    I2VGenXLPipeline(**i2vgen_parts()).save_pretrained(tmp_path / "model")
    draw(tmp_path / "first.png")
    text = RECIPE.replace("wan2.2-i2v", "./model") + (
        'num_inference_steps = 2\nheight = 32\nwidth = 32\nnum_frames = 2\n[blend]\nstages = "L"\n'
    )
    (job,) = batch_of(text).jobs
    runtime = PipelineRuntime(resolve_models(job.model, tmp_path))

    def frames(seed: int) -> Any:
        return runtime.sample(job, seed, lambda *_: None).frames

    first = frames(3)
    torch.rand(7)  # what another job would have drawn meanwhile
    assert np.array_equal(frames(3), first)
    assert not np.array_equal(frames(4), first)
