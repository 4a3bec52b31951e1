"""Settings of a prompt, for the expansion: the value of every argument, and who decided it.

Pair, defaults, preset, scene, line of a prompts file, sweep: the later one wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowblend_cli.jobs import schedule_of
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.registry import KnownPair
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.prompts.presets import AUTO, Preset, PresetChoice, choose_preset
from flowblend_cli.recipe.prompts.prompt_files import PromptLine
from flowblend_cli.recipe.schema.ranges import DEFAULT_STEPS, StepRange
from flowblend_cli.recipe.schema.tables import UNKNOWN, SceneFields
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.sweep.variants import Variant
from flowblend_cli.study import StepChoice
from flowblend_cli.utils.toml_positions import KeyPath

_STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Setting:
    """One argument's value, and the path of the key that it was read from.

    Args:
        value: The value.
        path: The key in the recipe; None for a value that no recipe wrote.
        origin: Who decided, in words for people.
    """

    value: Any
    path: KeyPath | None
    origin: str


def scene_settings(
    tables: Tables,
    presets: Mapping[str, Preset],
    index: int,
    scene: SceneFields,
    choice: PresetChoice | None = None,
    line: PromptLine | None = None,
) -> dict[str, Setting]:
    """Merge the arguments of a prompt before any sweep: defaults, preset, scene, line; later wins.

    Args:
        tables: The recipe's tables.
        presets: The presets by name.
        index: Index of the scene.
        scene: The scene.
        choice: What its ``preset = "auto"`` chose; None leaves such a preset out.
        line: The line of the scene's prompts file, with its flags.
    """
    merged: dict[str, Setting] = {}
    if tables.defaults is not None:
        for key, value in tables.defaults.settings().items():
            merged[key] = Setting(value, ("defaults", key), "[defaults]")
    preset = choice.preset if choice is not None else presets.get(scene.preset or "")
    if preset is not None:
        for key, value in preset.values().items():
            path = ("presets", preset.name, key) if key in preset.own else None
            merged[key] = Setting(value, path, f"preset {preset.name!r}")
    if choice is not None:
        merged[_STEPS] = Setting(choice.steps, ("scene", index, "preset"), choice.reason)
    for key, value in scene.settings().items():
        merged[key] = Setting(value, ("scene", index, key), f"scene {scene.name!r}")
    return merged | line_settings(index, line)


def line_settings(index: int, line: PromptLine | None) -> dict[str, Setting]:
    """The arguments that the flags of a line set.

    Args:
        index: Index of its scene.
        line: The line; None sets nothing.
    """
    if line is None or not line.settings:
        return {}
    path, origin = ("scene", index, "prompts_file"), f"{line.file} line {line.line}"
    return {key: Setting(value, path, origin) for key, value in line.settings.items()}


@dataclass(frozen=True)
class PromptSettings:
    """The arguments of one prompt in one combination of the sweep.

    Args:
        values: The arguments.
        steps: How many steps it has, and why.
        path: The key that says how many.
        suits: How many steps suit it, where a preset says so.
        paths: The key that each argument was read from, where the recipe has it.
        unknown: Arguments whose values are broken, and told already.
    """

    values: dict[str, Any]
    steps: StepChoice
    path: KeyPath
    suits: StepRange | None
    paths: Mapping[str, KeyPath]
    unknown: frozenset[str] = frozenset()


def prompt_settings(
    recipe: Recipe,
    index: int,
    scene: SceneFields,
    base: Mapping[str, Setting],
    prompt: str,
    variant: Variant,
    line: PromptLine | None = None,
    *,
    is_sound: bool = True,
) -> PromptSettings:
    """Settle the arguments of a prompt: pair, defaults, preset, scene, line, sweep; later wins.

    Args:
        recipe: The recipe.
        index: Index of the scene.
        scene: The scene.
        base: Its arguments from ``scene_settings``, those of the line among them.
        prompt: Its prompt with every alternative chosen.
        variant: The combination.
        line: The line of the scene's prompts file that it comes from.
        is_sound: Whether the prompt is known.
    """
    pair, swept = variant.pair, variant.combination.settings()
    lowest = {_STEPS: DEFAULT_STEPS, **(pair.defaults if pair is not None else {})}
    own = schedule_of(variant.blend.stages).num_inference_steps
    if own is not None:
        lowest[_STEPS] = own
    layers, choice = base, None
    if scene.preset == AUTO:
        values = lowest | {key: setting.value for key, setting in layers.items()} | swept
        defaults = recipe.tables.defaults
        written = defaults.settings().get(_STEPS) if defaults is not None else None
        written = None if written is UNKNOWN else written
        choice = choose_preset(
            prompt,
            recipe.presets,
            "picture" if is_picture(values, variant) else "clip",
            lowest[_STEPS] if written is None else written,
            _steps_origin(pair) if written is None else "[defaults]",
        )
        layers = scene_settings(recipe.tables, recipe.presets, index, scene, choice, line)
    preset = choice.preset if choice is not None else recipe.presets.get(scene.preset or "")
    values = lowest | {key: setting.value for key, setting in layers.items()} | swept
    unknown = {key for key, value in values.items() if value is UNKNOWN}
    values = {key: value for key, value in values.items() if key not in unknown}
    setting = layers.get(_STEPS)
    if not _knows_steps(recipe, index, scene, setting, is_sound=is_sound) and _STEPS not in swept:
        unknown.add(_STEPS)
    if _STEPS in unknown:
        values[_STEPS] = lowest[_STEPS]
    path = setting.path if setting is not None else ("recipe", "max_steps")
    return PromptSettings(
        values,
        StepChoice(
            scene.name,
            prompt,
            None if _STEPS in swept else values[_STEPS],
            _reason(variant, choice, setting, scene, line),
            preset.name if preset is not None else "",
            choice.words if choice is not None else (),
            choice is not None,
        ),
        variant.combination.axis_path(_STEPS) or path or ("scene", index, "preset"),
        choice.suits if choice is not None else preset.steps if preset is not None else None,
        {
            **{key: setting.path or ("scene", index, "preset") for key, setting in layers.items()},
            **{key: place for key in swept if (place := variant.combination.axis_path(key))},
        },
        frozenset(unknown),
    )


def _knows_steps(
    recipe: Recipe, index: int, scene: SceneFields, setting: Setting | None, *, is_sound: bool
) -> bool:
    """Whether it is known how many steps a prompt has, where no sweep says it."""
    if setting is not None and setting.path is not None and setting.path[0] == "scene":
        return setting.path[2] != "preset" or is_sound
    if "preset" in scene.broken or recipe.tables.defaults is None:
        return False
    if scene.preset == AUTO:
        return is_sound
    return scene.preset is None or scene.preset in recipe.presets


def is_picture(values: Mapping[str, Any], variant: Variant) -> bool:
    """Whether a job makes a single picture.

    Args:
        values: Its arguments.
        variant: Its combination.
    """
    makes_clips = argument_table().takes(variant.pipeline_class, "num_frames")
    return values.get("num_frames") == 1 or not makes_clips


def _steps_origin(pair: KnownPair | None) -> str:
    """Where the steps come from that no table sets."""
    has = pair is not None and _STEPS in pair.defaults
    return f"the pair {pair.name}" if has and pair is not None else "flowblend's default"


def _reason(
    variant: Variant,
    choice: PresetChoice | None,
    setting: Setting | None,
    scene: SceneFields,
    line: PromptLine | None,
) -> str:
    """Who decided the steps, in words for people."""
    swept = variant.combination.axis_path(_STEPS)
    wins = f"[{swept[0]}]" if swept is not None else None
    if choice is not None and wins is None and _STEPS in line_settings(0, line):
        wins = setting.origin if setting is not None else None
    elif choice is not None and wins is None and _STEPS in scene.settings():
        wins = "the scene"
    if choice is not None:
        return choice.reason + (f", but {wins} sets its own steps" if wins else "")
    if wins is not None:
        return f"from {wins}"
    return f"from {setting.origin if setting is not None else _steps_origin(variant.pair)}"
