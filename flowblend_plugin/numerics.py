"""Numeric settings of torch and diffusers that decide bits, for ``flowblend doctor``."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry


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
        tell.
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
    }


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
