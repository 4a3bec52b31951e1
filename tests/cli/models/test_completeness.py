"""Models that aren't whole: told by every command before anything is loaded, with the tensor."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from importlib import util
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowblend_cli import main
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.models import completeness
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.completeness import Place, find_faults, read_header
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.utils.worker_process import worker_environment
from flowblend_plugin.completeness import index_faults, library_of

ROOT = Path(__file__).resolve().parents[3]
SPRITES = bundled_dir() / "models" / "sprites"
DENOISER = "transformer/diffusion_pytorch_model.safetensors"
SMALL = "transformer_small/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
RECIPE = """\
[model]
pipeline = "./model"
small = "./model"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = 2
height = 64
width = 64
num_frames = 5

[[scene]]
name = "star"
prompt = "a white star"
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        completeness, "cache_path", lambda *parts: tmp_path.joinpath("kept", *parts)
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled pipeline beside a recipe that names it."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return Path(shutil.copytree(SPRITES, tmp_path / "model"))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def lose(model: Path, file: str) -> str:
    """Take one tensor out of a file of a model; its name."""
    name = sorted(load_file(model / file))[3]
    change(model / file, lambda tensors: tensors.pop(name))
    return name


@pytest.mark.parametrize("file", [DENOISER, SMALL, VAE, TEXT])
def test_a_tensor_that_any_component_lacks_ends_every_command_before_a_render(
    file: str, model: Path
) -> None:
    recipe = model.parent / "recipe.toml"
    tensor = lose(model, file)

    results = {
        command: invoke(*command.split(), recipe)
        for command in ("check", "plan", "models verify", "render --json")
    }

    codes = {command: result.exit_code for command, result in results.items()}
    assert codes == {"check": 2, "plan": 2, "models verify": 3, "render --json": 3}
    for result in results.values():
        assert file in result.stderr
        assert tensor in result.stderr
    line = 3 if file == SMALL else 2
    errors = [one for one in results["check"].stderr.splitlines() if "warning:" not in one]
    assert errors[0].startswith(f"{recipe}:{line}:")
    events = [json.loads(one)["event"] for one in results["render --json"].stdout.splitlines()]
    assert events == ["summary"]


def test_all_that_is_wrong_is_told_at_once(model: Path) -> None:
    lost = [lose(model, file) for file in (DENOISER, TEXT)]
    change(
        model / VAE, lambda tensors: tensors.update(surprise=next(iter(tensors.values())).clone())
    )
    data = (model / SMALL).read_bytes()
    (model / SMALL).write_bytes(data[:-100])
    (model / "scheduler/scheduler_config.json").write_text("{")

    told = invoke("check", model.parent / "recipe.toml").stderr

    assert all(name in told for name in (*lost, "surprise"))
    assert f"{SMALL} has {len(data) - 100} bytes, and its header tells of {len(data)}" in told
    assert "scheduler/scheduler_config.json isn't JSON" in told


def test_an_untouched_copy_is_whole_and_a_second_look_asks_nobody(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completeness, "_shipped", frozenset)
    places = [Place(model), Place(model, "transformer_small", is_pipeline=False)]
    assert set(find_faults(places).values()) == {()}

    monkeypatch.setattr(completeness, "_ask", lambda requests: pytest.fail("asked again"))

    assert set(find_faults(places).values()) == {()}


