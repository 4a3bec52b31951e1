"""What stages set in a recipe: denoisers by letter, guidance, LoRA adapters, caches, backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.errors import ModelMissingError
from flowblend_cli.jobs import AdapterSpec, Batch, Job
from flowblend_cli.models.identity import job_key, model_identity
from flowblend_cli.planning.plan import plan_batch, summarize
from flowblend_plugin.stages import Adapter, Cache, Stage

LoadText = Callable[..., Batch]
Problems = Callable[..., list[str]]

HEAD = '[model]\npipeline = "sprites"\n'
TAIL = '[[scene]]\nname = "a"\nprompt = "a cat"\n'
LONG = """\
[model]
pipeline = "sprites"
denoisers = { D = "sprites" }
adapters = { style = { large = "./a.safetensors", D = "./b.safetensors" } }

[[blend.stage]]
denoiser = "L"
until = 0.5
adapters = [{ name = "style", weight = 0.5, end_weight = 1.0 }]

[[blend.stage]]
denoiser = "D"
guidance_scale = 1.0
adapters = [{ name = "style" }]
cache = { kind = "first_block", threshold = 0.3 }
attention_backend = "native"

[defaults]
num_inference_steps = 4
max_sequence_length = 64

[sampling]
solver_history = "reset"

[[scene]]
name = "a"
prompt = "a red circle moving right on a navy background"
"""


def write_lora(path: Path, width: int = 192, seed: int = 0) -> None:
    """A LoRA for the first self-attention of a sprites denoiser: 192 wide large, 96 small."""
    gen = torch.Generator().manual_seed(seed)
    name = "transformer.blocks.0.attn1.to_q"
    save_file(
        {
            f"{name}.lora_A.weight": torch.randn(2, width, generator=gen),
            f"{name}.lora_B.weight": torch.randn(width, 2, generator=gen),
        },
        path,
    )


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    write_lora(tmp_path / "a.safetensors")
    write_lora(tmp_path / "b.safetensors", width=96)
    return tmp_path


def test_the_long_form_says_everything_that_a_stage_can(batch_of: LoadText, loras: Path) -> None:
    (job,) = batch_of(LONG).jobs

    assert job.stages == (
        Stage("large", until=0.5, adapters=(Adapter("style", 0.5, 1.0),)),
        Stage(
            "D",
            guidance_scale=1.0,
            adapters=(Adapter("style"),),
            cache=Cache.of("first_block", {"threshold": 0.3}),
            attention_backend="native",
        ),
    )
    assert job.stage_string == "LD"
    assert job.model.denoisers == (("D", "sprites"),)
    assert job.sampling.solver_history == "reset"
    assert job.adapters == (
        AdapterSpec("style", "large", "./a.safetensors"),
        AdapterSpec("style", "D", "./b.safetensors"),
    )


def test_such_a_job_survives_its_document(batch_of: LoadText, loras: Path) -> None:
    (job,) = batch_of(LONG).jobs

    assert Job.from_document(json.loads(json.dumps(job.to_document()))) == job


def test_a_job_that_sets_none_of_it_has_the_document_of_before(batch_of: LoadText) -> None:
    document = batch_of().jobs[0].to_document()

    assert "adapters" not in document
    assert "denoisers" not in document["model"]
    assert "solver_history" not in document["sampling"]


def test_a_letter_of_model_denoisers_stands_in_stage_strings(batch_of: LoadText) -> None:
    text = LONG[: LONG.index("adapters =")] + '[blend]\nstages = "LDS"\nboundaries = [0.25, 0.5]\n'
    text += LONG[LONG.index("[defaults]") :]
    plan = plan_batch(batch_of(text))

    assert plan.jobs[0].denoisers == "LDSS"
    assert summarize(plan.totals()) == "4 steps: 1 large, 2 small, 1 D"


def test_plan_says_what_stages_set(batch_of: LoadText, loras: Path) -> None:
    (planned,) = plan_batch(batch_of(LONG)).jobs

    assert planned.steps == (
        "steps 0-1 large (LoRA style 0.5 to 1), "
        "2-3 D (guidance 1, LoRA style 1, cache first_block, attention native)"
    )


def test_a_sweep_compares_whole_lists_of_stages(batch_of: LoadText) -> None:
    text = LONG[: LONG.index("denoisers")] + LONG[LONG.index("[defaults]") :]
    text += """
