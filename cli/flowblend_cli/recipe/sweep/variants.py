"""The combinations of a sweep, and what each makes of the model, the stages and the sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelNameError
from flowblend_cli.jobs import AdapterSpec, ModelSpec, SamplingSpec
from flowblend_cli.models.registry import KnownPair, find_pair, resolve_model, resolve_small
from flowblend_cli.models.solvers import noise_kind, own_solver
from flowblend_cli.recipe.schema.sweep_tables import SWEPT_TABLES
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.source.faults import Fault
from flowblend_cli.recipe.sweep.auto_stages import Automatic
from flowblend_cli.recipe.sweep.blend import (
    Blend,
    blamed_for_stages,
    check_extrapolated,
    check_settings,
    find_adapters,
    resolve_stages,
)
from flowblend_cli.recipe.sweep.combinations import Row, all_axes
from flowblend_cli.recipe.sweep.sampling import Sampler, check_one_evaluation, check_sampling
from flowblend_cli.utils.toml_positions import KeyPath
from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import Stage


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
        adapters: The LoRA adapters that the stages name.
        automatic: How each job's own stages are found, where ``stages`` only stand for them.
    """

    row: Row
    model: ModelSpec
    pair: KnownPair | None
    pipeline_class: str | None
    stages: tuple[Stage, ...]
    stage_string: str
    sampling: SamplingSpec
    output: dict[str, Any]
    adapters: tuple[AdapterSpec, ...] = ()
    automatic: Automatic | None = None


def make_variant(tables: Tables, row: Row, recipe_dir: Path, faults: list[Fault]) -> Variant | None:
    """Tell what one combination means; None, with its faults appended, where it can't be.

    Args:
        tables: The checked tables; a broken one leaves its part unchecked.
        row: The combination.
        recipe_dir: Folder that model folders are relative to.
        faults: Where faults go.
    """
    before = len(faults)
    found = _check_model(_merged(tables, "model", row), row, recipe_dir, faults)
    is_sound = len(faults) == before
    blend = _check_blend(tables, row, recipe_dir, faults, found)
    if found.spec is not None and blend is not None and is_sound:
        _check_small_is_named(found.spec, blend[0], row, faults)
    sampler = _sampler(found, recipe_dir)
    values = _merged(tables, "sampling", row)
    sampling = check_sampling(values, sampler, row, _modes(tables), faults)
    if sampling is not None and blend is not None:
        check_one_evaluation(sampling.scheduler or sampler.own, blend[0], row, faults)
    output = _merged(tables, "output", row)
    if found.spec is None or blend is None or sampling is None or output is None:
        return None
    if len(faults) > before:
        return None
    stages, adapters = blend
    return Variant(
        row,
        found.spec,
        found.pair,
        found.pipeline_class,
        stages.stages,
        stages.letters,
        sampling,
        output,
        adapters,
        stages.automatic,
    )


def _merged(tables: Tables, name: str, row: Row) -> dict[str, Any] | None:
    """A table's values with the swept ones on top; None where the table is broken."""
    table = getattr(tables, name)
    if table is None:
        return None
    return {key: getattr(table, key) for key in SWEPT_TABLES[name].model_fields} | row.of(name)


@dataclass(frozen=True)
class _Models:
    """The models of a combination, as far as they could be told."""

    spec: ModelSpec | None = None
    pair: KnownPair | None = None
    pipeline_class: str | None = None


