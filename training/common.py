"""What every training stage shares: where checkpoints live, the log, and the optimiser."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SEED = 20260101


def work_dir() -> Path:
    """Folder of checkpoints and logs, in the user's cache unless FLOWBLEND_TRAINING_DIR is set."""
    override = os.environ.get("FLOWBLEND_TRAINING_DIR")
    if override:
        path = Path(override)
    else:
        from platformdirs import user_cache_dir  # who only reads clips needs no such folder

        path = Path(user_cache_dir("flowblend")) / "training"
    path.mkdir(parents=True, exist_ok=True)
    return path


def log(stage: str, **values: Any) -> None:
    """Print one line and append it, as JSON, to the stage's log."""
    line = {"stage": stage, "time": round(time.time()), **values}
    text = " ".join(
        f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
    )
    print(f"[{stage}] {text}", flush=True)
    with (work_dir() / f"{stage}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def save_checkpoint(stage: str, **state: Any) -> None:
    """Write a checkpoint so that a kill at any moment leaves the former one or the new one."""
    path = work_dir() / f"{stage}.pt"
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(stage: str) -> dict[str, Any] | None:
    """Read a stage's checkpoint, or None where it has not begun."""
    path = work_dir() / f"{stage}.pt"
    return torch.load(path, weights_only=True) if path.exists() else None


def cosine(step: int, total: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz for matrices and kernels, Adam for the rest.

    Reference:
        K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], lr: float, adam_lr: float) -> None:
        hidden: list[Tensor] = []
        other: list[Tensor] = []
        for _, parameter in named:
            rows = parameter.shape[0] if parameter.ndim >= 2 else 0
            (hidden if rows >= 8 and parameter.numel() >= 512 else other).append(parameter)
        groups = [
            {"params": hidden, "lr": lr, "base_lr": lr, "muon": True},
            {"params": other, "lr": adam_lr, "base_lr": adam_lr, "muon": False},
        ]
        super().__init__([g for g in groups if g["params"]], {})

    def scale_lr(self, factor: float) -> None:
        """Set every group's learning rate to its own base times ``factor``."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"], state["n"] = torch.zeros_like(p), 0
                    if not group["muon"]:
                        state["v"] = torch.zeros_like(p)
                state["n"] += 1
                if group["muon"]:
                    state["m"].lerp_(p.grad, 0.05)
                    update = p.grad.lerp(state["m"], 0.95).flatten(1)
                    p.mul_(1 - group["lr"] * 0.01)
                    p.add_(orthogonalise(update).view_as(p), alpha=-group["lr"])
                else:
                    state["m"].lerp_(p.grad, 0.1)
                    state["v"].lerp_(p.grad.square(), 0.01)
                    m = state["m"] / (1 - 0.9 ** state["n"])
                    v = state["v"] / (1 - 0.99 ** state["n"])
                    p.sub_(group["lr"] * m / (v.sqrt() + 1e-8))


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring a matrix near its closest semi-orthogonal one, scaled to an RMS like Adam's."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if flipped else x
    return x * 0.2 * math.sqrt(max(matrix.shape))


class Ema:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the module; early steps follow faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)
