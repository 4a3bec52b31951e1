"""Bits may not depend on where weights lie in memory, nor on how they came there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny import wan_denoiser

from flowblend_plugin.numerics import laid_at, numeric_settings, products_agree, recorded_settings

ROOT = Path(__file__).resolve().parents[2]
OFFSETS = (0, 4, 8, 20, 32)
UNSET = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}


def denoiser() -> Any:
    """Wide enough for MKL to have a choice of code."""
    return wan_denoiser(heads=4, attention_head_dim=64, ffn_dim=512, text_dim=64, freq_dim=64)


@torch.no_grad()
def forward(module: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    found: torch.Tensor = module(
        hidden_states=torch.randn(1, 4, 2, 8, 8, generator=noise),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 7, 64, generator=noise),
        return_dict=False,
    )[0]
    return found


def lay(module: Any, offset: int) -> Any:
    """Move every weight to an address some bytes off a cache line."""
    for weight in module.parameters():
        weight.data = laid_at(weight.data, offset)
        assert weight.data_ptr() % 64 == offset
    return module


def mapped(folder: Path) -> Any:
    denoiser().save_pretrained(folder)
    return type(denoiser()).from_pretrained(folder).eval()


def moved(folder: Path) -> Any:
    return denoiser().to(torch.float64).to(torch.float32)


def offloaded(folder: Path) -> Any:
    return cpu_offload(denoiser(), execution_device=torch.device("cpu"))


def offloaded_to_disk(folder: Path) -> Any:
    return disk_offload(denoiser(), str(folder), execution_device=torch.device("cpu"))


def grouped(folder: Path) -> Any:
    module = denoiser()
    module.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    return module


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_denoiser_has_the_same_bits_at_every_alignment(offset: int) -> None:
    assert torch.equal(forward(lay(denoiser(), offset)), forward(lay(denoiser(), 0)))


@pytest.mark.parametrize("load", [mapped, moved, offloaded, offloaded_to_disk, grouped])
def test_a_denoiser_has_the_same_bits_however_it_came_into_memory(
    load: Callable[[Path], Any], tmp_path: Path
) -> None:
    assert torch.equal(forward(load(tmp_path)), forward(denoiser()))


def test_products_agree_with_the_setting_of_this_process() -> None:
    assert products_agree()
    assert numeric_settings()["alignment"] is True


def ask(code: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


TRY = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
PRODUCTS = TRY + "from flowblend_plugin.numerics import products_agree; print(products_agree())"


def test_without_the_setting_products_may_differ_and_the_trial_sees_it() -> None:
    alone = f"""{TRY}
import torch
from flowblend_plugin.numerics import laid_at
noise = torch.Generator().manual_seed(2)
weights, row = (torch.randn(n, 256, generator=noise) for n in (192, 1))
products = [torch.nn.functional.linear(row, laid_at(weights, at)) for at in {OFFSETS}]
print(all(torch.equal(one, products[0]) for one in products))
"""
    if ask(alone, UNSET) == "True":
        pytest.skip("this CPU's MKL takes the same code at every address without MKL_CBWR too")
    assert ask(PRODUCTS, UNSET) == "False"
    assert ask(PRODUCTS, {**UNSET, "MKL_CBWR": "AUTO"}) == "True"


@pytest.mark.parametrize(
    ("given", "found"), [(None, "AUTO"), ("", "AUTO"), ("COMPATIBLE", "COMPATIBLE")]
)
def test_the_command_sets_it_unless_the_user_did(given: str | None, found: str) -> None:
    environ = UNSET if given is None else {**UNSET, "MKL_CBWR": given}
    environ = {**environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
    assert ask("import os, flowblend_cli; print(os.environ['MKL_CBWR'])", environ) == found


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_what_is_recorded_follows_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    with threads(2):
        found = recorded_settings()
    assert found["threads"] == "2"
    assert found["mkl_cbwr"] == "AVX2"
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["attention_backend"] == "native"
    assert all(isinstance(value, str) for value in found.values())
