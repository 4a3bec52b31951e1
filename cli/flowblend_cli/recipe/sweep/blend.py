"""Blend: the stages that [blend] means in one combination, and whether the models can run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelMissingError, ModelNameError
from flowblend_cli.jobs import AdapterSpec, ModelSpec, schedule_of
from flowblend_cli.models.adapters import adapter_problems, is_source
from flowblend_cli.recipe.schema.tables import BlendTable, ModelTable, StageTable
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.auto_stages import AUTOMATIC_KEYS, Automatic
from flowblend_cli.utils.toml_positions import KeyPath
from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import LETTERS, Adapter, Stage, StageSchedule
from flowblend_plugin.stages.capabilities import guidance_problem

PAPER_STAGES = "LSL"
PAPER_BOUNDARIES = (0.4, 0.8)
_SHORT_FORM = ("stages", "boundaries", "boundary_sigmas")


@dataclass(frozen=True)
class Blend:
    """The stages of one combination.

    Args:
        stages: The stages.
        letters: The same as letters, as the recipe writes them.
        is_long_form: Whether they come from ``[[blend.stage]]`` tables.
        automatic: How each job's own stages are found, where these are placeholders.
        adapters: The LoRA adapters that the stages name.
    """

    stages: tuple[Stage, ...]
    letters: str
    is_long_form: bool = False
    automatic: Automatic | None = None
    adapters: tuple[AdapterSpec, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """The distinct roles, in order of appearance."""
        return schedule_of(self.stages).roles


def resolve_stages(
    blend: BlendTable,
    swept: dict[str, Any],
    names: Sequence[str] = (),
    *,
    is_large_only: bool = False,
) -> Blend:
    """Make the stages of one combination.

    Args:
        blend: The table.
        swept: The sweep's values of its keys.
        names: Letters of further denoisers, which are their names, too.
        is_large_only: Whether a recipe that sets no stages gets the large denoiser alone.

    Raises:
        StageError: The values don't make a schedule together.
    """
    values = {key: swept.get(key, getattr(blend, key)) for key in type(blend).model_fields}
    tables: list[StageTable] | None = values["stage"]
    automatic = Automatic.of(values, is_swept="stages" in swept)
    if tables is not None:
        if any(values[key] is not None for key in _SHORT_FORM):
            raise StageError(
                "[[blend.stage]] can't stand beside stages, boundaries or boundary_sigmas, nor "
                "beside a sweep of them: keep one form"
            )
        schedule = StageSchedule(tuple(_stage(table) for table in tables))
        return Blend(schedule.stages, schedule.letters, is_long_form=True)
    letters, boundaries, sigmas = (values[key] for key in _SHORT_FORM)
    is_unset = boundaries is None and sigmas is None
    if letters is None:
        letters = "L" if is_unset and is_large_only else PAPER_STAGES
    if is_unset and automatic is None and len(set(letters)) > 1:
        boundaries = _default_boundaries(letters)
    if automatic is not None:
        return Blend(automatic.placeholder, letters, automatic=automatic)
    if len(set(letters)) == 1:
        boundaries = sigmas = None  # one denoiser runs every step, wherever its stages end
    further = {letter: letter for letter in names}
    return Blend(StageSchedule.parse(letters, boundaries, sigmas, further).stages, letters)


def _default_boundaries(letters: str) -> tuple[float, ...]:
    """Where the stages end if nothing says so; only three stages have a default.

    Raises:
        StageError: There are more stages, or fewer.
    """
    if len(letters) == len(PAPER_STAGES):
        return PAPER_BOUNDARIES
    ends = [round(number / len(letters), 2) for number in range(1, len(letters))]
    raise StageError(
        f"stages {letters!r} needs boundaries, which only three letters have by default: write "
        f"where all stages but the last end, as fractions of the steps, such as boundaries = {ends}"
    )


def _stage(table: StageTable) -> Stage:
    return Stage(
        table.denoiser,
        table.until,
        table.until_sigma,
        table.guidance_scale,
        tuple(Adapter(adapter_name(a.name), a.weight, a.end_weight) for a in table.adapters),
        table.cache,
        table.attention_backend,
        table.steps,
        table.scheduler,
    )


def adapter_name(name: str) -> str:
    """The name under which an adapter is loaded: of a file's path, its stem, without dots."""
    stem = name.rpartition("/")[2].removesuffix(".safetensors")
    return stem.replace(".", "_") if is_source(name) else name


def blamed_for_stages(blend: BlendTable, swept: Sequence[str], message: str) -> str:
    """Choose the key of [blend] at which a message about the stages is shown.

    Args:
        blend: The table.
        swept: Its keys that are swept.
        message: The message.
    """
    if blend.stage is not None or "stage" in swept:
        return "stage"
    edges = ("boundaries", "boundary_sigmas", *sorted(AUTOMATIC_KEYS))
    order = (*edges, "stages") if message.startswith(edges) else ("stages", *edges)
    for key in order:
        if key in swept or (key in edges and message.startswith(key)):
            return key
    return "stages"


