"""Noise levels told from a pipeline's folder: those of its real scheduler, or an error in time."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import SamplingSpec
from flowblend_cli.main import main
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.solvers import RULES, find_solver
from flowblend_cli.planning.plan import plan_batch
from flowblend_cli.recipe.loader import load_batch
from flowblend_plugin.errors import SchedulerConfigError
from flowblend_plugin.schedulers.factory import _LOST, _NAME_OF, STOCHASTIC, make_scheduler
from flowblend_plugin.schedulers.sigmas import PLAIN_PIPELINES, noise_levels

SPRITES = bundled_dir() / "models" / "sprites"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SIGMAS = """\
[model]
pipeline = "./model"
small = "./small"

[blend]
stages = "LSL"
boundary_sigmas = [0.9, 0.5]

[defaults]
num_inference_steps = 10

[[scene]]
name = "square"
prompt = "a red square"
"""
LONG_FORM = """\
[[blend.stage]]
denoiser = "large"
until_sigma = 0.9

[[blend.stage]]
denoiser = "small"
"""


def options_of(name: str) -> dict[str, Any]:
    return dict(FLOW) if RULES[name].flow else {}


def save(folder: Path, scheduler: Any, pipeline: str = "WanPipeline") -> Any:
    """Save a scheduler into a pipeline's folder, as diffusers does, and read it back."""
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": pipeline, "scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return type(scheduler).from_pretrained(folder, subfolder="scheduler")


def own(folder: Path, name: str, **options: Any) -> Any:
    return save(folder, getattr(diffusers, name)(**options_of(name), **options))


def told(folder: Path, sampling: SamplingSpec, steps: int) -> tuple[float, ...]:
    solver = find_solver("./model", sampling, folder.parent)
    return noise_levels(solver.name, steps, solver.flow_shift)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(RULES)),
    own_shift=st.floats(0.1, 20),
    scheduler=st.none() | st.sampled_from([rule.name for rule in RULES.values()]),
    flow_shift=st.none() | st.floats(0.1, 20),
    mode=st.sampled_from(["ode", "sde"]),
    steps=st.integers(1, 80),
)
def test_levels_are_those_of_the_folders_own_scheduler(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    own_shift: float,
    scheduler: str | None,
    flow_shift: float | None,
    mode: Any,
    steps: int,
) -> None:
    if mode == "sde" and (scheduler or RULES[name].name) not in STOCHASTIC:
        mode = "ode"
    folder = tmp_path_factory.getbasetemp() / "levels" / "model"
    real = own(folder, name, **{RULES[name].shift: own_shift})

    real = make_scheduler(real, scheduler, flow_shift, mode)
    real.set_timesteps(steps)

    total = real.config.num_train_timesteps
    expected = tuple(float(t) / total for t in real.timesteps[:: real.order])
    assert told(folder, SamplingSpec(mode, scheduler, flow_shift), steps) == expected


@pytest.mark.parametrize("name", RULES)
def test_a_schedulers_defaults_count_where_its_config_leaves_them_out(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    own(folder, name)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": name, **options_of(name)}), "utf-8")
    real = getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    real.set_timesteps(7)

    expected = tuple(float(t) / 1000 for t in real.timesteps[:: real.order])
    assert told(folder, SamplingSpec(), 7) == expected


@pytest.mark.parametrize("name", RULES)
def test_every_key_that_a_scheduler_has_is_accounted_for(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters

    assert RULES[name].known == set(parameters) - {"self"}


@pytest.mark.parametrize("name", RULES)
def test_what_another_solver_would_lose_is_no_known_level(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    lost = {key: allowed for key, allowed in _LOST.items() if key in parameters}

    assert lost.keys() <= RULES[name].needs.keys()
    assert all(RULES[name].needs[key] in allowed for key, allowed in lost.items())


@pytest.mark.parametrize("name", sorted(PLAIN_PIPELINES))
def test_plain_pipelines_hand_their_scheduler_a_number_of_steps_and_no_levels(name: str) -> None:
    source = inspect.getsource(getattr(diffusers, name).__call__)

    assert re.search(r"(set_timesteps|retrieve_timesteps)\(", source)
    others = r"^\s*(sigmas|timesteps)\b[^=:(]* = (?!self\.scheduler|retrieve_timesteps)"
    assert not re.search(others, source, re.MULTILINE)


Given = dict[str, Any]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("DEISMultistepScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ("SASolverScheduler", {"use_exponential_sigmas": True}, "use_exponential_sigmas = True"),
        ("FlowMatchLCMScheduler", {"scale_factors": [0.5, 1.0]}, "scale_factors = "),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas = True"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas = True"),
        ("FlowMatchHeunDiscreteScheduler", {"num_train_timesteps": 500}, "num_train_timesteps = "),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shif"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal = 0.1"),
    ],
)
def test_a_config_whose_levels_arent_known_is_refused(
    tmp_path: Path, name: str, options: Given, reason: str
) -> None:
    folder = tmp_path / "model"
    own(folder, name, **options)

    with pytest.raises(UsageError, match=reason):
        told(folder, SamplingSpec(), 10)


