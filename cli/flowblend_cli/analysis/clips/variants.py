"""Axes and variants: the settings in which clips of one scene differ, for reports and reviews."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.jobs import Job, freeze
from flowblend_plugin.stages import Stage

STEPS = "num_inference_steps"
MODE = "sampling.mode"
# What is asked first for the reason that two clips differ.
_FIRST = (STEPS, MODE, "sampling.scheduler", "blend.stages", "blend.boundaries", "guidance_scale")
_NO_VARIANT = ("sampling.noise_seed", "model.device")
_T = TypeVar("_T")


@dataclass(frozen=True)
class VariantGroup:
    """Clips that differ in nothing but scene, prompt and seeds.

    Args:
        values: The values of the sweep's axes, in their order.
        clips: The clips.
    """

    values: tuple[tuple[str, Any], ...]
    clips: tuple[Clip, ...]

    @property
    def label(self) -> str:
        """The values in words, such as ``"50 steps, ODE"``."""
        return ", ".join(say(axis, value) for axis, value in self.values) or "all"

    @property
    def steps(self) -> int | None:
        """The number of steps, where it is an axis."""
        value = dict(self.values).get(STEPS)
        return value if isinstance(value, int) else None


def settings(job: Job) -> dict[str, Hashable]:
    """The settings of a job but scene, prompt and seeds, by their keys in a recipe."""
    found: dict[str, Any] = dict(job.arguments)
    found[STEPS] = job.num_inference_steps
    found["negative_prompt"] = job.negative_prompt
    found["blend.stages"] = job.stage_string
    ends = [stage.until_sigma if stage.until is None else stage.until for stage in job.stages]
    found["blend.boundaries"] = tuple(end for end in ends if end is not None)
    found["blend.stage"] = " + ".join(map(_stage, job.stages))
    found["blend.threshold"] = job.adaptive
    found["image"] = job.image.path if job.image is not None else None
    found["model.adapters"] = tuple(f"{a.name} {a.role} {a.source}" for a in job.adapters)
    for table in ("model", "sampling", "output"):
        values = asdict(getattr(job, table))
        found |= {f"{table}.{key}": freeze(value) for key, value in values.items()}
    return {key: freeze(value) for key, value in found.items() if key not in _NO_VARIANT}


def _stage(stage: Stage) -> str:
    """A stage in words: ``"25 steps large to level 0.65"``, ``"small to 80 % (guidance 1)"``."""
    words = [f"{stage.steps} steps" if stage.steps else "", stage.denoiser]
    if stage.until_sigma is not None:
        words.append(f"to level {stage.until_sigma:g}")
    elif stage.until is not None:
        words.append(f"to {stage.until:.0%}".replace("%", " %"))
    settings = stage.describe_settings()
    return " ".join(filter(None, (*words, f"({settings})" if settings else "")))


def group(items: Iterable[_T], key: Callable[[_T], Hashable]) -> dict[Any, list[_T]]:
    """Put items with one key together, in order of appearance."""
    groups: dict[Any, list[_T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def find_axes(clips: Sequence[Clip], preferred: Sequence[str] = ()) -> tuple[str, ...]:
    """Name the settings that tell the clips of one scene and prompt apart.

    Args:
        clips: The clips.
        preferred: The sweep's axes where the recipe is known; they come first.

    Returns:
        The preferred axes that vary, then any setting that tells clips apart which the former ones
        don't: what follows from the others, as stages from the number of steps, is no axis.
    """
    table = {clip.id: settings(clip.job) for clip in clips}
    names = {name for found in table.values() for name in found}
    kept: list[str] = []
    for name in [*preferred, *_FIRST, *sorted(names)]:
        if name not in names or name in kept:
            continue
        known = [] if name in preferred else kept

        def place(clip: Clip, known: list[str] = known) -> Hashable:
            return clip.subject, tuple(table[clip.id].get(axis) for axis in known)

        alike = group(clips, place).values()
        if any(len({table[clip.id].get(name) for clip in some}) > 1 for some in alike):
            kept.append(name)
    return tuple(kept)


def find_variants(clips: Sequence[Clip], axes: Sequence[str]) -> tuple[VariantGroup, ...]:
    """Sort clips into variants: numbers in ascending order, other values as they appear."""
    table = {clip.id: settings(clip.job) for clip in clips}
    found = group(clips, lambda clip: tuple(table[clip.id].get(axis) for axis in axes))
    seen = list(found)
    ranks = []
    for position in range(len(axes)):
        values = list(dict.fromkeys(key[position] for key in seen))
        if all(isinstance(value, (int, float)) for value in values):
            values.sort()
        ranks.append({value: rank for rank, value in enumerate(values)})
    order = sorted(seen, key=lambda key: [ranks[i][value] for i, value in enumerate(key)])
    return tuple(
        VariantGroup(tuple(zip(axes, key, strict=True)), tuple(found[key])) for key in order
    )


def fixed_settings(clips: Sequence[Clip], axes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The settings that all clips share, as pairs of key and value; unset ones are left out."""
    tables = [settings(clip.job) for clip in clips]
    hidden = {*axes, "blend.stage", "model.adapters", "image"}
    return tuple(
        (name, shown(value))
        for name, value in sorted(tables[0].items())
        if name not in hidden
        and value not in (None, (), "", "auto")
        and all(table.get(name) == value for table in tables)
    )


def say(axis: str, value: Any) -> str:
    """One setting in words: ``"50 steps"``, ``"ODE"``, ``"guidance 5"``, ``"flow_shift 3"``."""
    if axis == STEPS:
        return f"{value} steps"
    if axis == MODE:
        return str(value).upper()
    if axis in ("blend.stages", "blend.stage"):
        return shown(value)
    names = {"guidance_scale": "guidance", "negative_prompt": "without"}
    return f"{names.get(axis, axis.rpartition('.')[2])} {shown(value)}"


def shown(value: Any) -> str:
    """A setting's value as people read it."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)
