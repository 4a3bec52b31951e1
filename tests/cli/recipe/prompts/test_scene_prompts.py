from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.recipe.prompts.syntax import parse_template


def expand_prompt(text: str) -> list[str]:
    return [prompt.text for prompt in parse_template(text).prompts()]


def count_prompts(text: str) -> int:
    return parse_template(text).count


def test_alternatives_are_enumerated_with_the_leftmost_slowest() -> None:
    assert expand_prompt("{a|b} {1|2}") == ["a 1", "a 2", "b 1", "b 2"]


def test_an_alternative_may_be_empty_and_double_braces_are_literal() -> None:
    assert expand_prompt("a {big |}ball {{x|y}} a|b") == [
        "a big ball {x|y} a|b",
        "a ball {x|y} a|b",
    ]


@pytest.mark.parametrize(
    "template", ["{", "}", "{a", "a}", "{a|{b|c}", "{a}", "{}", "{seed.__class__}", "${a.b}"]
)
def test_braces_that_are_no_alternatives_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"brace|alternatives"):
        expand_prompt(template)


@settings(max_examples=60)
@given(st.text())
def test_any_text_can_be_written_with_doubled_braces(text: str) -> None:
    assert expand_prompt(text.replace("{", "{{").replace("}", "}}")) == [text]


@settings(max_examples=60)
@given(st.lists(st.lists(st.text("ab ", max_size=3), min_size=2, max_size=3), max_size=3))
def test_the_count_is_the_number_of_prompts(groups: list[list[str]]) -> None:
    template = "-".join("{" + "|".join(group) + "}" for group in groups)

    assert count_prompts(template) == len(expand_prompt(template))
