"""What ``check`` and ``render`` say of a LoRA file from its header, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from flowblend_cli.errors import ModelMissingError, ModelNameError
from flowblend_cli.jobs import AdapterSpec, ModelSpec
from flowblend_cli.main import main
from flowblend_cli.models.adapters import adapter_file, adapter_problems
from flowblend_cli.models.bundled import bundled_dir

OWN = bundled_dir() / "models/sprites/adapters/monochrome_large.safetensors"
RECIPE = """\
[model]
pipeline = "sprites"
adapters = { style = "./style.safetensors" }

[[blend.stage]]
denoiser = "large"
adapters = [{ name = "style" }]

[defaults]
num_inference_steps = 2
max_sequence_length = 64

[[scene]]
name = "a"
prompt = "a red circle moving right on a navy background"
"""
BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "half": (lambda w: w.popitem() and None, "is one half of a LoRA"),
    "LoHa": (lambda w: w.update({"blocks.0.q.hada_w1_a": torch.ones(2)}), "is LoHa's"),
    "DoRA": (lambda w: w.update({"blocks.0.q.dora_scale": torch.ones(2)}), "is kohya's DoRA's"),
    "norm": (lambda w: w.update({"blocks.0.norm1.diff": torch.ones(2)}), "to be added to norms"),
    "text": (
        lambda w: [w.pop(k) for k in list(w)] and w.update({"lora_te_a.alpha": torch.ones(1)}),
        "only of a text encoder",
    ),
}


@pytest.fixture
def recipe(recipe_file: Callable[[str], Path]) -> Path:
    return recipe_file(RECIPE)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def broken(folder: Path, how: str) -> str:
    change, says = BROKEN[how]
    weights = load_file(OWN)
    change(weights)
    save_file(weights, folder / "style.safetensors")
    return says


@pytest.mark.parametrize("how", BROKEN)
def test_what_diffusers_cant_use_is_said_at_the_recipes_key(recipe: Path, how: str) -> None:
    says = broken(recipe.parent, how)

    checked = run("check", str(recipe))
    assert checked.exit_code == 2
    (line,) = checked.output.splitlines()
    assert line.startswith(f"{recipe}:3:22: model.adapters.style: './style.safetensors' can't be")
    assert says in line
    assert run("plan", str(recipe)).exit_code == 3
    assert run("render", str(recipe)).exit_code == 3
    assert not (recipe.parent / "out").exists()


def test_a_file_cut_short_isnt_whole(recipe: Path) -> None:
    path = recipe.parent / "style.safetensors"
    for end in (0, 7, 100, -1):
        path.write_bytes(OWN.read_bytes()[:end])
        checked = run("check", str(recipe))
        assert checked.exit_code == 2
        assert "style.safetensors" in checked.output
        assert run("render", str(recipe)).exit_code == 3
        with pytest.raises(ModelMissingError, match=r"style\.safetensors"):
            adapter_file("./style.safetensors", "style", "large", recipe.parent)


def test_a_problem_of_the_recipe_itself_keeps_its_exit_code(recipe: Path) -> None:
    broken(recipe.parent, "half")
    recipe.write_text(RECIPE.replace("num_inference_steps = 2", "num_inference_steps = 0"))

    result = run("render", str(recipe))

    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 2


def test_a_pickle_is_refused_at_the_key_that_names_it(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("style.safetensors", "style.pt"))

    result = run("check", str(recipe))

    assert result.exit_code == 2
    assert f"{recipe}:3:22: model.adapters.style: './style.pt' is no LoRA file" in result.output


def test_a_text_encoders_weights_are_a_warning(recipe: Path) -> None:
    more = {f"text_encoder.q.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    save_file(load_file(OWN) | more, recipe.parent / "style.safetensors")

    result = run("check", str(recipe))

    assert result.exit_code == 0
    assert "LoRA './style.safetensors' has 2 weights for a text encoder" in result.output


def test_layers_that_the_denoiser_hasnt_are_named_before_it_is_loaded(recipe: Path) -> None:
    weights = load_file(OWN)
    here = next(iter(weights)).partition(".lora")[0]
    for prefix in ("", "transformer.", "base_model.model."):
        more = {f"blocks.99.attn1.to_q.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
        file = {prefix + key: value for key, value in (weights | more).items()}
        save_file(file, recipe.parent / "style.safetensors")
        checked = run("check", str(recipe))
        assert checked.exit_code == 2
        assert "1 layer (blocks.99.attn1.to_q): not in the denoiser" in checked.output
    small = RECIPE.replace('denoiser = "large"', 'denoiser = "small"')
    recipe.write_text(small)
    save_file(weights, recipe.parent / "style.safetensors")
    assert run("render", str(recipe)).exit_code == 3
    assert f"layers ({here}" in run("check", str(recipe)).output
    assert "of another size in the denoiser" in run("check", str(recipe)).output


def test_names_of_another_trainer_and_a_pictures_layers_are_left_to_loading(recipe: Path) -> None:
    other = {f"diffusion_model.blocks.99.q.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    picture = {f"blocks.0.attn2.add_k_proj.lora_{h}.weight": torch.ones(2, 2) for h in "AB"}
    for weights in (other, load_file(OWN) | picture):
        save_file(weights, recipe.parent / "style.safetensors")
        assert run("check", str(recipe)).exit_code == 0


def test_the_bundled_ones_are_whole_and_others_arent_judged_before_they_are_here(
    tmp_path: Path,
) -> None:
    own = AdapterSpec("monochrome", "large", "sprites")
    strange = AdapterSpec("x", "large", "owner/nothing/x.safetensors")
    assert adapter_problems(own, tmp_path, ModelSpec("sprites")) == []
    assert adapter_file("sprites", "monochrome", "large", tmp_path) == OWN
    assert adapter_problems(strange, tmp_path, None) == []
    with pytest.raises(ModelMissingError, match=r"x\.safetensors is missing"):
        adapter_file(strange.source, "x", "large", tmp_path)
    with pytest.raises(ModelNameError):
        adapter_problems(AdapterSpec("x", "large", "x.bin"), tmp_path, None)