@pytest.mark.night
def test_the_answer_of_a_process_of_its_own_is_the_same(model: Path, tmp_path: Path) -> None:
    name = lose(model, DENOISER)
    code = (
        "import sys; from pathlib import Path; from flowblend_cli.models.completeness import *\n"
        "print(*find_faults([Place(Path(sys.argv[1]))]).popitem()[1])\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**worker_environment(), "XDG_CACHE_HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip

    assert done.stdout.strip() == f"transformer: {DENOISER} lacks the tensor {name}"


def test_the_shipped_list_is_of_the_bundled_models_and_they_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = ROOT / "scripts/generate_whole_components.py"
    spec = util.spec_from_file_location("generate_whole_components", path)
    assert spec is not None
    assert spec.loader is not None
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert script.LIST.read_text("utf-8") == script.render_list(), f"run python {path}"
    monkeypatch.setattr(completeness, "_shipped", frozenset)
    assert set(find_faults(script.bundled_places()).values()) == {()}


def sharded(model: Path, edit: Callable[[dict[str, str]], object]) -> None:
    """Split the denoiser in two, with an index that is edited first."""
    tensors = load_file(model / DENOISER)
    (model / DENOISER).unlink()
    names = sorted(tensors)
    halves = {1: names[::2], 2: names[1::2]}
    shards = {n: f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in halves}
    for number, some in halves.items():
        chosen = {name: tensors[name] for name in some}
        save_file(chosen, model / "transformer" / shards[number], {"format": "pt"})
    index = {name: shards[number] for number, some in halves.items() for name in some}
    edit(index)
    path = model / f"{DENOISER}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_an_index_that_names_nothing_is_wrong(model: Path) -> None:
    sharded(model, lambda index: index.clear())

    (fault,) = find_faults([Place(model)])[Place(model)]
    assert str(fault).startswith(f"transformer: {DENOISER}.index.json has no weight_map")


def test_an_index_without_what_loaders_read_is_wrong(model: Path) -> None:
    sharded(model, lambda index: None)
    path = model / f"{DENOISER}.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"]}))

    (fault,) = find_faults([Place(model)])[Place(model)]
    assert "has no metadata" in fault.problem


def test_an_index_that_leads_elsewhere_is_named_itself(model: Path) -> None:
    sharded(model, lambda index: index.update({min(index): "/etc/passwd"}))

    told = [str(one) for one in find_faults([Place(model)])[Place(model)]]
    assert any("index.json names '/etc/passwd', which is no file of weights" in one for one in told)


def test_a_stale_index_beside_a_whole_file_is_wrong(model: Path) -> None:
    path = model / f"{DENOISER}.index.json"
    index = {"metadata": {}, "weight_map": {"proj_out.weight": "gone.safetensors"}}
    path.write_text(json.dumps(index))

    (fault,) = find_faults([Place(model)])[Place(model)]
    assert "names shards that aren't here, and is read before" in fault.problem


@pytest.mark.parametrize("name", [DENOISER, "vae/config.json", "tokenizer/tokenizer.json"])
def test_a_pipe_in_place_of_a_file_holds_nobody_up(model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)

    told = invoke("check", model.parent / "recipe.toml")

    assert told.exit_code in (2, 3)
    assert name in told.stderr


def test_shards_are_one_model(model: Path) -> None:
    sharded(model, lambda index: None)

    assert find_faults([Place(model)])[Place(model)] == ()


def test_an_index_that_names_a_tensor_of_another_shard_is_wrong(model: Path) -> None:
    def swap(index: dict[str, str]) -> None:
        first, second, *_ = sorted(index)
        index[first] = index[second]

    sharded(model, swap)

    (fault,) = find_faults([Place(model)])[Place(model)]
    assert fault.file == f"{DENOISER}.index.json"
    assert "which hasn't got it" in fault.problem


def test_an_index_that_names_an_absent_shard_is_wrong(model: Path) -> None:
    sharded(model, lambda index: index.update({min(index): "gone.safetensors"}))

    told = invoke("check", model.parent / "recipe.toml").stderr

    assert "transformer/gone.safetensors is missing" in told


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}" + b"x", b"\x02" + bytes(7) + b"[]"],
    ids=["empty", "endless", "too-long", "list"],
)
def test_what_is_no_safetensors_file_is_told_and_never_a_traceback(
    data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)

    assert read_header(path)[0] == {}
    assert read_header(path)[1]


# The pipeline's own index.

NO_PIPELINE = "has 'WanPipelin' as _class_name, and diffusers .* no such pipeline; did you mean Wan"