[sweep]
"blend.stage" = [
    [{ denoiser = "large" }],
    [{ denoiser = "large", until = 0.5 }, { denoiser = "small", guidance_scale = 1.0 }],
]
"""
    first, second = batch_of(text).jobs

    assert (first.id, second.id) == ("a-s42-n4-stage0", "a-s42-n4-stage1")
    assert (first.stage_string, second.stage_string) == ("L", "LS")
    assert second.stages[1].guidance_scale == 1.0


@pytest.mark.parametrize(
    ("found", "replaced", "message"),
    [
        ("{ D = ", "{ S = ", "model.denoisers.S: S is the small denoiser already"),
        ("{ D = ", "{ fast = ", "model.denoisers.fast: a further denoiser is named by one letter"),
        ("{ D = ", "{ F = ", "stage[1].denoiser: 'D' is no denoiser: bind the letter in [model.d"),
        ("{ D = ", "{ E = ", "model.denoisers.E: E means extrapolated steps already: take another"),
        ("{ large = ", "{ extrapolated = ", "no denoiser runs extrapolated steps: name one that"),
        ('D = "sprites"', 'D = "./none"', "model.denoisers.D: the folder './none' doesn't exist"),
        ('denoiser = "D"', 'denoiser = "smal"', "or a letter from [model.denoisers], got 'smal'"),
        ("guidance_scale = 1.0", "guidance_scale = 0.5", "guidance_scale: must be at least 1"),
        ('"first_block"', '"frist"', "stage[1].cache: cache 'frist' is unknown: choose one of"),
        ("threshold", "treshold", "cache 'first_block' takes no treshold: it takes threshold"),
        ("threshold = 0.3", "threshold = {}", "threshold must be a number, got {}"),
        ('"first_block", threshold', '"mag", threshold', "cache 'mag' goes by ratios measured on"),
        ("threshold = 0.3", 'threshold = "high"', "threshold must be a number, got 'high'"),
        ('"native"', '"flash_hub"', "'flash_hub' downloads code from the Hub"),
        ("{ large = ", "{ larg = ", "got 'larg'; did you mean 'large'?"),
        ("./b.safetensors", "loras/b.safetensors", "write './loras/b.safetensors' for one beside"),
        ('{ kind = "first_block",', "{", "stage[1].cache: must be a kind such as"),
        ('"native"', '"nativ"', "got 'nativ'; did you mean 'native'?"),
        ('"style" }]', '"stile" }]', "[model.adapters] binds no 'stile' (it has style)"),
        (', D = "./b.safetensors"', "", "no 'style' for the D denoiser, only for large"),
        ("./b.safetensors", "./c.safetensors", "'./c.safetensors' doesn't exist: expected"),
        ("./b.safetensors", "./b.bin", "'./b.bin' is no LoRA file: expected ./FILE.safetensors"),
        ("./b.safetensors", "b.safetensors", "write './b.safetensors' for one beside it"),
        ('"style" }]', '"style" }, { name = "style" }]', "'style' stands twice in one stage"),
        ("weight = 0.5, end", "wait = 0.5, end", "unknown key in adapters of a stage"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(
    problems_of: Problems, loras: Path, found: str, replaced: str, message: str
) -> None:
    assert LONG.count(found) == 1
    problems = problems_of(LONG.replace(found, replaced))

    assert len(problems) == 1
    assert message in problems[0]
    line = int(problems[0].split(":")[1])
    assert line in (3, 4, 9, 12, 13, 14, 15, 16)


def test_guidance_that_the_pipeline_cannot_change_is_refused(problems_of: Problems) -> None:
    text = """\
[model]
pipeline = "ltx-video"

[[blend.stage]]
denoiser = "L"
until = 0.5

[[blend.stage]]
denoiser = "S"
guidance_scale = 1.0

