"""Validation: checks each table of a document by itself, for the loader.

One broken table hides no problem of another one, nor a broken key one of another key: what is sound
of a table is kept, and the table knows which keys aren't (``Table.broken``).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flowblend_cli.recipe.schema.explanations import explain, show
from flowblend_cli.recipe.schema.foreign_names import our_name
from flowblend_cli.recipe.schema.json_schema import RecipeDocument
from flowblend_cli.recipe.schema.study_tables import (
    AdaptTable,
    DraftTable,
    MetricsTable,
    ReviewTable,
    ScoreFields,
)
from flowblend_cli.recipe.schema.sweep_tables import (
    NO_AXES,
    AxisFields,
    MatrixFields,
    SweepFields,
)
from flowblend_cli.recipe.schema.tables import (
    SETTINGS,
    UNKNOWN,
    AdapterTable,
    BlendTable,
    ModelTable,
    OutputTable,
    PresetFields,
    PresetTable,
    RecipeTable,
    RunTable,
    SamplingTable,
    SceneFields,
    SceneTable,
    StageTable,
    Table,
)
from flowblend_cli.recipe.source.limits import MAX_PROBLEMS
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.utils.suggestions import closest
from flowblend_cli.utils.toml_positions import MAX_SHOWN, KeyPath


@dataclass
class Tables:
    """The tables of a recipe; None where there is nothing sound in one."""

    recipe: RecipeTable | None = None
    run: RunTable | None = None
    model: ModelTable | None = None
    blend: BlendTable | None = None
    sampling: SamplingTable | None = None
    defaults: Any = None
    sweep: SweepFields | None = None
    matrix: MatrixFields | None = None
    output: OutputTable | None = None
    metrics: MetricsTable | None = None
    score: ScoreFields | None = None
    adapt: AdaptTable | None = None
    draft: DraftTable | None = None
    review: ReviewTable | None = None
    presets: dict[str, PresetFields | None] = field(default_factory=dict)
    scenes: list[SceneFields | None] = field(default_factory=list)


# The tables that a recipe has once. That [adapt] may be missing makes its type a union.
_SINGLE: dict[str, type[Table]] = {
    name: info.annotation
    for name, info in RecipeDocument.model_fields.items()
    if isinstance(info.annotation, type)
} | {"adapt": AdaptTable}
_TOP = (*_SINGLE, "presets", "scene", "include")
# What stands for a required key that is broken; no recipe can say it.
STAND_IN = "\0"
_OF_SCENES = ("name", "prompt", "prompts_file", "image", "seeds")
_STAND_INS = {"pipeline": STAND_IN, "name": "unknown", "denoiser": "large"}
_ELSEWHERE = {
    "seed": "seeds of a [[scene]]",
    "num_images_per_prompt": "seeds or repeats of a [[scene]]: one job makes one file",
    "num_videos_per_prompt": "seeds or repeats of a [[scene]]: one job makes one file",
    "timesteps": "num_inference_steps: free timesteps aren't supported",
    "sigmas": "num_inference_steps: free sigmas aren't supported",
    "output_type": "container of [output]",
    "include": 'include = ["base.toml"] before the first table',
}
# Keys of ours that stand for something else in every other program.
_AMONG_OURS = ("steps",)
# How messages call tables that are no tables of the document itself.
_SHOWN_AS = {
    "scene": "[[scene]]",
    "stage": "[[blend.stage]]",
    "adapters": "adapters of a stage",
}
# What other programs call the share of keys that sparse attention keeps.
_SPARSE = ("attention_top_k", "attention_topk", "sla_topk", "sla_top_k")
_NO_SPARSE = "no pipeline of diffusers 0.42.1 has sparse attention with a top-k: leave it out"


def validate(document: dict[str, Any], problems: Problems) -> Tables:
    """Check every table of a document.

    Args:
        document: The parsed recipe, its [sweep] flattened to dotted keys.
        problems: Where everything that is wrong goes.

    Returns:
        The tables that are sound.
    """
    tables = Tables()
    unknown = (key for key in document if key not in _TOP)
    for key in itertools.islice(unknown, MAX_PROBLEMS + 1):
        problems.add((key,), _unknown(key, "", list(_TOP)), at="key")
    for name, model in _SINGLE.items():
        if name == "model" and name not in document:
            if written_as(name, document) == name:
                message = 'is missing: add [model] with pipeline = "sprites"'
                problems.add(("model",), message)
            tables.model = ModelTable(pipeline=STAND_IN).without(ModelTable.model_fields)
            continue
        if name == "adapt" and name not in document:
            continue  # nothing is adapted where nobody asks for it
        setattr(tables, name, _check(model, document.get(name, {}), (name,), problems))
    key = written_as("presets", document)
    presets = document.get(key, {})
    if isinstance(presets, dict):
        for name, value in presets.items():
            path = (key, name)
            tables.presets[name] = _check(PresetTable, value, path, problems)
    else:
        problems.add((key,), f"must be a table, got {show(presets)}")
    _mark_misplaced(document, tables)
    if written_as("scene", document) == "scene":
        tables.scenes = _scenes(document.get("scene"), problems)
    if not any(tables.scenes):  # what all scenes have can be checked nevertheless
        stand_in = SceneTable.model_validate({"name": _STAND_INS["name"]})
        tables.scenes.append(stand_in.without(_OF_SCENES))
    return tables


def written_as(name: str, document: Mapping[str, Any]) -> str:
    """The key that a table stands under: its name, or a mistyped one, which is reported already."""
    keys = itertools.islice(document, MAX_PROBLEMS)
    known = () if name in document else keys
    return next((key for key in known if _meant(key, _TOP) == name), name)


def _scenes(value: Any, problems: Problems) -> list[SceneFields | None]:
    if value is None or value == []:
        problems.add(("scene",), "is missing: add at least one [[scene]] table")
    elif not isinstance(value, list):
        problems.add(("scene",), "must be written with two brackets: [[scene]]", at="key")
    else:
        return [_check(SceneTable, one, ("scene", n), problems) for n, one in enumerate(value)]
    return []


def _check(model: type[Table], value: Any, path: KeyPath, problems: Problems) -> Any:
    """Validate one table; of a broken one, keep what is sound."""
    if path[0] not in _SINGLE and not isinstance(value, dict):
        problems.add(path, f"must be a table, got {show(value)}")
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        _add_errors(errors, model, value, path, problems)
        return _salvage(model, value, errors)


def _salvage(model: type[Table], value: Any, errors: list[ErrorDetails]) -> Any:
    """A table without what is broken of it."""
    stand_ins = {key: _STAND_INS[key] for key in _required(model)}
    if not isinstance(value, dict):
        return model.model_validate(stand_ins).without(_names(model))
    kept = copy.deepcopy(value)
    broken = set(stand_ins) - set(value)
    unknown: dict[str, list[int]] = {}
    for error in errors:
        path = _real_path(error, value) or tuple(error["loc"][:1])
        if path and _is_taken_out(model, error, path, kept, broken):
            continue
        if path[0] in kept and issubclass(model, AxisFields) and len(path) > 1:
            unknown.setdefault(str(path[0]), []).append(int(path[1]))
            continue
        broken.update(str(key) for key in path[:1])
        kept = {key: one for key, one in kept.items() if key not in path[:1]}
    for key, indices in unknown.items():
        entries = [one for n, one in enumerate(kept.pop(key, ())) if n not in indices]
        kept |= {key: entries} if entries else {}
    try:
        made = model.model_validate(stand_ins | kept)
    except ValidationError:  # what is broken shows only when all the rest is sound
        return model.model_validate(stand_ins).without(_names(model))
    return _with_unknown(made, value, unknown, broken).without(broken)


def _is_taken_out(
    model: type[Table], error: ErrorDetails, path: KeyPath, kept: dict[str, Any], broken: set[str]
) -> bool:
    """Take one broken value out of a table where more is known of it than its key."""
    key, names = str(path[0]), _names(model)
    if error["type"] == "extra_forbidden" and len(path) == 1:
        meant = {_meant(key, names), our_name(key)}
        broken |= {name for name in names if name in meant}
        kept.pop(key, None)
    elif issubclass(model, MatrixFields) and key not in names:
        kept[key] = ["?"]  # a variable of prompts
        broken.add(key)
    elif key == "stage" and _drop_of_stage(kept.get(key), path[1:]):
        broken.add("stages")
    else:
        return False
    return True


def _with_unknown(
    made: Any, value: Mapping[str, Any], unknown: Mapping[str, list[int]], broken: set[str]
) -> Any:
    """A table of axes whose broken values are ``UNKNOWN``, each at its place."""
    if not isinstance(made, AxisFields):
        return made
    aliases = {info.alias or name: name for name, info in type(made).model_fields.items()}
    lists: dict[str, Any] = {}
    for axis in [*unknown, *broken]:
        if axis in aliases and axis not in NO_AXES and axis in value:
            rest = iter(getattr(made, aliases[axis]) or ())
            places = range(len(value[axis]) if axis in unknown else 1)
            lists[aliases[axis]] = [
                UNKNOWN if n in unknown.get(axis, [0]) else next(rest, UNKNOWN) for n in places
            ]
    return made.model_copy(update=lists)


def _drop_of_stage(stages: Any, path: KeyPath) -> bool:
    """Take a broken value out of one stage of the long form; tell whether that is possible."""
    if len(path) < 2 or not isinstance(stages, list):
        return False
    stage, key = stages[int(path[0])], path[1]
    stage.pop(key, None)
    if key == "denoiser":
        stage["denoiser"] = _STAND_INS["denoiser"]
        stage.pop("adapters", None)
    return True


def _names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _required(model: type[BaseModel]) -> list[str]:
    return [name for name, info in model.model_fields.items() if info.is_required()]


def _mark_misplaced(document: Mapping[str, Any], tables: Tables) -> None:
    """Mark what stands in a wrong table, and so isn't known in its own."""
    written = {
        **{key: value for key, value in document.items() if key not in _TOP},
        **{k: v for name in _SINGLE for k, v in _unknown_keys(name, document.get(name))},
    }
    for key in written:
        ours = our_name(key) or key
        for name, model in _SINGLE.items():
            table = getattr(tables, name)
            own = model.model_fields if name != "defaults" else SETTINGS
            if ours in own and table is not None and ours not in table.model_fields_set:
                table.without([ours])


