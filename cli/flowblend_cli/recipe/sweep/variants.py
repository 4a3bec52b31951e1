"""Variant: what one combination of a sweep means for models, stages and sampling."""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelNameError
from flowblend_cli.jobs import ModelSpec, SamplingSpec
from flowblend_cli.models.pipeline_rules import PipelineRules, rules_of
from flowblend_cli.models.registry import KnownPair, find_pair, resolve_model, resolve_small
from flowblend_cli.models.solvers import own_solver
from flowblend_cli.recipe.schema.sweep_tables import SWEPT_TABLES
from flowblend_cli.recipe.schema.tables import UNKNOWN, BlendTable, StageTable
from flowblend_cli.recipe.schema.validation import STAND_IN, Tables
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
from flowblend_plugin.stages import LETTERS, Stage


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
        rules: What the pipeline asks for, where that is known offline.
        unknown: What stands for something that is broken, and told already: ``"pipeline"``,
            ``"small"``, ``"denoisers"``, ``"blend"``, ``"sampling"``, keys of [output], axes.
    """

    combination: Combination
    model: ModelSpec
    pair: KnownPair | None
    pipeline_class: str | None
    blend: Blend
    sampling: SamplingSpec
    output: dict[str, Any]
    rules: PipelineRules | None = None
    unknown: frozenset[str] = frozenset()

    def knows(self, *names: str) -> bool:
        """Whether all of these are known."""
        return self.unknown.isdisjoint(names)


def make_variant(
    tables: Tables, combination: Combination, recipe_dir: Path, problems: Problems
) -> Variant:
    """Tell what one combination means, as far as it is sound.

    Args:
        tables: The checked tables; what is broken of them is left unchecked.
        combination: The combination.
        recipe_dir: Folder that model folders are relative to.
        problems: Where problems go.
    """
    maker = _VariantMaker(tables, combination, recipe_dir)
    variant = maker.make()
    problems.extend(maker.problems)
    return variant


class _VariantMaker:
    """Makes the variant of one combination, and keeps what is wrong with it."""

    def __init__(self, tables: Tables, combination: Combination, recipe_dir: Path) -> None:
        self.problems = Problems()
        self._tables = tables
        self._combination = combination
        self._recipe_dir = recipe_dir
        self._unknown: set[str] = set()

    def make(self) -> Variant:
        """The variant, with something that stands for whatever is broken or can't be had."""
        spec, pair, pipeline_class = self._models()
        blend = self._blend(spec, pair, pipeline_class)
        if self._knows("pipeline", "small", "blend"):
            self._check_small_is_named(spec, blend)
        sampling = self._sampling(spec, pair, blend)
        output = self._merged("output")
        rules = rules_of(spec.pipeline, self._recipe_dir) if self._knows("pipeline") else None
        axes = {a for a, value in self._combination.values.items() if value is UNKNOWN}
        unknown = frozenset(self._unknown | axes)
        return Variant(
            self._combination, spec, pair, pipeline_class, blend, sampling, output, rules, unknown
        )

    def _knows(self, *names: str) -> bool:
        return self._unknown.isdisjoint(names)

    def _merged(self, name: str) -> dict[str, Any]:
        """A table's values with the swept ones on top; of broken keys, the defaults."""
        table, swept = getattr(self._tables, name), self._combination.values_of(name)
        model = SWEPT_TABLES[name]
        own = {key: getattr(table, key) for key in model.model_fields}
        for key in model.model_fields:
            if swept.get(key) is UNKNOWN or (key in table.broken and key not in swept):
                self._unknown.add(key)
                swept.pop(key, None)
        return own | swept

    def _models(self) -> tuple[ModelSpec, KnownPair | None, str | None]:
        """The models, their pair and the class of their pipeline, as far as they are known."""
        model = self._merged("model")
        path = self._combination.path
        del model["adapters"]  # a job has those that its stages name
        if not self._knows("pipeline"):
            model["pipeline"] = STAND_IN
        pair = find_pair(model["pipeline"])
        small = model["small"] or (pair.implied_small if pair else None)
        denoisers = tuple(sorted(model["denoisers"].items()))
        pipeline_class = None
        if self._knows("pipeline"):
            pipeline_class, problem = _pipeline_class(model["pipeline"], self._recipe_dir)
            if problem:
                self.problems.add(path("model", "pipeline"), problem)
                self._unknown.add("pipeline")
        further: list[tuple[KeyPath, str]] = [
            (("model", "denoisers", letter), name) for letter, name in denoisers
        ]
        if small is not None and not (pair and small == pair.implied_small):
            further.append((path("model", "small"), small))
        for where, name in further:
            problem = _denoiser_problem(name, self._recipe_dir)
            if problem:
                self.problems.add(where, problem)
                self._unknown.add("small" if where[-1] not in dict(denoisers) else "denoisers")
        if not self._knows("small"):
            small = STAND_IN
        self._check_model(model)
        spec = ModelSpec(**{**model, "small": small, "denoisers": denoisers})
        return spec, pair, pipeline_class

    def _check_model(self, model: dict[str, Any]) -> None:
        path = self._combination.path
        if (batch_size := model.pop("batch_size")) > 1:
            message = (
                f"{batch_size} isn't possible: no pipeline is proven to give jobs that are "
                "rendered together the bits that each has alone (docs/determinism.md shows how far "
                "they are apart); leave batch_size out, and each job is rendered alone"
            )
            self.problems.add(path("model", "batch_size"), message, related=("model",))
        if model["device"] == "cpu" and model["offload"] != "none":
            message = (
                f"{model['offload']!r} isn't possible with device = 'cpu', where models stay in "
                "main memory anyway: remove offload, or set device to 'auto'"
            )
            self.problems.add(path("model", "offload"), message, related=("model",))

    def _sampling(self, spec: ModelSpec, pair: KnownPair | None, blend: Blend) -> SamplingSpec:
        values = self._merged("sampling")
        sampler = Sampler()
        if self._knows("pipeline"):
            sampler = Sampler(spec.pipeline, pair, *own_solver(spec.pipeline, self._recipe_dir))
        if not self._knows("scheduler"):
            sampler = replace(sampler, own=None)
        modes = _modes(self._tables)
        sampling = check_sampling(values, sampler, self._combination, modes, self.problems)
        if sampling is None or self._unknown & SWEPT_TABLES["sampling"].model_fields.keys():
            self._unknown.add("sampling")
        if sampling is not None and self._knows("blend"):
            solver = sampling.scheduler or sampler.own
            check_one_evaluation(solver, blend, self._combination, self.problems)
        return sampling or SamplingSpec()

    def _blend(self, spec: ModelSpec, pair: KnownPair | None, pipeline_class: str | None) -> Blend:
        """The stages of a combination, and the adapters that they name."""
        blend, combination = self._tables.blend or BlendTable(), self._combination
        self._merged("blend")
        if self._unknown & BlendTable.model_fields.keys():
            self._unknown.add("blend")
        swept = {k: v for k, v in combination.values_of("blend").items() if v is not UNKNOWN}
        where, long_form = combination.path("blend", "stage"), swept.get("stage", blend.stage) or []
        stages = self._stages(blend, swept, spec, pair, long_form)
        if stages is None:
            self._unknown.add("blend")
            stages = Blend((Stage("large"),), "L")
        if not long_form:
            return stages
        known = self._tables.model if self._knows("denoisers") else None
        check_settings(long_form, known, pipeline_class, where, self.problems)
        known = self._tables.model if self._knows("adapters") else None
        models = spec if self._knows("pipeline", "small", "denoisers") else None
        adapters = find_adapters(long_form, known, models, self._recipe_dir, where, self.problems)
        return replace(stages, adapters=adapters)

    def _stages(
        self,
        blend: BlendTable,
        swept: dict[str, Any],
        spec: ModelSpec,
        pair: KnownPair | None,
        long_form: list[StageTable],
    ) -> Blend | None:
        """The stages alone; None where they are broken."""
        where = self._combination.path("blend", "stage")
        unsound = Problems()
        check_extrapolated(long_form, where, unsound)
        if unsound:
            self.problems.extend(unsound)
            return None
        if not self._knows("blend"):
            return None
        names = tuple(self._tables.model.denoisers) if self._tables.model is not None else ()
        if not self._knows("denoisers"):
            names = tuple(letter for letter in string.ascii_uppercase if letter not in LETTERS)
        # A known pair without a small model has one default that it can do.
        has_small = pair is None or spec.small is not None
        try:
            return resolve_stages(blend, swept, names, is_large_only=not has_small)
        except StageError as error:
            key = blamed_for_stages(blend, tuple(swept), str(error))
            self.problems.add(
                self._combination.path("blend", key), str(error), related=("model", "blend")
            )
            return None

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
    """The modes of all combinations; one that isn't known may be any."""
    swept = all_axes(tables).get("sampling.mode")
    if swept is None and (tables.sampling is None or "mode" in tables.sampling.broken):
        swept = [UNKNOWN]
    written = [tables.sampling.mode] if tables.sampling is not None else []
    return frozenset("sde" if mode is UNKNOWN else mode for mode in swept or written)
