"""What pipelines refuse or change: the table against diffusers' own classes; what check says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
)

from flowblend_cli.errors import RecipeError
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.pipeline_rules import FrameRule, rule_table, rules_of, vae_factors
from flowblend_cli.recipe.loader import load_batch

ROOT = Path(__file__).resolve().parents[3]
NINES: dict[str, Any] = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
VAES: dict[str, Callable[[], Any]] = {
    "CogVideoXPipeline": lambda: AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
    ),
    "HunyuanVideoPipeline": lambda: AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
    ),
    "LTXPipeline": lambda: AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    ),
    "MochiPipeline": lambda: AutoencoderKLMochi(
        latent_channels=4, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5, **NINES,
    ),
    "WanPipeline": lambda: AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **NINES
    ),
}  # fmt: skip


def rule_of(pipeline_class: str, temporal: int) -> FrameRule:
    argument, times, remainders = rule_table()[pipeline_class]["frames"]
    return FrameRule(argument, times * temporal, tuple(remainders))


def test_the_shipped_table_is_what_the_script_makes_of_the_installed_diffusers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    path = ROOT / "scripts/generate_pipeline_rules.py"
    spec = util.spec_from_file_location("generate_pipeline_rules", path)
    assert spec is not None
    assert spec.loader is not None
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert script.TABLE.read_text("utf-8") == script.render_table(), f"run python {path}"
    sys.modules.pop("generate_pipeline_arguments", None)


def test_every_pipeline_of_the_arguments_table_has_rules() -> None:
    assert rule_table().keys() == argument_table().pipelines.keys()


@pytest.mark.parametrize("pipeline_class", VAES)
def test_exactly_the_numbers_of_frames_that_a_vae_decodes_to_are_allowed(
    pipeline_class: str,
) -> None:
    """A pipeline makes (n - 1) // factor + 1 latent frames; what comes of them is n, or isn't."""
    vae = VAES[pipeline_class]().eval()
    spatial, temporal = vae_factors(json.loads(vae.to_json_string()))
    usual = rule_table()[pipeline_class]["vae"]
    factor = temporal or usual[1]
    rendered = {}
    with torch.no_grad():
        for latent in range(1, 5):
            shape = vae.decode(torch.zeros(1, 4, latent, 2, 2)).sample.shape
            rendered[latent] = shape[2]
            assert shape[3] == 2 * (spatial or usual[0])

    numbers = range(1, 3 * factor + 2)
    right = {n for n in numbers if rendered[(n - 1) // factor + 1] == n}

    assert {n for n in numbers if rule_of(pipeline_class, factor).allows(n)} == right


def test_an_image_vae_halves_between_blocks() -> None:
    config = json.loads(AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=2,
                                      down_block_types=("DownEncoderBlock2D",) * 3,
                                      up_block_types=("UpDecoderBlock2D",) * 3)
                        .to_json_string())  # fmt: skip

    assert vae_factors(config) == (4, None)


def test_a_pipeline_on_this_machine_is_asked_for_its_own_factors(tmp_path: Path) -> None:
    for name, config in {
        "model_index.json": {"_class_name": "WanPipeline", "boundary_ratio": None},
        "vae/config.json": {"_class_name": "AutoencoderKLWan", "scale_factor_spatial": 16,
                            "scale_factor_temporal": 8},
        "transformer/config.json": {"patch_size": [1, 2, 4]},
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))

    rules = rules_of(str(tmp_path), tmp_path)

    assert rules is not None
    assert rules.multiples == (32, 64)
    assert rules.frames == FrameRule("num_frames", 8, (1,))


RECIPE = """\
[model]
pipeline = "{pipeline}"

[blend]
stages = "L"

[defaults]
num_inference_steps = 2
{defaults}

[[scene]]
name = "star"
prompt = "a white star"
{scene}
"""


def problems(tmp_path: Path, pipeline: str, defaults: str = "", scene: str = "") -> list[str]:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(pipeline=pipeline, defaults=defaults, scene=scene))
    try:
        load_batch(path)
    except RecipeError as error:
        return [str(one).removeprefix(f"{path}:") for one in error.problems]
    return []


@pytest.mark.parametrize(
    ("pipeline", "line", "told"),
    [
        ("sprites", "height = 100", "9:10: defaults.height: 100 is no multiple of 16.*96 or 112"),
        ("wan2.1-t2v", "width = 490", "no multiple of 16.*480 or 496"),
        ("wan2.1-t2v", "num_frames = 16", "renders 4k . 1 frames, and not 16: use 13 or 17"),
        ("sprites", "num_frames = 16", "renders 2k . 1 frames, and not 16: use 15 or 17"),
        ("ltx-video", "num_frames = 160", "8k . 1 frames.*use 153 or 161"),
        ("ltx-video", "height = 720", "no multiple of 32.*704 or 736"),
        ("qwen-image", "width = 1000", "no multiple of 16.*992 or 1008"),
        ("qwen-image", "max_sequence_length = 2000", "more than QwenImagePipeline takes: use 1024"),
        ("sprites", "guidance_scale_2 = 3.0", "two experts"),
        ("wan2.1-t2v", "height = 8", ": use 16"),
    ],
)
def test_check_names_the_nearest_legal_values_at_the_value_itself(
    pipeline: str, line: str, told: str, tmp_path: Path
) -> None:
    (problem,) = problems(tmp_path, pipeline, line)

    assert re.search(told, problem), problem
    assert problem.startswith("9:")


def test_legal_values_pass_for_every_known_pair(tmp_path: Path) -> None:
    for pipeline, line in [
        ("sprites", "height = 96\nnum_frames = 1"),
        ("wan2.1-t2v", "height = 480\nwidth = 832\nnum_frames = 81\nmax_sequence_length = 512"),
        ("wan2.2-t2v", "guidance_scale_2 = 3.0"),
        ("ltx-video", "num_frames = 161\nheight = 512"),
        ("qwen-image", "max_sequence_length = 1024\nwidth = 1008"),
    ]:
        assert problems(tmp_path, pipeline, line) == []


def test_values_of_scene_sweep_and_preset_are_blamed_where_they_stand(tmp_path: Path) -> None:
    scene = 'preset = "odd"\nheight = 70\n[presets.odd]\nwidth = 72\n[sweep]\nnum_frames = [17, 16]'

    found = problems(tmp_path, "sprites", "height = 100", scene)

    assert [one.partition(": ")[2].partition(":")[0] for one in found] == [
        "scene[0].height", "presets.odd.width", "sweep.num_frames[1]",
    ]  # fmt: skip


def test_a_pipeline_that_needs_what_no_recipe_can_give_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "WanVideoToVideoPipeline"}')

    found = problems(tmp_path, "./model")

    told = [one for one in found if "can't be loaded" not in one]  # the folder is hollow
    assert len(told) == 1
    assert told[0].startswith("2:12: model.pipeline: WanVideoToVideoPipeline needs video")


def test_a_negative_prompt_is_refused_where_the_pipeline_takes_none(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "Flux2Pipeline"}')

    found = problems(tmp_path, "./model", scene='negative_prompt = "blurry"')

    told = [one for one in found if "can't be loaded" not in one]  # the folder is hollow
    assert len(told) == 1
    assert "Flux2Pipeline takes none" in told[0]