def _unknown_keys(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and name not in ("matrix", "sweep", "metrics", "score"):
        known = _names(_SINGLE[name])
        keys = itertools.islice(value.items(), MAX_PROBLEMS)
        yield from ((key, one) for key, one in keys if key not in known)


def _add_errors(
    errors: list[ErrorDetails],
    model: type[BaseModel],
    value: Any,
    prefix: KeyPath,
    problems: Problems,
) -> None:
    """Add one problem for each path: the branches of a union that all failed are one problem."""
    merged: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        merged.setdefault(prefix + _real_path(error, value), []).append(error)
    mistyped = {
        _meant(str(path[-1]), _table_around(path, model)[1])
        for path, group in merged.items()
        if group[0]["type"] == "extra_forbidden" and len(merged) <= MAX_PROBLEMS
    }
    for path, group in itertools.islice(merged.items(), MAX_PROBLEMS + 1):
        # The branch of a union that went deeper is the one that was meant.
        if any(len(other) > len(path) and other[: len(path)] == path for other in merged):
            continue
        kind = group[0]["type"]
        if kind == "extra_forbidden":
            table, known = _table_around(path, model)
            problems.add(path, _unknown(str(path[-1]), table, known), at="key")
        elif kind == "missing" and path[-1] in mistyped:
            continue  # the key that was meant is reported already
        elif kind == "missing":
            problems.add(path, "is missing", at="key")
        else:
            problems.add(path, explain(*group))


def _real_path(error: ErrorDetails, value: Any) -> KeyPath:
    """The part of pydantic's location that is in the document: unions add tags of their own."""
    path: list[str | int] = []
    for part in error["loc"]:
        is_key = isinstance(value, dict) and part in value
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            value = value[part]
            path.append(part)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _table_around(path: KeyPath, model: type[BaseModel]) -> tuple[str, list[str]]:
    """Name and keys of the table that holds an unknown key."""
    if path[:2] in (("blend", "stage"), *((each, "blend.stage") for each in ("sweep", "matrix"))):
        if "adapters" in path:
            return "adapters", list(AdapterTable.model_fields)
        return "stage", list(StageTable.model_fields)
    known = [info.alias or name for name, info in model.model_fields.items()]
    return str(path[0]), known


def _meant(key: str, known: Sequence[str]) -> str | None:
    """The known key that a mistyped one is nearest to."""
    if key in known:
        return None
    swapped = [each for each in known if sorted(each) == sorted(key[:MAX_SHOWN])]
    return swapped[0] if swapped else closest(key[:MAX_SHOWN], known, cutoff=0.65)


def mistyped(table: Any, model: type[BaseModel]) -> set[str]:
    """The keys that unknown ones were meant to be, which aren't reported as missing as well."""
    known = [info.alias or name for name, info in model.model_fields.items()]
    keys = itertools.islice(table, MAX_PROBLEMS) if isinstance(table, dict) else ()
    return {meant for key in keys if (meant := _meant(key, known)) is not None}


def _unknown(key: str, table: str, known: list[str]) -> str:
    where = f" in {_SHOWN_AS.get(table, f'[{table}]')}" if table else ""
    meant = "seeds" if table == "scene" and key == "seed" else _meant(key, known)
    if key in _SPARSE:
        return f"unknown key{where}; {_NO_SPARSE}"
    ours = our_name(key)
    if key in _ELSEWHERE and meant != "seeds":
        return f"unknown key{where}; use {_ELSEWHERE[key]}"
    is_ours = key in _AMONG_OURS or not (table and _owners(key))
    if ours is not None and is_ours and meant != "seeds" and not _differs_in_case(key, meant):
        if ours.startswith("here "):
            return f"unknown key{where}; {ours}: leave it out"
        if ours in known:
            return f"unknown key{where}; it is called {ours} here"
        owners = _owners(ours)
        return f"unknown key{where}; use {f'{ours} in {owners}' if owners else ours}"
    owners = _owners(key)
    if owners and table:
        return f"unknown key{where}; {key} belongs in {owners}"
    if meant:
        return f"unknown key{where}; did you mean {meant!r}?"
    if owners:
        return f"unknown key{where}; use {owners}"
    if len(known) <= 12 or table in ("", "score"):
        return f"unknown key{where}; known keys are {', '.join(known)}"
    return f"unknown key{where}; no pipeline that flowblend knows takes it"


def _differs_in_case(key: str, meant: str | None) -> bool:
    """Whether a key of this very table was written with other letters or hyphens."""
    return meant is not None and key.casefold().replace("-", "_") == meant


def _owners(key: str) -> str:
    """The tables that do have a key, in words; empty if none has."""
    if key in SETTINGS:
        return "[defaults], [[scene]] or [presets.NAME]"
    tables: dict[str, type[BaseModel]] = {
        **_SINGLE,
        "[scene]": SceneTable,
        "[blend.stage]": StageTable,
    }
    return " or ".join(
        f"[{name}]"
        for name, model in tables.items()
        if name not in ("defaults", "sweep", "matrix", "score") and key in model.model_fields
    )