def _check_model(
    model: dict[str, Any] | None, row: Row, recipe_dir: Path, faults: list[Fault]
) -> _Models:
    if model is None:
        return _Models()
    del model["adapters"]  # a job has those that its stages name
    pair = find_pair(model["pipeline"])
    small = model["small"] or (pair.implied_small if pair else None)
    denoisers = tuple(sorted(model["denoisers"].items()))
    pipeline_class, problem = _look_up(model["pipeline"], recipe_dir)
    if problem:
        faults.append(Fault(row.path("model", "pipeline"), problem))
    further: list[tuple[KeyPath, str]] = [
        (("model", "denoisers", letter), name) for letter, name in denoisers
    ]
    if small is not None and not (pair and small == pair.implied_small):
        further.append((row.path("model", "small"), small))
    for path, name in further:
        problem = _look_up_denoiser(name, recipe_dir)
        if problem:
            faults.append(Fault(path, problem))
    if (batch_size := model.pop("batch_size")) > 1:
        message = (
            f"{batch_size} isn't possible: no pipeline is proven to give jobs that are rendered "
            "together the bits that each has alone (docs/determinism.md shows how far they are "
            "apart); leave batch_size out, and each job is rendered alone"
        )
        faults.append(Fault(row.path("model", "batch_size"), message, related=("model",)))
    spec = ModelSpec(**{**model, "small": small, "denoisers": denoisers})
    if spec.device == "cpu" and spec.offload != "none":
        message = (
            f"{spec.offload!r} isn't possible with device = 'cpu', where models stay in main "
            "memory anyway: remove offload, or set device to 'auto'"
        )
        faults.append(Fault(row.path("model", "offload"), message, related=("model",)))
    return _Models(spec, pair, pipeline_class)


@cache
def _look_up(name: str, recipe_dir: Path) -> tuple[str | None, str | None]:
    """Class and problem of a pipeline; kept, because each look-up reads the disk."""
    try:
        return resolve_model(name, recipe_dir).pipeline_class, None
    except ModelNameError as error:
        return None, str(error)


@cache
def _look_up_denoiser(name: str, recipe_dir: Path) -> str | None:
    try:
        resolve_small(name, recipe_dir)
    except ModelNameError as error:
        return str(error)
    return None


def _check_blend(
    tables: Tables, row: Row, recipe_dir: Path, faults: list[Fault], found: _Models
) -> tuple[Blend, tuple[AdapterSpec, ...]] | None:
    """The stages of a combination, and the adapters that they name."""
    blend, model = tables.blend, tables.model
    if blend is None:
        return None
    swept, related = row.of("blend"), ("model", "blend")
    # A known pair without a small model has one default that it can do.
    is_large_only = found.pair is not None and found.spec is not None and found.spec.small is None
    names = tuple(model.denoisers) if model is not None else ()
    where, long_form = row.path("blend", "stage"), swept.get("stage", blend.stage) or []
    unsound = list(check_extrapolated(long_form, where))
    if unsound:
        faults += unsound
        return None
    try:
        stages = resolve_stages(blend, swept, names, is_large_only=is_large_only)
    except StageError as error:
        key = blamed_for_stages(blend, tuple(swept), str(error))
        faults.append(Fault(row.path("blend", key), str(error), related=related))
        return None
    if not stages.is_long_form:
        return stages, ()
    faults += check_settings(stages, model, found.pipeline_class, where)
    return stages, find_adapters(long_form, model, recipe_dir, where, faults)


def _check_small_is_named(spec: ModelSpec, blend: Blend, row: Row, faults: list[Fault]) -> None:
    if spec.small is None and "small" in blend.roles:
        faults.append(
            Fault(
                row.path("model", "small"),
                f"is missing, and stages {blend.letters!r} use the small denoiser: name where it "
                'comes from, or set stages = "L" in [blend]',
                related=("model", "blend"),
            )
        )


def _sampler(models: _Models, recipe_dir: Path) -> Sampler:
    """What is known offline of how a pipeline samples."""
    if models.spec is None:
        return Sampler()
    name, pair = models.spec.pipeline, models.pair
    own = pair.scheduler if pair is not None else own_solver(name, recipe_dir)
    return Sampler(name, pair, own, noise_kind(name, recipe_dir))


def _modes(tables: Tables) -> frozenset[str]:
    """The modes of all combinations."""
    swept = all_axes(tables).get("sampling.mode")
    written = [tables.sampling.mode] if tables.sampling is not None else []
    return frozenset(swept or written)