[[scene]]
name = "a"
prompt = "b"
"""
    (batched,) = problems_of(text)
    (never,) = problems_of(text.replace("ltx-video", "qwen-image").replace('"S"', '"L"'))

    assert batched.startswith("recipe.toml:10:1: blend.stage[1].guidance_scale: LTXConditionPip")
    assert "as one batch" in batched
    assert "doesn't let guidance change in mid-trajectory" in never


def test_an_adapter_that_no_stage_uses_is_refused(
    problems_of: Problems, minimal: str, loras: Path
) -> None:
    text = minimal.replace('"sprites"', '"sprites"\nadapters = { style = "./a.safetensors" }')
    (problem,) = problems_of(text)

    assert problem.startswith("recipe.toml:6:14: model.adapters.style: is at work in no stage")


def test_an_adapter_may_be_named_by_its_file(batch_of: LoadText, loras: Path) -> None:
    text = LONG.replace('name = "style", weight', 'name = "./a.safetensors", weight')
    (job,) = batch_of(text).jobs

    assert job.stages[0].adapters[0].name == "a"
    assert AdapterSpec("a", "large", "./a.safetensors") in job.adapters


def test_two_files_of_one_name_are_refused(problems_of: Problems, loras: Path) -> None:
    (loras / "sub").mkdir()
    write_lora(loras / "sub" / "a.safetensors")
    text = LONG.replace('name = "style", weight', 'name = "./a.safetensors", weight').replace(
        'name = "style" }]\ncache', 'name = "./b.safetensors" }]\ncache'
    )
    text = text.replace(
        "weight = 0.5, end_weight = 1.0 }]",
        'weight = 0.5 }]\n\n[[blend.stage]]\ndenoiser = "L"\nuntil = 0.7\n'
        'adapters = [{ name = "./sub/a.safetensors" }]',
    )
    (problem,) = problems_of(text)

    assert "'./sub/a.safetensors' and './a.safetensors' would both be called 'a'" in problem


def test_the_bytes_of_a_lora_decide_the_key(batch_of: LoadText, loras: Path) -> None:
    (job,) = batch_of(LONG).jobs

    def key() -> str:
        return job_key(job, model_identity(job.model, loras, job.adapters))

    first = key()
    write_lora(loras / "b.safetensors", width=96, seed=1)

    assert key() != first


def test_a_lora_of_the_hub_is_never_downloaded(batch_of: LoadText, loras: Path) -> None:
    (job,) = batch_of(LONG.replace("./a.safetensors", "someone/style")).jobs

    with pytest.raises(
        ModelMissingError, match=r"'someone/style'.*pytorch_lora_weights.*models fetch"
    ):
        model_identity(job.model, loras, job.adapters)


def test_all_of_it_renders_and_is_recorded(batch_of: LoadText, loras: Path, tmp_path: Path) -> None:
    from flowblend_cli.commands.info import describe
    from flowblend_cli.engine.batch_run import BatchRun
    from flowblend_cli.events import captured_events

    batch = batch_of(LONG)
    (job,) = batch.jobs
    plain = replace(job, id="plain", adapters=(), stages=(Stage("large", 0.5), Stage("D")))
    batch = replace(batch, jobs=(job, plain))

    assert BatchRun(batch, captured_events()).run() == 0
    document, other = (read_document(batch.path_of(j)) or {} for j in batch.jobs)
    assert document["resolved"]["denoisers"] == "LLDD"
    assert document["pixels_sha256"] != other["pixels_sha256"]
    (report,) = document["resolved"]["caches"]
    assert (report["stage"], report["denoiser"], report["forwards"]) == (1, "D", 2)
    assert set(document["models"]) == {"pipeline", "small", "D", "LoRA style large", "LoRA style D"}
    shown = dict(describe(document))
    assert shown["stage 1"] == "LoRA style 0.5 to 1"
    assert shown["cache, stage 2"].startswith("first_block: ")


def test_a_stages_guidance_needs_a_guided_call(problems_of: Problems, loras: Path) -> None:
    text = LONG.replace("guidance_scale = 1.0", "guidance_scale = 3.0").replace(
        "[defaults]\n", "[defaults]\nguidance_scale = 1.0\n"
    )
    (problem,) = problems_of(text)

    assert problem.startswith(
        "recipe.toml:13:18: blend.stage[1].guidance_scale: 3.0 isn't possible"
    )
    assert "set guidance_scale above 1" in problem


def test_a_lora_is_named_by_a_plain_word(problems_of: Problems, loras: Path) -> None:
    (problem,) = problems_of(LONG.replace("style = {", '"st.yle" = {'))

    assert "a LoRA is named by letters, digits, - and _, got 'st.yle'" in problem


@pytest.mark.parametrize("stages", ["LSL", "LSS", "SLL", "LES", "LLS"])
def test_any_three_letters_end_where_the_paper_has_it(batch_of: LoadText, stages: str) -> None:
    text = f'{HEAD}[blend]\nstages = "{stages}"\n{TAIL}'
    swept = f'{HEAD}[sweep]\n"blend.stages" = ["L", "{stages}"]\n{TAIL}'
    bounded = f"{HEAD}[blend]\nboundaries = [0.2, 0.3]\n{TAIL}"

    for batch, expected in (
        (batch_of(text), [0.4, 0.8, None]),
        (batch_of(HEAD + TAIL, f"blend.stages={stages}"), [0.4, 0.8, None]),
        (batch_of(swept), [0.4, 0.8, None]),
        (batch_of(bounded, f"blend.stages={stages}"), [0.2, 0.3, None]),
    ):
        assert batch.jobs[-1].stage_string == stages
        assert [stage.until for stage in batch.jobs[-1].stages] == expected


@pytest.mark.parametrize(
    ("stages", "example"), [("LS", "[0.5]"), ("LSLS", "[0.25, 0.5, 0.75]"), ("SL", "[0.5]")]
)
def test_other_lengths_say_what_they_need(problems_of: Problems, stages: str, example: str) -> None:
    (line,) = problems_of(f'{HEAD}[sweep]\n"blend.stages" = ["LSL", "{stages}"]\n{TAIL}')

    assert f"stages '{stages}' needs boundaries" in line
    assert f"such as boundaries = {example}" in line
