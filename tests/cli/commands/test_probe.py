"""``flowblend probe`` end to end, on the bundled pair at very few steps."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from flowblend_cli import __version__
from flowblend_cli.diagnostics.probe.measure import check_outputs, measure, outputs, write
from flowblend_cli.diagnostics.probe.plot import draw_pictures
from flowblend_cli.diagnostics.probe.prepare import check_budget, prepare
from flowblend_cli.diagnostics.probe.progress_bar import runs_of
from flowblend_cli.diagnostics.probe.summary import error_in_words, facts, recipe_lines, summary
from flowblend_cli.errors import OutputError, UsageError
from flowblend_cli.jobs import Batch
from flowblend_cli.main import main
from flowblend_cli.models.bundled import bundled_dir
from flowblend_plugin import Calibration
from flowblend_plugin.calibration.calibration import CalibratedStep
from flowblend_plugin.calibration.criteria import choose

ROOT = Path(__file__).resolve().parents[3]
RECIPE = """\
[recipe]
name = "test"

[model]
pipeline = "sprites"

[defaults]
num_inference_steps = 3
guidance_scale = 5.0
max_sequence_length = 32
height = 32
width = 32
num_frames = 5

[[scene]]
name = "circle"
prompt = "a red circle moving right on a navy background"
seeds = [1, 2]

