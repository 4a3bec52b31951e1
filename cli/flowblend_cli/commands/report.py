"""``flowblend report``: compares the finished files of a folder in sentences, JSON and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowblend_cli.commands._options import TakesManyFiles, output_folder
from flowblend_cli.errors import UsageError
from flowblend_cli.text import printable

if TYPE_CHECKING:
    from flowblend_cli.analysis.compare.findings import Report


@click.command(cls=TakesManyFiles)
@output_folder
@click.option("--promote", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.toml",
              help="Write a recipe with the winning seed and settings fixed.")  # fmt: skip
@click.option("--reviews", multiple=True, metavar="FILE...", type=click.Path(path_type=Path),
              help="Join raters' files, which the page of `flowblend review` saved.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of sentences.")
def report(folder: Path, promote: Path | None, reviews: tuple[Path, ...], as_json: bool) -> None:
    """Compare the finished clips in DIR: which settings win, at what price, how surely.

    Writes DIR/report.html, one page to look at, and DIR/report.json, and prints the verdict.
    What wasn't measured while rendering is measured now, of the files.

    \b
    Examples:
      flowblend report out/step-study
      flowblend report out/step-study --promote next.toml
      flowblend report out/step-study --reviews review-*.json

    Exit codes: 0 done, 2 nothing to report, or bad usage, 4 disk.
    """
    from flowblend_cli.analysis.report.write import draw_up, has_reviews, sentences, write

    drawn = draw_up(folder, reviews)
    if not reviews and has_reviews(folder):
        click.echo("note: the last report had reviews: name them again with --reviews", err=True)
    recipe = _promoted(drawn.found, promote) if promote is not None else None
    write(drawn, folder)
    if recipe is not None and promote is not None:
        from flowblend_cli.commands._new_file import write_new

        write_new(promote, recipe)
    if as_json:
        click.echo(json.dumps(drawn.document, allow_nan=False))
        return
    for line in sentences(drawn, folder):
        click.echo(line)
    for warning in drawn.found.folder.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    if promote is not None:
        click.echo(f"wrote {printable(promote)}")


def _promoted(found: Report, out: Path) -> str:
    from flowblend_cli.analysis.report.promoted_recipe import promoted

    if out.exists():
        raise UsageError(f"{out} exists already and isn't overwritten: name another file")
    return promoted(found, out)
