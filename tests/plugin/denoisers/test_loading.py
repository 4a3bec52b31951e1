"""Denoisers from disk: mapped, refused, and quantised as the large one is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tiny import run_wan, wan_denoiser, wan_pipe

from flowblend_plugin import (
    DenoiserSwitch,
    PairMismatchError,
    StageSchedule,
    SwitchError,
)
from flowblend_plugin.denoisers.loading import load_denoiser

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))


def small() -> Any:
    return wan_denoiser(layers=2, heads=1, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "transformer_small")
    return tmp_path


def placed(switch: DenoiserSwitch) -> Any:
    return switch._slots["small"]["transformer"]


# Mapped.


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_weights_are_mapped_from_their_file_not_copied(folder: Path) -> None:
    other = load_denoiser(folder, wan_denoiser(), "transformer")
    file = str(folder / "transformer_small" / "diffusion_pytorch_model.safetensors")
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(file)
    ]
    assert mapped
    for name, parameter in other.named_parameters():
        where = parameter.data_ptr()
        assert any(start <= where < end for start, end in mapped), name


# Refused.


def test_a_config_that_doesnt_fit_is_found_before_any_weight_is_read(tmp_path: Path) -> None:
    wan_denoiser(in_channels=6, out_channels=6).save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(PairMismatchError, match="in_channels"):
        DenoiserSwitch(wan_pipe(), tmp_path, LSL)


def test_a_folder_without_its_weights_is_refused_at_once(folder: Path) -> None:
    next(folder.rglob("*.safetensors")).unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        DenoiserSwitch(wan_pipe(), folder, LSL)


def test_a_damaged_file_is_refused_at_once(folder: Path) -> None:
    file = next(folder.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OSError, match="weights"):
        DenoiserSwitch(wan_pipe(), folder, LSL)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda t: t.pop("blocks.0.attn1.to_k.weight"), "blocks.0.attn1.to_k.weight are missing"),
        (lambda t: t.update({"surprise": torch.zeros(2)}), "surprise are unexpected"),
        (lambda t: t.update({"proj_out.bias": torch.zeros(5)}), "proj_out.bias"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_weights_that_arent_those_of_the_config_are_refused_and_never_left_to_chance(
    edit: Any, told: str, folder: Path
) -> None:
    file = next(folder.rglob("*.safetensors"))
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
    pipe = wan_pipe()

    with pytest.raises(SwitchError, match=f"isn't whole.*{re.escape(told)}"):
        DenoiserSwitch(pipe, folder, LSL)

    run_wan(pipe, steps=1)  # the pipe is as it was


# Beside a large denoiser that isn't plain.


def test_the_small_one_of_a_compiled_pipe_loads_from_a_folder(folder: Path) -> None:
    pipe = wan_pipe()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with DenoiserSwitch(pipe, folder, "LLL") as switch:
        assert type(placed(switch)) is WanTransformer3DModel


def test_a_placed_large_denoiser_loads_the_small_one_into_main_memory(folder: Path) -> None:
    import accelerate

    large = wan_denoiser()
    accelerate.cpu_offload(large, torch.device("cpu"), offload_buffers=True)
    assert next(large.parameters()).is_meta
    other = load_denoiser(folder, large, "transformer")
    assert not any(parameter.is_meta for parameter in other.parameters())


# Quantised.


def quantised(kind: str, tmp_path: Path) -> Any:
    wan_denoiser().save_pretrained(tmp_path / "large")
    if kind == "torchao":
        pytest.importorskip("torchao")
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
        return WanTransformer3DModel.from_pretrained(
            tmp_path / "large", quantization_config=config, dtype=torch.bfloat16
        )
    from diffusers import GGUFQuantizationConfig

    return WanTransformer3DModel.from_single_file(
        str(write_gguf(wan_denoiser(), tmp_path / "large")),
        config=str(tmp_path / "large"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )


def write_gguf(module: Any, folder: Path) -> Path:
    """Weights as 8-bit GGUF where they can be, beside their config."""
    gguf = pytest.importorskip("gguf")
    module.save_config(folder)
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), "wan")
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, value in module.state_dict().items():
        array = value.float().numpy()
        if value.dim() == 2 and value.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def test_torchao_quantises_the_small_one_too(tmp_path: Path) -> None:
    large = quantised("torchao", tmp_path)
    small().save_pretrained(tmp_path / "small")
    pipe = wan_pipe(transformer=large)
    with DenoiserSwitch(pipe, tmp_path / "small", LSL) as switch:
        other = placed(switch)
        assert type(other.blocks[0].ffn.net[2].weight) is type(large.blocks[0].ffn.net[2].weight)
        assert torch.isfinite(run_wan(pipe)).all()
    assert json.loads(json.dumps(large.hf_quantizer.quantization_config.to_dict()))


def test_a_gguf_file_goes_with_a_gguf_and_with_a_plain_large_one(tmp_path: Path) -> None:
    file = write_gguf(wan_denoiser(layers=1, seed=1, ffn_dim=32), tmp_path / "small")
    for large in (quantised("gguf", tmp_path), wan_denoiser()):
        pipe = wan_pipe(transformer=large)
        with DenoiserSwitch(pipe, file, LSL) as switch:
            assert placed(switch).blocks[0].ffn.net[2].weight.dtype == torch.uint8
            assert torch.isfinite(run_wan(pipe)).all()


def test_a_folder_beside_a_gguf_large_one_stays_as_it_is_stored(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "small")
    pipe = wan_pipe(transformer=quantised("gguf", tmp_path))
    with DenoiserSwitch(pipe, tmp_path / "small", LSL) as switch:
        assert placed(switch).dtype == torch.float32
        assert torch.isfinite(run_wan(pipe)).all()


@pytest.mark.parametrize(
    ("source", "says"), [("./nope.gguf", "doesn't exist"), ("./nope", "no folder")]
)
def test_sources_that_arent_there_are_refused(source: str, says: str) -> None:
    with pytest.raises(SwitchError, match=says):
        DenoiserSwitch(wan_pipe(), source, LSL)
