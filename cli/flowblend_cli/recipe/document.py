"""A whole recipe as one pydantic model, and the JSON Schema that is made of it."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import Field

from flowblend_cli.recipe.schema import (
    BlendTable,
    DefaultsTable,
    ModelTable,
    OutputTable,
    PresetTable,
    RecipeTable,
    SamplingTable,
    SceneTable,
    Table,
)
from flowblend_cli.recipe.study_schema import (
    AdaptTable,
    DraftTable,
    MetricsTable,
    ReviewTable,
    ScoreTable,
)
from flowblend_cli.recipe.sweep_schema import MatrixTable, SweepTable


class RecipeDocument(Table):
    """A flowblend recipe."""

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


def json_schema() -> dict[str, Any]:
    """The JSON Schema of recipes, for editors and other checkers."""
    schema = cast("dict[str, Any]", _without_null(RecipeDocument.model_json_schema(by_alias=True)))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "flowblend recipe",
    }


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
