"""``flowblend plan``: each job and who runs which step, before anything is loaded."""

from __future__ import annotations

import json
import sys

import click

from flowblend_cli.jobs import Batch
from flowblend_cli.planning.flops import CONVENTIONS, Cost, cost_plan, in_words, sum_up
from flowblend_cli.planning.plan import Plan, explain_steps, may_follow, plan_batch, summarize
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.text import count, printable, shorten


@click.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Say what each job costs, too.")
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Show each job of RECIPE, who runs which step, and the FLOPs, without loading a model.

    RECIPE is a .toml file or the name of a bundled recipe.

    \b
    Examples:
      flowblend plan quickstart
      flowblend plan recipe.toml --set defaults.num_inference_steps=12
    """
    show_plan(load_batch(recipe, overrides, with_models=True), as_json=as_json, verbose=verbose)


def show_plan(batch: Batch, *, as_json: bool, verbose: bool = False) -> None:
    """Print a batch's plan on stdout and its warnings on stderr."""
    planned = plan_batch(batch)
    for warning in planned.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    costs = cost_plan(planned, _say_counting if sys.stderr.isatty() else None)
    if as_json:
        _print_json(planned, costs)
    else:
        _print(planned, costs, verbose)


def _print_json(planned: Plan, costs: list[Cost]) -> None:
    """One object, written job by job, so that a large plan is nowhere in memory as a whole."""
    known = {id(cost): cost.to_document() for cost in {id(cost): cost for cost in costs}.values()}
    click.echo(json.dumps(planned.opening()).removesuffix("}") + ', "jobs": [', nl=False)
    for number, (job, cost) in enumerate(zip(planned.jobs, costs, strict=True)):
        comma = ", " if number else ""
        click.echo(comma + json.dumps(job.to_document() | known[id(cost)]), nl=False)
    closing = {**planned.closing(), "flops": sum_up(costs)}
    click.echo("], " + json.dumps(closing).removeprefix("{"))


def _print(planned: Plan, costs: list[Cost], verbose: bool) -> None:
    batch = planned.batch
    click.echo(f"{printable(batch.recipe_name)} -> {printable(batch.output_dir)}")
    for entry, cost in zip(planned.jobs, costs, strict=True):
        click.echo(f"  {printable(entry.job.id)}")
        click.echo(f"    {shorten(entry.job.prompt, 96)}")
        click.echo(f"    {entry.steps}")
        if verbose:
            _print_costs([cost], indent="    ")
    for line in explain_steps(batch.study.choices):
        click.echo(line)
    _print_costs(costs)
    totals = planned.totals()
    click.echo(f"{count(totals['jobs'], 'job')}, {summarize(totals)}")
    for line in may_follow(batch):
        click.echo(printable(line))


def _print_costs(costs: list[Cost], indent: str = "") -> None:
    """Both conventions in words, and a line for each reason why a figure isn't the whole one."""
    summed = sum_up(costs)
    unknown = sum(not cost.counts for cost in costs)
    left_out = f" ({count(unknown, 'job')} not counted)" if unknown else ""
    if summed is not None:
        for name in CONVENTIONS:
            words = in_words(summed[name], summed[f"all_large_{name}"])
            click.echo(f"{indent}{name} FLOPs: {words}{left_out}")
    prefix = "no FLOPs: " if summed is None else ""
    for note in dict.fromkeys(cost.note for cost in costs if cost.note):
        click.echo(f"{indent}{prefix}{printable(note)}")


def _say_counting(forwards: int) -> None:
    what = "one forward" if forwards == 1 else f"{forwards} forwards"
    click.echo(f"counting the FLOPs of {what}, once for this shape...", err=True)
