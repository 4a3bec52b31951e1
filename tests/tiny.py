"""Tiny random pairs of the real classes: small enough for a laptop, real enough to be an oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

torch.set_num_threads(1)

FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**FLOW),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
}


def wan_denoiser(layers: int = 2, heads: int = 2, seed: int = 0, **config: Any) -> Any:
    """A WanTransformer3DModel of a few thousand random weights."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        **{
            "patch_size": (1, 2, 2),
            "num_attention_heads": heads,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 8,
            "freq_dim": 16,
            "ffn_dim": 24,
            "num_layers": layers,
            "cross_attn_norm": True,
            **config,
        }
    ).eval()


def wan_pipe(scheduler: Any = None, transformer: Any = None, **parts: Any) -> Any:
    """A WanPipeline around a tiny denoiser, without text encoder and VAE."""
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=scheduler or SCHEDULERS["euler"](),
        transformer=transformer or wan_denoiser(),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_wan(
    pipe: Any, steps: int = 6, seed: int = 0, batch: int = 1, **kwargs: Any
) -> torch.Tensor:
    """Latents of one call with fixed embeddings."""
    noise = torch.Generator().manual_seed(99)
    arguments: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, 4, 8, generator=noise).expand(batch, -1, -1),
        "negative_prompt_embeds": torch.randn(1, 4, 8, generator=noise).expand(batch, -1, -1),
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
        "generator": [torch.Generator().manual_seed(seed + i) for i in range(batch)],
        "output_type": "latent",
    }
    return pipe(**{**arguments, **kwargs}).frames


def ltx_denoiser(layers: int = 2, seed: int = 0) -> Any:
    """An LTXVideoTransformer3DModel of a few thousand random weights."""
    torch.manual_seed(seed)
    return LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=layers,
        caption_channels=8,
    ).eval()


def ltx_pipe() -> Any:
    """An LTXPipeline around a tiny denoiser, without text encoder and VAE."""
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=ltx_denoiser(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_ltx(pipe: Any, steps: int = 6, **kwargs: Any) -> torch.Tensor:
    """Latents of one call with fixed embeddings."""
    noise = torch.Generator().manual_seed(99)
    embeds = torch.randn(1, 4, 8, generator=noise)
    arguments: dict[str, Any] = {
        "prompt_embeds": embeds,
        "prompt_attention_mask": torch.ones(1, 4),
        "negative_prompt_embeds": torch.zeros_like(embeds),
        "negative_prompt_attention_mask": torch.ones(1, 4),
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipe(**{**arguments, **kwargs}).frames


def snapshot(pipe: Any) -> dict[str, Any]:
    """Everything of a pipe that a switch touches, and what is in it."""
    return {
        "transformer": pipe.transformer,
        "scheduler": pipe.scheduler,
        "config": dict(pipe.config),
        "scheduler_state": {
            k: v.tolist() if isinstance(v, torch.Tensor) else copy.copy(v)
            for k, v in vars(pipe.scheduler).items()
        },
        "hooks": len(pipe.transformer._forward_hooks) + len(pipe.transformer._forward_pre_hooks),
    }


class ForwardRecorder:
    """Write down which module ran, forward by forward."""

    def __init__(self, **modules: Any) -> None:
        self.roles: list[str] = []
        for role, module in modules.items():
            module.register_forward_pre_hook(lambda *_, role=role: self.roles.append(role))

    def per_step(self, forwards: int = 2) -> tuple[str, ...]:
        """One role a step, after checking that all forwards of a step agree."""
        groups = [self.roles[i : i + forwards] for i in range(0, len(self.roles), forwards)]
        assert all(len(set(group)) == 1 for group in groups)
        return tuple(group[0] for group in groups)


def with_one_buffer(denoiser: Any) -> Any:
    """A denoiser that writes every output into the same tensor, as CUDA graphs do."""
    forward = denoiser.forward
    kept: list[torch.Tensor] = []

    def write_again(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        (output,) = forward(*args, **kwargs)
        if not kept:
            kept.append(torch.empty_like(output))
        kept[0].copy_(output)
        return (kept[0],)

    denoiser.forward = write_again
    return denoiser
