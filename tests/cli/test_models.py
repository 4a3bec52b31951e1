from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowblend_cli import main
from flowblend_cli.errors import ModelNameError
from flowblend_cli.models import known_pairs, resolve_model, resolve_small
from flowblend_cli.recipe.loader import load_batch

CONFIG = {"_class_name": "WanTransformer3DModel", "in_channels": 16, "text_dim": 64}


def make_pipeline(folder: Path, **config: object) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (folder / "transformer/config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def test_a_bundled_name_wins_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sprites").mkdir()

    source = resolve_model("sprites", tmp_path)

    assert source.path is not None
    assert source.path.parts[-2:] == ("models", "sprites")
    assert resolve_small("sprites", tmp_path).subfolder == "transformer_small"


def test_a_known_pairs_name_stands_for_its_hub_ids(tmp_path: Path) -> None:
    pair = known_pairs()["wan2.1-t2v"]

    assert resolve_model("wan2.1-t2v", tmp_path).repo == pair.pipeline
    assert resolve_small("wan2.1-t2v", tmp_path).repo == pair.small


def test_folders_are_relative_to_the_recipe(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "large")

    source = resolve_model("./large", tmp_path)

    assert source.path == tmp_path / "large"
    assert source.pipeline_class == "WanPipeline"
    assert resolve_small("./large", tmp_path).subfolder == "transformer"
    assert resolve_small("./large/transformer", tmp_path).subfolder is None


def test_two_words_with_a_slash_are_a_hub_id_even_beside_such_a_folder(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "owner/name")

    assert resolve_model("owner/name", tmp_path).repo == "owner/name"


@pytest.mark.parametrize(
    "name",
    ["", "sprite", "./none", "/none", "~/x", "a/b/c", "a\\b", "..", "a/..", "../none", "http://a/b",
     "a/b.bin", "./x.pt", "x.ckpt", "/x.PKL", "C:\\x", "a b/c", "\0/x"],
)  # fmt: skip
def test_anything_else_is_no_model(tmp_path: Path, name: str) -> None:
    for resolve in (resolve_model, resolve_small):
        with pytest.raises(ModelNameError):
            resolve(name, tmp_path)


def test_a_folder_without_a_pipeline_or_a_denoiser_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNameError, match=r"model_index\.json"):
        resolve_model(str(tmp_path), tmp_path)
    with pytest.raises(ModelNameError, match="transformer_small, transformer, unet"):
        resolve_small(str(tmp_path), tmp_path)


def init(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


def test_init_writes_a_recipe_that_passes_check_and_says_what_to_type_next(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"

    result = init("--pipeline", "sprites", "-o", str(path))

    assert result.exit_code == 0, result.output
    assert f"next: flowblend plan {path}" in result.stdout
    assert load_batch(path).jobs[0].model.small == "sprites"


def test_init_names_folders_relative_to_the_recipe(tmp_path: Path) -> None:
    large = make_pipeline(tmp_path / "large")
    small = make_pipeline(tmp_path / "small", num_layers=2)
    path = tmp_path / "new.toml"

    result = init("--pipeline", str(large), "--small", str(small), "-o", str(path))

    assert result.exit_code == 0, result.output
    assert "the pair fits" in result.stdout
    model = load_batch(path).jobs[0].model
    assert (model.pipeline, model.small) == ("./large", "./small")


def test_init_lists_every_mismatch_and_writes_nothing(tmp_path: Path) -> None:
    large = make_pipeline(tmp_path / "large")
    small = make_pipeline(tmp_path / "small", in_channels=48, text_dim=32)
    path = tmp_path / "new.toml"

    result = init("--pipeline", str(large), "--small", str(small), "-o", str(path))

    assert result.exit_code == 2
    assert "48" in result.stderr
    assert "32" in result.stderr
    assert not path.exists()


def test_init_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    path.write_text("mine")

    result = init("--pipeline", "sprites", "-o", str(path))

    assert result.exit_code == 2
    assert path.read_text() == "mine"


def test_init_of_models_that_are_not_here_writes_the_recipe_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "new.toml"

    result = init("--pipeline", "owner/large", "--small", "owner/small", "-o", str(path))

    assert result.exit_code == 0, result.output
    assert "not checked whether the pair fits: owner/large and owner/small" in result.stdout
    assert load_batch(path).jobs


def test_init_of_a_single_unknown_model_asks_for_the_small_one(tmp_path: Path) -> None:
    result = init("--pipeline", "owner/large", "-o", str(tmp_path / "new.toml"))

    assert result.exit_code == 2
    assert "--small is needed" in result.stderr
