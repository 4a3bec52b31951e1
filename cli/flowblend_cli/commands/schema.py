"""``flowblend schema``: the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json

import click

from flowblend_cli.recipe.document import json_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes.

    \b
    Example:
      flowblend schema > recipe.schema.json
    """
    click.echo(json.dumps(json_schema(), indent=2))
