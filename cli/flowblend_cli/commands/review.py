"""``flowblend review``: writes a page on which people score clips that have no names."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flowblend_cli.commands._next_steps import say_next
from flowblend_cli.commands._options import output_folder
from flowblend_cli.text import count, printable


@click.command()
@output_folder
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the shuffle.")  # fmt: skip
@click.option("--criterion", "criteria", multiple=True, metavar="NAME",
              help="Ask this, instead of what the recipe says; may be given several times.",
              )  # fmt: skip
@click.option("--scene", "scenes", multiple=True, metavar="NAME",
              help="Show only this scene; may be given several times.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def review(
    folder: Path,
    seed: int,
    criteria: tuple[str, ...],
    scenes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a blind review of the clips in DIR: DIR/review/index.html.

    The page shows the variants of each scene side by side under letters, in an order drawn by the
    seed, and asks for scores from 0 to 10. Give DIR/review to each rater; each sends back the file
    that the page saves.

    \b
    flowblend review out/paper-ablation
    flowblend report out/paper-ablation --reviews review-*.json

    Exit codes: 0 done, 2 nothing to review, or bad usage, 4 disk.
    """
    from flowblend_cli.analysis.review.folder import write_review

    written = write_review(
        folder, seed=seed, criteria=tuple(dict.fromkeys(criteria)), scenes=scenes
    )
    arrangement = written.arrangement
    if as_json:
        document = {
            "v": 1,
            "review": arrangement.id,
            "page": str(written.page.absolute()),
            "key": str(written.key.absolute()),
            "sets": len(arrangement.sets),
            "clips": len(arrangement.items),
            "warnings": list(written.warnings),
        }
        click.echo(json.dumps(document))
        return
    for warning in written.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    click.echo(
        f"review {arrangement.id}: {count(len(arrangement.items), 'clip')} in "
        f"{count(len(arrangement.sets), 'set')}: {printable(written.page)}"
    )
    click.echo(f"the key stays here: {printable(written.key)}")
    click.echo(f"give {printable(written.page.parent)} to each rater, and read what they save:")
    # The shell is to spread the pattern, so it isn't quoted.
    say_next(["report", folder, "--reviews"], after=f"review-{arrangement.id}-*.json")
