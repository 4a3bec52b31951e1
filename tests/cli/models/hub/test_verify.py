"""Models in the local Hub cache: whole, half, pinned, checked; nothing here meets a network."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hub import COMMIT, NEXT_COMMIT, SPRITES, Hub, cache_repo, serve, sprites_files

from flowblend_cli import main
from flowblend_cli.errors import ModelMissingError, ModelNameError, RecipeError
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.contents import (
    check_contents,
    files_of,
    missing_of_pipeline,
    reader_of,
    wanted,
)
from flowblend_cli.models.identity import model_identity
from flowblend_cli.models.lockfile import LOCK_NAME, Pin, write_lock
from flowblend_cli.models.registry import pins, resolve_model, resolve_small
from flowblend_cli.utils.worker_process import worker_environment

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
NEEDED = sorted(
    {"model_index.json", *(n for n in sprites_files() if "/" in n and "small" not in n)}
)
RECIPE = """\
[model]
pipeline = "someone/sprites"

[blend]
stages = "L"

[[scene]]
name = "star"
prompt = "a white star"
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def render_refused(recipe: Path) -> str:
    """What stderr says of a render that ended before anything was loaded."""
    result = invoke("render", "--json", recipe)

    assert result.exit_code in (2, 3), result.output
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()] == ["summary"]
    return f"{result.exit_code}: {result.stderr}"


@pytest.mark.parametrize("name", NEEDED)
def test_each_file_that_loading_needs_is_missed(name: str) -> None:
    names = files_of(SPRITES)

    assert missing_of_pipeline(names, reader_of(SPRITES)) == []
    assert missing_of_pipeline(names - {name}, reader_of(SPRITES)) == [name]


