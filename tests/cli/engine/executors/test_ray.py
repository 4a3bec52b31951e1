"""Workers of a cluster: real Ray, nodes on this machine, and what becomes of lost ones.

``tests/faults/cluster.py`` goes on where these end, with the real command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors import ray_cluster
from flowblend_cli.engine.executors.ray_cluster import HEAD_PATIENCE_S
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.events import CapturedEvents, Event, JobDone, JobStarted, StepStarted
from flowblend_cli.main import main
from flowblend_cli.recipe.loader import load_batch
from tests.faults.cluster import Driver
from tests.three_nodes import ThreeNodes, children, command_line, listening, parent_of

pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")

ROOT = Path(__file__).resolve().parents[4]
RECIPE = """
[recipe]
name = "cluster"
[model]
pipeline = "sprites"
[defaults]
num_inference_steps = 4
num_frames = 5
height = 32
width = 32
[[scene]]
name = "clip"
prompt = "a {red circle|blue ring|green star} moving right"
seeds = [1, 2]
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


def actor_pids() -> list[int]:
    """The workers of the clusters that this process has started."""
    return [
        pid for pid in children({os.getpid()}, of_all=True) if b"RayWorker" in command_line(pid)
    ]


def render(
    folder: Path, told: CapturedEvents, act: Any = None, sets: tuple[str, ...] = (), **options: Any
) -> int:
    def tell(event: Event) -> None:
        told(event)
        if act is not None:
            act(event)

    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    batch = load_batch(str(folder / "recipe.toml"), sets)
    return BatchRun(batch, tell, options=RunOptions(**options)).run()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pixels of one process."""
    told = CapturedEvents()
    assert render(tmp_path_factory.mktemp("alone"), told, executor="child") == 0
    return {event.job: event.pixels_sha256 for event in told.of(JobDone)}


def pixels(told: CapturedEvents) -> dict[str, str]:
    done = told.of(JobDone)
    assert len({event.job for event in done}) == len(done)  # none twice
    return {event.job: event.pixels_sha256 for event in done}


def test_two_workers_one_of_them_killed_make_the_bits_of_one_process_and_listen_to_nobody(
    tmp_path: Path, alone: dict[str, str]
) -> None:
    told, killed, heard = CapturedEvents(), [], set[str]()

    def kill(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == 2 and not killed:
            heard.update(listening({os.getpid(), *children({os.getpid()}, of_all=True)}))
            killed.append(next(e.worker for e in told.of(JobStarted) if e.job == event.job))
            os.kill(actor_pids()[0], signal.SIGKILL)

    assert render(tmp_path, told, kill, executor="ray", workers=2) == 0, told.messages
    assert killed
    assert pixels(told) == alone
    assert any("is lost" in text for text in told.messages)
    assert {event.resumed_at for event in told.of(JobStarted)} == {0}
    # Whoever encoded a prompt, the driver keeps it for all workers.
    prompts = {job.prompt for job in load_batch(str(tmp_path / "recipe.toml")).jobs}
    assert len(list((tmp_path / "out/.flowblend/embeddings").iterdir())) == len(prompts)
    assert heard == {"127.0.0.1"}
    assert not actor_pids()


@pytest.mark.night
def test_a_job_of_a_lost_worker_goes_on_at_its_step_elsewhere(
    tmp_path: Path, alone: dict[str, str]
) -> None:
    told, killed = CapturedEvents(), []

    def kill(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == 3 and not killed:
            killed.append(event.job)
            for pid in actor_pids():
                os.kill(pid, signal.SIGKILL)

    options = {"executor": "ray", "workers": 1, "checkpoint_every": 1}
    assert render(tmp_path, told, kill, **options) == 0, told.messages
    first, again = [event for event in told.of(JobStarted) if event.job == killed[0]]
    assert first.resumed_at == 0
    assert again.resumed_at >= 2
    assert pixels(told) == alone
    kept = {path.parent.name for path in (tmp_path / "out").rglob("*.safetensors")}
    assert kept == {"embeddings"}  # the job's state is gone


@pytest.mark.night
def test_a_cluster_grows_with_its_nodes_and_ends_cleanly_with_its_head(tmp_path: Path) -> None:
    long = RECIPE.replace("num_inference_steps = 4", "num_inference_steps = 300")
    (tmp_path / "recipe.toml").write_text(long, "utf-8")
    with ThreeNodes(workers=1) as cluster:
        driver = Driver(tmp_path, "--executor", "ray", "--address", cluster.address)
        assert driver.wait_for("job_started"), driver.said
        cluster.add()
        while len({one["worker"] for one in driver.events if one["event"] == "job_started"}) < 2:
            assert driver.wait_for("job_started"), driver.said
        cluster.kill_head()
        began = time.monotonic()
        code = driver.end()
        took_s = time.monotonic() - began
    said = "".join(driver.said)
    assert code == 5, said
    assert "the head of the cluster is gone" in said
    assert "Traceback" not in said
    assert driver.events[-1]["event"] == "summary"
    assert driver.events[-1]["failed"] == 0
    assert not driver.impure
    assert took_s < HEAD_PATIENCE_S + 60
    done = len(list((tmp_path / "out").glob("*.mp4")))
    assert done == driver.events[-1]["rendered"]

    again = Driver(tmp_path, "--executor", "child")
    assert again.end() == 0
    assert again.events[-1]["skipped"] == done
    assert again.events[-1]["rendered"] == 6 - done


@pytest.mark.night
def test_a_driver_whose_own_object_store_is_killed_ends_and_loses_nothing(tmp_path: Path) -> None:
    long = RECIPE.replace("num_inference_steps = 4", "num_inference_steps = 60")
    (tmp_path / "recipe.toml").write_text(long, "utf-8")
    with ThreeNodes() as cluster:
        driver = Driver(tmp_path, "--executor", "ray", "--address", cluster.address)
        assert driver.wait_for("job_started"), driver.said
        cluster.kill_place()
        code = driver.end()
    said = "".join(driver.said)
    assert "Traceback" not in said
    if code != 1:  # else Ray itself ended the process, as it does where data were on their way
        assert code == 5, said
        assert "this machine has lost its place in the cluster" in said
        assert driver.events[-1]["event"] == "summary"
        assert driver.events[-1]["failed"] == 0

    done = len(list((tmp_path / "out").glob("*.mp4")))
    again = Driver(tmp_path, "--executor", "child")
    assert again.end() == 0
    assert again.events[-1]["skipped"] == done
    assert again.events[-1]["rendered"] == 6 - done


@pytest.mark.night
def test_a_killed_drivers_actors_end_by_themselves_within_half_a_minute(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("num_inference_steps = 4",
                                                         "num_inference_steps = 900"))  # fmt: skip
    with ThreeNodes() as cluster:
        command = [sys.executable, "-m", "flowblend_cli", "render", str(tmp_path / "recipe.toml"),
                   "--json", "--executor", "ray", "--address", cluster.address]  # fmt: skip
        paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
        driver = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert driver.stdout is not None
        assert any('"job_started"' in line for line in driver.stdout)
        actors = cluster.actors()
        assert actors
        driver.kill()
        began = time.monotonic()
        while any(parent_of(pid) is not None for pid in actors):
            assert time.monotonic() - began < 30
            time.sleep(0.2)
        driver.communicate()


@pytest.mark.night
def test_nodes_whose_image_lacks_flowblend_end_the_run_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise ImportError("libtorch.so is missing")')
    told = CapturedEvents()
    with pytest.MonkeyPatch.context() as patch, ThreeNodes() as cluster:
        patch.setenv("PYTHONPATH", str(tmp_path / "broken"), prepend=os.pathsep)
        patch.setattr(ray_cluster, "worker_environment", lambda: dict(os.environ))
        assert render(tmp_path, told, executor="ray", address=cluster.address) == 5
    said = [text for text in told.messages if "didn't start" in text]
    assert all("ImportError: libtorch.so is missing" in text for text in said), told.messages
    assert 1 <= len(said) < 10


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://127.0.0.1:10001", "isn't supported"),
        ("nowhere", "is no address"),
        ("127.0.0.1:0", "is no address"),
        (":6379", "is no address"),
        ("127.0.0.1:9", "nothing listens at 127.0.0.1:9"),
    ],
)
def test_an_address_without_a_cluster_is_told_within_seconds(
    tmp_path: Path, address: str, said: str
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    began = time.monotonic()
    command = ["render", str(tmp_path / "recipe.toml"), "--executor", "ray", "--address", address]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert said in result.output
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out").exists()


def test_options_of_a_cluster_without_one_are_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    command = ["render", str(tmp_path / "recipe.toml")]
    of_cluster = ["--address", "auto", "--workers", "2", "--gpus-per-worker", "0",
                  "--allow-mixed-devices"]  # fmt: skip
    result = CliRunner().invoke(main, [*command, *of_cluster])
    assert result.exit_code == 2
    for option in of_cluster:
        assert option in result.output or not option.startswith("--")
    assert "add --executor ray" in result.output

    result = CliRunner().invoke(main, [*command, "--executor", "ray", "--devices", "cpu*2"])
    assert result.exit_code == 2
    assert "--devices is for this machine alone" in result.output
    result = CliRunner().invoke(
        main, [*command, "--executor", "ray", "--set", 'run.devices="cpu*2"']
    )
    assert result.exit_code == 2
    assert "[run] devices = 'cpu*2' is for one machine" in result.output
    for wrong in ("-1", "1.5", "many", "999999"):
        result = CliRunner().invoke(main, [*command, "--executor", "ray", "--workers", wrong])
        assert result.exit_code == 2
        assert "write auto, or 1 to" in result.output