@pytest.mark.parametrize(
    ("key", "entry", "told"),
    [
        ("vae", [None, None], 'vae: .* has null as vae, which WanPipeline .*"AutoencoderKLWan"'),
        ("tokenizer", [None, None], "tokenizer: .* has null as tokenizer"),
        ("text_encoder", "gone", r"doesn't name the text_encoder.*\["),
        ("scheduler", [None, None], "has null as scheduler"),
        ("transformer", [None, None], "names no denoiser: .* transformer or transformer_2"),
        ("vae", ["diffusers", "AutoencoderKLWam"], "names AutoencoderKLWam of diffusers, which"),
        ("vae", ["difusers", "AutoencoderKLWan"], "AutoencoderKLWan of difusers, which isn't"),
        ("vae", ["os", "PathLike"], "PathLike of os, which isn't there"),
        ("text_encoder", ["transformers", "UMT6EncoderModel"], "UMT6EncoderModel of transformers"),
        ("vae", ["diffusers", "UniPCMultistepScheduler"], "which doesn't fit: expected .*KLWan"),
        ("transformer", ["diffusers", "LTXVideoTransformer3DModel"], "which doesn't fit: .*Wan"),
        ("vae", None, 'has null: expected .*"AutoencoderKLWan"'),
        ("vae", ["diffusers", None], 'has .*"diffusers", null.*: expected'),
        ("vae", "AutoencoderKLWan", 'has "AutoencoderKLWan": expected'),
        ("transformer_2", None, r"has null: expected"),
        ("_class_name", "WanPipelin", NO_PIPELINE),
        ("_class_name", "AutoencoderKLWan", "has no such pipeline"),
        ("_class_name", "DiffusionPipeline", "has no such pipeline"),
        ("_class_name", "gone", "has no _class_name"),
    ],
)
def test_an_index_that_its_pipeline_cant_be_made_of_is_wrong(
    model: Path, key: str, entry: object, told: str
) -> None:
    path = model / "model_index.json"
    index = json.loads(path.read_text())
    index = {k: v for k, v in index.items() if k != key} | ({} if entry == "gone" else {key: entry})
    path.write_text(json.dumps(index))

    faults = [
        fault for fault in find_faults([Place(model)])[Place(model)] if fault.file == path.name
    ]

    (fault,) = faults
    assert re.search(told, str(fault)), str(fault)
    recipe = model.parent / "recipe.toml"
    results = {command: invoke(command, recipe) for command in ("check", "plan", "render")}
    codes = {command: result.exit_code for command, result in results.items()}
    assert codes == {"check": 2, "plan": 2, "render": 3}
    assert all(fault.problem in result.stderr for result in results.values())


def test_components_that_a_class_can_do_without_may_be_null_or_absent(model: Path) -> None:
    path = model / "model_index.json"
    index = json.loads(path.read_text())
    assert index.pop("transformer_2") == [None, None]
    path.write_text(json.dumps(index))

    assert find_faults([Place(model)])[Place(model)] == ()


def test_what_diffusers_itself_saves_of_a_pipeline_is_without_fault() -> None:
    """Every class of the shipped table, with the classes that its own signature names."""
    for name in argument_table().pipelines:
        pipeline = getattr(diffusers, name)
        types = pipeline._get_signature_types()
        index: dict[str, Any] = {"_class_name": name}
        for part in pipeline._get_signature_keys(pipeline)[0]:
            kinds = [one for one in types[part] if isinstance(one, type) and one.__name__[0] != "_"]
            pairs = [[library_of(one), one.__name__] for one in kinds if not issubclass(one, Enum)]
            usual = ["diffusers", "DDIMScheduler"] if "scheduler" in part else [None, None]
            index[part] = pairs[0] if pairs and pairs[0][1] != "NoneType" else usual
        faults = [one for one in index_faults(index) if one["component"] != "safety_checker"]
        assert not faults, name


# Numbers that are no floats.


@pytest.mark.parametrize("file", [DENOISER, SMALL, VAE, TEXT])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_weights_that_are_no_floats_are_named(model: Path, file: str, dtype: torch.dtype) -> None:
    name = sorted(load_file(model / file))[3]
    change(model / file, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))

    result = invoke("render", model.parent / "recipe.toml")

    assert result.exit_code == 3
    kind = str(dtype).removeprefix("torch.")
    assert f"{file} has the tensor {name} in {kind}: expected floats" in result.stderr


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_weights(model: Path, dtype: torch.dtype) -> None:
    for file in (DENOISER, SMALL, VAE, TEXT):
        change(model / file, lambda all_: all_.update({k: v.to(dtype) for k, v in all_.items()}))

    places = [Place(model), Place(model, "transformer_small", is_pipeline=False)]
    assert set(find_faults(places).values()) == {()}


def test_a_config_that_is_no_table_is_told_without_a_traceback(model: Path) -> None:
    (model / "transformer/config.json").write_text("[]")

    (fault,) = find_faults([Place(model)])[Place(model)]

    assert str(fault) == "transformer: transformer/config.json is no JSON object"


