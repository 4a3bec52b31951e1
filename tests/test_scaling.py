"""The example files of docs/scaling.md: parsers read them, and flowblend takes their commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from flowblend_cli.engine.executors.ray_cluster import HEAD_PATIENCE_S
from flowblend_cli.engine.lease import HEARTBEAT_S, LEASE_S
from flowblend_cli.errors import ModelMissingError, UsageError
from flowblend_cli.jobs import Shard
from flowblend_cli.main import main

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "scaling"
SLURM, KUBERNETES, SKYPILOT, RAY_UP, KUBERAY = (
    FOLDER / name
    for name in ("slurm-array.sh", "kubernetes-job.yaml", "skypilot.yaml", "ray-cluster.yaml",
                 "kuberay.yaml")
)  # fmt: skip


def loaded(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return document


def params_of(script: str, shell: str, folder: Path, **environment: str) -> dict[str, Any]:
    """What flowblend's own parser makes of the flowblend that a script runs, once it is expanded.

    The script runs in its shell, with commands of these names that only tell their words.
    """
    (folder / "bin").mkdir()
    for name, does in [("flowblend", 'printf "%s\\n" "$@" > "$TOLD"'), ("srun", 'exec "$@"'),
                       ("cp", "true"), ("mkdir", "true")]:  # fmt: skip
        command = folder / "bin" / name
        command.write_text(f"#!/bin/sh\n{does}\n")
        command.chmod(0o755)
    told = folder / "told"
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    where = {"PATH": path, "HOME": "/home/you", "TOLD": str(told), **environment}
    subprocess.run([shell, "-c", script], check=True, cwd=folder, env=where)
    name, *words = told.read_text().splitlines()
    command = main.get_command(click.Context(main), name)
    assert command is not None
    params: dict[str, Any] = command.make_context(name, words).params
    return params


def test_the_slurm_script_is_bash_and_its_options_come_first() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    lines = SLURM.read_text("utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    given = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    code = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(given) < code  # sbatch reads none after the first command
    options = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[n]).groups()  # type: ignore[union-attr]
        for n in given
    )
    (shards,) = re.findall(r"^SHARDS=(\d+)$", SLURM.read_text("utf-8"), re.MULTILINE)
    assert options["array"] == f"1-{shards}"
    assert "requeue" in options
    assert "gpu" in options["gres"]
    assert options["open-mode"] == "append"
    assert re.fullmatch(r"TERM@\d+", options["signal"])


@pytest.mark.parametrize("task", [1, 3, 8])
def test_a_task_of_slurm_renders_its_shard(tmp_path: Path, task: int) -> None:
    params = params_of(
        SLURM.read_text("utf-8"), "bash", tmp_path, SLURM_ARRAY_TASK_ID=str(task),
        SLURM_ARRAY_TASK_COUNT="1", SLURM_SUBMIT_DIR="/home/you/a folder",
    )  # fmt: skip
    assert params["shard"] == Shard(task, 8)
    assert params["recipe"] == "/home/you/a folder/harbour.toml"
    assert params["checkpoint_every"] > 0


def test_the_job_of_kubernetes_has_the_fields_that_matter() -> None:
    job = loaded(KUBERNETES)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["podReplacementPolicy"] == "Failed"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # pod failure policies need it
    ignore, fail = spec["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore"
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert fail["action"] == "FailIndex"
    codes = sorted([UsageError.exit_code, ModelMissingError.exit_code])
    (container,) = pod["containers"]
    assert fail["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": codes,
    }  # fmt: skip
    assert {one["name"] for one in container["volumeMounts"]} == {
        one["name"] for one in pod["volumes"]
    }


@pytest.mark.parametrize("index", [0, 7])
def test_a_pod_renders_its_shard(tmp_path: Path, index: int) -> None:
    spec = loaded(KUBERNETES)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    shell, flag = container["command"]
    (script,) = container["args"]
    assert flag == "-c"
    assert script.startswith("exec ")  # so that SIGTERM reaches the render
    params = params_of(script, shell, tmp_path, JOB_COMPLETION_INDEX=str(index))
    assert params["shard"] == Shard(index + 1, spec["completions"])


@pytest.mark.parametrize("rank", [0, 3])
def test_a_node_of_skypilot_renders_its_shard(tmp_path: Path, rank: int) -> None:
    task = loaded(SKYPILOT)
    assert set(task) == {
        "name", "num_nodes", "workdir", "resources", "file_mounts", "setup", "run",
    }  # fmt: skip
    nodes = task["num_nodes"]
    params = params_of(
        task["run"], "bash", tmp_path, SKYPILOT_NODE_RANK=str(rank),
        SKYPILOT_NUM_NODES=str(nodes),
    )  # fmt: skip
    assert params["shard"] == Shard(rank + 1, nodes)
    mounts = [str(place) for place in task["file_mounts"]]
    assert not any(str(params["out"]).startswith(mount) for mount in mounts)


def test_ray_reads_the_file_of_its_launcher_and_the_head_has_no_worker(tmp_path: Path) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="needs Ray")
    pytest.importorskip("jsonschema")
    config = loaded(RAY_UP)
    util.validate_config(util.prepare_config(config))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu"]["max_workers"] == config["max_workers"]
    lines = RAY_UP.read_text("utf-8").splitlines()
    (command,) = [line.lstrip("# ") for line in lines if "flowblend render" in line]
    params = params_of(command, "sh", tmp_path)
    _on_cluster(params)


def test_a_job_of_kuberay_renders_on_its_cluster(tmp_path: Path) -> None:
    job = loaded(KUBERAY)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    pins = (FOLDER.parents[1] / "constraints.txt").read_text("utf-8")
    pinned = re.findall(r"^ray==(\S+)$", pins, re.MULTILINE)
    assert [cluster["rayVersion"]] == pinned
    assert cluster["enableInTreeAutoscaling"] is True
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # a text, as KubeRay wants it
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    (driver,), (worker,) = (part["template"]["spec"]["containers"] for part in (head, group))
    assert driver["image"] == worker["image"]
    params = params_of(spec["entrypoint"], "sh", tmp_path)
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == params["gpus_per_worker"]
    mounts = [one["mountPath"] for one in driver["volumeMounts"]]
    assert any(str(params["out"]).startswith(mount) for mount in mounts)
    _on_cluster(params)


def _on_cluster(params: dict[str, Any]) -> None:
    """See that a command joins its cluster, and asks for GPUs before there are any."""
    assert params["executor"] == "ray"
    assert params["address"] == "auto"
    assert params["workers"] == 0
    assert params["gpus_per_worker"] == 1
    assert params["checkpoint_every"] > 0


def test_five_commands_lead_from_one_gpu_to_a_cluster(tmp_path: Path) -> None:
    page = (FOLDER.parent / "scaling.md").read_text("utf-8")
    (block,) = re.findall(r"## A cluster of Ray.*?```console\n(.*?)```", page, re.DOTALL)
    commands = [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]
    assert len(commands) == 5
    for number, command in enumerate(commands):
        assert command.startswith(("flowblend ", "ray start ", "pip install "))
        if command.startswith("flowblend render"):
            folder = tmp_path / str(number)
            folder.mkdir()
            assert params_of(command, "sh", folder)["recipe"] == "harbour.toml"
    last = params_of(commands[-1], "sh", tmp_path)
    assert (last["executor"], last["address"]) == ("ray", "auto")


def test_the_page_names_the_times_that_the_code_has() -> None:
    page = (FOLDER.parent / "scaling.md").read_text("utf-8")
    assert f"touches every {HEARTBEAT_S:g} seconds" in page
    assert f"wasn't renewed for {LEASE_S:g} seconds" in page
    assert f"nothing for {HEAD_PATIENCE_S:g} seconds" in page
    for path in (SLURM, KUBERNETES, SKYPILOT, RAY_UP, KUBERAY):
        assert f"(scaling/{path.name})" in page
