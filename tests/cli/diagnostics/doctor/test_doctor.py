"""``flowblend doctor``: its checks, its self-test and its exit codes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from click.testing import CliRunner, Result

from flowblend_cli.diagnostics.doctor import checks, environment
from flowblend_cli.diagnostics.doctor.checks import Finding
from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime, versions
from flowblend_cli.main import main
from flowblend_cli.models.identity import resolve_models
from flowblend_plugin.numerics import auto_device, numeric_settings

ROOT = Path(__file__).resolve().parents[4]
TABLE = environment.tested_versions()
TESTED = {name: wanted["tested"][0] for name, wanted in TABLE["packages"].items()}
CPU = {
    "device": "cpu",
    "device_name": None,
    "dtype": "float32",
    "threads": 4,
    "cpu_capability": "AVX2",
    "matmul_precision": "highest",
    "mkldnn_precision": "none",
    "cudnn_benchmark": False,
    "cudnn_deterministic": False,
    "cudnn_tf32": True,
    "deterministic_algorithms": False,
    "attention_backend": "native",
    "attention_kernel": "flash_attention",
    "alignment": True,
}
CUDA = {**CPU, "device": "cuda", "device_name": "Some GPU", "dtype": "bfloat16"}
PINNED = {"OMP_NUM_THREADS": "4"}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def by_name(found: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def states(settings: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    found = by_name(checks.about_settings(settings, environ))
    return {name: finding.state for name, finding in found.items() if finding.state != "ok"}


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole examination of this machine, with one thread and another CPU capability."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("ATEN_CPU_CAPABILITY", "default")
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        return invoke("--json", "--out", str(tmp_path_factory.mktemp("out") / "new"))


@pytest.mark.night
def test_a_machine_that_renders_has_no_problem(examined: Result) -> None:
    document = json.loads(examined.stdout)

    assert examined.exit_code == 0, examined.output
    assert document["v"] == 1
    assert document["problems"] == 0
    found = {finding["name"]: finding for finding in document["findings"]}
    notes = [finding for finding in document["findings"] if finding["state"] == "note"]
    assert document["notes"] == len(notes)
    assert all(finding["advice"] for finding in notes)
    assert found["torch"]["found"] == versions()["torch"]
    assert "3 renders of one seed in 2 processes" in found["self-test"]["found"]
    assert "agree in every pixel" in found["self-test"]["found"]
    assert found["thread-test"]["found"].endswith("with 2 threads")


@pytest.mark.night
def test_what_torch_is_set_to_is_what_a_render_here_would_find(examined: Result) -> None:
    found = {one["name"]: one for one in json.loads(examined.stdout)["findings"]}

    assert found["threads"]["found"] == "1, set by OMP_NUM_THREADS"
    assert "ATEN_CPU_CAPABILITY=default" in found["cpu"]["found"]
    assert found["cpu"]["found"].startswith("torch's kernels for DEFAULT")
    assert found["cpu"]["state"] == "note"


def test_a_cpu_left_to_itself_has_only_its_threads_and_its_missing_gpu_noted() -> None:
    assert states(CPU, {}) == {"threads": "note", "gpu": "note"}
    assert states(CPU, PINNED) == {"gpu": "note"}
    found = by_name(checks.about_settings(CPU, {}))
    assert "OMP_NUM_THREADS=4" in found["threads"].advice
    assert "only a GPU can tell" in found["gpu"].advice


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"OMP_NUM_THREADS": "8"}, "threads"),
        ({**PINNED, "ATEN_CPU_CAPABILITY": "avx2"}, "cpu"),
        ({**PINNED, "MKL_CBWR": "AVX2"}, "cpu"),
        ({**PINNED, "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, "onednn"),
        ({**PINNED, "NVIDIA_TF32_OVERRIDE": "1"}, "precision"),
    ],
)
def test_a_variable_that_changes_bits_is_noted(environ: dict[str, str], name: str) -> None:
    found = by_name(checks.about_settings(CPU, environ))

    assert found[name].state == "note"
    assert next(iter(environ.values())) in found[name].found or name != "threads"
    assert states(CPU, environ) == {name: "note", "gpu": "note"}


def test_the_strict_mode_of_onednn_is_as_good_as_none() -> None:
    assert "onednn" not in states(CPU, {"ONEDNN_DEFAULT_FPMATH_MODE": "strict"})


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"matmul_precision": "high"}, "precision"),
        ({"mkldnn_precision": "bf16"}, "onednn"),
        ({"attention_backend": "sage"}, "attention"),
    ],
)
def test_a_setting_that_changes_bits_is_noted(changed: dict[str, Any], name: str) -> None:
    assert states({**CPU, **changed}, PINNED) == {name: "note", "gpu": "note"}


def test_on_cuda_what_can_differ_from_run_to_run_is_judged() -> None:
    noted = {"precision": "note", "cudnn": "note", "cublas": "note"}
    assert states(CUDA, PINNED) == noted
    assert states({**CUDA, "cudnn_benchmark": True}, PINNED) == {**noted, "cudnn": "problem"}
    strict = {**CUDA, "cudnn_deterministic": True, "cudnn_tf32": False}
    assert states(strict, {**PINNED, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}) == {}
    assert "Some GPU" in by_name(checks.about_settings(CUDA, PINNED))["device"].found


def test_the_tested_versions_are_fine() -> None:
    found = list(checks.about_versions(TESTED, "3.11.9", TABLE))

    assert [finding.state for finding in found] == ["ok"] * 5
    local = {**TESTED, "torch": TESTED["torch"] + "+cu126"}
    assert by_name(checks.about_versions(local, "3.12.0", TABLE))["torch"].state == "ok"


@pytest.mark.parametrize(
    ("name", "version", "state", "told"),
    [
        ("torch", None, "problem", "isn't installed"),
        ("diffusers", "0.9.0", "problem", "0.9.0, and 0.42.1 or newer is needed"),
        ("transformers", "99.0.dev1", "note", "99.0.dev1, tested with"),
        ("ftfy", None, "problem", "ftfy isn't installed"),
        ("numpy", "99.1", "note", "numpy 99.1"),
    ],
)
def test_another_version_is_judged_by_whether_it_can_work(
    name: str, version: str | None, state: str, told: str
) -> None:
    found = by_name(checks.about_versions({**TESTED, name: version}, "3.11.9", TABLE))

    finding = found.get(name, found["packages"])
    assert finding.state == state
    assert told in finding.found
    assert ("pip install " + name in finding.advice) == (state == "problem")
    assert ("may give other pixels" in finding.advice) == (state == "note")


def test_python_is_judged_by_its_minor_release() -> None:
    for python, state in (("3.10.4", "problem"), ("3.13.1", "ok"), ("3.99.0", "note")):
        assert next(checks.about_versions(TESTED, python, TABLE)).state == state


def test_renders_that_differ_are_a_problem() -> None:
    (finding,) = checks.about_self_test(["a" * 64, "b" * 64], ["a" * 64], None, "cpu", 3)

    assert finding.state == "problem"
    assert "differ: aaaaaaaaaaaa, bbbbbbbbbbbb, aaaaaaaaaaaa" in finding.found


@pytest.mark.parametrize(("pixels", "state"), [("a" * 64, "ok"), ("b" * 64, "note")])
def test_other_pixels_with_other_threads_are_only_noted(pixels: str, state: str) -> None:
    other = {"threads": 2, "pixels": pixels}

    found = by_name(checks.about_self_test(["a" * 64] * 2, ["a" * 64], other, "cpu", 3))

    assert found["self-test"].state == "ok"
    assert found["thread-test"].state == state


def test_a_folder_that_cant_be_written_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")

    assert checks.about_disk("out", *environment.look_at_disk(tmp_path / "new")).state == "ok"
    finding = checks.about_disk("out", *environment.look_at_disk(file / "below"))
    assert finding.state == "problem"
    assert "nothing can be written" in finding.found
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("free", "state"), [(10**7, "problem"), (10**8, "note"), (10**10, "ok")])
def test_little_disk_is_noted_and_none_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free, 0, free))

    assert checks.about_disk("out", *environment.look_at_disk(tmp_path)).state == state


def test_a_machine_without_h264_cant_write_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.about_encoder(environment.try_encoder()).state == "ok"

    def fail(*_: object, **__: object) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    monkeypatch.setattr("flowblend_cli.artifacts.video.av.open", fail)
    finding = checks.about_encoder(environment.try_encoder())
    assert finding.state == "problem"
    assert "UnknownCodecError: libx264" in finding.found


def test_torch_that_cant_be_imported_is_a_problem_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('\\x1b[31mlibcuda.so is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    result = invoke("--quick", "--out", str(tmp_path))

    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("problem")]
    assert line == "problem  models       ImportError: \\x1b[31mlibcuda.so is broken"
    assert result.stdout.splitlines()[-1].startswith("1 problem, ")


def test_a_process_that_cant_start_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))

    result = invoke("--json")

    found = json.loads(result.stdout)["findings"][-1]
    assert result.exit_code == 1
    assert found["state"] == "problem"
    assert "the self-test process can't be started" in found["found"]


def test_quick_renders_nothing_and_says_so(tmp_path: Path) -> None:
    result = invoke("--quick", "--out", str(tmp_path))

    assert result.exit_code == 0, result.output
    assert "note     self-test    left out (--quick)" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_products_that_depend_on_addresses_are_a_problem_with_a_remedy() -> None:
    environ = {**PINNED, "MKL_CBWR": "OFF"}
    found = by_name(checks.about_settings({**CPU, "alignment": False}, environ))["alignment"]
    assert found.state == "problem"
    assert "MKL_CBWR=OFF" in found.found
    assert "export MKL_CBWR=AUTO" in found.advice


def test_the_device_told_is_the_one_that_a_render_takes() -> None:
    runtime = PipelineRuntime(resolve_models(sprites_job().model, Path.cwd()))

    settings = numeric_settings()

    assert settings["device"] == auto_device() == runtime.device.type
    assert settings["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(settings)) == settings


def test_the_shipped_versions_are_those_of_pyproject_and_constraints() -> None:
    path = ROOT / "scripts/generate_tested_versions.py"
    spec = importlib.util.spec_from_file_location("generate_tested_versions", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert script.TABLE.read_text("utf-8") == script.render_table(), (
        "run python scripts/generate_tested_versions.py"
    )
