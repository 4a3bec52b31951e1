"""A calibration in words and as plain values, for ``flowblend probe``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.calibration.criteria import Choice
from flowblend_plugin.stages import letters

_CLEARLY = 1.1  # times: smaller differences aren't called a shape


def facts(calibration: Calibration, choice: Choice) -> dict[str, Any]:
    """The main values of a calibration, for JSON."""
    apart = [step.mean["guided_relative_l2"] for step in calibration.steps]
    largest, smallest = (apart.index(f(apart)) for f in (max, min))
    return {
        "prompts": calibration.prompts,
        "sensitivity_prompts": calibration.sensitivity_prompts,
        "cost_ratio": calibration.cost_ratio,
        "divergence": {
            "shape": _shape(apart),
            "largest": {"step": largest, "relative_l2": apart[largest]},
            "smallest": {"step": smallest, "relative_l2": apart[smallest]},
            "last": {"step": len(apart) - 1, "relative_l2": apart[-1]},
        },
        "first_to_last_third": _first_to_last_third(calibration),
        "choice": {
            "criterion": choice.criterion,
            "budget": choice.evidence.get("budget"),
            "denoisers": letters(choice.denoisers),
            "share": choice.share,
            "predicted_error": choice.predicted_error,
        },
    }


def summary(calibration: Calibration, choice: Choice) -> list[str]:
    """The main values of a calibration, as lines for a terminal."""
    main = facts(calibration, choice)
    apart = main["divergence"]
    ratio = main["first_to_last_third"]
    most, least = (_at(calibration, apart[which]) for which in ("largest", "smallest"))
    end = f"{apart['last']['relative_l2']:.3g}"
    lines = [f"divergence is {apart['shape']}: at most {most}, at least {least}, at the end {end}"]
    if ratio is not None:
        lines.append(
            f"one small step changes the final result {ratio:.3g} times as much at step "
            f"{calibration.positions[0]} as in the last third"
        )
    lines.append(f"a small forward costs {calibration.cost_ratio:.3g} of a large one")
    budget = main["choice"]["budget"]
    lines.append(
        f"budget {budget:g}, {choice.criterion}: {main['choice']['denoisers']}, share "
        f"{choice.share:.3f}, predicted error {error_in_words(choice.predicted_error)}"
    )
    return lines


def recipe_lines(path: Path, recipe_dir: Path | None, budget: float, criterion: str) -> list[str]:
    """The lines that let a recipe choose its stages from a calibration.

    Args:
        path: The calibration's file.
        recipe_dir: The recipe's folder; None for a bundled one, which has to be copied first.
        budget: Share of the all-large cost.
        criterion: The criterion; ``"best"`` needn't be said.
    """
    shown = str(path)
    if recipe_dir is not None:
        place, folder = path.resolve(), recipe_dir.resolve()
        inside = place.is_relative_to(folder)
        shown = place.relative_to(folder).as_posix() if inside else str(place)
    lines = ['stages = "auto"', f"budget = {budget:g}"]
    if criterion != "best":
        lines.append(f"criterion = {json.dumps(criterion)}")
    return [*lines, f"calibration = {json.dumps(shown, ensure_ascii=False)}"]


def error_in_words(error: float | None) -> str:
    """A predicted squared relative error as people read it: ``"3.2 % of the result (30 dB)"``."""
    if error is None:
        return "none"
    if error <= 0:
        return "0"
    return f"{100 * math.sqrt(error):.2g} % of the result ({-10 * math.log10(error):.1f} dB)"


def _at(calibration: Calibration, found: dict[str, Any]) -> str:
    step = found["step"]
    sigma = calibration.steps[step].sigma
    return f"{found['relative_l2']:.3g} (step {step}, sigma {sigma:.2f})"


def _shape(values: Sequence[float]) -> str:
    first, last = values[0], values[-1]
    if min(first, last) > _CLEARLY * min(values):
        return "U-shaped"
    if max(values) > _CLEARLY * max(first, last):
        return "largest in the middle"
    if max(first, last) <= _CLEARLY * min(first, last):
        return "flat"
    return "falling" if first > last else "rising"


def _first_to_last_third(calibration: Calibration) -> float | None:
    """Effect of the first tried step on the result, relative to those of the last third."""
    effects = [math.sqrt(max(0.0, row[k])) for k, row in enumerate(calibration.interactions)]
    start = len(calibration.steps) * 2 / 3
    tried = list(zip(calibration.positions, effects, strict=True))
    last = [effect for position, effect in tried[1:] if position >= start]
    mean = sum(last) / len(last) if last else 0.0
    return effects[0] / mean if mean else None