@pytest.mark.parametrize(
    "options",
    [{"use_dynamic_shifting": True}, {"shift_terminal": 0.1}],
)
def test_a_solver_that_rendering_refuses_is_refused_here(tmp_path: Path, options: Given) -> None:
    folder = tmp_path / "model"
    real = own(folder, "FlowMatchEulerDiscreteScheduler", **options)

    with pytest.raises(SchedulerConfigError):
        make_scheduler(real, "unipc", 3.0)
    with pytest.raises(UsageError, match="can't be told"):
        told(folder, SamplingSpec(scheduler="unipc", flow_shift=3.0), 9)


@pytest.mark.parametrize(
    ("index", "config", "reason"),
    [
        ({"_class_name": "LTXPipeline"}, "{}", "isn't known how LTXPipeline spaces"),
        ({"_class_name": ["pipeline.py", "Mine"]}, "{}", "isn't known how"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "{}", "its scheduler is DDIMScheduler"),
        ({"scheduler": ["mine", "UniPCMultistepScheduler"]}, "{}", "its scheduler is"),
        ({"scheduler": None}, "{}", "its scheduler is None"),
        ({}, "{}", "isn't there or isn't readable"),
        ({}, "[", "isn't there or isn't readable"),
        ({}, '{"_class_name": "DDIMScheduler"}', "is one of DDIMScheduler"),
        ({}, '{"flow_shift": 3.0}', "no use_flow_sigmas = true"),
        ({}, '{"use_flow_sigmas": true, "flow_shift": "3"}', "flow_shift = '3'"),
        ({}, '{"use_flow_sigmas": true, "flow_shift": 0}', "flow_shift = 0"),
        ({}, '{"use_flow_sigmas": true, "new_key": 1}', "new_key = 1"),
    ],
)
def test_a_folder_that_cant_be_read_for_certain_is_refused(
    tmp_path: Path, index: Given, config: str, reason: str
) -> None:
    folder = tmp_path / "model"
    (folder / "scheduler").mkdir(parents=True)
    sound = {"_class_name": "WanPipeline", "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({**sound, **index}), "utf-8")
    (folder / "scheduler" / "scheduler_config.json").write_text(config, "utf-8")

    with pytest.raises(UsageError, match=reason):
        told(folder, SamplingSpec(), 10)


# A folder's own solver may have no stochastic form.

SDE = """\
[model]
pipeline = "./model"

[blend]
stages = "L"

[sampling]
mode = "sde"

[[scene]]
name = "square"
prompt = "a red square"
"""


@pytest.mark.parametrize("name", RULES)
def test_rules_name_solvers_as_rendering_does(name: str) -> None:
    assert RULES[name].name == _NAME_OF[name]


@pytest.mark.parametrize("name", RULES)
def test_sde_on_a_folder_is_refused_where_rendering_refuses_it(
    recipe_file: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    whole = json.loads((SPRITES / "model_index.json").read_text("utf-8"))
    shutil.copytree(SPRITES, tmp_path / "model")
    real = own(tmp_path / "model", name)
    index = json.loads((tmp_path / "model/model_index.json").read_text("utf-8"))
    (tmp_path / "model/model_index.json").write_text(json.dumps(whole | index), "utf-8")

    result = CliRunner().invoke(main, ["check", str(recipe_file(SDE))])

    try:
        make_scheduler(real, mode="sde")
        assert result.exit_code == 0, result.output
    except SchedulerConfigError:
        assert result.exit_code == 2
        assert ":8:8: sampling.mode: 'sde' isn't possible: " in result.stderr
        assert f"{RULES[name].name}, the pipeline's own scheduler, has no" in result.stderr


def test_sde_on_a_folder_is_possible_with_another_solver(
    batch_of: Any, problems_of: Any, tmp_path: Path
) -> None:
    own(tmp_path / "model", "UniPCMultistepScheduler")

    assert batch_of(SDE, "sampling.scheduler=dpmpp_2m").jobs
    found, *of_the_model = problems_of(SDE, "sampling.scheduler=heun")[::-1]
    assert "'sde' isn't possible: heun has no stochastic form" in found
    assert all("model './model'" in one for one in of_the_model)  # a hollow folder


@pytest.mark.parametrize("entry", [None, ["mine", "UniPCMultistepScheduler"], ["diffusers", "X"]])
def test_sde_on_a_folder_of_an_unknown_solver_is_left_to_rendering(
    batch_of: Any, tmp_path: Path, entry: Any
) -> None:
    (tmp_path / "model").mkdir()
    index = {"_class_name": "WanPipeline", "scheduler": entry}
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index), "utf-8")

    assert batch_of(SDE).jobs


