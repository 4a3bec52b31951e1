"""Variant: what one combination of a sweep means for models, stages and sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelNameError
from flowblend_cli.jobs import ModelSpec, SamplingSpec
from flowblend_cli.models.registry import KnownPair, find_pair, resolve_model, resolve_small
from flowblend_cli.models.solvers import own_solver
from flowblend_cli.recipe.schema.sweep_tables import SWEPT_TABLES
from flowblend_cli.recipe.schema.validation import Tables
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.blend import (
    Blend,
    blamed_for_stages,
    check_extrapolated,
    check_settings,
    find_adapters,
    resolve_stages,
)
from flowblend_cli.recipe.sweep.combinations import Combination, all_axes
from flowblend_cli.recipe.sweep.sampling import Sampler, check_one_evaluation, check_sampling
from flowblend_cli.utils.toml_positions import KeyPath
from flowblend_plugin.errors import StageError


@dataclass(frozen=True)
class Variant:
    """What one combination of a sweep means, apart from the scenes.

    Args:
        combination: The combination.
        model: The models.
        pair: The known pair that they are, if any.
        pipeline_class: Class of the pipeline, where it is known offline.
        blend: The stages, and the LoRA adapters that they name.
        sampling: The sampling.
        output: Keys of [output] with their values.
    """

    combination: Combination
    model: ModelSpec
    pair: KnownPair | None
    pipeline_class: str | None
    blend: Blend
    sampling: SamplingSpec
    output: dict[str, Any]


def make_variant(
    tables: Tables, combination: Combination, recipe_dir: Path, problems: Problems
) -> Variant | None:
    """Tell what one combination means; None, and its problems, where that isn't possible.

    Args:
        tables: The checked tables; a broken one leaves its part unchecked.
        combination: The combination.
        recipe_dir: Folder that model folders are relative to.
        problems: Where problems go.
    """
    maker = _VariantMaker(tables, combination, recipe_dir)
    variant = maker.make()
    problems.extend(maker.problems)
    return None if maker.problems else variant


class _VariantMaker:
    """Makes the variant of one combination, and keeps what is wrong with it."""

    def __init__(self, tables: Tables, combination: Combination, recipe_dir: Path) -> None:
        self.problems = Problems()
        self._tables = tables
        self._combination = combination
        self._recipe_dir = recipe_dir

    def make(self) -> Variant | None:
        """The variant; None where a table is broken or a value can't be had."""
        tables, combination = self._tables, self._combination
        spec, pair, pipeline_class = self._models()
        are_models_sound = not self.problems
        blend = self._blend(spec, pair, pipeline_class)
        sampler = Sampler()
        if spec is not None:
            if blend is not None and are_models_sound:
                self._check_small_is_named(spec, blend)
            sampler = Sampler(spec.pipeline, pair, *own_solver(spec.pipeline, self._recipe_dir))
        values = self._merged("sampling")
        sampling = check_sampling(values, sampler, combination, _modes(tables), self.problems)
        if sampling is not None and blend is not None:
            solver = sampling.scheduler or sampler.own
            check_one_evaluation(solver, blend, combination, self.problems)
        output = self._merged("output")
        if spec is None or blend is None or sampling is None or output is None:
            return None
        return Variant(combination, spec, pair, pipeline_class, blend, sampling, output)

    def _merged(self, name: str) -> dict[str, Any] | None:
        """A table's values with the swept ones on top; None where the table is broken."""
        table = getattr(self._tables, name)
        if table is None:
            return None
        own = {key: getattr(table, key) for key in SWEPT_TABLES[name].model_fields}
        return own | self._combination.values_of(name)

    def _models(self) -> tuple[ModelSpec | None, KnownPair | None, str | None]:
        """The models, their pair and the class of their pipeline, as far as they are known."""
        model = self._merged("model")
        if model is None:
            return None, None, None
        path = self._combination.path
        del model["adapters"]  # a job has those that its stages name
        pair = find_pair(model["pipeline"])
        small = model["small"] or (pair.implied_small if pair else None)
        denoisers = tuple(sorted(model["denoisers"].items()))
        pipeline_class, problem = _pipeline_class(model["pipeline"], self._recipe_dir)
        if problem:
            self.problems.add(path("model", "pipeline"), problem)
        further: list[tuple[KeyPath, str]] = [
            (("model", "denoisers", letter), name) for letter, name in denoisers
        ]
        if small is not None and not (pair and small == pair.implied_small):
            further.append((path("model", "small"), small))
        for where, name in further:
            problem = _denoiser_problem(name, self._recipe_dir)
            if problem:
                self.problems.add(where, problem)
        if (batch_size := model.pop("batch_size")) > 1:
            message = (
                f"{batch_size} isn't possible: no pipeline is proven to give jobs that are "
                "rendered together the bits that each has alone (docs/determinism.md shows how far "
                "they are apart); leave batch_size out, and each job is rendered alone"
            )
            self.problems.add(path("model", "batch_size"), message, related=("model",))
        spec = ModelSpec(**{**model, "small": small, "denoisers": denoisers})
        if spec.device == "cpu" and spec.offload != "none":
            message = (
                f"{spec.offload!r} isn't possible with device = 'cpu', where models stay in main "
                "memory anyway: remove offload, or set device to 'auto'"
            )
            self.problems.add(path("model", "offload"), message, related=("model",))
        return spec, pair, pipeline_class

    def _blend(
        self, spec: ModelSpec | None, pair: KnownPair | None, pipeline_class: str | None
    ) -> Blend | None:
        """The stages of a combination, and the adapters that they name."""
        blend, model, combination = self._tables.blend, self._tables.model, self._combination
        if blend is None:
            return None
        swept = combination.values_of("blend")
        where, long_form = combination.path("blend", "stage"), swept.get("stage", blend.stage) or []
        unsound = Problems()
        check_extrapolated(long_form, where, unsound)
        if unsound:
            self.problems.extend(unsound)
            return None
        names = tuple(model.denoisers) if model is not None else ()
        # A known pair without a small model has one default that it can do.
        has_small = pair is None or spec is None or spec.small is not None
        try:
            stages = resolve_stages(blend, swept, names, is_large_only=not has_small)
        except StageError as error:
            key = blamed_for_stages(blend, tuple(swept), str(error))
            self.problems.add(
                combination.path("blend", key), str(error), related=("model", "blend")
            )
            return None
        if not stages.is_long_form:
            return stages
        check_settings(stages, model, pipeline_class, where, self.problems)
        adapters = find_adapters(long_form, model, spec, self._recipe_dir, where, self.problems)
        return replace(stages, adapters=adapters)

    def _check_small_is_named(self, spec: ModelSpec, blend: Blend) -> None:
        if spec.small is None and "small" in blend.roles:
            message = (
                f"is missing, and stages {blend.letters!r} use the small denoiser: name where it "
                'comes from, or set stages = "L" in [blend]'
            )
            self.problems.add(
                self._combination.path("model", "small"), message, related=("model", "blend")
            )


@cache
def _pipeline_class(name: str, recipe_dir: Path) -> tuple[str | None, str | None]:
    """Class and problem of a pipeline; kept, because each look-up reads the disk."""
    try:
        return resolve_model(name, recipe_dir).pipeline_class, None
    except ModelNameError as error:
        return None, str(error)


@cache
def _denoiser_problem(name: str, recipe_dir: Path) -> str | None:
    """Why a denoiser can't be used; None if it can. Kept for the same reason."""
    try:
        resolve_small(name, recipe_dir)
    except ModelNameError as error:
        return str(error)
    return None


def _modes(tables: Tables) -> frozenset[str]:
    """The modes of all combinations."""
    swept = all_axes(tables).get("sampling.mode")
    written = [tables.sampling.mode] if tables.sampling is not None else []
    return frozenset(swept or written)
