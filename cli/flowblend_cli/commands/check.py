"""``flowblend check``: finds every problem of one or more recipes, without rendering."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import click

from flowblend_cli.errors import RecipeError
from flowblend_cli.planning.plan import explain_reserve, explain_steps
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.text import count, printable

# A warning that names its file, line and column by itself.
_PLACE = re.compile(r"[^\n]*?\.toml:\d+:\d+: ")


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Find every problem in each RECIPE; exit with 0 if there is none, else with 2.

    RECIPE is a .toml file or the name of a bundled recipe.

    \b
    Examples:
      flowblend check quickstart
      flowblend check recipes/*.toml
    """
    reports = [_check(recipe, overrides, as_json) for recipe in recipes]
    if as_json:
        click.echo(json.dumps({"v": 1, "recipes": [report for report, _ in reports]}))
    for report, lines in reports:
        for warning in report["warnings"]:
            place = "" if _PLACE.match(warning) else f"{report['path']}: "
            click.echo(f"warning: {printable(place + warning)}", err=True)
        if report["ok"] and not as_json:
            click.echo(f"OK {printable(report['path'])}: {count(report['jobs'], 'job')}")
        for line in lines:
            if not (report["ok"] and as_json):
                click.echo(line, err=not report["ok"])
    return 0 if all(report["ok"] for report, _ in reports) else 2


def _check(
    recipe: str, overrides: tuple[str, ...], as_json: bool
) -> tuple[dict[str, Any], list[str]]:
    """Check one recipe: its part of the JSON object, and lines with problems or explanations."""
    report: dict[str, Any] = {"path": recipe, "ok": True, "jobs": 0, "warnings": [], "problems": []}
    try:
        batch = load_batch(recipe, overrides, with_models=True)
    except RecipeError as error:
        problems = [asdict(problem) for problem in error.problems]
        report |= {"ok": False, "warnings": list(error.warnings), "problems": problems}
        return report, [str(p) for p in error.problems]
    explanations = [*explain_steps(batch.study.choices), explain_reserve(batch)]
    return {
        **report,
        "jobs": len(batch.jobs),
        "warnings": list(batch.warnings),
        "steps": [asdict(choice) for choice in batch.study.choices] if as_json else [],
    }, [f"  {line}" for line in explanations if line is not None]
