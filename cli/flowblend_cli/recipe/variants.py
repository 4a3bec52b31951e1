"""The combinations of a sweep, and what each makes of the model, the stages and the sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flowblend_cli.batching import why_alone
from flowblend_cli.errors import ModelNameError
from flowblend_cli.jobs import ModelSpec, SamplingSpec
from flowblend_cli.models import KnownPair, find_pair, resolve_model, resolve_small
from flowblend_cli.recipe.positions import KeyPath
from flowblend_cli.recipe.schema import SWEPT_TABLES, BlendTable, SweepFields
from flowblend_cli.recipe.validation import Fault, Tables
from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import LETTERS, Stage, StageSchedule

PAPER_STAGES = "LSL"
PAPER_BOUNDARIES = (0.4, 0.8)
NOT_STOCHASTIC = ("unipc", "heun", "deis")


@dataclass(frozen=True)
class Row:
    """One combination of a sweep: the value of each axis, and its index in the axis."""

    values: dict[str, Any]
    indices: dict[str, int]

    def of(self, table: str) -> dict[str, Any]:
        """The swept values of one table, by key."""
        prefix = f"{table}."
        return {
            axis.removeprefix(prefix): value
            for axis, value in self.values.items()
            if axis.startswith(prefix)
        }

    def settings(self) -> dict[str, Any]:
        """The swept values of [defaults]."""
        return {axis: value for axis, value in self.values.items() if "." not in axis}

    def path(self, table: str, key: str) -> KeyPath:
        """Where a table's key has its value: in the sweep, or in the table itself."""
        axis = f"{table}.{key}"
        if axis in self.indices:
            return ("sweep", axis, self.indices[axis])
        return (table, key)


@dataclass(frozen=True)
class Variant:
    """What one combination of a sweep means, apart from the scenes.

    Args:
        row: The combination.
        model: The models.
        pair: The known pair that they are, if any.
        pipeline_class: Class of the pipeline, where it can be told offline.
        stages: The stages.
        stage_string: The stages as letters, as written.
        sampling: The sampling.
        output: Keys of [output] with their values.
    """

    row: Row
    model: ModelSpec
    pair: KnownPair | None
    pipeline_class: str | None
    stages: tuple[Stage, ...]
    stage_string: str
    sampling: SamplingSpec
    output: dict[str, Any]


def sweep_axes(sweep: SweepFields) -> dict[str, list[Any]]:
    """The axes of a sweep in the order of the recipe: dotted names, or keys of [defaults]."""
    dumped = sweep.model_dump(by_alias=True, exclude_unset=True)
    return {axis: values for axis, values in dumped.items() if axis not in ("mode", "repeats")}


def axis_fields(tables: Tables) -> dict[str, str]:
    """The file name field of each axis of the sweep: the last part of its dotted name."""
    axes = list(sweep_axes(tables.sweep)) if tables.sweep else []
    last = {axis: axis.rpartition(".")[2] for axis in axes}
    names = list(last.values())
    return {
        axis: name if names.count(name) == 1 else axis.replace(".", "_")
        for axis, name in last.items()
    }


def count_rows(sweep: SweepFields) -> int:
    """How many combinations a sweep has, without making them."""
    lengths = [len(values) for values in sweep_axes(sweep).values()]
    return max(lengths, default=1) if sweep.mode == "zip" else math.prod(lengths)


def sweep_rows(sweep: SweepFields) -> Iterator[Row]:
    """Every combination of a sweep, the first axis changing slowest."""
    axes = {axis: list(enumerate(values)) for axis, values in sweep_axes(sweep).items()}
    combine = zip if sweep.mode == "zip" and axes else itertools.product
    for choice in combine(*axes.values()):
        chosen = dict(zip(axes, choice, strict=True))
        yield Row(
            {axis: value for axis, (_, value) in chosen.items()},
            {axis: index for axis, (index, _) in chosen.items()},
        )