[[scene]]
name = "star"
prompt = "a white star on a black background"
seeds = [7]
"""
FAST = ["--prompts", "2", "--sensitivity-prompts", "1", "--positions", "2"]
CONDITIONS = {
    "pipeline": "sprites",
    "small": "sprites",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "guidance_scale": 5.0,
    "scheduler": None,
    "flow_shift": None,
    "num_inference_steps": 3,
    "mode": "ode",
    "flowblend": __version__,
    "probed": [
        {"prompt": "a red circle moving right on a navy background", "seed": 1},
        {"prompt": "a red circle moving right on a navy background", "seed": 2},
    ],
}


def invoke(*arguments: object) -> Result:
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, ["probe", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    result = invoke(folder / "recipe.toml", "--out", folder / "pair.json", *FAST)
    assert result.exit_code == 0, result.output
    return folder, result


def made_up(count: int = 20, **conditions: Any) -> Calibration:
    """A calibration whose divergence is a U, without any model."""
    steps = tuple(
        CalibratedStep(
            i, 1 - i / count,
            {"guided_relative_l2": (m := 0.1 + abs(i / count - 0.5)), "velocity_norm": 1.0,
             "guided_cosine": 1 - m * m, "relative_l2": m, "cosine": 1 - m * m},
            {"guided_relative_l2": 0.05},
        )
        for i in range(count)
    )  # fmt: skip
    positions = (0, count // 2, count - 1)
    gram = tuple(
        tuple(0.01 / (1 + i) ** 2 if i == j else 0.0 for j in positions) for i in positions
    )
    return Calibration({**CONDITIONS, **conditions}, 2, steps, 0.2, positions, gram, 1, 1.0)


# The command.


def test_it_writes_a_calibration_of_the_recipe(probed: tuple[Path, Result]) -> None:
    document = json.loads((probed[0] / "pair.json").read_text("utf-8"))
    calibration = Calibration.from_document(document)

    assert document["conditions"] == CONDITIONS
    assert list(document["conditions"]) == list(CONDITIONS)
    assert [step["step"] for step in document["steps"]] == [0, 1, 2]
    assert {"sigma", "relative_l2", "cosine", "spread"} <= document["steps"][0].keys()
    assert calibration.positions == (0, 2)
    assert (calibration.prompts, calibration.sensitivity_prompts) == (2, 1)
    assert 0 < calibration.cost_ratio < 1
    assert calibration.interactions[0][0] > 0


def test_it_draws_the_calibration_as_svg_and_png(probed: tuple[Path, Result]) -> None:
    svg = (probed[0] / "pair.svg").read_text("utf-8")

    assert all("www.w3.org" in link for link in re.findall(r'https?://[^"\s<]*', svg))
    assert Image.open(probed[0] / "pair.png").width == 1200
    assert (probed[0] / "pair.png").stat().st_size < 200_000
    assert sorted(path.name for path in probed[0].iterdir()) == [
        "pair.json", "pair.png", "pair.svg", "recipe.toml",
    ]  # fmt: skip


def test_it_ends_with_a_summary_and_the_lines_to_paste(probed: tuple[Path, Result]) -> None:
    told = probed[1].stdout

    assert told.startswith("test: 2 prompts, sensitivities of 1 at 2 of 3 steps")
    assert re.search(r"one small step changes the final result .* at step 0 as in the last", told)
    assert re.search(r"budget 0\.6, \w+: [LSE]{3}, share 0\.\d+, predicted error", told)
    assert f"wrote {probed[0] / 'pair.json'}, {probed[0] / 'pair.svg'}" in told
    assert told.endswith(
        '  stages = "auto"\n  budget = 0.6\n  calibration = "pair.json"\n'
    )  # inside the recipe's folder: relative to it


def test_progress_is_a_line_for_each_prompt_on_stderr(probed: tuple[Path, Result]) -> None:
    lines = probed[1].stderr.splitlines()

    assert [re.sub(r" in [\d.]+ s:.*", "", line) for line in lines] == [
        "[1/2] velocities", "[2/2] velocities", "[1/1] sensitivities",
    ]  # fmt: skip


def test_the_same_command_again_measures_the_same_and_replaces_it(
    probed: tuple[Path, Result], tmp_path: Path
) -> None:
    for name in ("recipe.toml", "pair.json", "pair.svg", "pair.png"):
        shutil.copy(probed[0] / name, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "pair.png").write_bytes(before["pair.png"] + b"changed")
    result = invoke(
        tmp_path / "recipe.toml", "--out", tmp_path / "pair.json", *FAST, "--json", "-q"
    )

    assert result.exit_code == 0, result.output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert result.stderr == ""
    told = json.loads(result.stdout)
    assert told["v"] == 1
    assert told["files"] == [str(tmp_path / f"pair.{kind}") for kind in ("json", "svg", "png")]
    assert told["choice"]["budget"] == 0.6
    assert told["blend"][0] == 'stages = "auto"'


def test_a_stochastic_solver_and_overrides_work(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    result = invoke(
        tmp_path / "recipe.toml", "--out", tmp_path / "a.json", "--prompts", 1, "--positions", 1,
        "--set", "sampling.mode=sde", "--criterion", "contiguous", "--budget", 0.5,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["conditions"]["mode"] == "sde"
    assert "budget 0.5, contiguous" in result.stdout
    assert 'criterion = "contiguous"' in result.stdout


# Refused, before anything is loaded.


def refused(tmp_path: Path, *options: str, recipe: str = RECIPE) -> str:
    (tmp_path / "recipe.toml").write_text(recipe, "utf-8")
    result = invoke(tmp_path / "recipe.toml", "--out", tmp_path / "a.json", *options)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "a.json").exists()
    return result.stderr


@pytest.fixture
def pair_without_small(tmp_path: Path) -> str:
    shutil.copytree(bundled_dir() / "models" / "sprites", tmp_path / "sprites")
    return RECIPE.replace('"sprites"', '"./sprites"') + '\n[blend]\nstages = "L"\n'


def test_a_recipe_without_a_small_denoiser_is_refused(
    tmp_path: Path, pair_without_small: str
) -> None:
    assert "names no small denoiser" in refused(tmp_path, recipe=pair_without_small)


def test_a_budget_that_can_not_be_kept_is_refused_before_measuring(tmp_path: Path) -> None:
    told = refused(tmp_path, "--budget", "0.05", "--criterion", "free")

    assert "a budget of 0.05 can't be kept" in told


def test_a_small_denoiser_that_costs_more_is_refused(batch_of: Callable[..., Batch]) -> None:
    batch = batch_of()
    swapped = replace(batch.jobs[0].model, pipeline="sprites", small="sprites")
    (job,) = (replace(batch.jobs[0], model=swapped),)

    with pytest.raises(UsageError, match=r"costs 1\.5 times as much"):
        prepare(replace(batch, jobs=(job,)), 1, cost_ratio=1.5)


@pytest.mark.parametrize(
    "options",
    [["--prompts", "0"], ["--positions", "0"], ["--budget", "0"], ["--budget", "1.1"],
     ["--criterion", "similarity"], ["--cost-ratio", "0"], ["--set", "nonsense"],
     ["--out", "a.txt"]],
    ids=" ".join,
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: list[str]) -> None:
    assert refused(tmp_path, *options)


def test_offloading_is_refused_where_it_would_happen(batch_of: Callable[..., Batch]) -> None:
    probing = prepare(batch_of(RECIPE), 1, cost_ratio=0.2)
    # Another name of the CPU: a device that models can be offloaded from.
    elsewhere = replace(probing.jobs[0].model, device="cpu:0", offload="group")
    jobs = (replace(probing.jobs[0], model=elsewhere),)

    with pytest.raises(UsageError, match=r"offload = 'group'\): add --set model\.offload=none"):
        measure(replace(probing, jobs=jobs), Path(), sensitivity_prompts=1, positions=1)


def test_a_recipe_with_an_error_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "recipe.toml:1:" in refused(tmp_path, recipe=RECIPE.replace("[recipe]", "[recip]"))


@pytest.mark.parametrize("name", ["a.json", "a.svg", "a.png"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "else"}', b"\xff\xfe"])
def test_files_of_others_are_left_alone(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UsageError, match=f"{name} exists already"):
        check_outputs(tmp_path / "a.json")
    assert (tmp_path / name).read_bytes() == content


def test_a_damaged_or_older_calibration_of_ours_may_be_replaced(tmp_path: Path) -> None:
    for more in ({"v": 0}, {"steps": []}):
        document = made_up().to_document() | more
        (tmp_path / "a.json").write_text(json.dumps(document), "utf-8")
        check_outputs(tmp_path / "a.json")
        assert json.loads((tmp_path / "a.json").read_bytes()) == document


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder doesn't exist"):
        check_outputs(tmp_path / "no" / "a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="read-only"):
        check_outputs(tmp_path / "a.json")


# What is probed.


def test_the_first_prompts_and_seeds_are_taken(batch_of: Callable[..., Batch]) -> None:
    probing = prepare(batch_of(RECIPE), 3, cost_ratio=0.2)

    assert [(job.scene, job.seed) for job in probing.jobs] == [
        ("circle", 1), ("circle", 2), ("star", 7),
    ]  # fmt: skip
    assert probing.notes == ()
    assert probing.cost_ratio == 0.2


def test_a_short_recipe_gets_further_seeds(batch_of: Callable[..., Batch]) -> None:
    probing = prepare(batch_of(RECIPE), 7, cost_ratio=0.2)

    assert [(job.scene, job.seed) for job in probing.jobs] == [
        ("circle", 1), ("circle", 2), ("star", 7), ("circle", 3), ("star", 8), ("circle", 4),
        ("star", 9),
    ]  # fmt: skip


def test_what_differs_in_stages_alone_is_one_prompt(batch_of: Callable[..., Batch]) -> None:
    swept = RECIPE + '\n[sweep]\nblend.stages = ["LLL", "LSL", "SSS"]\n'
    swept += "[blend]\nboundaries = [0.4, 0.8]\n"
    probing = prepare(batch_of(swept), 3, cost_ratio=0.2)

    assert [(job.scene, job.seed) for job in probing.jobs] == [
        ("circle", 1), ("circle", 2), ("star", 7),
    ]  # fmt: skip
    assert probing.notes == ()


def test_jobs_that_differ_are_probed_as_the_first_and_it_is_said(
    batch_of: Callable[..., Batch],
) -> None:
    probing = prepare(batch_of(RECIPE + "num_inference_steps = 9\n"), 3, cost_ratio=0.2)

    assert {job.num_inference_steps for job in probing.jobs} == {3}
    assert ["differ in model, size, steps or solver" in note for note in probing.notes] == [True]


def test_what_stages_set_is_left_out_and_it_is_said(batch_of: Callable[..., Batch]) -> None:
    stage = '\n[[blend.stage]]\ndenoiser = "large"\nguidance_scale = 2.0\n'
    probing = prepare(batch_of(RECIPE + stage), 1, cost_ratio=0.2)

    assert len(probing.jobs[0].stages) == 1
    assert probing.jobs[0].stages[0].guidance_scale is None
    assert ["is left out" in note for note in probing.notes] == [True]


def test_a_seed_of_0_is_drawn_and_recorded(batch_of: Callable[..., Batch]) -> None:
    probing = prepare(batch_of(RECIPE.replace("[7]", "[0]")), 3, cost_ratio=0.2)

    assert probing.jobs[2].seed > 0
    assert probing.conditions["probed"][2]["seed"] == probing.jobs[2].seed


def test_a_cost_that_can_not_be_counted_asks_for_it(
    batch_of: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of()
    hub = replace(batch.jobs[0].model, pipeline="some/where", small="else/where")
    unknown = replace(batch, jobs=(replace(batch.jobs[0], model=hub),))

    with pytest.raises(UsageError, match="--cost-ratio"):
        prepare(unknown, 1)
    assert prepare(unknown, 1, cost_ratio=0.3).cost_ratio == 0.3


def test_a_budget_is_checked_for_its_criterion() -> None:
    check_budget(0.2, 10, 0.2, "contiguous")
    check_budget(0.2, 10, 0.1, "best")  # extrapolation
    with pytest.raises(UsageError, match="--budget with --criterion contiguous"):
        check_budget(0.2, 10, 0.1, "contiguous")
    with pytest.raises(UsageError):
        check_budget(0.2, 10, 0.05, "best")


def test_the_runs_are_told_beforehand(batch_of: Callable[..., Batch]) -> None:
    jobs = prepare(batch_of(RECIPE), 3, cost_ratio=0.2).jobs
    runs = list(runs_of(jobs, 2, (0, 2)))

    assert [(run.what, run.prompt, run.start) for run in runs] == [
        ("velocities", 1, 0), ("velocities", 2, 0), ("velocities", 3, 0),
        ("sensitivities", 1, 0), ("sensitivities", 1, 0), ("sensitivities", 1, 2),
        ("sensitivities", 2, 0), ("sensitivities", 2, 0), ("sensitivities", 2, 2),
    ]  # fmt: skip
    assert [run.is_last for run in runs] == [True] * 3 + [False, False, True] * 2


# The picture and the words.


def test_equal_calibrations_give_equal_bytes() -> None:
    calibration = made_up()
    choice = choose(calibration.at(calibration.levels), 0.6)

    assert draw_pictures(calibration, choice) == draw_pictures(calibration, choice)


@pytest.mark.parametrize("count", [1, 3, 200])
@pytest.mark.parametrize("criterion", ["contiguous", "divergence"])
def test_any_number_of_steps_is_drawn(count: int, criterion: str) -> None:
    calibration = made_up(count) if count > 2 else replace(
        made_up(), steps=made_up().steps[:1], positions=(0,), interactions=((0.0,),)
    )  # fmt: skip
    _, png = draw_pictures(calibration, choose(calibration.at(calibration.levels), 0.6, criterion))

    assert len(png) < 200_000


def test_names_are_drawn_as_they_are() -> None:
    calibration = made_up(pipeline="./$x^2$/\x1b[31m/星", small=None, height=None, scheduler="$")
    svg, _ = draw_pictures(calibration, choose(calibration.at(calibration.levels), 0.6))

    assert b"\x1b" not in svg


def test_a_home_that_can_not_be_written_is_no_hindrance(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder", "utf-8")
    code = (
        "from flowblend_cli.utils.cache_dirs import settings_folder\n"
        "with settings_folder():\n"
        "    import os, pathlib, matplotlib.font_manager as f\n"
        "    folder = pathlib.Path(os.environ['MPLCONFIGDIR'])\n"
        "    assert list(folder.iterdir()), folder\n"
        "assert not folder.exists()\n"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**kept, "HOME": str(blocked), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_valley_is_called_one() -> None:
    calibration = made_up()
    choice = choose(calibration.at(calibration.levels), 0.6, "contiguous")
    told = facts(calibration, choice)

    assert told["divergence"]["shape"] == "U-shaped"
    assert told["divergence"]["smallest"]["step"] == 10
    assert told["first_to_last_third"] == pytest.approx(20)
    assert "U-shaped" in summary(calibration, choice)[0]


@pytest.mark.parametrize(
    ("values", "shape"),
    [([1, 1, 1], "flat"), ([2, 1, 0.5], "falling"), ([1, 2, 3], "rising"),
     ([1, 3, 1], "largest in the middle"), ([2, 1, 3], "U-shaped")],
)  # fmt: skip
def test_shapes_have_names(values: list[float], shape: str) -> None:
    whole = made_up(3)
    steps = tuple(
        replace(step, mean={**step.mean, "guided_relative_l2": value})
        for step, value in zip(whole.steps, values, strict=True)
    )
    calibration = replace(whole, steps=steps)
    choice = choose(calibration.at(calibration.levels), 0.6)

    assert facts(calibration, choice)["divergence"]["shape"] == shape


def test_errors_are_said_as_share_and_in_decibels() -> None:
    assert error_in_words(0.0001) == "1 % of the result (40.0 dB)"
    assert error_in_words(0.0) == "0"
    assert error_in_words(None) == "none"


def test_the_calibration_is_named_from_the_recipe(tmp_path: Path) -> None:
    inside = recipe_lines(tmp_path / "sub" / "a.json", tmp_path, 0.5, "best")
    outside = recipe_lines(tmp_path / "a.json", tmp_path / "sub", 0.5, "free")

    assert inside == ['stages = "auto"', "budget = 0.5", 'calibration = "sub/a.json"']
    assert outside[-2:] == ['criterion = "free"', f'calibration = "{tmp_path / "a.json"}"']


# Interrupted.


def test_the_calibration_is_kept_where_the_picture_fails(tmp_path: Path) -> None:
    def fail() -> tuple[bytes, ...]:
        raise MemoryError

    with pytest.raises(MemoryError):
        write(made_up(), tmp_path / "a.json", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert outputs(tmp_path / "a.json")[1:] == (tmp_path / "a.svg", tmp_path / "a.png")


@pytest.mark.night
def test_ctrl_c_stops_it_after_the_step_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "flowblend_cli", "probe", "recipe.toml", "--prompts", "99"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"},
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line.startswith("[1/99] velocities") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 128 + signal.SIGINT
    assert "stopping after this step" in stderr
    assert stderr.endswith("flowblend: stopped, and nothing was written\n")
    assert "Traceback" not in stderr
    assert stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
