"""The rows of the quality table: every way to render a clip for less, as plain data."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from shared import GUIDANCE, MODEL

from flowblend_plugin import Cache, Stage, StageSchedule
from flowblend_plugin.calibration.calibration import Calibration, most_large_steps
from flowblend_plugin.calibration.criteria import choose
from flowblend_plugin.schedulers.sigmas import noise_levels
from flowblend_plugin.stage_hooks.early_exit import SelfDifference
from flowblend_plugin.stages import LETTERS

STEPS = 50
BOUNDARIES = (0.4, 0.8)
# Families in the order of the table, each with what it is.
FAMILIES = {
    "reference": "All large, which the others are compared with, and all small",
    "order": "Orders of the two denoisers in three stages, ends at 0.4 and 0.8 (FlowBlending)",
    "SL": "Small, then large (T-Stitch), named by where the large one begins",
    "LS": "Large, then small (SRDiffusion), named by where the small one begins",
    "Euler": "All large with fewer steps of Euler",
    "UniPC": "All large with UniPC",
    "DPM++ 2M": "All large with DPM-Solver++ 2M",
    "first_block": "All large with FirstBlockCache, by its threshold",
    "mag": "All large with MagCache, by its threshold",
    "taylorseer": "All large with TaylorSeer, by its interval",
    "sea": "All large with SeaCache, by its threshold",
    "cache_dit": "All large with cache-dit's DBCache, by its threshold",
    "E": "All large with steps whose velocity is extrapolated, by the steps that run",
    "combined": "Blending with another solver, with a cache or without guidance in the middle",
    "contiguous": "Three stages of both denoisers, placed by calibration for a budget",
    "free": "Both denoisers, switched as often as it pays, by calibration for a budget",
    "criteria": "Other criteria for the stages, and stages that end by themselves",
    "extrapolated": "Extrapolated steps, chosen by calibration for a budget or a number of them",
    "extrapolated UniPC": "The same under UniPC",
}
BUDGETED = ("contiguous", "free", "extrapolated")
BUDGETS = (0.7, 0.55, 0.4, 0.25)
# Computed steps of 50 that take about 2, 2.5 and 3 times less time.
COMPUTED = (24, 19, 16)
SHIFT = 3.0
SOLVERS = {"Euler": "flow_match_euler", "UniPC": "unipc", "DPM++ 2M": "dpmpp_2m"}


@dataclass(frozen=True)
class Row:
    """One way to render a clip.

    Args:
        name: What the table calls it; no two rows share a name.
        family: Key of ``FAMILIES``.
        stages: Who runs which step, with which caches and guidance.
        steps: Inference steps.
        solver: One of ``flowblend_plugin.schedulers.factory.NAMES``.
        solver_history: What the solver does at a switch; see ``DenoiserSwitch``.
        guidance: Classifier-free guidance of the call.
        headline: Whether it is measured on all prompts.
        together: Whether clips may be rendered as one batch: not where the method decides from the
            data, which would then decide for all of a batch alike.
        adaptive: What ends the first stage before its boundary.
    """

    name: str
    family: str
    stages: StageSchedule
    steps: int = STEPS
    solver: str = "flow_match_euler"
    solver_history: str = "keep"
    guidance: float = GUIDANCE
    headline: bool = False
    together: bool = True
    adaptive: SelfDifference | None = None

    def document(self) -> dict[str, Any]:
        """All that decides the row's pixels, as JSON values."""
        return {
            "stages": self.stages.to_document(),
            "steps": self.steps,
            "solver": self.solver,
            "solver_history": self.solver_history,
            "guidance": self.guidance,
            "together": self.together,
            **({"adaptive": self.adaptive.threshold} if self.adaptive is not None else {}),
        }

    @property
    def key(self) -> str:
        """Hash of the document: equal for rows that render the same clips in the same way."""
        text = json.dumps(self.document(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RowInputs:
    """Values that rows are made from, measured on prompts that no row is judged by.

    Args:
        mag_ratios: MagCache's ratios of the large denoiser, one a step of ``STEPS``.
        boundaries: Where the paper's criterion ends LSL's stages.
    """

    mag_ratios: tuple[float, ...]
    boundaries: tuple[float, float] = BOUNDARIES


def rows(inputs: RowInputs) -> list[Row]:
    """Every row, families in order."""
    made = [
        *reference(), *orders(), *two_stages(), *fewer_steps(), *caches(inputs),
        *extrapolated(), *ours(inputs),
    ]  # fmt: skip
    return sorted(made, key=lambda row: list(FAMILIES).index(row.family))


def reference() -> list[Row]:
    """All large and all small."""
    return [
        Row(name, "reference", StageSchedule.parse(name), headline=True) for name in ("LLL", "SSS")
    ]


def orders() -> list[Row]:
    """Every mixed order of three stages."""
    return [
        Row(name, "order", StageSchedule.parse(name, BOUNDARIES), headline=name not in rest)
        for rest in [("SSL", "LLS")]
        for name in ("LSL", "LSS", "SLL", "SSL", "LLS")
    ]


def two_stages() -> list[Row]:
    """Two stages, first with as many large steps as LSL has, then at about 0.4 of LLL's FLOPs."""
    return [
        Row(f"{letters} {boundary}", letters, StageSchedule.parse(letters, (boundary,)))
        for letters, boundaries in (("SL", (0.4, 0.7)), ("LS", (0.6, 0.3)))
        for boundary in boundaries
    ]


def fewer_steps() -> list[Row]:
    """All large in fewer steps; UniPC and DPM++ with all 50 say what the solver alone changes."""
    return [
        Row(f"{family} {steps}", family, StageSchedule.parse("L"), steps, solver)
        for family, solver in SOLVERS.items()
        for steps in (50, 35, 25, 20, 16, 12, 8)
        if (family, steps) != ("Euler", STEPS)
    ]


_LITE = {"use_lite_mode": True, "taylor_factors_dtype": "float32"}
_DBCACHE = {"Fn_compute_blocks": 1}
# Settings that take about 1.5, 2 and 3 times less time than none on a CPU, each with its name;
# first_block and cache_dit stay below 2.6, however high their threshold.
CACHES: dict[str, dict[str, dict[str, Any]]] = {
    "first_block": {f"{t}": {"threshold": t} for t in (0.04, 0.12, 0.4)},
    "mag": {
        "0.06": {"threshold": 0.06},  # with diffusers' defaults for the rest
        "0.1": {"threshold": 0.1, "max_skip_steps": 3, "retention_ratio": 0.1},
        "0.3": {"threshold": 0.3, "max_skip_steps": 6, "retention_ratio": 0.08},
    },
    "taylorseer": {f"{every}": {**_LITE, "cache_interval": every} for every in (2, 3, 6)},
    "sea": {
        "0.15": {"threshold": 0.15},  # likewise
        "0.4": {"threshold": 0.4, "max_consecutive_cached": 3},
        "1.2": {"threshold": 1.2, "max_consecutive_cached": 6},
    },
    "cache_dit": {
        "0.05": {**_DBCACHE, "residual_diff_threshold": 0.05, "max_warmup_steps": 4},
        "0.14": {**_DBCACHE, "residual_diff_threshold": 0.14, "max_warmup_steps": 4},
        "0.5": {**_DBCACHE, "residual_diff_threshold": 0.5, "max_warmup_steps": 2},
    },
}
# These skip by a count of steps or by ratios known before, the same for every clip.
FIXED = ("mag", "taylorseer")


def caches(inputs: RowInputs) -> list[Row]:
    """All large under each cache; without cache-dit's where that isn't installed."""
    made = []
    for kind, settings in CACHES.items():
        if kind == "cache_dit" and importlib.util.find_spec("cache_dit") is None:
            continue
        for name, given in settings.items():
            options = dict(given)
            if kind == "mag":
                options["mag_ratios"] = inputs.mag_ratios
            stages = StageSchedule((Stage("large", cache=Cache.of(kind, options)),))
            made.append(Row(f"{kind} {name}", kind, stages, together=kind in FIXED))
    return made


def extrapolated() -> list[Row]:
    """All large with most late steps extrapolated; none while stages have no letter for it."""
    if "E" not in LETTERS:
        return []
    euler = [
        Row(f"E {count}/{STEPS}", "E", spread_out(count, STEPS)) for count in (30, 24, 20, 16, 12)
    ]
    unipc = [
        Row(f"E {count}/{steps} UniPC", "E", spread_out(count, steps), steps, "unipc")
        for count, steps in ((16, 25), (12, 25), (12, 20))
    ]
    return [*euler, *unipc]


def spread_out(count: int, steps: int) -> StageSchedule:
    """Stages whose large steps lie densely at the beginning, with extrapolated ones between."""
    positions = dense_first(count, steps)
    return spelt("".join("L" if step in positions else "E" for step in range(steps)))


def dense_first(count: int, steps: int, power: float = 1.5) -> list[int]:
    """``count`` of ``steps`` steps, the first and last among them, at distances that grow.

    The k-th is step ``(steps - 1) * (k / (count - 1)) ** power``, rounded, or the next one that is
    free.
    """
    found: list[int] = []
    for k in range(count):
        wanted = round((steps - 1) * (k / (count - 1)) ** power)
        found.append(max(wanted, found[-1] + 1) if found else wanted)
    return found


def spelt(letters: str) -> StageSchedule:
    """The schedule in which each letter is one step."""
    runs = [(letter, len(list(run))) for letter, run in groupby(letters)]
    ends, done = [], 0
    for _, length in runs[:-1]:
        done += length
        ends.append(done / len(letters))
    return StageSchedule.parse("".join(letter for letter, _ in runs), ends)


def ours(inputs: RowInputs) -> list[Row]:
    """Blending together with what else saves time, and what a calibration chose."""
    lsl = StageSchedule.parse("LSL", BOUNDARIES)
    unguided = with_middle(lsl, guidance_scale=1.0)
    cached = with_middle(lsl, cache=Cache.of("sea", {}))
    return [
        Row("LSL UniPC 20", "combined", lsl, 20, "unipc"),
        Row("LSL, middle cached", "combined", cached, together=False),
        Row("LSL, middle unguided", "combined", unguided),
        Row("LSL UniPC 20, middle unguided", "combined", unguided, 20, "unipc"),
        *by_data(inputs.boundaries),
    ]


@cache
def bundled_calibration() -> Calibration:
    """The calibration that the bundled pair comes with."""
    return Calibration.from_document(json.loads((MODEL / "calibration.json").read_text("utf-8")))


def equal_share() -> float:
    """What LSL at the paper's boundaries costs, relative to all large."""
    large = StageSchedule.parse("LSL", BOUNDARIES).denoisers(STEPS).count("large") / STEPS
    return large + (1 - large) * bundled_calibration().cost_ratio


def chosen(criterion: str, budget: float, name: str, *, headline: bool = False) -> Row:
    """A row of 50 Euler steps whose stages a criterion chose."""
    model = bundled_calibration().at(noise_levels("flow_match_euler", STEPS, SHIFT))
    # Half a thousandth of a step more, so that rounding takes no step away.
    choice = choose(model, min(1.0, budget + 1e-5), criterion)
    family = criterion if criterion in BUDGETED else "criteria"
    return Row(name, family, choice.schedule, headline=headline)


def solved(solver: str, steps: int, computed: int, name: str) -> Row:
    """A row of extrapolated steps under another solver."""
    model = bundled_calibration().at(noise_levels(solver, steps, SHIFT))
    choice = choose(model, computed / steps, "extrapolated")
    return Row(name, "extrapolated UniPC", choice.schedule, steps, solver)


def adaptive(budget: float) -> Row:
    """A row whose first stage ends when the trajectory says so."""
    large = most_large_steps(STEPS, bundled_calibration().cost_ratio, budget + 1e-5)
    latest = StageSchedule.parse("LSL", [(large - 1) / STEPS, (STEPS - 1) / STEPS])
    name = f"adaptive {budget:.2f}"
    return Row(name, "criteria", latest, together=False, adaptive=SelfDifference())


def by_data(rendered: tuple[float, float]) -> list[Row]:
    """Every row that a calibration, or rendered candidates, chose the stages of.

    Args:
        rendered: Boundaries that ``quality_boundaries.rendered_boundaries`` found.
    """
    equal = equal_share()
    every = {f"{budget}": budget for budget in BUDGETS}
    return [
        *(chosen(c, equal, f"{c} = LSL", headline=True)
          for c in BUDGETED),
        *(chosen(c, equal, f"{c} = LSL") for c in ("divergence", "complexity")),
        Row("similarity {}/{}".format(*rendered), "criteria", StageSchedule.parse("LSL", rendered)),
        *(chosen(c, budget, f"{c} {name}")
          for c in BUDGETED for name, budget in every.items()),
        *(chosen("extrapolated", n / STEPS, f"extrapolated {n}/{STEPS}", headline=True)
          for n in COMPUTED),
        *(solved("unipc", steps, count, f"extrapolated {count}/{steps} UniPC")
          for steps, count in ((50, 24), (50, 16), (25, 16), (25, 12))),
        adaptive(equal),
        adaptive(0.4),
    ]  # fmt: skip


def with_middle(stages: StageSchedule, **settings: Any) -> StageSchedule:
    """Three stages, the second with further settings."""
    first, middle, last = stages.stages
    return StageSchedule((first, Stage(middle.denoiser, middle.until, **settings), last))


def missing() -> list[str]:
    """Families that can't be measured here, and why."""
    found = []
    if importlib.util.find_spec("cache_dit") is None:
        found.append("cache_dit is left out: cache-dit isn't installed")
    if "E" not in LETTERS:
        found.append("E is left out: stages have no extrapolated steps")
    return found


def named(found: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """The rows of some names, in the order of the table."""
    return [row for row in found if row.name in names]