@pytest.fixture
def recipe(recipe_file: Callable[[str], Path], tmp_path: Path) -> Path:
    """A recipe with boundaries in sigma on folders that only looking works on."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}", "utf-8")
    return recipe_file(SIGMAS)


def test_a_folders_stages_are_planned_by_its_own_shift(recipe: Path, tmp_path: Path) -> None:
    def planned(shift: float) -> str:
        own(tmp_path / "model", "UniPCMultistepScheduler", flow_shift=shift)
        return plan_batch(load_batch(recipe)).jobs[0].denoisers

    # By hand: x from 1 down by 0.0999 a step, shifted to s x / (1 + (s - 1) x).
    assert planned(1.0) == "LLSSSSLLLL"
    assert planned(5.0) == "LLLLSSSSSL"


@pytest.mark.parametrize("command", [["check"], ["plan"], ["render"], ["render", "--dry-run"]])
def test_unknown_levels_are_a_recipe_error_at_the_key_for_every_command(
    recipe: Path, tmp_path: Path, command: list[str]
) -> None:
    own(tmp_path / "model", "UniPCMultistepScheduler", use_karras_sigmas=True)

    result = CliRunner().invoke(main, [*command, str(recipe)])

    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    at_key = f"{recipe}:7:1: blend.boundary_sigmas: the noise levels of './model' can't be told"
    assert [line.startswith(at_key) for line in lines if ": model." not in line] == [True]
    assert not (tmp_path / "out").exists()


Problems = Callable[..., list[str]]


def test_a_hub_id_that_is_no_known_pair_needs_its_scheduler_and_shift(
    problems_of: Problems, batch_of: Any
) -> None:
    text = SIGMAS.replace("./model", "a/b").replace("./small", "c/d")

    (found,) = problems_of(text)
    (half,) = problems_of(text, "sampling.flow_shift=3.0")

    assert found.startswith("recipe.toml:7:1: blend.boundary_sigmas: the noise levels of 'a/b'")
    assert "set scheduler and flow_shift in [sampling]" in found
    assert "set scheduler in [sampling]" in half
    assert batch_of(text, "sampling.flow_shift=3.0", "sampling.scheduler=unipc").jobs


@pytest.mark.parametrize(
    ("blend", "key"),
    [
        ('[sweep]\n"blend.boundary_sigmas" = [[0.9, 0.5]]\n', "sweep"),
        (LONG_FORM, "blend.stage[0].until_sigma"),
    ],
)
def test_other_ways_to_write_sigmas_are_blamed_at_their_own_key(
    problems_of: Problems, blend: str, key: str
) -> None:
    table = 'stages = "LSL"\nboundary_sigmas = [0.9, 0.5]\n'
    text = SIGMAS.replace("./model", "a/b").replace("./small", "c/d").replace(table, "")
    line = text.count("\n") + 1

    (found,) = problems_of(text + blend)

    assert key in found
    assert int(found.split(":")[1]) >= line


def test_a_sigma_given_on_the_command_line_is_named(problems_of: Problems, minimal: str) -> None:
    text = minimal.replace('"sprites"', '"a/b"\nsmall = "c/d"').replace(
        "boundaries = [0.4, 0.8]\n", ""
    )

    (found,) = problems_of(text, "blend.boundary_sigmas=[0.9, 0.5]")

    assert "--set blend.boundary_sigmas=[0.9, 0.5]: blend.boundary_sigmas" in found


def test_a_single_denoiser_needs_no_levels(recipe: Path, tmp_path: Path) -> None:
    own(tmp_path / "model", "UniPCMultistepScheduler", use_karras_sigmas=True)

    assert load_batch(recipe, ["blend.stages=LLL"]).jobs


def test_a_local_folders_noise_levels_are_planned_as_they_run(recipe: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(SPRITES, model)
    index = json.loads((model / "model_index.json").read_text("utf-8"))
    own(model, "UniPCMultistepScheduler", flow_shift=5.0)
    index["scheduler"] = ["diffusers", "UniPCMultistepScheduler"]
    (model / "model_index.json").write_text(json.dumps(index), "utf-8")
    edits = ["model.small=./model", "blend.boundary_sigmas=[0.96, 0.8]",
             "defaults.num_inference_steps=8", "defaults.num_frames=1", "defaults.height=64",
             "defaults.width=64", "defaults.max_sequence_length=32"]  # fmt: skip
    options = [option for edit in edits for option in ("--set", edit)]

    result = CliRunner().invoke(main, ["render", str(recipe), "--json", *options])

    events = {e["event"]: e for e in map(json.loads, result.stdout.splitlines())}
    assert events["job_started"]["denoisers"] == "LLSSSLLL"
    assert events["job_done"]["denoisers"] == "LLSSSLLL"
