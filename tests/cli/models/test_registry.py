from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flowblend_cli import main
from flowblend_cli.errors import ModelMissingError, ModelNameError
from flowblend_cli.jobs import Batch, ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import local_folder, model_identity
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.registry import KnownPair, known_pairs, resolve_model, resolve_small
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


def test_a_known_pairs_name_stands_for_commits_and_a_repositorys_own_name_does_not(
    tmp_path: Path,
) -> None:
    pair = known_pairs()["wan2.1-t2v"]
    assert pair.pipeline is not None

    assert resolve_model("wan2.1-t2v", tmp_path).revision == pair.revision
    assert resolve_small("wan2.1-t2v", tmp_path).revision == pair.small_revision
    by_repo = resolve_model(pair.pipeline, tmp_path)
    assert (by_repo.repo, by_repo.revision, by_repo.pair) == (pair.pipeline, None, pair)


def pipeline_text(pair: KnownPair) -> str:
    """A recipe that says no more than a pair's name."""
    needs_image = argument_table().needs_image(pair.pipeline_class)
    image = 'image = "images/walker.png"' if needs_image else ""
    return f'[model]\npipeline = "{pair.name}"\n[[scene]]\nname = "a"\nprompt = "b"\n{image}\n'


PAIRS = sorted(known_pairs())


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_written_of_a_pair_is_consistent(name: str, tmp_path: Path) -> None:
    pair = known_pairs()[name]

    assert pair.description == pair.description.strip()
    assert "\n" not in pair.description
    for repo, revision in ((pair.pipeline, pair.revision), (pair.small, pair.small_revision)):
        assert (repo is None) == (revision is None)
        assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)
    assert (pair.expert_boundary is not None) == (len(pair.subfolders) == 2)
    assert list(pair.boundaries) == sorted(pair.boundaries)
    table = argument_table()
    assert set(pair.defaults) <= table.pipelines[pair.pipeline_class] | {"negative_prompt"}
    assert set(pair.sampling) <= {"scheduler", "flow_shift"}
    if pair.implied_small is None:
        with pytest.raises(ModelNameError, match="has no small denoiser"):
            resolve_small(name, tmp_path)
    else:
        assert resolve_small(name, tmp_path).subfolder == pair.small_subfolder


def test_the_documentation_names_every_pair_and_its_repositories() -> None:
    text = (Path(__file__).parents[3] / "docs/recipes.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `")]

    for pair in known_pairs().values():
        (row,) = [line for line in table if line.startswith(f"| `{pair.name}` |")]
        assert all(f"`{repo}`" in row for repo in (pair.pipeline, pair.small) if repo)


@pytest.mark.parametrize("name", PAIRS)
def test_a_recipe_that_only_names_a_pair_starts_from_the_pairs_own_values(
    name: str, tmp_path: Path
) -> None:
    pair = known_pairs()[name]
    shutil.copytree(bundled_dir() / "images", tmp_path / "images")
    path = tmp_path / "recipe.toml"
    path.write_text(pipeline_text(pair))

    (job,) = load_batch(path).jobs

    arguments = {"num_inference_steps": 50, **pair.defaults}
    assert job.negative_prompt == arguments.pop("negative_prompt", None)
    assert job.pipeline_arguments() == arguments
    assert job.sampling.flow_shift == pair.sampling.get("flow_shift")
    assert job.model.small == pair.implied_small
    assert job.stage_string == ("LSL" if pair.implied_small else "L")


def test_what_a_recipe_says_wins_over_its_pair(batch_of: Callable[..., Batch]) -> None:
    text = pipeline_text(known_pairs()["wan2.2-t2v"]) + "height = 720\n"

    (job,) = batch_of(text, "sampling.flow_shift=3.0", "defaults.num_inference_steps=8").jobs

    assert (job.argument("height"), job.argument("width")) == (720, 832)
    assert (job.sampling.flow_shift, job.num_inference_steps) == (3.0, 8)


def test_a_pair_without_a_small_model_says_so_where_stages_ask_for_it(
    problems_of: Callable[..., list[str]], batch_of: Callable[..., Batch], tmp_path: Path
) -> None:
    text = pipeline_text(known_pairs()["qwen-image"])

    (line,) = problems_of(text + '[blend]\nstages = "LSL"\nboundaries = [0.4, 0.8]\n')
    assert "model.small: is missing" in line
    (line,) = problems_of(text.replace("[[scene]]", 'small = "qwen-image"\n[[scene]]'))
    assert "the pair 'qwen-image' has no small denoiser" in line

    make_pipeline(tmp_path / "small")
    (job,) = batch_of(text.replace("[[scene]]", 'small = "./small"\n[[scene]]')).jobs
    assert (job.model.small, job.stage_string) == ("./small", "LSL")


