"""``flowblend plan``: each job and who runs which step, before anything is loaded."""

from __future__ import annotations

import json

import click

from flowblend_cli.plan import Plan, plan_batch, summarize
from flowblend_cli.recipe.expansion import expand
from flowblend_cli.recipe.loader import load_recipe
from flowblend_cli.text import count, printable, shorten


@click.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show each job of RECIPE and who runs which step, without loading a model.

    RECIPE is a .toml file or the name of a bundled recipe.

    \b
    Examples:
      flowblend plan quickstart
      flowblend plan recipe.toml --set defaults.num_inference_steps=12
    """
    planned = plan_batch(expand(load_recipe(recipe, overrides)))
    for warning in planned.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    if as_json:
        click.echo(json.dumps(planned.to_document()))
    else:
        _print(planned)


def _print(planned: Plan) -> None:
    batch = planned.batch
    click.echo(f"{printable(batch.recipe_name)} -> {printable(batch.output_dir)}")
    for entry in planned.jobs:
        click.echo(f"  {printable(entry.job.id)}")
        click.echo(f"    {shorten(entry.job.prompt, 96)}")
        click.echo(f"    {entry.steps}")
    totals = planned.totals()
    click.echo(f"{count(totals['jobs'], 'job')}, {summarize(totals)}")
