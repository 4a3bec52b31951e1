"""What the tests of recipes share: writing one, and reading its problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from three_slots import ThreeSlots

from flowblend_cli.engine.executors.base import Executor
from flowblend_cli.engine.executors.factory import make_executor
from flowblend_cli.errors import RecipeError
from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.loader import load_batch

MINIMAL = """\
[recipe]
name = "harbour"

[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = 10

[[scene]]
name = "square"
prompt = "a red square moving left on a navy background"
seeds = [1]
"""

LoadText = Callable[..., Batch]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str = MINIMAL) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def minimal() -> str:
    return MINIMAL


@pytest.fixture
def batch_of(recipe_file: Callable[[str], Path]) -> LoadText:
    """Load a recipe's text with ``--set`` options."""

    def load(text: str = MINIMAL, *overrides: str) -> Batch:
        return load_batch(recipe_file(text), overrides)

    return load


@pytest.fixture
def problems_of(batch_of: LoadText) -> Callable[..., list[str]]:
    """The problems of a recipe's text, as printed, without the folder in front."""

    def load(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            batch_of(text, *overrides)
        return [
            line[line.index("recipe.toml") :] if "recipe.toml" in line else line
            for line in str(caught.value).splitlines()
        ]

    return load


@pytest.fixture(params=["one slot", pytest.param("three slots", marks=pytest.mark.night)])
def any_executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Render as usual, and by an executor that answers out of order, late, and twice."""
    if request.param == "three slots":

        def three_slots(*given: Any) -> Executor:
            return ThreeSlots(make_executor(*given))

        monkeypatch.setattr("flowblend_cli.engine.batch_run.make_executor", three_slots)
    return str(request.param)