@pytest.mark.parametrize("option", ["scheduler=unipc", "flow_shift=3.0", "mode=sde"])
def test_a_pair_whose_noise_levels_follow_no_fixed_shift_keeps_its_scheduler(
    problems_of: Callable[..., list[str]], option: str
) -> None:
    (line,) = problems_of(pipeline_text(known_pairs()["ltx-video"]), f"sampling.{option}")

    assert "ltx-video keeps its own scheduler" in line
    assert f"leave {option.partition('=')[0]} out" in line


def cached(cache: Path, repo: str, commit: str, filename: str) -> Path:
    """Put a file into a Hub cache, as downloading it would."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text(commit)
    path = folder / "snapshots" / commit / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return folder / "snapshots" / commit


def test_a_pair_is_taken_from_the_cache_at_its_own_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pair, other = known_pairs()["wan2.1-t2v"], "0" * 40
    assert pair.pipeline is not None
    assert pair.revision is not None
    assert pair.small is not None
    assert pair.small_revision is not None
    cached(tmp_path, pair.pipeline, other, "model_index.json")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        cached(tmp_path, pair.small, pair.small_revision, f"transformer/{name}")
    spec = ModelSpec("wan2.1-t2v", "wan2.1-t2v")

    with pytest.raises(ModelMissingError, match=f"{pair.pipeline}.* {pair.revision}"):
        model_identity(spec, tmp_path)

    large = cached(tmp_path, pair.pipeline, pair.revision, "model_index.json")
    cached(tmp_path, pair.pipeline, other, "model_index.json")  # main has moved on since
    assert local_folder(resolve_model("wan2.1-t2v", tmp_path)) == large
    assert local_folder(resolve_model(pair.pipeline, tmp_path)).name == other
    found = model_identity(spec, tmp_path)
    assert found["pipeline"]["commit"] == pair.revision
    assert found["small"]["commit"] == pair.small_revision


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


def test_init_of_a_model_without_a_small_one_asks_for_it(tmp_path: Path) -> None:
    result = init("--pipeline", "owner/large", "-o", str(tmp_path / "new.toml"))

    assert result.exit_code == 2
    assert "--small is needed" in result.stderr


@pytest.mark.parametrize("pipeline", ["qwen-image", "wan2.2-i2v", "i2vgen-xl"])
def test_init_of_a_known_pipeline_without_a_small_one_is_all_large(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "new.toml"

    result = init("--pipeline", pipeline, "-o", str(path))

    assert result.exit_code == 0, result.output
    (job,) = load_batch(path).jobs
    assert (job.stage_string, job.model.small) == ("L", None)
    assert f"next: flowblend models fetch {path}" in result.stdout


def test_init_of_a_pipeline_that_begins_with_a_picture_brings_one_or_takes_yours(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.png"
    (tmp_path / "a").mkdir()
    Image.new("RGB", (32, 32), "red").save(mine)
    small = ("--pipeline", "wan2.2-i2v", "--small", "owner/small")

    example = init(*small, "-o", str(tmp_path / "a/one.toml"))
    own = init(*small, "-o", str(tmp_path / "a/two.toml"), "--image", str(mine))
    beside = init(*small, "-o", str(tmp_path / "three.toml"), "--image", str(mine))
    refused = init("--pipeline", "sprites", "--image", str(mine), "-o", str(tmp_path / "four.toml"))

    names = [
        image.path
        for name in ("a/one", "a/two", "three")
        if (image := load_batch(tmp_path / f"{name}.toml").jobs[0].image) is not None
    ]
    assert names == ["walker.png", "mine.png", "mine.png"]
    assert (tmp_path / "a/mine.png").read_bytes() == mine.read_bytes()
    assert "put your own in its place" in example.stdout
    assert (own.exit_code, beside.exit_code, refused.exit_code) == (0, 0, 2)


@pytest.mark.parametrize("name", ["7", "[1, 2]", "null"])
def test_a_folder_whose_class_is_no_name_has_no_known_class(tmp_path: Path, name: str) -> None:
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": {name}}}', "utf-8")

    assert resolve_model(str(tmp_path), tmp_path).pipeline_class is None