def check_settings(
    tables: Sequence[StageTable],
    model: ModelTable | None,
    pipeline_class: str | None,
    where: KeyPath,
    problems: Problems,
) -> None:
    """Check that denoisers are bound, and that the pipeline can do each stage's guidance.

    Args:
        tables: The ``[[blend.stage]]`` tables.
        model: The models' table; None if it is broken.
        pipeline_class: Class of the pipeline, where it is known offline.
        where: Path of ``tables``.
        problems: Where problems go.
    """
    for index, stage in enumerate(tables):
        if stage.guidance_scale is not None and pipeline_class is not None:
            problem = guidance_problem(pipeline_class, stage.guidance_scale)
            if problem:
                path = (*where, index, "guidance_scale")
                problems.add(path, problem, at="key", related=("model", "blend"))
        bound = model.denoisers if model is not None else {}
        if model is not None and stage.denoiser not in (*LETTERS.values(), *bound):
            has = f"which binds {', '.join(bound)}" if bound else "which isn't there"
            message = (
                f"{stage.denoiser!r} is no denoiser: bind the letter in [model.denoisers], {has}"
            )
            problems.add((*where, index, "denoiser"), message, related=("model", "blend"))


def check_extrapolated(tables: Sequence[StageTable], where: KeyPath, problems: Problems) -> None:
    """Check that extrapolated stages set nothing, since no denoiser runs there.

    Args:
        tables: The ``[[blend.stage]]`` tables.
        where: Their path.
        problems: Where problems go.
    """
    for index, table in enumerate(tables):
        stage = _stage(table)
        for key in stage.settings if stage.is_extrapolated else ():
            message = f"no denoiser runs a stage that is {stage.denoiser}: leave {key} out"
            problems.add((*where, index, key), message, at="key")
    if tables and _stage(tables[0]).is_extrapolated:
        message = (
            "the first stage can't be extrapolated, because no denoiser has run yet that it could "
            "go by: begin with 'large'"
        )
        problems.add((*where, 0, "denoiser"), message)


def find_adapters(
    tables: Sequence[StageTable],
    model: ModelTable | None,
    models: ModelSpec | None,
    recipe_dir: Path,
    where: KeyPath,
    problems: Problems,
) -> tuple[AdapterSpec, ...]:
    """Find the source of each adapter for each denoiser whose stages name it.

    Args:
        tables: The ``[[blend.stage]]`` tables.
        model: The models' table, which binds names to files; None if it is broken.
        models: The models that it names; None likewise.
        recipe_dir: Folder that files are relative to.
        where: Path of ``tables``.
        problems: Where problems go: names that nothing is bound to, files that can't be used, and
            what diffusers can't use of a file that is here.
    """
    found: dict[tuple[str, str], AdapterSpec] = {}
    for index, stage in enumerate(tables):
        seen: set[str] = set()
        for number, adapter in enumerate(stage.adapters):
            path = (*where, index, "adapters", number, "name")
            name, role = adapter_name(adapter.name), stage.denoiser
            if name in seen:
                problems.add(path, f"{name!r} stands twice in one stage: keep one")
            seen.add(name)
            if model is None:
                continue
            origin = path
            try:
                source, origin = _source_of(adapter.name, role, model, path)
                spec = AdapterSpec(name, role, source)
                unusable = adapter_problems(spec, recipe_dir, models)
            except ModelNameError as error:
                problems.add(origin, str(error), related=("model", "blend"))
                continue
            for problem in unusable:
                message = f"{source!r} can't be used: {problem}"
                code = ModelMissingError.exit_code
                problems.add(origin, message, related=("model", "blend"), exit_code=code)
            if found.setdefault((name, role), spec) != spec:
                message = (
                    f"{source!r} and {found[name, role].source!r} would both be called {name!r}: "
                    "give them names of their own in [model.adapters]"
                )
                problems.add(origin, message, related=("model", "blend"))
    return tuple(found.values())


def _source_of(name: str, role: str, model: ModelTable, path: KeyPath) -> tuple[str, KeyPath]:
    """An adapter's source for a denoiser, and the key that names it."""
    bound = model.adapters.get(name)
    if isinstance(bound, str):
        return bound, ("model", "adapters", name)
    if bound is not None:
        if role not in bound:
            raise ModelNameError(
                f"[model.adapters] has no {name!r} for the {role} denoiser, only for "
                f"{', '.join(bound)}"
            )
        return bound[role], ("model", "adapters", name, role)
    if is_source(name):
        return name, path
    has = f"it has {', '.join(model.adapters)}" if model.adapters else "there is none yet"
    raise ModelNameError(
        f'[model.adapters] binds no {name!r} ({has}): add {name} = "./FILE.safetensors" there'
    )
