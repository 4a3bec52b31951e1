"""Numeric settings of torch and diffusers that decide bits, beside seeds and versions."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

_LINE = 64  # bytes of a cache line
_OFFSETS = (0, 4, 8, 16, 32)


def auto_device() -> str:
    """Name the kind of device of ``device = "auto"``: ``"cuda"``, ``"mps"`` or ``"cpu"``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def numeric_settings() -> dict[str, Any]:
    """List what decides the bits of floating-point maths in this process, on this machine.

    Returns:
        Plain JSON values. ``attention_kernel`` is what torch's own attention chooses for a small
        clip on the automatic device; it and ``mkldnn_precision`` are None where this torch can't
        tell. ``alignment`` says whether a product has the same bits wherever its matrices lie.
    """
    device = auto_device()
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else None,
        "dtype": "float32" if device == "cpu" else "bfloat16",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn_precision": _mkldnn_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "attention_backend": _AttentionBackendRegistry.get_active_backend()[0].value,
        "attention_kernel": _attention_kernel(device),
        "alignment": products_agree(),
    }


def recorded_settings(device: torch.device | str = "cpu") -> dict[str, str]:
    """Name the settings that decide the bits of a render on a device, for its file.

    Args:
        device: Where it is rendered.

    Returns:
        Name -> value, as text, of what differs between processes, machines and their environments;
        the same names for a device of the same kind.
    """
    found = {
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl_cbwr": os.environ.get("MKL_CBWR", "unset"),
        "attention_backend": str(_AttentionBackendRegistry.get_active_backend()[0].value),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if torch.device(device).type == "cuda":
        cudnn = torch.backends.cudnn
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cudnn_benchmark": str(cudnn.benchmark),
            "cudnn_tf32": str(cudnn.allow_tf32),
            "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        }
    return found


def products_agree() -> bool:
    """Try whether matrix products have the same bits wherever their matrices lie in memory.

    MKL chooses the code of a product by the addresses of its matrices, unless its conditional
    numerical reproducibility is on (``MKL_CBWR=AUTO`` in the environment, before torch is
    imported). Weights that were made, mapped from a file or moved lie at other addresses.

    Returns:
        Whether products of one and of several rows agree, with the weights, and then the inputs,
        laid 0, 4, 8, 16 and 32 bytes off a 64-byte boundary, on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(192, 256, generator=generator)
    for rows in (1, 7):
        inputs = torch.randn(rows, 256, generator=generator)
        expected = torch.nn.functional.linear(laid_at(inputs, 0), laid_at(weights, 0))
        for offset in _OFFSETS:
            for pair in ((laid_at(inputs, 0), laid_at(weights, offset)),
                         (laid_at(inputs, offset), laid_at(weights, 0))):  # fmt: skip
                if not torch.equal(torch.nn.functional.linear(*pair), expected):
                    return False
    return True


def laid_at(values: torch.Tensor, offset: int) -> torch.Tensor:
    """Copy values to where their address is some bytes off a 64-byte boundary.

    Args:
        values: Contiguous values on the CPU.
        offset: Bytes, a multiple of the size of a value, below 64.
    """
    size = values.element_size()
    memory = torch.empty(values.numel() + 2 * _LINE // size, dtype=values.dtype)
    first = (-memory.data_ptr() % _LINE + offset) // size
    return memory[first : first + values.numel()].view(values.shape).copy_(values)


def set_threads(number: int) -> None:
    """Let this process's maths use another number of threads from now on."""
    torch.set_num_threads(number)


def _mkldnn_precision() -> str | None:
    """How oneDNN rounds float32 in products, where this torch can be asked."""
    found = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
    return found if isinstance(found, str) else None


def _attention_kernel(device: str) -> str | None:
    """The kernel of torch's own attention for a small clip's tokens."""
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return None
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tokens = torch.zeros(1, 2, 64, 64, device=device, dtype=dtype)
    try:
        return str(torch.nn.attention.SDPBackend(choose(tokens, tokens, tokens)).name).lower()
    except (RuntimeError, TypeError, ValueError):  # a private function, free to change
        return None