def test_of_shards_those_that_the_index_lists_are_missed_and_without_it_all_that_are_numbered(
    tmp_path: Path,
) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKLWan"]}')
    (tmp_path / "vae/config.json").write_text("{}")
    shards = [f"diffusion_pytorch_model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    (tmp_path / "vae" / shards[1]).write_bytes(b"")
    index = tmp_path / "vae/diffusion_pytorch_model.safetensors.index.json"

    def missing() -> list[str]:
        return missing_of_pipeline(files_of(tmp_path), reader_of(tmp_path))

    others = [f"vae/{shards[0]}", f"vae/{shards[2]}"]
    assert missing() == [f"vae/{index.name}", *others]
    index.write_text(json.dumps({"weight_map": dict(zip("abc", shards, strict=True))}))
    assert missing() == others


def test_only_what_loading_reads_is_wanted() -> None:
    inside = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    outside = ["model.fp16.safetensors", "pytorch_model.bin", "model.py", "below/config.json", ".."]
    names = [f"vae/{name}" for name in (*inside, *outside)]
    names += ["all.safetensors", "README.md", "other/config.json", "../config.json"]

    assert wanted([*names, "model_index.json"], ["vae"]) == sorted(
        ["model_index.json", *(f"vae/{name}" for name in inside)]
    )


def test_a_half_cached_model_ends_the_render_before_anything_is_loaded(
    cache: Path, recipe_file: Callable[[str], Path]
) -> None:
    cache_repo(cache, "someone/sprites", sprites_files(WEIGHTS))

    said = render_refused(recipe_file(RECIPE))

    assert said.startswith("3: ")
    assert f"'someone/sprites' is only half there: {WEIGHTS} is missing" in said
    assert "flowblend models fetch" in said


def test_a_link_whose_blob_is_gone_counts_as_missing(
    cache: Path, recipe_file: Callable[[str], Path]
) -> None:
    snapshot = cache_repo(cache, "someone/sprites", sprites_files())
    (snapshot / WEIGHTS).resolve().unlink()

    assert f"{WEIGHTS} is missing" in render_refused(recipe_file(RECIPE))


def test_a_model_that_is_not_here_ends_the_render_with_what_to_do(
    cache: Path, recipe_file: Callable[[str], Path]
) -> None:
    said = render_refused(recipe_file(RECIPE))

    assert said.startswith("3: ")
    assert "'someone/sprites' isn't in the local Hub cache" in said
    assert "flowblend models fetch" in said
    assert "huggingface.co/someone/sprites" in said


class Canary:
    """Whatever unpickles it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "sung")


def edited(name: str, **keys: object) -> Callable[[dict[str, bytes]], None]:
    """A change of a JSON file of a repository."""

    def change(files: dict[str, bytes]) -> None:
        files[name] = json.dumps({**json.loads(files.get(name, b"{}")), **keys}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited("model_index.json", _class_name=["canary", "Pipeline"]), "names a pipeline file"),
        (edited("model_index.json", custom_pipeline="canary"), "model_index.json: custom_pipeline"),
        (edited("model_index.json", vae=["canary", "Model"]), "vae names canary.py"),
        (edited("text_encoder/config.json", auto_map={"AutoModel": "canary.Model"}), "auto_map"),
        (
            edited("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["canary.T"]}),
            "tokenizer/tokenizer_config.json: auto_map",
        ),
    ],
)  # fmt: skip
def test_a_model_that_brings_code_is_refused_and_the_code_never_runs(
    change: Callable[[dict[str, bytes]], None],
    said: str,
    cache: Path,
    tmp_path: Path,
    recipe_file: Callable[[str], Path],
) -> None:
    files, canary = sprites_files(), tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\nclass Pipeline: pass\nModel = T = Pipeline\n".encode()
    folders = ("", "vae/", "text_encoder/", "tokenizer/", "transformer/")
    files |= {f"{folder}canary.py": code for folder in folders}
    change(files)
    cache_repo(cache, "someone/sprites", files)
    folder = tmp_path / "local"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    for model in ("someone/sprites", "./local"):
        told = render_refused(recipe_file(RECIPE.replace("someone/sprites", model)))
        assert told.startswith("2: "), told
        assert f"model '{model}' brings code of its own" in told
        assert said in told
    assert not canary.exists()


@pytest.mark.parametrize("scheme", ["http:", "https:", "HTTP:", ""])
def test_no_address_in_a_recipe_is_ever_asked(
    scheme: str, recipe_file: Callable[[str], Path]
) -> None:
    with serve(Hub(renamed={"someone/picture.png": "someone/redirected.png"})) as hub:
        address = f"{scheme}{hub.endpoint.removeprefix('http:')}/someone/picture.png"
        style = f'[model.adapters]\nstyle = "{address}.safetensors"\n\n[blend]'
        lora = RECIPE.replace("[blend]", style).replace("someone/sprites", "sprites")
        model = RECIPE.replace("someone/sprites", address) + f'image = "{address}"\n'

        said = [invoke("check", recipe_file(text)) for text in (model, lora)]

        assert [one.exit_code for one in said] == [2, 2]
        told = "".join(one.stderr for one in said)
        for key in ("model.pipeline", "scene[0].image", "model.adapters"):
            assert key in told
        assert hub.asked == []


def test_pickle_weights_are_refused_and_never_read(
    cache: Path, tmp_path: Path, recipe_file: Callable[[str], Path]
) -> None:
    canary = tmp_path / "canary"
    files = sprites_files(WEIGHTS)
    files["transformer/diffusion_pytorch_model.bin"] = pickle.dumps(Canary(canary))
    cache_repo(cache, "someone/sprites", files)

    said = render_refused(recipe_file(RECIPE))

    assert said.startswith("3: ")
    assert "pickle weights only (transformer/diffusion_pytorch_model.bin)" in said
    assert not canary.exists()
    pickle.loads(files["transformer/diffusion_pytorch_model.bin"])
    assert canary.exists(), "the canary does sing"


def test_this_process_and_those_that_it_starts_are_offline() -> None:
    for environment in (os.environ, worker_environment()):
        assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"


def test_a_lock_decides_the_commit_wherever_the_cache_has_moved_to(
    cache: Path, tmp_path: Path
) -> None:
    cache_repo(cache, "someone/sprites", sprites_files())
    cache_repo(cache, "someone/sprites", sprites_files(), NEXT_COMMIT)
    spec = ModelSpec("someone/sprites", "someone/sprites")

    def commits() -> set[str]:
        return {told["commit"] for told in model_identity(spec, tmp_path).values()}

    assert commits() == {NEXT_COMMIT}
    write_lock(tmp_path, [Pin("someone/sprites", COMMIT, "someone/sprites")])
    assert commits() == {COMMIT}


def test_a_lock_wins_over_a_pairs_own_commit_and_a_commit_in_the_name_over_the_lock(
    tmp_path: Path,
) -> None:
    repo = resolve_model("wan2.1-t2v", tmp_path).repo
    assert repo is not None
    write_lock(tmp_path, [Pin(repo, COMMIT, "wan2.1-t2v")])

    assert resolve_model("wan2.1-t2v", tmp_path).revision == COMMIT
    assert resolve_model(repo, tmp_path).revision == COMMIT
    named = resolve_model(f"{repo}@{NEXT_COMMIT}", tmp_path)
    assert (named.repo, named.revision) == (repo, NEXT_COMMIT)
    assert named.pair is not None
    small = resolve_small(f"Wan-AI/Wan2.1-T2V-1.3B-Diffusers@{NEXT_COMMIT}", tmp_path)
    assert (small.revision, small.subfolder) == (NEXT_COMMIT, "transformer")
    for name in (f"{repo}@main", f"{repo}@{COMMIT[:12]}", f"{repo}@{COMMIT.upper()}"):
        with pytest.raises(ModelNameError, match="40 hexadecimal digits"):
            resolve_model(name, tmp_path)


ENTRY = f'[[model]]\nrepo = "someone/sprites"\nrevision = "{COMMIT}"\nasked = "someone/sprites"\n'


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (f"version = 2\n{ENTRY}", "1:1", "must be 1, got 2"),
        (f"version = 1\nnew = 1\n{ENTRY}", "2:1", "is no key of a lock"),
        ("version = 1\nmodel = 3\n", "2:1", "must be [[model]] tables"),
        (f"version = 1\n{ENTRY}".replace(COMMIT, "main"), "4:1", "40 hexadecimal digits"),
        (f"version = 1\n{ENTRY}".replace(COMMIT, COMMIT[:39]), "4:1", "40 hexadecimal digits"),
        (f"version = 1\n{ENTRY}".replace('asked = "someone/sprites"', 'asked = "wan2.1-t2v"'),
         "5:1", "'wan2.1-t2v' doesn't stand for 'someone/sprites'"),
        (f"version = 1\n{ENTRY}".replace('asked = "someone/sprites"', ""), "2:1", "must be a str"),
        (f"version = 1\n{ENTRY}{ENTRY}", "7:1", "pinned twice"),
        (f"version = 1\n{ENTRY}extra = 1\n", "6:1", "is no key of an entry"),
        ("version = 1\n[[model]\n", "2:", "not valid TOML"),
        ("\udcff", "1:1", "not UTF-8"),
        ("a = " + "[" * 5000, "1:37", "nested deeper than the limit"),
        ("#" * 1024 * 1025, "1:1", "larger than the limit"),
    ],
)  # fmt: skip
def test_a_broken_lock_is_one_clear_error_with_its_place(
    text: str, place: str, said: str, recipe_file: Callable[[str], Path]
) -> None:
    recipe = recipe_file(RECIPE)
    lock = recipe.parent / LOCK_NAME
    lock.write_text(text, "utf-8", "surrogateescape")

    result = invoke("check", recipe)

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{lock}:{place}")
    assert said in line


def test_all_problems_of_a_lock_are_told_at_once(tmp_path: Path) -> None:
    broken = ENTRY.replace(COMMIT, "main") + ENTRY.replace('repo = "someone/', 'repo = "')
    (tmp_path / LOCK_NAME).write_text(f"version = 3\n{broken}")

    with pytest.raises(RecipeError) as caught:
        resolve_model("someone/sprites", tmp_path)

    assert len(caught.value.problems) == 4  # version, revision, repo, and what it stands for


def test_a_written_lock_is_read_back_whatever_a_file_is_called(tmp_path: Path) -> None:
    odd = 'someone/style/a "b"\\c\x7f\n.safetensors'
    written = [
        Pin("someone/style", COMMIT, odd),
        Pin("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", NEXT_COMMIT, "wan2.1-t2v"),
    ]

    write_lock(tmp_path, written)

    assert sorted(pins(tmp_path).values()) == sorted(written)


def test_a_render_says_which_models_are_not_pinned(
    cache: Path, recipe_file: Callable[[str], Path]
) -> None:
    cache_repo(cache, "someone/sprites", sprites_files(WEIGHTS))
    recipe = recipe_file(RECIPE)

    said = render_refused(recipe)
    assert f"not pinned: someone/sprites (now {COMMIT[:12]})" in said

    write_lock(recipe.parent, [Pin("someone/sprites", COMMIT, "someone/sprites")])
    assert "not pinned" not in render_refused(recipe)


def test_ls_tells_what_is_complete_half_or_absent(cache: Path) -> None:
    cache_repo(cache, "someone/sprites", sprites_files())
    cache_repo(cache, "someone/half", sprites_files(WEIGHTS))
    pair = resolve_model("wan2.1-t2v", cache)
    assert pair.repo is not None
    assert pair.revision is not None
    cache_repo(cache, pair.repo, sprites_files("model_index.json"), pair.revision)

    listed = json.loads(invoke("models", "ls", "--json").stdout)

    assert (listed["v"], listed["cache"]) == (1, str(cache))
    states = {(row["name"], row["role"]): row["state"] for row in listed["models"]}
    assert states["sprites", "bundled"] == "complete"
    assert states["wan2.1-t2v", "small"] == "absent"
    assert states["qwen-image", "pipeline"] == "absent"
    others = {row["repo"]: row for row in listed["others"]}
    assert others["someone/sprites"]["state"] == "complete"
    assert others["someone/sprites"]["bytes"] == sum(map(len, sprites_files().values()))
    assert others["someone/half"]["missing"] == [WEIGHTS]
    assert others["someone/half"]["commit"] == COMMIT

    plain = invoke("models", "ls").stdout
    assert f"someone/half {COMMIT[:12]}  half: {WEIGHTS} is missing" in plain


def test_verify_finds_every_file_that_is_not_as_it_was_published(
    cache: Path, recipe_file: Callable[[str], Path]
) -> None:
    snapshot = cache_repo(cache, "someone/sprites", sprites_files())
    recipe = recipe_file(RECIPE)
    sound = invoke("models", "verify", recipe)
    assert (sound.exit_code, sound.stdout.split(":")[0]) == (0, "OK someone/sprites")
    assert "without a recorded hash" not in sound.stdout

    for name in (WEIGHTS, "vae/config.json"):  # a large file's hash and a small one's
        blob = (snapshot / name).resolve()
        data = bytearray(blob.read_bytes())
        data[-2] ^= 1
        blob.write_bytes(data)
    (snapshot / "tokenizer/tokenizer.json").unlink()

    result = invoke("models", "verify", "--json", "someone/sprites")

    assert result.exit_code == 3
    (model,) = json.loads(result.stdout)["models"]
    assert {fault["file"] for fault in model["faults"]} == {
        WEIGHTS,
        "vae/config.json",
        "tokenizer/tokenizer.json",
    }
    assert str((snapshot / WEIGHTS).resolve()) in result.stderr
    assert "flowblend models fetch" in result.stderr


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (WEIGHTS, b"", "is no safetensors file, or is cut short"),
        (WEIGHTS, (50).to_bytes(8, "little") + b"{}", "cut short"),
        (WEIGHTS, (2).to_bytes(8, "little") + b"[]", "a header that can't be read"),
        (WEIGHTS, (2).to_bytes(8, "little") + b"{}x", "has 11 bytes, and its header tells of 10"),
        ("vae/config.json", b"{", "isn't JSON"),
        ("vae/config.json", b"[" * 100_000, "isn't JSON"),
    ],
)
def test_verify_reads_the_form_of_files_without_a_recorded_hash(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    for file, content in {**sprites_files(), name: data}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)

    result = invoke("models", "verify", tmp_path)

    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert name in line
    assert said in line


def test_the_bundled_pair_verifies() -> None:
    result = invoke("models", "verify", "sprites", "quickstart")

    assert result.exit_code == 0
    assert result.stdout.startswith("OK sprites: ")


def test_a_name_that_is_no_model_and_no_recipe_says_what_would_be() -> None:
    for command in ("fetch", "verify"):
        result = invoke("models", command, "nothing")
        assert result.exit_code == 2
        assert "neither a model nor a recipe" in result.stderr


def test_the_shipped_models_are_whole_and_bring_no_code() -> None:
    check_contents(SPRITES, "sprites", None, pipeline=True)
    check_contents(SPRITES, "sprites", "transformer_small", pipeline=False)
    assert SPRITES.is_relative_to(bundled_dir())
    with pytest.raises(ModelMissingError, match=r"unet/config\.json"):
        check_contents(SPRITES, "sprites", "unet", pipeline=False)
