from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from click.testing import CliRunner, Result
from tiny import SCHEDULERS, ForwardRecorder, run_wan, wan_denoiser, wan_pipe

from flowblend_cli import main
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.forwards import PIPELINES, forwards_by_role
from flowblend_cli.models.registry import known_pairs
from flowblend_cli.planning.flops import Cost, in_words, known_configs, sum_up
from flowblend_cli.planning.flops_cache import Count, count_all, request
from flowblend_plugin import DenoiserSwitch, Stage, StageSchedule

# Published TFLOPs of one clip (project page of arXiv:2512.24724): Wan 2.1, 832x480, 61 frames,
# 50 steps, one forward a step. SLL is small for the first 20 % of the steps.
PUBLISHED = {"SSS": 3129, "LSS": 13858, "LSL": 19222, "SLL": 24586, "LLL": 29950}
PAPER = """
[recipe]
name = "paper"

[model]
pipeline = "wan2.1-t2v"

[defaults]
num_inference_steps = 50
num_frames = 61
guidance_scale = 1.0

[[scene]]
name = "cat"
prompt = "a cat"
seeds = [1]

[sweep]
mode = "zip"
"blend.stages" = ["LLL", "LSL", "LSS", "SLL", "SSS"]
"blend.boundaries" = [[0.4, 0.8], [0.4, 0.8], [0.4, 0.8], [0.2, 0.8], [0.4, 0.8]]
"""

Write = Callable[..., Path]


def plan(path: Path, *options: str) -> Result:
    result = CliRunner().invoke(main, ["plan", str(path), *options])
    assert result.exit_code == 0, result.output
    return result