def make_variant(tables: Tables, row: Row, recipe_dir: Path, faults: list[Fault]) -> Variant | None:
    """Tell what one combination means; None, with its faults appended, where it can't be.

    Args:
        tables: The checked tables; a broken one leaves its part unchecked.
        row: The combination.
        recipe_dir: Folder that model folders are relative to.
        faults: Where faults go.
    """
    before = len(faults)
    model = _merged(tables, "model", row)
    spec, pair, pipeline_class, batch_size = None, None, None, 1
    if model is not None:
        batch_size = model.pop("batch_size")
        pair = find_pair(model["pipeline"])
        small = model["small"] or (pair.implied_small if pair else None)
        spec = ModelSpec(**{**model, "small": small})
        pipeline_class = _check_model(spec, pair, row, recipe_dir, faults)
    is_sound = len(faults) == before
    # A known pair without a small model has one default that it can do.
    is_large_only = pair is not None and spec is not None and spec.small is None
    stages = _check_blend(tables.blend, row, faults, is_large_only=is_large_only)
    if spec is not None and stages is not None and is_sound:
        _check_small_is_named(spec, stages, row, faults)
    sampling = _check_sampling(_merged(tables, "sampling", row), pair, row, faults)
    output = _merged(tables, "output", row)
    if batch_size > 1:
        message = f"{batch_size} isn't possible: {why_alone(pipeline_class)}"
        faults.append(Fault(row.path("model", "batch_size"), message, related=("model",)))
    if spec is None or stages is None or sampling is None or output is None:
        return None
    if len(faults) > before:
        return None
    return Variant(row, spec, pair, pipeline_class, *stages, sampling, output)


def _merged(tables: Tables, name: str, row: Row) -> dict[str, Any] | None:
    """A table's values with the swept ones on top; None where the table is broken."""
    table = getattr(tables, name)
    if table is None:
        return None
    return {key: getattr(table, key) for key in SWEPT_TABLES[name].model_fields} | row.of(name)


def _check_model(
    spec: ModelSpec, pair: KnownPair | None, row: Row, recipe_dir: Path, faults: list[Fault]
) -> str | None:
    pipeline_class, problem = _look_up(spec.pipeline, recipe_dir)
    if problem:
        faults.append(Fault(row.path("model", "pipeline"), problem))
    if spec.small is not None and not (pair and spec.small == pair.implied_small):
        _, problem = _look_up_small(spec.small, recipe_dir)
        if problem:
            faults.append(Fault(row.path("model", "small"), problem))
    return pipeline_class


@cache
def _look_up(name: str, recipe_dir: Path) -> tuple[str | None, str | None]:
    """Class and problem of a pipeline; kept, because each look-up reads the disk."""
    try:
        return resolve_model(name, recipe_dir).pipeline_class, None
    except ModelNameError as error:
        return None, str(error)


@cache
def _look_up_small(name: str, recipe_dir: Path) -> tuple[None, str | None]:
    try:
        resolve_small(name, recipe_dir)
    except ModelNameError as error:
        return None, str(error)
    return None, None


def _check_blend(
    blend: BlendTable | None, row: Row, faults: list[Fault], *, is_large_only: bool
) -> tuple[tuple[Stage, ...], str] | None:
    if blend is None:
        return None
    try:
        return resolve_stages(blend, row.of("blend"), is_large_only=is_large_only)
    except StageError as error:
        path = _blamed_for_blend(blend, row, str(error))
        faults.append(Fault(path, str(error), related=("blend",)))
        return None


