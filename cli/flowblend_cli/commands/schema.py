"""``flowblend schema``: prints the JSON Schema of recipes, for editors."""

from __future__ import annotations

import click

from flowblend_cli.recipe.schema.json_schema import schema_text


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes.

    \b
    Example:
      flowblend schema > recipe.schema.json
    """
    click.echo(schema_text(), nl=False)
