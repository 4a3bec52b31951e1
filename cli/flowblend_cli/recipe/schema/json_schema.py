"""JSON Schema of recipes, for editors and ``--set``, made of one pydantic model of a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, cast

from pydantic import Field

from flowblend_cli.recipe.schema.fields import Text
from flowblend_cli.recipe.schema.study_tables import (
    AdaptTable,
    DraftTable,
    MetricsTable,
    ReviewTable,
    ScoreTable,
)
from flowblend_cli.recipe.schema.sweep_tables import NO_AXES, MatrixTable, SweepTable
from flowblend_cli.recipe.schema.tables import (
    BlendTable,
    DefaultsTable,
    ModelTable,
    OutputTable,
    PresetTable,
    RecipeTable,
    RunTable,
    SamplingTable,
    SceneTable,
    Table,
)
from flowblend_cli.utils.toml_positions import KeyPath


class RecipeDocument(Table):
    """A flowblend recipe."""

    include: list[Text] = Field(default_factory=list)
    """Files in the recipe's folder that this one is merged over."""
    recipe: RecipeTable = RecipeTable()
    model: ModelTable
    blend: BlendTable = BlendTable()
    sampling: SamplingTable = SamplingTable()
    defaults: DefaultsTable = DefaultsTable()  # type: ignore[valid-type]
    presets: dict[str, PresetTable] = Field(default_factory=dict)  # type: ignore[valid-type]
    scene: Annotated[list[SceneTable], Field(min_length=1)]  # type: ignore[valid-type]
    sweep: SweepTable = SweepTable()  # type: ignore[valid-type]
    matrix: MatrixTable = MatrixTable()  # type: ignore[valid-type]
    output: OutputTable = OutputTable()
    metrics: MetricsTable = MetricsTable()
    score: ScoreTable = ScoreTable()  # type: ignore[valid-type]
    adapt: AdaptTable | None = None
    draft: DraftTable = DraftTable()
    review: ReviewTable = ReviewTable()
    run: RunTable = RunTable()


# Tables with required keys, which an include may bring.
_MERGED = ("Model", "Scene")
SCHEMA_TITLE = "flowblend recipe"


@cache
def json_schema() -> dict[str, Any]:
    """The JSON Schema of recipes, for editors and other checkers; one object, not to be changed."""
    schema = cast("dict[str, Any]", _without_null(RecipeDocument.model_json_schema(by_alias=True)))
    # What is included may hold the tables and keys that a recipe has to have.
    alone = {"required": schema.pop("required"), "properties": _required_keys(schema["$defs"])}
    for name in ("SweepTable", "MatrixTable"):
        _nest_axes(name, schema["$defs"][name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": SCHEMA_TITLE,
        "anyOf": [alone, {"required": ["include"]}],
    }


def schema_text() -> str:
    """The JSON Schema as it is printed, and written beside recipes."""
    return json.dumps(json_schema(), indent=2) + "\n"


def kinds_at(path: KeyPath) -> frozenset[str]:
    """The JSON types that a place of a recipe may hold, text of a given pattern not counted.

    Args:
        path: Keys and indices from the top, those of [sweep] dotted.
    """
    nodes = [json_schema()]
    for part in path:
        nodes = [inner for node in nodes for inner in _below(node, part)]
        nodes = [branch for node in nodes for branch in _branches(node)]
    return frozenset(
        str(node["type"]) for node in nodes if "type" in node and "pattern" not in node
    )


def _required_keys(definitions: dict[str, Any]) -> dict[str, Any]:
    """Take from [model] and [[scene]] what they must have, as properties of the recipe itself."""
    model, scene = ({"required": definitions[f"{t}Table"].pop("required")} for t in _MERGED)
    scene["anyOf"] = [{"required": ["prompt"]}, {"required": ["prompts_file"]}]
    return {"model": model, "scene": {"items": scene}}


def _nest_axes(name: str, sweep: dict[str, Any]) -> None:
    """Let ``"blend.stages"`` be written as ``[sweep.blend] stages`` too, and ``defaults.`` left."""
    tables: dict[str, dict[str, Any]] = {"defaults": {}}
    for axis in sweep["properties"]:
        table, _, key = axis.rpartition(".")
        if axis not in NO_AXES:
            pointer = {"$ref": f"#/$defs/{name}/properties/{axis}"}
            tables.setdefault(table or "defaults", {})[key] = pointer
    for table, keys in tables.items():
        nested = {"type": "object", "properties": keys, "additionalProperties": False}
        sweep["properties"][table] = nested
    sweep["patternProperties"] = {r"^defaults\.": {}}


def _below(node: dict[str, Any], part: str | int) -> Iterator[dict[str, Any]]:
    """What a key or an index of a schema may hold."""
    if isinstance(part, int):
        inner = node.get("items")
    else:
        inner = node.get("properties", {}).get(part) or node.get("additionalProperties")
    if isinstance(inner, dict):
        yield inner


def _branches(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema without its references and unions."""
    if "$ref" in node:
        target = json_schema()
        for part in node["$ref"].split("/")[1:]:
            target = target[part]
        yield from _branches(target)
    elif "anyOf" in node:
        for option in node["anyOf"]:
            yield from _branches(option)
    else:
        yield node


def _without_null(node: Any) -> Any:
    """Drop the null that stands for a key left out: TOML has no null."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {k: _without_null(v) for k, v in node.items() if not (k == "default" and v is None)}
    options = node.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options:
        kept = [option for option in options if option != {"type": "null"}]
        del node["anyOf"]
        node = {**node, **kept[0]} if len(kept) == 1 else {**node, "anyOf": kept}
    return node
