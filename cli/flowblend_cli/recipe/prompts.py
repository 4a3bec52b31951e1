"""Prompt alternatives: ``"a {red|blue} ball"`` stands for two prompts, in that order."""

from __future__ import annotations

from flowblend_cli.recipe.templates import parse_template


def count_prompts(template: str) -> int:
    """How many prompts a template without wildcards stands for, without making them.

    Raises:
        ValueError: See ``parse_template``.
    """
    return parse_template(template).count


def expand_prompt(template: str) -> list[str]:
    """Every prompt that a template without wildcards stands for.

    Raises:
        ValueError: See ``parse_template``.
    """
    return [prompt.text for prompt in parse_template(template).prompts()]
