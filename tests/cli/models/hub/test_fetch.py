"""Fetching from a Hub on this machine: the real client, in the process that downloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hub import COMMIT, EXTRAS, NEXT_COMMIT, Hub, cache_repo, serve, sprites_files

from flowblend_cli import main
from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.errors import ModelMissingError, OutputError
from flowblend_cli.models.hub.fetch import fetch
from flowblend_cli.models.hub.requirements import Requirement
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.identity import model_identity
from flowblend_cli.models.lockfile import LOCK_NAME
from flowblend_cli.recipe.loader import load_batch

TOKEN = "hf_Canary0123456789abcdefghijklmnopqr"
RECIPE = """\
[model]
pipeline = "someone/sprites"
small = "someone/sprites"

[metrics]
names = []

[defaults]
height = 64
width = 64
num_frames = 1
num_inference_steps = 2
max_sequence_length = 64

[[scene]]
name = "star"
prompt = "a white star on a black background"
seeds = [1]
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and a token both in the environment and in its file."""
    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("FLOWBLEND_USER_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(TOKEN)
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub()) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def recipe(recipe_file: Callable[[str], Path]) -> Path:
    return recipe_file(RECIPE)


def test_fetch_takes_what_loading_reads_pins_it_and_keeps_to_the_pin(
    hub: Hub, recipe: Path, cache: Path
) -> None:
    files = sprites_files("preview.safetensors", "calibration.json")
    hub.repos["someone/sprites"] = {**files, **EXTRAS}

    result = invoke("models", "fetch", recipe)

    assert result.exit_code == 0, result.output
    assert sorted(hub.fetched) == sorted(files)
    assert hub.tokens == {TOKEN}
    assert TOKEN not in result.output
    assert f"someone/sprites at {COMMIT[:12]}: " in result.stderr
    assert "to download" in result.stderr
    lock = (recipe.parent / LOCK_NAME).read_text("utf-8")
    assert f'repo = "someone/sprites"\nrevision = "{COMMIT}"' in lock

    hub.commits["someone/sprites"] = NEXT_COMMIT
    hub.asked.clear()
    cache_repo(cache, "someone/sprites", files, NEXT_COMMIT)  # another tool moved the cache on
    (job,) = load_batch(recipe).jobs
    assert model_identity(job.model, recipe.parent)["pipeline"]["commit"] == COMMIT
    again = invoke("models", "fetch", recipe)
    assert (again.exit_code, hub.fetched) == (0, [])
    assert (recipe.parent / LOCK_NAME).read_text("utf-8") == lock

    assert invoke("models", "fetch", "--update", recipe).exit_code == 0
    assert NEXT_COMMIT in (recipe.parent / LOCK_NAME).read_text("utf-8")
    identity = model_identity(job.model, recipe.parent)
    assert {role: told["commit"] for role, told in identity.items()} == {
        "pipeline": NEXT_COMMIT,
        "small": NEXT_COMMIT,
    }


def test_every_repository_that_cannot_be_had_is_told_at_once_with_what_to_do(
    hub: Hub, recipe_file: Callable[[str], Path]
) -> None:
    whole = sprites_files()
    pickles = {k: v for k, v in whole.items() if k != "vae/diffusion_pytorch_model.safetensors"}
    hub.repos = {
        "someone/gated": whole,
        "someone/new": whole,
        "someone/pickles": {**pickles, "vae/diffusion_pytorch_model.bin": b"x"},
    }
    hub.gated = {"someone/gated"}
    hub.renamed = {"someone/old": "someone/new"}
    text = RECIPE.replace('small = "someone/sprites"', 'small = "someone/old"')
    text = text.replace('"someone/sprites"', '"someone/gated"').replace(
        "[metrics]", '[model.denoisers]\nD = "someone/gone"\n\n[blend]\nstages = "LSD"\n'
        "boundaries = [0.4, 0.8]\n\n[metrics]"
    )  # fmt: skip
    recipe = recipe_file(text)

    result = invoke("render", "--allow-download", "--json", recipe)

    assert result.exit_code == 3
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events == ["summary"], "no model was loaded"
    gated, gone, old = sorted(line for line in result.stderr.splitlines() if "someone/" in line)
    assert "huggingface.co/someone/gated" in gated
    assert "hf auth login" in gated
    assert "someone/gone isn't on the Hub, or is private" in gone
    assert "someone/old is called someone/new now" in old
    assert not hub.fetched
    assert not (recipe.parent / LOCK_NAME).exists()

    result = invoke("models", "fetch", "someone/pickles")
    assert result.exit_code == 3
    assert "pickle weights only (vae/diffusion_pytorch_model.bin)" in result.stderr


def test_what_was_interrupted_goes_on_where_it_was(hub: Hub, cache: Path) -> None:
    files = {"a.safetensors": b"a", "b.safetensors": b"b", "README.md": b"c"}
    hub.repos["someone/style"] = files
    requirements = [
        Requirement("x", "someone/style", None, "file", name) for name in list(files)[:2]
    ]
    hub.failing = {"b.safetensors"}

    with pytest.raises(ModelMissingError, match=r"refuses someone/style \(HTTP 403\)"):
        fetch(requirements, lambda _: None)

    hub.failing.clear()
    hub.sizes["b.safetensors"] = 10**18
    with pytest.raises(OutputError, match=r"no room: 1000000000\.0 GB to download"):
        fetch(requirements, lambda _: None)

    hub.sizes.clear()
    told: list[str] = []
    entries = fetch(requirements, told.append)
    assert [one.state for one in entries] == ["complete", "complete"]
    assert sorted(hub.fetched) == ["a.safetensors", "b.safetensors"], "each once"
    assert (snapshot("someone/style", None) or cache).name == COMMIT


def test_a_signal_ends_a_download_at_once(hub: Hub) -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([Requirement("x", "someone/style", None, "pipeline")], lambda _: None, check)

    assert hub.fetched == []


def test_without_a_network_fetching_ends_at_once_with_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    result = invoke("models", "fetch", "someone/sprites")

    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "can't be reached for someone/sprites" in line
    assert "fetching needs the network" in line

    monkeypatch.setenv("FLOWBLEND_USER_OFFLINE", "1")
    result = invoke("models", "fetch", "someone/sprites")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "HF_HUB_OFFLINE" in line


def test_a_render_that_may_download_fetches_renders_and_shows_the_token_nowhere(
    hub: Hub, recipe: Path, tmp_path: Path
) -> None:
    hub.broken = True
    failed = invoke("render", "--allow-download", "-vv", recipe)
    assert failed.exit_code == 3
    assert "the Hub refuses someone/sprites (HTTP 500)" in failed.stderr
    assert hub.tokens == {TOKEN}, "the token was sent, so it could have been shown"

    hub.broken = False
    hub.repos["someone/sprites"] = sprites_files()
    done = invoke("render", "--allow-download", "-vv", recipe)

    assert done.exit_code == 0, done.output
    (clip,) = tmp_path.rglob("star*.png")
    models = (read_document(clip) or {})["models"]
    assert models["pipeline"]["commit"] == COMMIT
    assert COMMIT in (tmp_path / LOCK_NAME).read_text("utf-8")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
    assert any(".flowblend" in path.parts for path in written)
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in failed.output + done.output

    hub.asked.clear()
    again = invoke("render", "--allow-download", recipe)
    assert (again.exit_code, hub.asked) == (0, []), "all is here: the Hub isn't asked"
