"""Capabilities: what a stage may set on which pipeline, by class names alone. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Two passes a step, combined with a scale that the pipeline keeps in a local variable: the outputs
# are recorded and combined anew. The pipeline looks at its attribute before the second pass.
RECOMBINED = frozenset(
    {
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "WanVACEPipeline",
        "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline",
    }
)
# Two passes a step; the scale is read from the attribute at every step.
TWO_PASSES = frozenset({"Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"})
# One pass over a batch of two; the scale is read from the attribute at every step.
BATCHED = frozenset(
    {
        "LTXPipeline",
        "LTXImageToVideoPipeline",
        "LTXConditionPipeline",
        "MochiPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
    }
)

_PLACES = ("spatial_attention", "temporal_attention", "cross_attention")
# Kinds of caches, each with the options that a file can say: no tensors, no functions.
CACHES: Mapping[str, frozenset[str] | None] = {
    "first_block": frozenset({"threshold"}),
    "mag": frozenset({"threshold", "max_skip_steps", "retention_ratio", "mag_ratios", "calibrate"}),
    "taylorseer": frozenset(
        {
            "cache_interval",
            "disable_cache_before_step",
            "disable_cache_after_step",
            "max_order",
            "taylor_factors_dtype",
            "skip_predict_identifiers",
            "cache_identifiers",
            "use_lite_mode",
        }
    ),
    "pab": frozenset(
        f"{place}_{what}"
        for place in _PLACES
        for what in ("block_skip_range", "timestep_skip_range", "block_identifiers")
    ),
    "faster": frozenset(
        {
            *(f"{p}_block_skip_range" for p in _PLACES[:2]),
            *(f"{p}_timestep_skip_range" for p in _PLACES[:2]),
            *(f"{p}_block_identifiers" for p in _PLACES[:2]),
            "low_frequency_weight_update_timestep_range",
            "high_frequency_weight_update_timestep_range",
            "alpha_low_frequency",
            "alpha_high_frequency",
            "unconditional_batch_skip_range",
            "unconditional_batch_timestep_skip_range",
            "tensor_format",
            "is_guidance_distilled",
        }
    ),
    "sea": frozenset(
        {
            "threshold",
            "residual_order",
            "retention_steps",
            "cache_end_steps",
            "max_consecutive_cached",
            "power_exp",
        }
    ),
    "text_kv": frozenset(),
    # Its options are those of whichever cache-dit is installed.
    "cache_dit": None,
}

ATTENTION_BACKENDS = (
    "flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub", "_flash_3",
    "_flash_varlen_3", "_flash_3_hub", "_flash_3_varlen_hub", "aiter_fa2_hub", "flex", "native",
    "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "_native_npu",
    "_native_xla", "sage", "sage_hub", "sage_blackwell_hub", "sage_varlen",
    "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90", "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton", "xformers",
)  # fmt: skip


def guidance_problem(pipeline_class: str, scale: float) -> str | None:
    """Say why a stage can't have a guidance scale of its own on a pipeline; None if it can."""
    if scale < 1:
        return f"guidance_scale of a stage must be at least 1.0 (no guidance), got {scale}"
    if pipeline_class not in RECOMBINED | TWO_PASSES | BATCHED:
        return (
            f"{pipeline_class} doesn't let guidance change in mid-trajectory (it feeds the scale "
            "to the denoiser, or fixes it before the first step): leave guidance_scale out of the "
            "stages and give it to the call"
        )
    if scale == 1.0 and pipeline_class in BATCHED:
        return (
            f"{pipeline_class} runs the conditional and unconditional pass as one batch, whose "
            "size can't change in mid-trajectory: guidance_scale = 1.0 in one stage would save "
            "nothing; use a low scale above 1.0"
        )
    return None


def cache_problem(kind: str, options: Mapping[str, Any]) -> str | None:
    """Say why a cache can't be: a kind or option that is unknown or lacks; None if it can."""
    if kind not in CACHES:
        return f"cache {kind!r} is unknown: choose one of {', '.join(CACHES)}"
    known = CACHES[kind]
    unknown = sorted(set(options) - known) if known is not None else []
    if known is not None and unknown:
        takes = ", ".join(sorted(known)) or "no options"
        return f"cache {kind!r} takes no {', '.join(unknown)}: it takes {takes}"
    if kind == "mag" and not (options.get("mag_ratios") or options.get("calibrate") is True):
        return (
            "cache 'mag' goes by ratios measured on its denoiser: give mag_ratios, or "
            "calibrate = true to have them logged"
        )
    return None
