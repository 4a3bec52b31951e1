"""Keys and paths as other programs and systems write them: each error names what to write here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.loader import load_recipe
from flowblend_cli.recipe.schema import foreign_names
from flowblend_cli.recipe.schema.tables import SETTINGS, SceneTable
from flowblend_cli.recipe.schema.validation import _SINGLE

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]
MODEL = '[model]\npipeline = "sprites"\n'
SCENE = '[[scene]]\nname = "a"\nprompt = "a cat"\n'


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("steps", "num_inference_steps"),
        ("Steps", "num_inference_steps"),
        ("sample_steps", "num_inference_steps"),
        ("infer_steps", "num_inference_steps"),
        ("cfg", "guidance_scale"),
        ("cfgscale", "guidance_scale"),
        ("CFG scale", "guidance_scale"),
        ("sampler", "scheduler in [sampling]"),
        ("sampler_name", "scheduler in [sampling]"),
        ("Sampler", "scheduler in [sampling]"),
        ("length", "num_frames"),
        ("video_length", "num_frames"),
        ("size", "width and height"),
        ("n_iter", "repeats of a [[scene]]"),
        ("batch_count", "repeats of a [[scene]]"),
        ("seed", "seeds of a [[scene]]"),
        ("denoise", "strength"),
        ("denoising_strength", "strength"),
        ("negative", "negative_prompt"),
        ("negativeprompt", "negative_prompt"),
        ("ckpt_name", "pipeline in [model]"),
        ("checkpoint", "pipeline in [model]"),
        ("vae", "pipeline in [model]"),
        ("loras", "[model.adapters]"),
        ("lora_weights", "[model.adapters]"),
        ("hr_upscaler", "no second pass"),
        ("hires_fix", "no second pass"),
        ("clipstopatlastlayers", "no layers of text encoders are skipped"),
        ("output_path", "output_dir in [recipe]"),
        ("flow_shift", "flow_shift belongs in [sampling]"),
        ("sample_shift", "flow_shift in [sampling]"),
        ("image_start", "image of a [[scene]]"),
        ("teacache", "cache of a [[blend.stage]]"),
        ("embedded_guidance_scale", "guidance_scale"),
        ("embedded_cfg_scale", "guidance_scale"),
        ("guidance_scale_high_noise", "guidance_scale"),
        ("guidance_scale_low_noise", "guidance_scale_2"),
        ("motion_strength", "here the prompt says how much moves"),
        ("motion_bucket_id", "here the prompt says how much moves"),
        ("duration", "num_frames"),
        ("video_seconds", "fps in [output]"),
        ("sample_solver", "scheduler in [sampling]"),
        ("flow_solver", "scheduler in [sampling]"),
        ("max_shift", "flow_shift in [sampling]"),
        ("start_at_step", "boundaries of [blend]"),
        ("timestep_boundary", "boundaries of [blend]"),
        ("use_prompt_extend", "text is never rewritten"),
        ("ulysses_size", "device in [model]"),
        ("convert_model_dtype", "dtype in [model]"),
        ("use_cpu_offload", "offload in [model]"),
        ("teacache_thresh", "cache of a [[blend.stage]]"),
        ("cfg_skip_mode", "[[blend.stage]] with its own guidance_scale"),
        ("slg_layers", "nothing skips layers"),
        ("save_file", "filename in [recipe]"),
        ("save_path", "output_dir in [recipe]"),
        ("src_video", "a video or a mask to begin with isn't supported"),
        ("mask_blur", "a video or a mask to begin with isn't supported"),
        ("base_seed", "seeds of a [[scene]]"),
        ("generator", "seeds of a [[scene]]"),
        ("control_after_generate", "here nothing takes it"),
        ("s_churn", "here nothing takes it"),
        ("vae_tiling", "here nothing takes it"),
        ("strength_model", "[model.adapters]"),
        ("frame_num", "num_frames"),
        ("target_video_length", "num_frames"),
        ("widht", "'width'"),
        ("guidance_scael", "'guidance_scale'"),
    ],
)
def test_a_key_of_another_program_is_told_by_the_word_that_is_used_here(
    problems_of: Problems, key: str, word: str
) -> None:
    for text in (f'[defaults]\n"{key}" = 20\n{MODEL}{SCENE}', f'{MODEL}{SCENE}"{key}" = 20\n'):
        (line,) = problems_of(text)
        if not ("[[scene]]" in line and "seed" in key):
            assert word in line, line
        assert "[draft]" not in line
        assert "'strength'" not in line


@pytest.mark.parametrize(
    ("table", "key", "word"),
    [
        ("", "steps", "num_inference_steps in [defaults]"),
        ("", "cfg", "guidance_scale in [defaults]"),
        ("", "prompt", "[[scene]]"),
        ("", "seed", "seeds of a [[scene]]"),
        ("[sampling]", "shift", "it is called flow_shift here"),
        ("[sampling]", "sampler", "it is called scheduler here"),
        ("[sampling]", "steps", "num_inference_steps in [defaults]"),
        ("[model]\npipeline = 'sprites'", "checkpoint", "it is called pipeline here"),
        ("[[blend.stage]]\ndenoiser = 'large'", "cfg", "it is called guidance_scale here"),
        ("[output]", "framerate", "fps in [output]"),
        ("[recipe]", "outdir", "it is called output_dir here"),
        ("[sweep]", "cfg", "it is called guidance_scale here"),
        ("[draft]", "num_steps", "steps"),
    ],
)
def test_it_is_told_in_every_table(problems_of: Problems, table: str, key: str, word: str) -> None:
    rest = SCENE if "[model]" in table else MODEL + SCENE
    lines = problems_of(f"{table}\n{key} = [20]\n{rest}")

    assert any("unknown key" in line and word in line for line in lines), lines


def test_an_option_is_told_like_a_key(problems_of: Problems) -> None:
    (line,) = problems_of(MODEL + SCENE, "defaults.steps=12")

    assert "--set defaults.steps=12: defaults.steps: unknown key" in line
    assert "it is called num_inference_steps here" in line


def test_a_variable_with_a_setting_s_foreign_name_is_asked_about(problems_of: Problems) -> None:
    (line,) = problems_of(f"[matrix]\nsteps = [4, 8]\n{MODEL}{SCENE}")

    assert "did you mean the setting 'num_inference_steps'?" in line


def test_no_name_of_another_program_stands_in_the_table_twice() -> None:
    names = [name for listed in foreign_names._NAMES.values() for name in listed.split()]
    assert len(names) == len(set(names))


def test_every_word_of_the_table_is_there() -> None:
    tables: dict[str, Any] = {**_SINGLE, "scene": SceneTable}
    keys = set(SETTINGS).union(*(model.model_fields for model in tables.values()))
    targets = set(foreign_names._TARGETS.values())

    named = {t.partition(" of ")[0].partition(" in ")[0] for t in targets if " " in t}
    assert {target for target in targets if " " not in target} <= keys
    assert {"seeds", "prompt", "image", "fps", "scale"} <= named
    assert all(name == foreign_names._PLAIN.sub("", name) for name in foreign_names._TARGETS)


@pytest.mark.parametrize("seeds", ["-1", "[-1]", "[3, -1]"])
def test_minus_one_is_no_seed_and_nought_draws_one(problems_of: Problems, seeds: str) -> None:
    (line,) = problems_of(f"{MODEL}{SCENE}seeds = {seeds}\n")

    assert line.endswith("got -1: 0 draws one, and records it")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("$HOME/out", "$HOME isn't expanded: write the whole path"),
        ("${SCRATCH}/out", "${SCRATCH} isn't expanded"),
        ("out/$USER", "$USER isn't expanded"),
        ("~/out", "~ isn't expanded"),
        ("~me/out", "~ isn't expanded"),
        ("%USERPROFILE%\\out", "%USERPROFILE% isn't expanded"),
        ("D:\\out\\night", "such as /mnt/d/out/night under WSL"),
        ("c:/out", "such as /mnt/c/out under WSL"),
        ("C:", "is a path of Windows"),
        ("\\\\nas\\share", "is a network share: mount it"),
        ("//nas/share", "is a network share: mount it"),
        ("out\\night", "write / between folders"),
        ("s3://bucket/out", "is an address"),
        ("file:///out", "is an address"),
    ],
)
def test_a_folder_for_a_shell_or_another_system_is_refused_with_what_to_write(
    problems_of: Problems, folder: str, message: str
) -> None:
    (line,) = problems_of(f"[recipe]\noutput_dir = '{folder}'\n{MODEL}{SCENE}")

    assert line.startswith("recipe.toml:2:14: recipe.output_dir: ")
    assert message in line


@pytest.mark.parametrize("folder", ["out", "../out/100%", "/data/a b", "./x-1", "a~b", "cost $5"])
def test_other_folders_are_taken_as_they_are(batch_of: Load, folder: str) -> None:
    batch = batch_of(f"[recipe]\noutput_dir = '{folder}'\n{MODEL}{SCENE}")

    assert str(batch.output_dir).endswith(folder.removeprefix("./"))


def test_bundled_recipes_are_read_as_before() -> None:
    assert load_recipe("quickstart").tables.recipe is not None