def test_packed_weights_are_left_to_their_quantiser(model: Path) -> None:
    change(model / DENOISER, lambda all_: all_.update({k: v.char() for k, v in all_.items()}))
    path = model / "transformer/config.json"
    quantized = {"quantization_config": {"quant_method": "torchao"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))

    assert find_faults([Place(model)])[Place(model)] == ()


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"dtype": "F16"}, r"has the tensor .* as F16 \[.* bytes: expected"),
        ({"dtype": "F33"}, "in 'F33', which no safetensors file has"),
        ({"shape": [1]}, r"as F32 \[1\] in .* bytes: expected 4"),
    ],
)
def test_a_header_that_disagrees_with_its_bytes_is_told_with_the_tensor(
    tmp_path: Path, entry: dict[str, Any], told: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["b"] |= entry
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + length :])

    problem = read_header(path)[1]

    assert problem is not None
    assert re.search(told, problem)
    with pytest.raises(SafetensorError):
        load_file(path)


# Variants.


def as_variant(model: Path, *files: str, variant: str = "fp16") -> None:
    for file in files:
        (model / file).rename(model / file.replace(".safetensors", f".{variant}.safetensors"))


def test_a_folder_with_a_variant_only_says_which_key_to_set_and_renders_with_it(
    model: Path,
) -> None:
    recipe = model.parent / "recipe.toml"
    as_variant(model, DENOISER, VAE, TEXT)  # the small denoiser stays plain

    without = invoke("check", recipe)
    with_it = invoke("render", recipe, "--set", 'model.variant="fp16"')

    assert without.exit_code == 2
    assert 'set variant = "fp16" in [model]' in without.stderr
    assert "fetch" not in without.stderr
    assert with_it.exit_code == 0, with_it.output
    assert [path.suffix for path in (model.parent / "out").glob("star*")] == [".mp4"]


def test_the_variant_is_taken_of_each_model_that_has_it(model: Path) -> None:
    chosen = ModelSpec("./model", "./model", variant="fp16")
    as_variant(model, DENOISER, VAE, TEXT)
    shutil.copy(SPRITES / DENOISER, model / DENOISER)

    resolved = resolve_models(chosen, model.parent)

    assert resolved.pipeline.variant == "fp16"
    assert dict(resolved.denoisers)["small"].variant is None
    assert ModelSpec.from_document(chosen.to_document()) == chosen


def test_a_variant_that_isnt_there_at_all_is_refused(model: Path) -> None:
    result = invoke("check", model.parent / "recipe.toml", "--set", 'model.variant="bf16"')

    assert result.exit_code == 2
    assert "no weights of the variant bf16" in result.stderr


# Pairs.


def test_a_denoiser_that_doesnt_fit_is_told_by_check_and_plan_and_before_a_render(
    model: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    config = json.loads((model / "transformer/config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "text_dim": 99}))
    recipe.write_text(RECIPE.replace('small = "./model"', 'small = "./other"'))

    results = {name: invoke(name, recipe) for name in ("check", "plan", "render")}

    assert {name: one.exit_code for name, one in results.items()} == {
        "check": 2, "plan": 2, "render": 3,
    }  # fmt: skip
    for result in results.values():
        assert "text_dim" in result.stderr
    assert f"{recipe}:3:9: model.small" in results["check"].stderr


def test_a_denoiser_made_for_other_latents_than_its_pipelines_is_told(model: Path) -> None:
    path = model / "transformer/config.json"
    path.write_text(path.read_text().replace('"in_channels": 16', '"in_channels": 36'))

    told = invoke("check", model.parent / "recipe.toml").stderr

    assert "takes 36 channels" in told


def test_models_that_arent_here_are_named_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        RECIPE.replace("./model", "owner/large", 1).replace("./model", "owner/small")
        + '\n[sweep]\n"model.small" = ["owner/small", "owner/other"]\n'
    )

    result = invoke("render", recipe)

    assert result.exit_code == 3
    for name in ("owner/large", "owner/small", "owner/other"):
        assert result.stderr.count(f"{name!r} isn't in the local Hub cache") == 1
    assert invoke("check", recipe).exit_code == 0
