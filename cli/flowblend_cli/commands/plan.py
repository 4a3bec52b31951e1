"""``flowblend plan``: each job and who runs which step, before anything is loaded."""

from __future__ import annotations

import json

import click

from flowblend_cli.jobs import Batch
from flowblend_cli.plan import Plan, plan_batch, summarize
from flowblend_cli.recipe.loader import load_batch
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
    show_plan(load_batch(recipe, overrides), as_json=as_json)


def show_plan(batch: Batch, *, as_json: bool) -> None:
    """Print a batch's plan on stdout and its warnings on stderr."""
    planned = plan_batch(batch)
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