def planned(path: Path, *options: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(plan(path, "--json", *options).stdout)
    return document


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the forwards of these tests are counted already, in one go."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(home))
        configs = [known_configs()[f"wan2.1-t2v-{size}"] for size in ("14b", "1.3b")]
        clip = {"height": 480, "width": 832, "num_frames": 61, "text_tokens": 512}
        sprites = bundled_dir() / "models" / "sprites"
        vae = json.loads((sprites / "vae" / "config.json").read_text("utf-8"))
        ltx = [known_configs()[f"ltxv-{size}"] for size in ("13b", "2b")]
        ltx_clip = {"height": 480, "width": 704, "num_frames": 161, "text_tokens": 256}
        tiny = {"height": 64, "width": 64, "num_frames": 17, "text_tokens": 512}
        bundled = [
            json.loads((sprites / name / "config.json").read_text("utf-8"))
            for name in ("transformer", "transformer_small")
        ]
        counts = count_all(
            [
                *(request(c, {**clip, "timestep_per_token": False, "vae": {}}) for c in configs),
                *(request(c, {**ltx_clip, "timestep_per_token": False, "vae": {}}) for c in ltx),
                *(request(c, {**tiny, "timestep_per_token": False, "vae": vae}) for c in bundled),
                request({"_class_name": "LlamaModel"}, clip),
            ]
        )
        assert [count.reason is None for count in counts.values()].count(False) == 1
    return home


@pytest.fixture
def cached(counted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache; whatever isn't in it can't be counted, because no process starts."""
    home = tmp_path / "cache"
    shutil.copytree(counted, home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    return home


@pytest.mark.usefixtures("cached")
def test_the_published_figures_of_the_wan_pair_come_out(recipe_file: Write) -> None:
    jobs = planned(recipe_file(PAPER))["jobs"]

    assert [job["denoisers"].count("L") for job in jobs] == [50, 30, 20, 40, 0]
    for stages, job in zip(("LLL", "LSL", "LSS", "SLL", "SSS"), jobs, strict=True):
        assert job["flops"]["linear_only"] == pytest.approx(PUBLISHED[stages] * 1e12, rel=1e-3)
        assert job["flops"]["all_large_linear_only"] == jobs[0]["flops"]["linear_only"]
        assert job["flops"]["all_large_full"] == jobs[0]["flops"]["full"]


@pytest.mark.usefixtures("cached")
def test_half_large_ltx_leaves_the_published_share_of_the_flops(
    recipe_file: Write, minimal: str
) -> None:
    # 57.35 % (abstract of arXiv:2512.24724): what 20 large ones of 40 steps leave. The paper's
    # number of frames and of text tokens isn't known, and moves the share a little.
    text = minimal.replace('"sprites"', '"ltx-video"').replace("[0.4, 0.8]", "[0.3, 0.8]")
    options = ("defaults.num_inference_steps=40", "defaults.height=480", "defaults.width=704")

    (job,) = planned(recipe_file(text), *(word for o in options for word in ("--set", o)))["jobs"]

    assert job["forwards"] == {"large": 40, "small": 40}
    share = job["flops"]["linear_only"] / job["flops"]["all_large_linear_only"]
    assert share == pytest.approx(0.5735, abs=1e-3)


@pytest.mark.usefixtures("cached")
def test_attention_makes_up_nearly_half_of_the_large_denoiser_at_this_size(
    recipe_file: Write,
) -> None:
    large = planned(recipe_file(PAPER))["jobs"][0]["flops"]["denoisers"]["large"]

    tokens, width, layers, text = 16 * 30 * 52, 5120, 40, 512
    attention = layers * 4 * width * tokens * (tokens + text)
    assert large["per_forward"]["full"] - large["per_forward"]["linear_only"] == attention
    assert large["per_video"]["full"] == 50 * large["per_forward"]["full"]


@pytest.mark.usefixtures("cached")
def test_guidance_doubles_the_forwards_and_so_the_flops(recipe_file: Write, minimal: str) -> None:
    path = recipe_file(minimal)

    (guided,) = planned(path)["jobs"]
    (unguided,) = planned(path, "--set", "defaults.guidance_scale=1.0")["jobs"]

    assert guided["forwards"] == {"large": 12, "small": 8}
    assert unguided["forwards"] == {"large": 6, "small": 4}
    for name in ("linear_only", "full", "all_large_linear_only", "all_large_full"):
        assert guided["flops"][name] == 2 * unguided["flops"][name]
    assert guided["flops"]["full"] > guided["flops"]["linear_only"]


@pytest.mark.usefixtures("cached")
def test_the_parts_of_a_jobs_flops_add_up(recipe_file: Write, minimal: str) -> None:
    document = planned(recipe_file(minimal))

    (job,) = document["jobs"]
    for name in ("linear_only", "full"):
        parts = job["flops"]["denoisers"]
        assert sum(part["per_video"][name] for part in parts.values()) == job["flops"][name]
        for role, part in parts.items():
            assert part["per_video"][name] == job["forwards"][role] * part["per_forward"][name]
        assert job["flops"][f"all_large_{name}"] == 20 * parts["large"]["per_forward"][name]
        speed_up = job["flops"][f"all_large_{name}"] / job["flops"][name]
        assert job["flops"][f"ideal_speedup_{name}"] == pytest.approx(speed_up, abs=1e-4)
    assert job["flops_note"] is None
    assert document["flops"] == {k: v for k, v in job["flops"].items() if k != "denoisers"}


@pytest.mark.usefixtures("cached")
def test_an_all_large_job_has_nothing_to_gain(recipe_file: Write, minimal: str) -> None:
    (job,) = planned(recipe_file(minimal), "--set", "blend.stages=L")["jobs"]

    assert job["forwards"] == {"large": 20, "small": 0}
    assert job["flops"]["ideal_speedup_full"] == 1


@pytest.mark.usefixtures("cached")
def test_a_plan_for_people_says_both_conventions(recipe_file: Write, minimal: str) -> None:
    path = recipe_file(minimal)
    flops = planned(path)["flops"]
    told = [
        f"{name} FLOPs: {in_words(flops[name], flops[f'all_large_{name}'])}"
        for name in ("linear_only", "full")
    ]

    lines = plan(path).stdout.splitlines()

    assert lines[-3:-1] == told
    assert lines[-2].endswith("all large: ideal speed-up 1.50x")
    verbose = plan(path, "-v").stdout.splitlines()
    assert [line for line in verbose if line not in lines] == [f"    {line}" for line in told]


@pytest.mark.usefixtures("cached")
def test_a_pipeline_that_isnt_known_has_no_flops_and_the_plan_says_why(
    recipe_file: Write, minimal: str
) -> None:
    text = minimal.replace('pipeline = "sprites"', 'pipeline = "a/b"\nsmall = "c/d"')

    (job,) = planned(recipe_file(text))["jobs"]

    assert job["forwards"] is None
    assert job["flops"] is None
    assert job["flops_note"] == (
        "how many forwards a/b, which isn't on this machine, runs a step isn't known"
    )
    assert f"no FLOPs: {job['flops_note']}\n" in plan(recipe_file(text)).stdout


@pytest.mark.usefixtures("cached")
def test_a_small_denoiser_that_isnt_there_leaves_the_forwards_told(
    recipe_file: Write, minimal: str
) -> None:
    text = minimal.replace('pipeline = "sprites"', 'pipeline = "sprites"\nsmall = "c/d"')

    (job,) = planned(recipe_file(text))["jobs"]

    assert job["forwards"] == {"large": 12, "small": 8}
    assert job["flops"] is None
    assert job["flops_note"] == "the config of the small denoiser isn't on this machine"


@pytest.mark.usefixtures("cached")
def test_jobs_that_cant_be_counted_leave_the_others_told(recipe_file: Write, minimal: str) -> None:
    text = minimal + "\n[sweep]\nnum_frames = [17, 21]\n"

    document = planned(recipe_file(text))
    shown = plan(recipe_file(text)).stdout

    assert document["jobs"][0]["flops"] is not None
    assert document["jobs"][1]["flops"] is None
    assert "can't be started" in document["jobs"][1]["flops_note"]
    assert "x (1 job not counted)\nlarge denoiser: the counting process can't be" in shown


def test_without_torch_a_plan_says_so_and_asks_again_next_time(
    recipe_file: Write, minimal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    (job,) = planned(recipe_file(minimal))["jobs"]

    assert job["forwards"] == {"large": 12, "small": 8}
    assert job["flops"] is None
    assert "counting needs torch and diffusers, which can't be imported" in job["flops_note"]
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_counted_anew(cached: Path, recipe_file: Write, minimal: str) -> None:
    path = recipe_file(minimal)
    assert planned(path)["flops"] is not None

    for damage in (
        b"",
        b"\xff\xfe",
        b'{"linear_only": 1',
        b"[]",
        b'{"linear_only": -1, "full": 1}',
    ):
        for file in (cached / "flowblend" / "flops").iterdir():
            file.write_bytes(damage)
        (job,) = planned(path)["jobs"]
        assert "the counting process can't be started" in job["flops_note"]


def test_a_reason_that_lasts_is_remembered(cached: Path) -> None:
    clip = {"height": 480, "width": 832, "num_frames": 61, "text_tokens": 512}

    (count,) = count_all([request({"_class_name": "LlamaModel"}, clip)]).values()

    assert count.reason is not None
    assert "LlamaModel can't be counted" in count.reason
    assert not list(cached.rglob("*.tmp"))


def test_flops_are_said_in_the_unit_of_the_larger_figure() -> None:
    assert in_words(1_230_000_000_000_000, 1_900_000_000_000_000) == (
        "1.23 PFLOPs of 1.90 all large: ideal speed-up 1.54x"
    )
    assert in_words(999, 999) == "999.00 FLOPs of 999.00 all large: ideal speed-up 1.00x"
    assert in_words(1, 1000).startswith("0.00 kFLOPs of 1.00 ")
    assert sum_up([Cost(note="unknown")]) is None
    two = Cost({"large": 1, "small": 1}, {"large": Count(30, 60), "small": Count(10, 20)})
    assert sum_up([two, Cost(note="unknown")]) == {
        "linear_only": 40,
        "full": 80,
        "all_large_linear_only": 60,
        "all_large_full": 120,
        "ideal_speedup_linear_only": 1.5,
        "ideal_speedup_full": 1.5,
    }


@pytest.mark.parametrize(
    ("scheduler", "guidance", "stages"),
    [
        ("euler", 3.0, (Stage("large", until=0.5), Stage("small"))),
        ("unipc", 1.0, (Stage("large", until=0.4), Stage("small", until=0.8), Stage("large"))),
        ("heun", 3.0, (Stage("large", until=0.4), Stage("small", until=0.8), Stage("large"))),
        ("heun", 3.0, (Stage("large", until=0.6), Stage("small", guidance_scale=1.0))),
        ("euler", 3.0, (Stage("small", until=0.5, guidance_scale=1.0), Stage("large"))),
        ("euler", 3.0, (Stage("large", until=0.5, guidance_scale=5.0), Stage("small"))),
    ],
)
def test_the_counted_forwards_are_those_that_run(
    scheduler: str, guidance: float, stages: tuple[Stage, ...]
) -> None:
    schedule = StageSchedule(stages)
    large, small = wan_denoiser(), wan_denoiser(layers=1, seed=1)
    pipe = wan_pipe(SCHEDULERS[scheduler](), large)
    recorder = ForwardRecorder(large=large, small=small)

    with DenoiserSwitch(pipe, small=small, stages=schedule):
        run_wan(pipe, steps=5, guidance_scale=guidance)

    counted = forwards_by_role(
        stages,
        schedule.stage_indices(5),
        guided=guidance > 1,
        second_order=scheduler == "heun",
    )
    assert counted == {role: recorder.roles.count(role) for role in counted}
    assert sum(counted.values()) == len(recorder.roles)


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_known_of_a_pipeline_is_what_diffusers_does(name: str) -> None:
    parameters = inspect.signature(inspect.unwrap(getattr(diffusers, name).__call__)).parameters
    facts = PIPELINES[name]

    assert parameters[facts.argument].default == facts.guidance_scale
    if facts.argument == "true_cfg_scale":
        assert "negative_prompt" in parameters
    else:
        assert "true_cfg_scale" not in parameters
    for key, neutral in facts.uncounted.items():
        assert parameters[key].default == neutral
    if "max_sequence_length" in parameters:
        assert parameters["max_sequence_length"].default == facts.text_tokens
    else:
        assert facts.text_tokens == 77
    for key in ("height", "width", "num_frames"):
        default = parameters[key].default if key in parameters else 1
        # Mochi's size stands in its pipeline's body.
        assert getattr(facts, key) == default or (name == "MochiPipeline" and default is None)


@pytest.mark.parametrize("name", [n for n, pair in known_pairs().items() if pair.pipeline])
def test_every_known_pair_can_be_counted(name: str) -> None:
    pair = known_pairs()[name]

    assert pair.pipeline_class in PIPELINES
    for role in ("large", *(["small"] if pair.small else [])):
        assert pair.architectures.get(role, name) in known_configs()
