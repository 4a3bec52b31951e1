"""Files and models on machines of a cluster: real Ray, nodes with other mounts and Hub caches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_hub import COMMIT, Hub, cache_repo, serve, sprites_files
from far_node import can_hide, far_node
from far_recipe import SPRITES, far_recipe

from flowblend_cli import main
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors import ray as ray_executor
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.events import CapturedEvents, JobDone, JobStarted
from flowblend_cli.recipe.loader import load_batch

pytest.importorskip("ray")
pytestmark = pytest.mark.night
needs_mounts = pytest.mark.skipif(not can_hide(), reason="this user can't mount anything")

REPO = "someone/sprites"
RECIPE = """
[recipe]
name = "cluster"
[metrics]
names = []
[model]
pipeline = "NAME"
small = "NAME"
[defaults]
num_inference_steps = 2
num_frames = 1
height = 32
width = 32
max_sequence_length = 64
[[scene]]
name = "clip"
prompt = "a red circle moving right"
seeds = [1, 2]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose head renders nothing."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    # So that it keeps to the loopback, also where Ray was imported before.
    patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def address(cluster: Any) -> str:
    """The cluster's, once it has forgotten the nodes of the last test."""
    until = time.monotonic() + 120
    while sum(bool(node["Alive"]) for node in cluster.global_state.node_table()) > 1:
        assert time.monotonic() < until
        time.sleep(0.5)
    return str(cluster.address)


def recipe_of(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE.replace("NAME", name))
    return folder / "recipe.toml"


def render(recipe: Path, out: Path, **options: Any) -> tuple[int, CapturedEvents]:
    told = CapturedEvents()
    code = BatchRun(load_batch(recipe, (), out), told, options=RunOptions(**options)).run()
    return code, told


def pixels(told: CapturedEvents) -> dict[str, str]:
    return {event.job: event.pixels_sha256 for event in told.of(JobDone)}


@needs_mounts
def test_a_node_without_any_file_of_the_recipe_makes_the_bits_of_one_process(
    address: str, tmp_path: Path
) -> None:
    own = far_recipe(tmp_path / "own")
    bundled = recipe_of(tmp_path / "bundled", "sprites")
    alone = [pixels(render(one, tmp_path / "a", executor="child")[1]) for one in (own, bundled)]
    assert [len(one) for one in alone] == [1, 2]
    hidden = (own.parent, bundled.parent, SPRITES.parent)
    options = {"executor": "ray", "address": address, "workers": 1}

    with far_node(address, *hidden, XDG_CACHE_HOME=str(tmp_path / "cache")):
        for recipe, expected in zip((own, bundled), alone, strict=True):
            code, told = render(recipe, tmp_path / "b", **options)
            assert code == 0, told.messages
            assert pixels(told) == expected

    assert len([*(tmp_path / "cache/flowblend/inputs").glob("*/model_index.json")]) >= 2


@needs_mounts
def test_machines_whose_models_differ_are_named_and_get_no_job(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "driver"))
    files = sprites_files()
    cache_repo(tmp_path / "driver", REPO, files)
    cache_repo(tmp_path / "whole", REPO, files)
    name = "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(files[name])
    data[-1] ^= 1
    cache_repo(tmp_path / "other", REPO, {**files, name: bytes(data)})
    recipe = recipe_of(tmp_path / "recipe", REPO)
    options = {"executor": "ray", "address": address}
    hidden = [tmp_path / "driver"]

    with far_node(address, *hidden, HF_HUB_CACHE=str(tmp_path / "other")):
        code, told = render(recipe, tmp_path / "none", **options)
        assert code == 3
        said = "\n".join(told.messages)
        assert f"gets no job: {REPO} at {COMMIT[:12]} isn't the driver's: {name}" in said
        assert "`flowblend models fetch` with the recipe and --executor ray" in said
        assert f"--address {address}" in said
        assert told.of(JobStarted) == []

        with far_node(address, *hidden, HF_HUB_CACHE=str(tmp_path / "whole")):
            code, told = render(recipe, tmp_path / "one", **options)
            assert code == 0, told.messages
            assert len(pixels(told)) == 2
            assert len({event.worker for event in told.of(JobDone)}) == 1
            assert any("gets no job" in text for text in told.messages)


def test_a_machine_with_other_code_is_named_and_gets_no_job(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {**ray_executor.installed_versions(), "flowblend's code": "0123456789ab"}
    monkeypatch.setattr(ray_executor, "installed_versions", lambda: versions)
    with far_node(address):
        recipe = recipe_of(tmp_path / "recipe", "sprites")
        code, told = render(recipe, tmp_path / "out", executor="ray", address=address)
    assert code == 5
    assert any("(here 0123456789ab), which makes other bits" in text for text in told.messages)
    assert told.of(JobStarted) == []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    cache = str(tmp_path / "driver")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLOWBLEND_USER_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(Hub({REPO: sprites_files()})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_models_are_fetched_on_every_machine(address: str, tmp_path: Path, hub: Hub) -> None:
    recipe = recipe_of(tmp_path / "recipe", REPO)
    command = ["models", "fetch", str(recipe), "--executor", "ray", "--address", address]
    nodes = [tmp_path / name for name in ("first", "second")]
    around = [{"HF_HUB_CACHE": str(node), "HF_HOME": str(tmp_path / "home")} for node in nodes]
    with far_node(address, **around[0]), far_node(address, **around[1]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        for node in nodes:
            (line,) = [one for one in lines if one.endswith(f" in {node}")]
            assert line.startswith(f"{os.uname().nodename}: {REPO} {COMMIT[:12]}")
            assert (
                node / f"models--someone--sprites/snapshots/{COMMIT}/model_index.json"
            ).is_file()

        hub.broken = True
        (nodes[1] / f"models--someone--sprites/snapshots/{COMMIT}/model_index.json").unlink()
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 3
        assert "the Hub refuses someone/sprites" in result.stderr
    assert CliRunner().invoke(main, command[:3] + command[5:]).exit_code == 2