def resolve_stages(
    blend: BlendTable, swept: dict[str, Any], *, is_large_only: bool = False
) -> tuple[tuple[Stage, ...], str]:
    """Make the stages of one combination, and their letters as the recipe writes them.

    Args:
        blend: The table.
        swept: The sweep's values of its keys.
        is_large_only: Whether a recipe that says nothing gets the large denoiser alone.

    Raises:
        StageError: The values don't make a schedule together.
    """
    if blend.stage is not None:
        if swept or blend.stages or blend.boundaries or blend.boundary_sigmas:
            raise StageError(
                "[[blend.stage]] can't stand beside stages, boundaries or boundary_sigmas, nor "
                "beside a sweep of them: keep one form"
            )
        roles = [LETTERS.get(stage.denoiser, stage.denoiser) for stage in blend.stage]
        ends = [(stage.until, stage.until_sigma) for stage in blend.stage]
        schedule = StageSchedule(tuple(Stage(r, *end) for r, end in zip(roles, ends, strict=True)))
        return schedule.stages, schedule.letters
    letters = swept.get("stages", blend.stages)
    boundaries = swept.get("boundaries", blend.boundaries)
    sigmas = swept.get("boundary_sigmas", blend.boundary_sigmas)
    if letters is None and boundaries is None and sigmas is None and is_large_only:
        letters = "L"
    if letters is None:
        letters = PAPER_STAGES
        if boundaries is None and sigmas is None:
            boundaries = PAPER_BOUNDARIES
    if letters == "auto":
        raise StageError("stages = 'auto' isn't supported yet: write letters such as 'LSL'")
    if len(set(letters)) == 1:
        boundaries = sigmas = None  # one denoiser runs every step, wherever its stages end
    return StageSchedule.parse(letters, boundaries, sigmas).stages, letters


def _blamed_for_blend(blend: BlendTable, row: Row, message: str) -> KeyPath:
    """The key that a message about the stages is best shown at."""
    if blend.stage is not None:
        return ("blend", "stage")
    edges = ("boundaries", "boundary_sigmas")
    order = (*edges, "stages") if message.startswith(edges) else ("stages", *edges)
    for key in order:
        if f"blend.{key}" in row.indices or (key in edges and message.startswith(key)):
            return row.path("blend", key)
    return ("blend", "stages")


def _check_small_is_named(
    spec: ModelSpec, stages: tuple[Sequence[Stage], str], row: Row, faults: list[Fault]
) -> None:
    specs, letters = stages
    if spec.small is None and any(stage.denoiser == "small" for stage in specs):
        faults.append(
            Fault(
                row.path("model", "small"),
                f"is missing, and stages {letters!r} use the small denoiser: name where it "
                'comes from, or set stages = "L" in [blend]',
                related=("model", "blend"),
            )
        )


def _check_sampling(
    values: dict[str, Any] | None, pair: KnownPair | None, row: Row, faults: list[Fault]
) -> SamplingSpec | None:
    if values is None:
        return None
    if pair is not None:
        values |= {key: own for key, own in pair.sampling.items() if values[key] is None}
        if pair.flow_shift is None:
            return _check_own_scheduler(values, pair, row, faults)
    solver = values["scheduler"] or (pair.scheduler if pair else None)
    if values["mode"] == "sde" and solver in NOT_STOCHASTIC:
        own = "" if values["scheduler"] else ", the pipeline's own scheduler,"
        faults.append(
            Fault(
                row.path("sampling", "mode"),
                f"'sde' isn't possible: {solver}{own} has no stochastic form; set scheduler to "
                "'flow_match_euler' or 'dpmpp_2m'",
                related=("sampling", "model"),
            )
        )
        return None
    return SamplingSpec(**values)


def _check_own_scheduler(
    values: dict[str, Any], pair: KnownPair, row: Row, faults: list[Fault]
) -> SamplingSpec | None:
    """The sampling of a pair whose noise levels only its own scheduler knows."""
    changed = [key for key in ("scheduler", "flow_shift") if values[key] is not None]
    if values["mode"] != "ode":
        changed.append("mode")
    for key in changed:
        message = (
            f"{pair.name} keeps its own scheduler ({pair.scheduler}), whose noise levels follow no "
            f"fixed shift: leave {key} out"
        )
        faults.append(Fault(row.path("sampling", key), message, related=("sampling", "model")))
    return None if changed else SamplingSpec(**values)
