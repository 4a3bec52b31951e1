from __future__ import annotations

from pathlib import Path

import pytest

from flowblend_cli.errors import RecipeError
from flowblend_cli.recipe.source.document import RecipeSource, read_source
from flowblend_cli.recipe.source.limits import MAX_PROBLEMS
from flowblend_cli.recipe.source.problems import Problems


@pytest.fixture
def source(tmp_path: Path) -> RecipeSource:
    path = tmp_path / "recipe.toml"
    path.write_text('[model]\npipeline = "sprites"\n')
    return read_source(path)


def lines(source: RecipeSource, problems: Problems) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        source.fail(problems)
    return [str(problem).removeprefix(f"{source.path}:") for problem in caught.value.problems]


def test_no_problem_is_false_and_raises_nothing(source: RecipeSource) -> None:
    problems = Problems()

    source.fail(problems)

    assert not problems


def test_a_problem_is_shown_at_its_value_or_at_its_key(source: RecipeSource) -> None:
    problems = Problems()
    problems.add(("model", "pipeline"), "is odd")
    problems.add(("model", "pipeline"), "is unknown", at="key")
    problems.add(("model", "small"), "is missing")

    assert lines(source, problems) == [
        "1:1: model.small: is missing",
        "2:1: model.pipeline: is unknown",
        "2:12: model.pipeline: is odd",
    ]


def test_a_problem_that_is_found_again_is_kept_once(source: RecipeSource) -> None:
    problems, others = Problems(), Problems()
    problems.add(("model",), "is odd")
    others.add(("model",), "is odd")
    others.add(("model",), "is even")
    problems.extend(others)
    problems.extend(others)

    assert len(problems) == 2
    assert len(lines(source, problems)) == 2


def test_a_problem_names_the_option_that_its_tables_come_from(source: RecipeSource) -> None:
    source.options["blend", "stages"] = 'blend.stages="LSL"'
    problems = Problems()
    problems.add(("model", "pipeline"), "is odd", related=("blend",))

    assert lines(source, problems) == ['2:12: --set blend.stages="LSL": model.pipeline: is odd']


def test_of_very_many_problems_the_first_are_shown(source: RecipeSource) -> None:
    problems = Problems()
    for number in range(MAX_PROBLEMS + 1):
        problems.add(("model",), f"is odd {number}")

    assert len(lines(source, problems)) == MAX_PROBLEMS + 1  # the last says that there are more
