"""What pipelines refuse or change without a word: sizes, frames, inputs, told without diffusers.

The table is written by ``scripts/generate_pipeline_rules.py``. Where a pipeline's configs are on
this machine, multiples follow from them, as in the pipeline itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowblend_cli.models.contents import read_json
from flowblend_cli.models.pair_fit import component_config, denoiser_config
from flowblend_cli.models.registry import ModelSource, resolve_model

_SIDES = ("height", "width")
_TEXT_TOKENS = "max_sequence_length"


@dataclass(frozen=True)
class FrameRule:
    """How many frames a pipeline can render.

    Args:
        argument: The argument that says how many.
        step: Numbers of frames lie so far apart, and beyond a multiple of it by the remainders.
        remainders: These.
    """

    argument: str
    step: int
    remainders: tuple[int, ...]

    def allows(self, frames: int) -> bool:
        """Whether exactly so many are rendered."""
        return frames >= 1 and frames % self.step in {rest % self.step for rest in self.remainders}

    def __str__(self) -> str:
        return " or ".join(f"{self.step}k + {rest}" if rest else f"{self.step}k"
                           for rest in self.remainders)  # fmt: skip


@dataclass(frozen=True)
class PipelineRules:
    """What one pipeline asks for.

    Args:
        pipeline_class: Its class.
        multiples: What height and width are multiples of.
        sizes: The only widths and heights that it renders; empty for any.
        frames: How many frames it can render; None for any number.
        most_text_tokens: The most that ``max_sequence_length`` may be; None for no limit.
        takes_negative_prompt: Whether it takes a negative prompt at all.
        has_boundary: Whether it has two experts, of which ``guidance_scale_2`` is the second's;
            None where that isn't known, or doesn't matter.
        needs: Inputs that it does nothing without, and that no recipe can give.
    """

    pipeline_class: str
    multiples: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    frames: FrameRule | None
    most_text_tokens: int | None
    takes_negative_prompt: bool
    has_boundary: bool | None
    needs: tuple[str, ...]

    def problems(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Tell what is wrong with a job's arguments: the argument, and the problem.

        Args:
            values: The arguments, ``negative_prompt`` among them.
        """
        yield from self._wrong_sides(values)
        rule = self.frames
        number = values.get(rule.argument) if rule is not None else None
        if rule is not None and isinstance(number, int) and not rule.allows(number):
            nearest = _nearest(number, rule.allows)
            yield (
                rule.argument,
                (f"{self.pipeline_class} renders {rule} frames, and not {number}: use {nearest}"),
            )
        tokens, most = values.get(_TEXT_TOKENS), self.most_text_tokens
        if isinstance(tokens, int) and most is not None and tokens > most:
            yield _TEXT_TOKENS, f"{tokens} is more than {self.pipeline_class} takes: use {most}"
        if not self.takes_negative_prompt and values.get("negative_prompt") is not None:
            yield "negative_prompt", f"{self.pipeline_class} takes none: leave it out"
        if self.has_boundary is False and values.get("guidance_scale_2") is not None:
            yield (
                "guidance_scale_2",
                (
                    f"{self.pipeline_class} takes it for two experts, and this pipeline has "
                    "one (boundary_ratio in its model_index.json is null): leave it out"
                ),
            )

    def _wrong_sides(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for key, multiple in zip(_SIDES, self.multiples, strict=True):
            side = values.get(key)
            if isinstance(side, int) and side % multiple:
                nearest = _nearest(side, lambda one, step=multiple: one > 0 and one % step == 0)
                yield (
                    key,
                    (
                        f"{side} is no multiple of {multiple}, which {self.pipeline_class} asks "
                        f"for: use {nearest}"
                    ),
                )
        width, height = values.get("width"), values.get("height")
        if self.sizes and width and height and (width, height) not in self.sizes:
            by_area = sorted(self.sizes, key=lambda one: abs(one[0] - width) + abs(one[1] - height))
            nearest = " or ".join(f"{one[0]}x{one[1]}" for one in by_area[:2])
            yield (
                "height",
                (
                    f"{self.pipeline_class} renders no {width}x{height} and takes another size "
                    f"instead: use {nearest}"
                ),
            )


def _nearest(number: int, allows: Any) -> str:
    """The two nearest numbers that are allowed, in words."""
    below = next((one for one in range(number - 1, 0, -1) if allows(one)), None)
    above = next(one for one in range(number + 1, 2 * number + 4096) if allows(one))
    return f"{above}" if below is None else f"{below} or {above}"


@cache
def rule_table() -> dict[str, dict[str, Any]]:
    """The shipped table, by pipeline class."""
    text = (files("flowblend_cli") / "data" / "pipeline_rules.json").read_text("utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)["pipelines"]
    return table


@cache
def rules_of(pipeline: str, recipe_dir: Path) -> PipelineRules | None:
    """Tell what a pipeline asks for; None for one that nothing is known of.

    Args:
        pipeline: The pipeline as the recipe names it.
        recipe_dir: Folder that relative folders start from.

    Raises:
        ModelNameError: The name is no model.
    """
    source = resolve_model(pipeline, recipe_dir)
    name = source.pipeline_class
    row = rule_table().get(name or "")
    if name is None or row is None:
        return None
    vae, denoiser = component_config(source, "vae"), denoiser_config(source)
    spatial, temporal = vae_factors(vae)
    spatial, temporal = spatial or row["vae"][0], temporal or row["vae"][1]
    patches = _patches(denoiser, *row["patch"])
    frames = None
    if "frames" in row:
        argument, times, remainders = row["frames"]
        frames = FrameRule(argument, times * temporal, tuple(remainders))
    return PipelineRules(
        name,
        (
            math.lcm(row["sides"], spatial * patches[0]),
            math.lcm(row["sides"], spatial * patches[1]),
        ),
        tuple((width, height) for width, height in row.get("sizes", ())),
        frames,
        row.get("most_text_tokens"),
        row["negative_prompt"],
        _has_boundary(source) if row.get("second_guidance_needs_boundary") else None,
        tuple(row["needs"]),
    )


def _has_boundary(source: ModelSource) -> bool | None:
    if source.path is not None:
        return read_json(source.path / "model_index.json").get("boundary_ratio") is not None
    return source.pair.expert_boundary is not None if source.pair else None


def _patches(config: Mapping[str, Any], usual: int, key: str) -> tuple[int, int]:
    """Latent pixels that become one token, down and across."""
    found = config.get(key) if key else None
    if isinstance(found, list) and all(isinstance(one, int) and one > 0 for one in found[-2:]):
        return (found[-2], found[-1]) if len(found) > 1 else (usual, usual)
    number = found if isinstance(found, int) and found > 0 else usual
    return number, number


def vae_factors(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """How much smaller latents are than pixels, in space and in time; None where it isn't told."""
    spatial = _whole(config, "scale_factor_spatial") or _whole(config, "spatial_compression_ratio")
    temporal = _whole(config, "scale_factor_temporal") or _whole(
        config, "temporal_compression_ratio"
    )
    scaling = config.get("spatio_temporal_scaling")
    if isinstance(scaling, list):  # LTX-Video's
        doubled = 2 ** sum(map(bool, scaling))
        spatial = spatial or (_whole(config, "patch_size") or 4) * doubled
        temporal = temporal or (_whole(config, "patch_size_t") or 1) * doubled
    downsampled = config.get("temperal_downsample")
    if isinstance(downsampled, list) and config.get("_class_name") not in _OWN_FACTORS:
        spatial = spatial or 2 ** len(downsampled)
        temporal = temporal or 2 ** sum(map(bool, downsampled))
    blocks = config.get("block_out_channels")
    if isinstance(blocks, list) and blocks and config.get("_class_name") not in _OWN_FACTORS:
        spatial = spatial or 2 ** (len(blocks) - 1)
    return spatial, temporal


# VAEs whose blocks don't tell their factor.
_OWN_FACTORS = ("AutoencoderKLMochi", "AutoencoderKLHunyuanVideo", "AutoencoderKLHunyuanVideo15",
                "AutoencoderDC", "AutoencoderKLLTX2Video", "AutoencoderKLLTXVideo",
                "AutoencoderKLWan")  # fmt: skip


def _whole(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if value > 0 and float(value).is_integer() else None


def channel_problem(source: ModelSource) -> str | None:
    """Say why a denoiser can't work on its pipeline's latents; None where it can, or isn't here."""
    wanted = rule_table().get(source.pipeline_class or "", {}).get("channels")
    denoiser, vae = denoiser_config(source), component_config(source, "vae")
    latent = _whole(vae, "z_dim") or _whole(vae, "latent_channels")
    found = _whole(denoiser, "in_channels")
    if wanted is None or latent is None or found is None:
        return None
    expected = wanted[0] * latent + wanted[1]
    if found == expected:
        return None
    return (
        f"the denoiser takes {found} channels, and {source.pipeline_class} with a VAE of {latent} "
        f"gives it {expected}: take the pipeline's own denoiser, or the pipeline class that it was "
        "made for"
    )
